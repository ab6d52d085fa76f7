//! What a load test needs on disk: a base model, a server's directory, and enrolled devices.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::Args;
use super::base::Base;
use super::server::{self, Server};
use crate::usage;

/// Check-ins a second that waiting devices may cause together.
const CHECK_INS_PER_S: f64 = 1000.0;

/// A prepared folder.
#[derive(Debug)]
pub(super) struct Stage {
    program: PathBuf,
    root: PathBuf,
    /// Where devices connect.
    pub(super) address: SocketAddr,
    admin: SocketAddr,
    /// Names of the devices.
    pub(super) names: Vec<String>,
    /// Removes the folder at the end, unless it was asked for by name.
    _temporary: Option<TempDir>,
}

impl Stage {
    /// Makes everything but a running server.
    pub(super) fn set(args: &Args, base: &Base) -> Result<Self> {
        usage::check_open_files(2 * u64::from(args.devices) + 100)?;
        let program = server::find(args.server_bin.as_deref())?;
        let (root, temporary) = match &args.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let dir =
                    tempfile::tempdir().context("no temporary folder: name one with --dir")?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        let [address, admin] = free_addresses()?;
        let names = (0..args.devices).map(|index| format!("device-{index:06}")).collect();
        let stage = Self { program, root, address, admin, names, _temporary: temporary };
        stage.init(args, base)?;
        stage.enroll()?;
        Ok(stage)
    }

    fn init(&self, args: &Args, base: &Base) -> Result<()> {
        let model = self.root.join("model");
        base.write(&model)?;
        let (listen, admin) = (self.address.to_string(), self.admin.to_string());
        let init = ["init", &text(&self.home()), "--model", &text(&model)].map(str::to_owned);
        let addresses = ["--listen", &listen, "--admin", &admin].map(str::to_owned);
        server::run(&self.program, init.into_iter().chain(addresses))?;
        settle(&self.home().join("server.toml"), args)
    }

    fn enroll(&self) -> Result<()> {
        let options = ["--config", &text(&self.home()), "--out", &text(&self.root.join("devices"))];
        let options = options.map(str::to_owned).into_iter();
        let names = self.names.iter().cloned();
        server::run(&self.program, ["enroll".to_owned()].into_iter().chain(names).chain(options))?;
        Ok(())
    }

    fn home(&self) -> PathBuf {
        self.root.join("server")
    }

    /// The folder that everything is in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The settings of the device `name`.
    pub(super) fn client_toml(&self, name: &str) -> PathBuf {
        match self.names.len() {
            1 => self.root.join("devices/client.toml"),
            _ => self.root.join("devices").join(name).join("client.toml"),
        }
    }

    /// Starts the server.
    pub(super) fn serve(&self) -> Result<Server> {
        Server::start(&self.program, &self.home(), self.admin, &self.root.join("server.log"))
    }

    /// What the server counted over the run.
    pub(super) fn totals(&self) -> Result<Value> {
        let status = ["status", "--json", "--config", &text(&self.home())].map(str::to_owned);
        let output = server::run(&self.program, status)?;
        let mut page: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(page["totals"].is_object(), "`floret-server status` tells no totals");
        Ok(page["totals"].take())
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Two addresses on loopback that nobody listens on.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback");
    let listeners = [bind()?, bind()?];
    Ok([listeners[0].local_addr()?, listeners[1].local_addr()?])
}

/// When a device without work comes back, in seconds: so rarely that so many of them are no load.
pub(super) fn retry_window_s(devices: u32) -> [f64; 2] {
    let earliest = (f64::from(devices) / CHECK_INS_PER_S).max(0.05);
    [earliest, 2.0 * earliest]
}

/// The run's settings, in the place of `server.toml`'s; what is not named keeps its default.
fn settle(path: &Path, args: &Args) -> Result<()> {
    let settings = fs::read_to_string(path).with_context(|| text(path))?;
    let mut table: toml::Table = settings.parse().with_context(|| text(path))?;
    let mut set = |section: &str, key: &str, value: toml::Value| {
        let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
        if let Some(section) = section.as_table_mut() {
            section.insert(key.to_owned(), value);
        }
    };
    let (devices, cohort) = (i64::from(args.devices), i64::from(args.cohort()));
    set("run", "rounds", i64::from(args.rounds).into());
    set("run", "compression", args.compression.to_string().into());
    set("aggregation", "download_compression", args.download_compression.to_string().into());
    // Updates that are sent twice are encoded twice, from what the plan says alone.
    set("run", "error_feedback", 0.0.into());
    set("run", "seed", args.seed.cast_signed().into());
    set("cohort", "size", cohort.into());
    // Devices that vanish come back; a round that one of them never does is not lost.
    set("cohort", "quorum", ((cohort + 1) / 2).into());
    let [earliest_s, latest_s] = retry_window_s(args.devices);
    set("timing", "retry_min_s", earliest_s.into());
    set("timing", "retry_max_s", latest_s.into());
    let deadline_s = (args.timeout_s as f64 / f64::from(2 * args.rounds)).max(30.0);
    set("timing", "report_deadline_s", deadline_s.into());
    // A device that comes back may hold two connections for a moment.
    set("limits", "max_connections", (2 * devices + 100).into());
    set("limits", "queue_length", (devices + 1000).into());
    set("limits", "max_concurrent_transfers", i64::from(args.transfers).into());
    fs::write(path, table.to_string()).with_context(|| text(path))
}
