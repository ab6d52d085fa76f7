//! `server.toml`.

mod defaults;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use floret_aggregator::RunConfig;
use floret_aggregator::auto::{Choice, CompressionSetting};
use floret_aggregator::config::{Aggregation, BufferedConfig, CohortConfig};
pub use floret_aggregator::sections::{ModeName, TimingSection};
use floret_core::base::BaseDigests;
use floret_core::config_file::{ConfigVersion, InvalidConfigFile, from_toml};
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{LoraConfig, RunId, Seed};
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};
use crate::home::Home;

/// The sample that `init` writes: every option with its default and an explanation.
pub(crate) const SAMPLE: &str = include_str!("sample.toml");

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No settings file.
    #[error("there is no {}: begin with `floret-server init DIR --model MODEL_DIR`", .0.display())]
    Missing(PathBuf),
    /// Not the TOML of a settings file.
    #[error(transparent)]
    Syntax(#[from] InvalidConfigFile),
    /// An option out of range.
    #[error("{key} is {value}: use {accepted}")]
    Value {
        /// Section and key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// No seed, or one that was damaged.
    #[error("{}: {problem}", path.display())]
    Seed {
        /// The seed file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

/// Settings of a server and its run, as `server.toml` has them. Durations are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Format of the file.
    pub version: ConfigVersion,
    /// The run.
    #[serde(default)]
    pub run: RunSection,
    /// The base model.
    #[serde(default)]
    pub model: ModelSection,
    /// LoRA settings.
    #[serde(default)]
    pub lora: LoraConfig,
    /// How devices train.
    #[serde(default)]
    pub training: TrainingConfig,
    /// Whom a synchronous round chooses, and how many it needs.
    #[serde(default)]
    pub cohort: CohortConfig,
    /// Buffered rounds.
    #[serde(default)]
    pub buffered: BufferedConfig,
    /// Deadlines and retry windows.
    #[serde(default)]
    pub timing: TimingSection,
    /// How updates become the next adapter.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Addresses.
    #[serde(default)]
    pub server: ServerSection,
    /// Bounds on what peers can make the server spend.
    #[serde(default)]
    pub limits: Limits,
}

/// The run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSection {
    /// Its name.
    pub name: RunId,
    /// Rounds to commit.
    pub rounds: u32,
    /// Rounds abandoned in a row after which the run is given up.
    pub max_abandoned: u32,
    /// When a round closes.
    pub mode: ModeName,
    /// How devices encode their deltas.
    pub compression: CompressionSetting,
    /// What devices keep of what their encodings left out.
    pub error_feedback: f32,
    /// Rounds whose updates are kept after they closed.
    pub retain_updates_rounds: u32,
    /// A fixed seed; without, that of `secrets/run.seed`.
    pub seed: Option<FixedSeed>,
}

/// A seed written as a number. Its `Debug` form does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FixedSeed(pub u64);

impl fmt::Debug for FixedSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedSeed(..)")
    }
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// Its Hugging Face directory, relative to the settings file.
    pub dir: PathBuf,
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSection {
    /// Where devices connect.
    pub listen: SocketAddr,
    /// Where `/metrics`, `/status` and `/healthz` answer.
    pub admin: SocketAddr,
    /// DNS names and addresses in the server's certificate.
    pub hosts: Vec<String>,
}

/// Bounds on what peers can make the server spend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections.
    pub max_connections: usize,
    /// Calls in flight on one connection.
    pub max_streams_per_connection: u32,
    /// Adapters and updates in flight at once.
    pub max_concurrent_transfers: usize,
    /// Bytes of memory that those take together.
    pub max_transfer_bytes: usize,
    /// Broken uploads that are kept until their devices go on with them.
    pub max_partial_uploads: usize,
    /// Bytes on disk that those take together.
    pub max_partial_bytes: u64,
    /// Calls that wait for the run's decision.
    pub queue_length: usize,
    /// Seconds for a TLS handshake.
    pub handshake_timeout_s: f64,
    /// Seconds for a small call, and for waiting until a transfer may begin.
    pub request_timeout_s: f64,
    /// Seconds without a byte after which a transfer ends.
    pub stall_timeout_s: f64,
    /// Least rate of a transfer, beyond the first `stall_timeout_s`.
    pub min_bytes_per_s: u32,
    /// Seconds after which a connection is closed in good order.
    pub connection_max_age_s: f64,
    /// Seconds that calls in flight get at shutdown.
    pub shutdown_grace_s: f64,
    /// Adapter versions kept on disk.
    pub keep_versions: usize,
}

impl Config {
    /// Reads and checks the settings of `home`.
    ///
    /// # Errors
    /// No file, an unknown key (with the nearest known one), or a value out of range.
    pub fn load(home: &Home) -> Result<Self, ConfigError> {
        let path = home.config();
        let text = match files::read_text(path) {
            Err(error) if error.is_missing() => return Err(ConfigError::Missing(path.to_owned())),
            text => text?,
        };
        Self::from_text(&path.display().to_string(), &text)
    }

    /// Reads and checks the text of the settings file `file` (its name, for errors).
    ///
    /// # Errors
    /// An unknown key (with the nearest known one), or a value out of range.
    pub fn from_text(file: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = from_toml(file, text)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks the sections that are the server's own; [`RunConfig::validate`] checks the others.
    ///
    /// # Errors
    /// Names the first option that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let counts = [
            ("limits.max_connections", limits.max_connections),
            ("limits.max_streams_per_connection", limits.max_streams_per_connection as usize),
            ("limits.max_concurrent_transfers", limits.max_concurrent_transfers),
            ("limits.queue_length", limits.queue_length),
            ("limits.keep_versions", limits.keep_versions),
            ("server.hosts", self.server.hosts.len()),
        ];
        if let Some((key, value)) = counts.into_iter().find(|(_, n)| !(1..=1_000_000).contains(n)) {
            let (value, accepted) = (value.to_string(), "1 to 1000000");
            return Err(ConfigError::Value { key, value, accepted });
        }
        let bytes = [
            ("limits.max_transfer_bytes", limits.max_transfer_bytes as u64, 64 * 1024),
            ("limits.max_partial_bytes", limits.max_partial_bytes, 0),
            ("limits.min_bytes_per_s", limits.min_bytes_per_s.into(), 1),
        ];
        let wrong = |(_, n, least): &(_, u64, u64)| !(*least..=1 << 40).contains(n);
        if let Some((key, value, least)) = bytes.into_iter().find(wrong) {
            let accepted = match least {
                0 => "0 to 1099511627776 bytes",
                1 => "1 to 1099511627776 bytes",
                _ => "65536 to 1099511627776 bytes",
            };
            return Err(ConfigError::Value { key, value: value.to_string(), accepted });
        }
        let seconds = [
            ("limits.stall_timeout_s", limits.stall_timeout_s),
            ("limits.handshake_timeout_s", limits.handshake_timeout_s),
            ("limits.request_timeout_s", limits.request_timeout_s),
            ("limits.connection_max_age_s", limits.connection_max_age_s),
            ("limits.shutdown_grace_s", limits.shutdown_grace_s),
            ("timing.report_deadline_s", self.timing.report_deadline_s),
            ("timing.retry_min_s", self.timing.retry_min_s),
            ("timing.retry_max_s", self.timing.retry_max_s),
        ];
        if let Some((key, value)) = seconds.into_iter().find(|(_, s)| !(0.01..=1e8).contains(s)) {
            let (value, accepted) = (value.to_string(), "0.01 to 1e8 seconds");
            return Err(ConfigError::Value { key, value, accepted });
        }
        Ok(())
    }

    /// Directory of the base model.
    #[must_use]
    pub fn model_dir(&self, home: &Home) -> PathBuf {
        home.dir().join(&self.model.dir)
    }

    /// Address that devices use when the server listens on the configured port.
    #[must_use]
    pub fn url(&self) -> String {
        let host = self.server.hosts.first().map_or("localhost", String::as_str);
        let port = self.server.listen.port();
        match host.contains(':') {
            true => format!("https://[{host}]:{port}"),
            false => format!("https://{host}:{port}"),
        }
    }

    /// The run's settings, for a base model of these digests and an adapter of `values` values; with
    /// `run.compression = "auto"`, and what that chose.
    ///
    /// # Errors
    /// No seed, neither in the settings nor in its file.
    pub fn run_config(
        &self,
        home: &Home,
        base: BaseDigests,
        values: usize,
    ) -> Result<(RunConfig, Option<Choice>), ConfigError> {
        let mut config = RunConfig {
            run: self.run.name.clone(),
            rounds: self.run.rounds,
            max_abandoned: self.run.max_abandoned,
            seed: match self.run.seed {
                Some(FixedSeed(number)) => Seed::from_number(number),
                None => read_seed(&home.seed())?,
            },
            base,
            lora: self.lora.clone(),
            training: self.training.clone(),
            compression: Compression::None,
            error_feedback: self.run.error_feedback,
            mode: self.run.mode.with(self.buffered),
            cohort: self.cohort.clone(),
            timing: self.timing.timing(),
            aggregation: self.aggregation,
        };
        let choice = self.run.compression.apply(&mut config, values, None);
        Ok((config, choice))
    }
}

/// A checked number of seconds as a duration.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn read_seed(path: &Path) -> Result<Seed, ConfigError> {
    let wrong = |problem: &str| {
        let hint = "restore it, set run.seed, or begin a new run with `floret-server init`";
        ConfigError::Seed { path: path.to_owned(), problem: format!("{problem}: {hint}") }
    };
    let text = match files::read_text(path) {
        Err(error) if error.is_missing() => return Err(wrong("the run's seed is missing")),
        text => text?,
    };
    Seed::try_from(text.trim().to_owned()).map_err(|_| wrong("it is not 64 hexadecimal digits"))
}

#[cfg(test)]
mod tests;
