//! `floret-server serve`.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use floret_server::{Config, Home, Server, ServerError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::{ConfigArg, LogFormat};

/// Exit code when the run was given up.
const RUN_FAILED: u8 = 3;
/// Exit code when every round was committed, but not without rounds that were abandoned, or with a
/// concern that stands.
const RUN_WITH_CONCERNS: u8 = 4;
/// Beyond the retry window, how long devices may take to hear that the run is over.
const TOLD_GRACE: Duration = Duration::from_secs(10);
/// Threads for connections: enough for TLS, few enough that memory stays small.
const WORKERS_MAX: usize = 4;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Exit once the run is over and the devices know: with 0 if all went well, 3 if the run was given
    /// up, 4 if it completed with rounds abandoned on the way or with a concern (see status).
    #[arg(long)]
    exit_when_done: bool,
    /// How log lines look. FLORET_LOG sets what is logged.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let (home, config) = args.config.load()?;
    log_to_stderr(args.log_format);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKERS_MAX))
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(serve(&home, &config, args.exit_when_done))
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("FLORET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logger.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logger.json().flatten_event(true).init(),
    }
}

async fn serve(home: &Home, config: &Config, exit_when_done: bool) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = bind(config.server.listen, "server.listen").await?;
    let admin = bind(config.server.admin, "server.admin").await?;
    let server = Server::start(home, config, listener, admin).await?;
    let done = async {
        if exit_when_done { told_end(&server, config).await } else { std::future::pending().await }
    };
    let outcome = tokio::select! {
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        failure = server.wait_for_failure() => Err(failure),
        code = done => code,
    };
    info!("stopping");
    let stopped = server.stop().await;
    let code = outcome?;
    stopped?;
    Ok(code)
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} ({key}): is another server running there?")
    })
}

/// Waits for the end of the run, and for the devices to hear of it.
async fn told_end(server: &Server, config: &Config) -> Result<ExitCode, ServerError> {
    let end = server.wait_for_end().await?;
    let window = Duration::try_from_secs_f64(config.timing.retry_max_s).unwrap_or_default();
    if !server.wait_until_told(window + TOLD_GRACE).await {
        warn!("some devices left before the run was over, and were not told");
    }
    let status = server.status();
    let abandoned = status.totals.rounds_abandoned;
    let flawed = abandoned > 0 || !status.concerns.is_empty();
    if flawed {
        warn!(rounds_abandoned = abandoned, concerns = status.concerns.len(), "not all went well");
    }
    Ok(match (end.completed, flawed) {
        (true, false) => ExitCode::SUCCESS,
        (true, true) => ExitCode::from(RUN_WITH_CONCERNS),
        (false, _) => ExitCode::from(RUN_FAILED),
    })
}
