//! The quickstart: a server and four devices, each with its own small private text, on loopback
//! over real mutual TLS.
//!
//! `cargo run --release -p floret-examples --bin quickstart`

#![allow(clippy::print_stdout, reason = "the program's output")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use floret_client::setup::BaseOptions;
use floret_examples::federation::{DeviceResult, Outcome, Participant, pooled, run};
use floret_examples::logs;
use floret_model::DeviceChoice;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Fine-tunes one adapter on four private texts that never leave their devices.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds to run.
    #[arg(long, default_value_t = 6)]
    rounds: u32,
    /// Optimizer steps of a device in a round, of 8 x 64 tokens.
    #[arg(long, default_value_t = 12)]
    steps: u32,
    /// Learning rate of the devices.
    #[arg(long, default_value_t = 1e-2)]
    learning_rate: f32,
    /// Where the adapter is exported to, as a PEFT directory; a new folder if not given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The same seed gives the same adapter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Who computes: cpu, wgpu, wgpu:INDEX or wgpu:cpu.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

#[tokio::main]
async fn main() -> Result<()> {
    logs::init("info");
    let args = Args::parse();
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("quickstart");
    let work = tempfile::Builder::new().prefix("floret-quickstart-").tempdir()?.keep();
    let out = args.out.unwrap_or_else(|| work.join("adapter"));
    let participant = |name: &str| -> Result<Participant> {
        Ok(Participant { name: name.parse()?, data: here.join("devices").join(name) })
    };
    let writers = ["garden", "kitchen", "lighthouse", "workshop"];
    let participants = writers.into_iter().map(participant).collect::<Result<Vec<_>>>()?;
    let adjust = |config: &mut floret_server::Config| {
        config.run.rounds = args.rounds;
        config.run.seed = Some(floret_server::config::FixedSeed(args.seed));
        config.lora.target_modules = floret_core::lora::TargetModule::ALL.to_vec();
        config.training.max_steps = args.steps;
        config.training.learning_rate = args.learning_rate;
        config.training.batch_size = 8;
        config.training.sequence_length = 64;
        config.cohort.size = 4;
        config.cohort.quorum = 4;
        config.timing.report_deadline_s = 120.0;
        config.timing.retry_min_s = 0.05;
        config.timing.retry_max_s = 0.2;
    };
    let (home, model) = (work.join("server"), here.join("model"));
    let options = BaseOptions { device: args.device, ..BaseOptions::default() };
    let outcome = run(&home, &model, options, &participants, adjust, &out).await;
    let outcome = outcome.with_context(|| format!("files are in {}", work.display()))?;
    print_table(&outcome);
    println!("\nThe adapter (PEFT) is in {}", out.display());
    println!("The server's directory, certificates and state are in {}", home.display());
    Ok(())
}

fn print_table(outcome: &Outcome) {
    let seconds = outcome.duration.as_secs_f64();
    println!("\n{} in {seconds:.0} s; {} updates\n", outcome.end.message, outcome.updates_accepted);
    println!(
        "Loss per token on each device's held-out texts, in nats, and gRPC bytes before TLS:\n"
    );
    println!(
        "{:<12} {:>8} {:>12} {:>12} {:>8} {:>11} {:>11}",
        "device", "examples", "loss before", "loss after", "change", "bytes up", "bytes down"
    );
    for device in &outcome.devices {
        let DeviceResult { name, examples, bytes_up, bytes_down, .. } = device;
        let before = device.before.loss().unwrap_or(f64::NAN);
        let after = device.after.loss().unwrap_or(f64::NAN);
        let change = 100.0 * (after / before - 1.0);
        let name = name.as_str();
        println!(
            "{name:<12} {examples:>8} {before:>12.3} {after:>12.3} {change:>+7.1}% {bytes_up:>11} {bytes_down:>11}"
        );
    }
    let before = pooled(outcome.devices.iter().map(|device| device.before));
    let after = pooled(outcome.devices.iter().map(|device| device.after));
    let change = 100.0 * (after / before - 1.0);
    println!("{:<12} {:>8} {before:>12.3} {after:>12.3} {change:>+7.1}%", "all", "");
}
