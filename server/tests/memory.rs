//! The memory of a server does not grow with the updates of its cohort. The example
//! `server_memory` measures it more finely.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

mod support;

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use support::*;
use tokio::sync::Barrier;

/// Ends the program with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn peak_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

fn start(site: &Site, cohort: usize, address: SocketAddr) -> Program {
    let mut config = site.config.clone();
    (config.cohort.size, config.cohort.quorum) = (cohort as u32, cohort as u32);
    config.server.listen = address;
    config.server.admin = "127.0.0.1:0".parse().unwrap();
    config.timing.report_deadline_s = 120.0;
    config.run.rounds = 4;
    std::fs::write(site.home.config(), toml::to_string(&config).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_floret-server"));
    command.args(["serve", "--config"]).arg(site.home.dir()).env("FLORET_LOG", "warn");
    Program(command.spawn().unwrap())
}

/// Peak resident memory, in KiB, of a server whose whole cohort fetches and reports at once.
async fn peak(cohort: usize) -> f64 {
    let site = Site::new(8192);
    assert_eq!(site.layout().len(), 1 << 20);
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let program = start(&site, cohort, address);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let payload: Arc<[u8]> = site.payload(1e-3).into();
    let together = Arc::new(Barrier::new(cohort));
    let mut devices = Vec::new();
    for index in 0..cohort {
        let identity = site.identity(&format!("d{index}"));
        let client = connect(address, &site.ca(), Some(identity)).await.unwrap();
        devices.push(tokio::spawn(device(client, Arc::clone(&payload), Arc::clone(&together))));
    }
    for device in devices {
        device.await.unwrap();
    }
    program.peak_kib()
}

async fn device(mut client: Client, payload: Arc<[u8]>, together: Arc<Barrier>) {
    while let Some(plan) = work(&mut client).await {
        together.wait().await;
        fetch(&mut client, plan.version.0).await.unwrap();
        together.wait().await;
        send(&mut client, chunks(plan.round.0, &payload)).await.unwrap();
    }
}

/// 60 devices more may cost connections, and no payloads: those have 4 MiB each.
#[tokio::test(flavor = "multi_thread")]
async fn a_cohort_of_64_takes_the_memory_of_a_cohort_of_4() {
    let small = peak(4).await;
    let large = peak(64).await;
    let each = (large - small) / 60.0;
    eprintln!("peak resident memory: {small} KiB with 4 devices, {large} KiB with 64");
    assert!(each < 1024.0, "{each} KiB for each device more: {small} KiB, then {large} KiB");
}
