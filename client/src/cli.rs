//! The command line: `run`, `history` and `generate`.

mod history;

use std::io::{ErrorKind, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use floret_client::config::InvalidClientConfig;
use floret_client::report::{Reporter, keep_adapter};
use floret_client::setup::{Base, BaseOptions, device, spawn_training};
use floret_client::{ClientConfig, DriverError, PrivateData};
use floret_core::peft::{CONFIG_FILE, WEIGHTS_FILE, from_peft};
use floret_core::{Adapter, LoraConfig, ModelConfig, Seed};
use floret_model::generate::{Sampling, generate};
use floret_model::{DeviceChoice, Lora, Threads};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Settings that the user can mend.
const EXIT_SETTINGS: u8 = 2;
/// The run ended without committing all its rounds.
const EXIT_RUN_FAILED: u8 = 3;

/// Fine-tunes an adapter on this device's own data, and tells the server only the clipped and
/// compressed change of the adapter.
#[derive(Debug, Parser)]
#[command(
    name = "floret-client",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the run failed."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to write logs.
    #[arg(long, value_enum, default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take part in a run until it is over.
    Run(RunArgs),
    /// Show what left this device: when, how large, and what came of it.
    History(HistoryArgs),
    /// Continue a prompt with the base model and this device's adapter.
    Generate(GenerateArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The device's configuration; `floret-server enroll` writes a first one.
    #[arg(long, default_value = "client.toml")]
    config: PathBuf,
    /// Who computes (cpu, wgpu, wgpu:INDEX or wgpu:cpu), instead of the configuration's.
    #[arg(long)]
    device: Option<DeviceChoice>,
}

#[derive(Debug, Args)]
struct HistoryArgs {
    /// The device's configuration.
    #[arg(long, default_value = "client.toml")]
    config: PathBuf,
    /// Check every receipt with the server's public key.
    #[arg(long)]
    verify: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// The text to continue.
    #[arg(long)]
    prompt: String,
    /// The device's configuration, for its model and adapter.
    #[arg(long, default_value = "client.toml", conflicts_with = "model")]
    config: PathBuf,
    /// Hugging Face directory of the base model, instead of a configuration.
    #[arg(long)]
    model: Option<PathBuf>,
    /// PEFT directory of the adapter, instead of the configuration's.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Leave the adapter out.
    #[arg(long, conflicts_with = "adapter")]
    base_only: bool,
    /// Merge the adapter into the weights first: it generates faster, and takes longer to start.
    #[arg(long, conflicts_with = "base_only")]
    merge: bool,
    /// Who computes (cpu, wgpu, wgpu:INDEX or wgpu:cpu), instead of the configuration's.
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Tokens at most.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Draw only from the most likely tokens that hold this much of the probability; 1 for all.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn main(cli: Cli) -> ExitCode {
    init_logs(cli.log_format);
    let done = match cli.command {
        Command::Run(args) => run(&args),
        Command::History(args) => history::show(&args).map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate_text(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::from(if error.is::<InvalidClientConfig>() { EXIT_SETTINGS } else { 1 })
    })
}

fn init_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("FLORET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(args: &RunArgs) -> Result<ExitCode> {
    let mut config = ClientConfig::read(&args.config)?;
    config.device = args.device.unwrap_or(config.device);
    let base = Base::open(&config.model, config.base_options())?;
    let (data, found) = base.read_data(&config.data, config.holdout)?;
    tell_data(&found);
    let clients = [(config.name.clone(), data)];
    let trainer = spawn_training(&base, clients, config.trainer_options())?;
    let reporter = Reporter::new(std::io::stderr().is_terminal());
    let (model, adapter) = (config.model.clone(), config.adapter.clone());
    let watch = move |event| {
        reporter.tell(&event);
        if let Err(error) = keep_adapter(&event, &model, &adapter) {
            tracing::error!("cannot keep the adapter in {}: {error}", adapter.display());
        }
    };
    let (device, connection) = device(&config, &base, trainer, watch)?;
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    let ended = device.run(stop).await;
    let (up, down) = (connection.traffic().up(), connection.traffic().down());
    tracing::info!(bytes_up = up, bytes_down = down, "traffic, before TLS");
    match ended {
        Ok(end) if end.completed => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::from(EXIT_RUN_FAILED)),
        Err(DriverError::Stopped) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
    stop.cancel();
}

/// Tells how much was found and which lines are bad; nothing of what they say.
fn tell_data(found: &PrivateData) {
    const SHOWN: usize = 10;
    tracing::info!(examples = found.examples.len(), files = found.files, "private data");
    for skipped in found.skipped.iter().take(SHOWN) {
        tracing::warn!("left out: {skipped}");
    }
    if found.skipped.len() > SHOWN {
        tracing::warn!("left out: {} more lines", found.skipped.len() - SHOWN);
    }
}

fn generate_text(args: &GenerateArgs) -> Result<()> {
    let (model, adapter, options, threads) = match &args.model {
        Some(model) => (model.clone(), args.adapter.clone(), BaseOptions::default(), 0),
        None => {
            let config = ClientConfig::read(&args.config)?;
            let options = config.base_options();
            let adapter = args.adapter.clone().unwrap_or(config.adapter);
            (config.model, Some(adapter), options, config.threads)
        }
    };
    ensure!(!args.merge || adapter.is_some(), "--merge needs an adapter: name one with --adapter");
    let device = args.device.unwrap_or(options.device);
    let base = Base::open(&model, BaseOptions { device, ..options })?;
    let mut lora = match adapter.filter(|_| !args.base_only) {
        Some(dir) => {
            let (settings, adapter) = read_adapter(&dir, &base.local.config)?;
            let (config, on) = (base.model.config(), base.model.device());
            Some(Lora::frozen(&adapter, config, &settings, &on)?)
        }
        None => None,
    };
    let sampling = Sampling {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: Seed::from_number(args.seed),
    };
    let mut model = Arc::clone(&base.model);
    if args.merge
        && let Some(lora) = lora.take()
    {
        model = Arc::new(model.merged(&lora));
    }
    let mut out = std::io::stdout();
    let mut written = write!(out, "{}", args.prompt);
    let mut stream = |piece: &str| {
        if written.is_ok() {
            written = write!(out, "{piece}").and_then(|()| out.flush());
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let (lora, tokenizer, prompt) = (lora.as_ref(), &base.tokenizer, &args.prompt);
    let threads = Threads::new(threads)?;
    threads.run(|| generate(&model, lora, tokenizer, prompt, &sampling, &mut stream))?;
    match written.and_then(|()| writeln!(out)) {
        // Who reads it has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn read_adapter(dir: &Path, model: &ModelConfig) -> Result<(LoraConfig, Adapter)> {
    let hint =
        || format!("cannot read {}: take part in a run first, or use --base-only", dir.display());
    let config = std::fs::read_to_string(dir.join(CONFIG_FILE)).with_context(hint)?;
    let weights = std::fs::read(dir.join(WEIGHTS_FILE)).with_context(hint)?;
    from_peft(&config, &weights, model).with_context(|| dir.display().to_string())
}
