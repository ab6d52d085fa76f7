//! Real text: each speaker of Shakespeare's plays is a device.
//!
//! `cargo run --release -p floret-examples --bin shakespeare -- --model ../shared/models/stories260K
//! --data ../shared/data/tinyshakespeare/by_speaker.jsonl --devices 16 --rounds 10 --json`

#![allow(clippy::print_stdout, reason = "the program's output")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use floret_client::setup::BaseOptions;
use floret_core::ClientId;
use floret_core::lora::TargetModule;
use floret_examples::federation::{Outcome, Participant, pooled, run};
use floret_examples::logs;
use floret_model::DeviceChoice;
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Fine-tunes one adapter on the speeches of many speakers, each a device of its own.
#[derive(Debug, Parser)]
struct Args {
    /// Hugging Face directory of the base model.
    #[arg(long)]
    model: PathBuf,
    /// Rows `{"user", "idx", "text"}`, one JSON object a line.
    #[arg(long)]
    data: PathBuf,
    /// Devices: the speakers with most characters.
    #[arg(long, default_value_t = 16)]
    devices: usize,
    /// Rounds to run.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Optimizer steps of a device in a round, of 8 x 128 tokens.
    #[arg(long, default_value_t = 10)]
    steps: u32,
    /// LoRA rank.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Learning rate of the devices.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f32,
    /// The same seed gives the same adapter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Who computes: cpu, wgpu, wgpu:INDEX or wgpu:cpu.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Where the adapter is exported to, as a PEFT directory; thrown away if not given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Speech {
    user: String,
    idx: u64,
    text: String,
}

/// The last line of the output.
#[derive(Debug, Serialize)]
struct Report {
    loss_before: f64,
    loss_after: f64,
    rounds: u64,
    updates_accepted: u64,
    updates_rejected: u64,
    bytes_up_per_update: u64,
    bytes_down_per_update: u64,
    seconds: f64,
    devices: usize,
    adapter_digest: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    logs::init("warn,floret_server=info");
    let args = Args::parse();
    let work = tempfile::Builder::new().prefix("floret-shakespeare-").tempdir()?;
    let speakers = read_speakers(&args.data, args.devices)?;
    let participants = write_participants(&work.path().join("devices"), &speakers)?;
    let devices = u32::try_from(participants.len())?;
    let adjust = |config: &mut floret_server::Config| {
        config.run.rounds = args.rounds;
        config.run.seed = Some(floret_server::config::FixedSeed(args.seed));
        config.lora.rank = args.rank;
        config.lora.target_modules = TargetModule::ALL.to_vec();
        config.training.max_steps = args.steps;
        config.training.learning_rate = args.learning_rate;
        config.cohort.size = devices;
        config.cohort.quorum = devices;
        config.timing.report_deadline_s = 1800.0;
        config.timing.retry_min_s = 0.05;
        config.timing.retry_max_s = 0.25;
    };
    let out = args.out.clone().unwrap_or_else(|| work.path().join("adapter"));
    let home = work.path().join("server");
    let options = BaseOptions { device: args.device, ..BaseOptions::default() };
    let outcome = run(&home, &args.model, options, &participants, adjust, &out).await?;
    let report = report(&outcome);
    for device in &outcome.devices {
        let (before, after) = (device.before.loss(), device.after.loss());
        println!(
            "{:<28} {:.3} -> {:.3}",
            device.name.as_str(),
            before.unwrap_or(f64::NAN),
            after.unwrap_or(f64::NAN)
        );
    }
    let change = 100.0 * (report.loss_after / report.loss_before - 1.0);
    println!("all: {:.4} -> {:.4} ({change:+.1}%)", report.loss_before, report.loss_after);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

fn report(outcome: &Outcome) -> Report {
    let per_update = |bytes: u64| bytes / outcome.updates_accepted.max(1);
    let devices = &outcome.devices;
    Report {
        loss_before: pooled(devices.iter().map(|device| device.before)),
        loss_after: pooled(devices.iter().map(|device| device.after)),
        rounds: outcome.end.version.0,
        updates_accepted: outcome.updates_accepted,
        updates_rejected: outcome.updates_rejected,
        bytes_up_per_update: per_update(devices.iter().map(|device| device.bytes_up).sum()),
        bytes_down_per_update: per_update(devices.iter().map(|device| device.bytes_down).sum()),
        seconds: outcome.duration.as_secs_f64(),
        devices: devices.len(),
        adapter_digest: outcome.adapter_digest.to_string(),
    }
}

/// The `count` speakers with most characters, each with the speeches in the order of `idx`.
fn read_speakers(path: &Path, count: usize) -> Result<Vec<(String, Vec<Speech>)>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut speakers: BTreeMap<String, Vec<Speech>> = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let place = || format!("{} line {}", path.display(), index + 1);
        let speech: Speech = serde_json::from_str(line).with_context(place)?;
        speakers.entry(speech.user.clone()).or_default().push(speech);
    }
    ensure!(speakers.len() >= count, "{} holds {} speakers", path.display(), speakers.len());
    let mut speakers: Vec<_> = speakers.into_iter().collect();
    let characters = |speeches: &[Speech]| -> usize {
        speeches.iter().map(|speech| speech.text.chars().count()).sum()
    };
    speakers.sort_by_key(|(name, speeches)| (usize::MAX - characters(speeches), name.clone()));
    speakers.truncate(count);
    for (_, speeches) in &mut speakers {
        speeches.sort_by_key(|speech| speech.idx);
    }
    Ok(speakers)
}

/// Gives each speaker a folder with a `.jsonl` file, as a device would hold it.
fn write_participants(dir: &Path, speakers: &[(String, Vec<Speech>)]) -> Result<Vec<Participant>> {
    let write = |(index, (name, speeches)): (usize, &(String, Vec<Speech>))| {
        let name = client_id(index, name)?;
        let data = dir.join(name.as_str());
        fs::create_dir_all(&data)?;
        let rows = speeches
            .iter()
            .map(|speech| serde_json::json!({ "text": speech.text }).to_string() + "\n");
        fs::write(data.join("speeches.jsonl"), rows.collect::<String>())?;
        Ok(Participant { name, data })
    };
    speakers.iter().enumerate().map(write).collect()
}

fn client_id(index: usize, name: &str) -> Result<ClientId> {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let slug: String = letters.collect::<String>().to_lowercase();
    Ok(format!("{:02}-{}", index + 1, slug.trim_matches('-')).parse()?)
}
