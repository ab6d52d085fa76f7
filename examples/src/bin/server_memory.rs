//! Peak memory of a server process as the cohort grows, the adapter and everything else the same.
//!
//! `cargo run --release -p floret-examples --bin server_memory -- --json`
//!
//! The server is a process of its own (this program again, as `serve`), so that its peak is its
//! own; the devices run here, over mutual TLS, with real payloads and no training.

#![allow(clippy::print_stdout, reason = "the program's output")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use floret_client::connection::CheckIn;
use floret_client::{Backoff, CallError, ClientConfig, Connection, Credentials};
use floret_core::payload::Compression;
use floret_core::seed::uniform_f32;
use floret_core::{ClientUpdate, Layout, Payload, Seed};
use floret_device::Input;
use floret_server::config::Config;
use floret_server::model_dir::BaseModel;
use floret_server::{Enrolment, Home, Server, ServerSection};
use rand_chacha::rand_core::Rng;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A shape whose adapter of rank 8 on q and v has 1,048,576 values.
const SHAPE: &str = r#"{"model_type": "llama", "hidden_size": 512, "intermediate_size": 64,
    "vocab_size": 64, "num_hidden_layers": 64, "num_attention_heads": 8}"#;

/// Measures the server's peak memory for several cohort sizes.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Serve>,
    /// Cohort sizes.
    #[arg(long, value_delimiter = ',', default_value = "4,64")]
    cohorts: Vec<u32>,
    /// Rounds of each run.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Exit with an error when the last cohort's peak is more than this share of the first's.
    #[arg(long, default_value_t = 1.1)]
    limit: f64,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Serve {
    /// Serves a prepared directory until the run is over, and prints the address.
    Serve {
        /// The server's directory.
        home: PathBuf,
    },
}

#[derive(Debug, Serialize)]
struct Measured {
    cohort: u32,
    parameters: usize,
    rounds: u32,
    peak_rss_kib: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    measured: Vec<Measured>,
    /// Peak of the last cohort over that of the first.
    ratio: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    if let Some(Serve::Serve { home }) = &args.command {
        return runtime.block_on(serve(home));
    }
    floret_examples::logs::init("warn");
    let mut measured = Vec::new();
    for cohort in &args.cohorts {
        let one = runtime.block_on(measure(*cohort, args.rounds))?;
        println!("cohort {:>4}: peak {:>7} KiB", one.cohort, one.peak_rss_kib);
        measured.push(one);
    }
    let peak = |one: Option<&Measured>| one.map_or(f64::NAN, |one| one.peak_rss_kib as f64);
    let ratio = peak(measured.last()) / peak(measured.first());
    println!("last over first: {ratio:.3}");
    if args.json {
        println!("{}", serde_json::to_string(&Report { measured, ratio })?);
    }
    ensure!(ratio <= args.limit, "the peak grew to {ratio:.3}, and {} is the limit", args.limit);
    Ok(())
}

async fn serve(home: &Path) -> Result<()> {
    let home = Home::new(home);
    let config = Config::load(&home)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let admin = TcpListener::bind("127.0.0.1:0").await?;
    let server = Server::start(&home, &config, listener, admin).await?;
    println!("{}", server.address());
    server.wait_for_end().await?;
    // Until the parent has read the peak.
    std::future::pending().await
}

async fn measure(cohort: u32, rounds: u32) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    std::fs::create_dir(&model)?;
    std::fs::write(model.join("config.json"), SHAPE)?;
    std::fs::write(model.join("model.safetensors"), "weights")?;
    std::fs::write(model.join("tokenizer.json"), "{}")?;
    let home =
        floret_server::init(&folder.path().join("server"), &model, &ServerSection::default())?;
    let mut config = Config::load(&home)?;
    config.run.rounds = rounds;
    config.cohort.size = cohort;
    config.cohort.quorum = cohort;
    config.timing.retry_min_s = 0.05;
    config.timing.retry_max_s = 0.2;
    config.timing.report_deadline_s = 600.0;
    std::fs::write(home.config(), toml::to_string(&config)?)?;

    let mut server = Process::start(home.dir())?;
    let base = BaseModel::read(&model)?;
    let layout = Arc::new(Layout::new(&base.config, &config.lora)?);
    let mut devices = JoinSet::new();
    for index in 0..cohort {
        let name = format!("device-{index}").parse()?;
        let (out, url) =
            (folder.path().join(format!("{name}")), format!("https://{}", server.address));
        let enrolment = Enrolment { name: &name, out: &out, server: &url, force: false };
        floret_server::enroll(&home, &config, &enrolment)?;
        let settings = ClientConfig::read(&out.join("client.toml"))?;
        let backoff = Backoff::new(Seed::from_number(u64::from(index)).stream());
        devices.spawn(take_part(connect(&settings)?, Arc::clone(&layout), backoff));
    }
    while let Some(done) = devices.join_next().await {
        done??;
    }
    let peak_rss_kib = server.peak_rss_kib()?;
    Ok(Measured { cohort, parameters: layout.len(), rounds, peak_rss_kib })
}

fn connect(config: &ClientConfig) -> Result<Connection> {
    let credentials = Credentials::read(&config.ca, &config.certificate, &config.key)?;
    Ok(Connection::new(&config.server, &credentials)?)
}

/// A device that answers every assignment at once with random values.
async fn take_part(
    mut connection: Connection,
    layout: Arc<Layout>,
    mut backoff: Backoff,
) -> Result<()> {
    let mut reported = None;
    loop {
        let plan = match connection.check_in().await {
            Ok(CheckIn::Answer(Input::Assigned(plan))) if reported != Some(plan.round) => plan,
            Ok(CheckIn::Answer(Input::RunEnded(end))) => {
                ensure!(end.completed, "the run failed: {}", end.message);
                return Ok(());
            }
            Ok(CheckIn::ComeBack { earliest, latest }) => {
                tokio::time::sleep(backoff.draw(earliest, latest)).await;
                continue;
            }
            Ok(CheckIn::Answer(_)) => continue,
            Err(CallError::Unavailable { after, .. }) => {
                tokio::time::sleep(backoff.failed(after)).await;
                continue;
            }
            Err(error) => bail!(error),
        };
        let adapter = connection.fetch_adapter(plan.version, Arc::clone(&layout)).await?;
        ensure!(adapter.digest() == plan.adapter_digest, "another adapter than the plan's");
        let mut stream = plan.seed.stream();
        let delta: Vec<f32> =
            (0..layout.len()).map(|_| uniform_f32(stream.next_u32()) - 0.5).collect();
        let payload = Payload::encode(Compression::Int8, &layout, &delta, &mut stream)?;
        let update = ClientUpdate {
            run: plan.run.clone(),
            round: plan.round,
            num_examples: 7,
            num_steps: 1,
            payload,
        };
        connection.report(&update).await?;
        reported = Some(plan.round);
    }
}

/// The server's process; killed when dropped.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    fn start(home: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(home)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server's process")?;
        let out = child.stdout.take().context("the server's process has no output")?;
        let mut address = String::new();
        BufReader::new(out).read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    /// `VmHWM` of the process: the most physical memory that it ever held.
    fn peak_rss_kib(&mut self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(value.context("the system does not tell a process's peak memory")?.trim().parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
