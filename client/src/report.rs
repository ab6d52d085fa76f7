//! What the program tells its user: a progress bar on a terminal, plain lines otherwise.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use floret_core::peft::{CONFIG_FILE, PeftFiles, WEIGHTS_FILE, to_peft};
use indicatif::{ProgressBar, ProgressStyle};

use crate::driver::Event;

/// Tells events to the user.
#[derive(Debug)]
pub struct Reporter {
    /// The bar of the round that is being trained, on a terminal.
    bar: Option<Mutex<ProgressBar>>,
}

impl Reporter {
    /// A reporter with a progress bar if `terminal`, and without otherwise.
    #[must_use]
    pub fn new(terminal: bool) -> Self {
        Self { bar: terminal.then(|| Mutex::new(ProgressBar::hidden())) }
    }

    /// Tells one event.
    pub fn tell(&self, event: &Event) {
        match event {
            Event::Retrying { message, wait } => {
                let wait_s = format!("{:.1}", wait.as_secs_f64());
                tracing::warn!(wait_s, reason = message, "trying again");
            }
            Event::Assigned { round, version } => {
                tracing::info!(%round, %version, "chosen for a round");
            }
            Event::Adapter { .. } => {}
            Event::Training { round, progress } => {
                let (step, steps) = (progress.step, progress.steps);
                match &self.bar {
                    Some(bar) => advance(bar, &format!("round {round}"), step, steps),
                    None if step == steps => tracing::info!(%round, steps, "trained"),
                    None => tracing::debug!(%round, step, steps, "training"),
                }
            }
            Event::Reporting { round, bytes } => {
                tracing::info!(%round, bytes, "sending the update");
            }
            Event::Counted(receipt) => {
                tracing::info!(round = %receipt.round, weight = receipt.weight, "update counts");
            }
            Event::NotCounted { round, reason } => {
                tracing::warn!(%round, reason, "this round does not count for this device");
            }
            Event::Ended(end) if end.completed => {
                tracing::info!(version = %end.version, "run completed: {}", end.message);
            }
            Event::Ended(end) => {
                tracing::error!(version = %end.version, "run failed: {}", end.message);
            }
            Event::NoLastAdapter { reason } => tracing::warn!("{reason}"),
        }
    }
}

fn advance(bar: &Mutex<ProgressBar>, name: &str, step: u32, steps: u32) {
    let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if step <= 1 || bar.is_finished() || bar.is_hidden() {
        let style =
            ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} steps, {eta} left");
        *bar = ProgressBar::new(u64::from(steps));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(name.to_owned());
    }
    bar.set_position(u64::from(step));
    if step == steps {
        bar.finish_and_clear();
    }
}

/// Keeps the adapter of an event as a PEFT directory at `dir`; other events do nothing.
///
/// # Errors
/// A folder or file that cannot be written; what was there before is still whole.
pub fn keep_adapter(event: &Event, base: &Path, dir: &Path) -> io::Result<()> {
    let Event::Adapter { lora, adapter, .. } = event else { return Ok(()) };
    let PeftFiles { config, weights } = to_peft(adapter, lora, &base.display().to_string());
    std::fs::create_dir_all(dir)?;
    replace(&dir.join(CONFIG_FILE), config.as_bytes())?;
    replace(&dir.join(WEIGHTS_FILE), &weights)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
