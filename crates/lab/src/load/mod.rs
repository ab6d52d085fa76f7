//! `floret-lab load`: thousands of devices against one server, with things going wrong by seed.
//!
//! The server is a process of its own. The devices are the client's own code (driver, session,
//! connection, mutual TLS) in this process, over links that can be slow, cut or damaged, and with a
//! trainer that costs next to nothing.
//!
//! # Layout
//!
//! - `stage`, `base`, `server`: a base model, a server's directory, enrolled devices, the process
//! - `fleet`, `device`, `trainer`: what devices share, and one device through all its lives
//! - `mishap`, `link`, `pace`: what goes wrong, and the socket to which it happens
//! - `tally`, `report`: what is counted and told

mod base;
mod device;
mod fleet;
mod link;
mod mishap;
mod pace;
mod report;
mod server;
mod stage;
mod tally;
mod trainer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use floret_client::ClientConfig;
use floret_core::payload::Compression;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::usage::{self, Usage};
use base::Base;
use device::LoadDevice;
use fleet::Fleet;
use mishap::Chances;
use report::{Ending, Report};
use server::Server;
use stage::Stage;

/// How often the server's process is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long devices have to end once the server has ended.
const HOME: Duration = Duration::from_secs(3);
/// Threads that drive the devices: the server needs processors too.
const WORKERS: usize = 2;

/// Arguments of `floret-lab load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Devices, all connected at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Updates wanted in a round; all devices' by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cohort: Option<u32>,
    /// Rounds to commit.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Values of the adapter, about: 262144 are 1 MiB.
    #[arg(long, default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1920..=67_000_000))]
    parameters: u32,
    /// How devices encode updates: none (f32), int8, bits1 to bits4, bits1/2 or sparse5%.
    #[arg(long, default_value = "none")]
    compression: Compression,
    /// How the adapter's steps are encoded for devices that hold the version before: as above.
    #[arg(long, default_value = "none")]
    download_compression: Compression,
    /// The same seed draws the same mishaps.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..1 << 63))]
    seed: u64,
    /// Probability that an assigned device vanishes; it comes back on a new connection.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    drop_out: f32,
    /// Probability, after each call, that a device loses its connection.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    churn: f32,
    /// Probability that a device has a slow link.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    slow: f32,
    /// What a slow link carries in each direction, in bytes a second.
    #[arg(long, value_name = "BYTES/S", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1024..))]
    slow_rate: u32,
    /// Probability that a report is cut on the way, damaged on the way, or sent twice.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    faults: f32,
    /// Adapters and updates that the server lets be in flight at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    transfers: u32,
    /// Seconds that the run may take.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    timeout_s: u64,
    /// The server's program; by default floret-server beside this one.
    #[arg(long, value_name = "PATH")]
    server_bin: Option<PathBuf>,
    /// A new folder for the server's and the devices' files, which stays; else a temporary one.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("use a number from 0 to 1".to_owned()),
    }
}

impl Args {
    fn cohort(&self) -> u32 {
        self.cohort.unwrap_or(self.devices)
    }

    fn chances(&self) -> Chances {
        let Self { drop_out, churn, slow, faults, .. } = *self;
        Chances { drop_out, churn, slow, faults }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.cohort() <= args.devices, "--cohort is more than --devices: add devices");
    let base = Base::with_parameters(args.parameters)?;
    let stage = Stage::set(args, &base)?;
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(WORKERS).enable_all().build();
    let runtime = runtime.context("cannot start threads")?;
    let report = runtime.block_on(load(args, &base, &stage))?;
    say(&report.text(args.json)?);
    report.verdict()
}

async fn load(args: &Args, base: &Base, stage: &Stage) -> Result<Report> {
    let mut server = stage.serve()?;
    let fleet = Arc::new(Fleet::new(args, base, stage.address, server.pid())?);
    let configs = stage.names.iter().map(|name| ClientConfig::read(&stage.client_toml(name)));
    let configs = configs.collect::<Result<Vec<_>, _>>()?;
    let mut devices = JoinSet::new();
    for config in configs {
        devices.spawn(Arc::new(LoadDevice::new(Arc::clone(&fleet), config)?).live());
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout_s);
    let (completed, usage) = watch(&mut server, fleet.moments.start.server, deadline).await?;
    let home = async { while devices.join_next().await.is_some() {} };
    fleet.moments.end();
    // After the end, only devices that were not told of it are still there.
    let _ = timeout(if completed { HOME } else { Duration::ZERO }, home).await;
    fleet.stop.cancel();
    fleet.repeats.close();
    let _ = timeout(HOME, fleet.repeats.wait()).await;
    drop(server);
    let ending = Ending {
        completed,
        totals: stage.totals()?,
        server: usage,
        synced_write_mib_per_s: usage::synced_write_rate(stage.root())?,
    };
    Ok(Report::new(args, base.parameters, &fleet, ending))
}

/// Waits until the server has ended, or until the deadline: whether every round was committed, and
/// the last that was seen of its process.
async fn watch(server: &mut Server, start: Usage, deadline: Instant) -> Result<(bool, Usage)> {
    let mut usage = start;
    loop {
        if let Some(status) = server.ended()? {
            return Ok((status.success(), usage));
        }
        // It may end between these lines.
        usage = server.usage().unwrap_or(usage);
        if Instant::now() >= deadline {
            return Ok((false, usage));
        }
        sleep(LOOK).await;
    }
}

#[allow(clippy::print_stdout, reason = "the result of the command")]
fn say(line: &str) {
    println!("{line}");
}
