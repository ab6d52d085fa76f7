//! Logs on standard error, so that standard output holds the result alone.

use tracing_subscriber::EnvFilter;

/// Writes logs of at least `level` (or what `FLORET_LOG` says) to standard error.
pub fn init(level: &str) {
    let filter = EnvFilter::try_from_env("FLORET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let logs = logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    logs.with_writer(std::io::stderr).init();
}
