//! `client.toml`: where the server is, who this device is, and what it may be asked to do.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use floret_core::ClientId;
use floret_core::config_file::{ConfigVersion, InvalidConfigFile, from_toml};
use floret_device::Limits;
use floret_model::{DeviceChoice, Precision, TrainerOptions};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::setup::BaseOptions;

/// A device's configuration. Paths are relative to the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Version of the file.
    pub version: ConfigVersion,
    /// The server, such as `https://floret.example:7878`; its host must be in its certificate.
    pub server: String,
    /// This device's name. The server goes by the certificate, which holds the same.
    pub name: ClientId,
    /// Certificate of the run's own authority, PEM.
    pub ca: PathBuf,
    /// This device's certificate, PEM.
    pub certificate: PathBuf,
    /// This device's key, PEM.
    pub key: PathBuf,
    /// The server's public key, with which receipts are checked; without it they are only kept.
    pub ledger_key: Option<PathBuf>,
    /// Folder for what must outlive a crash.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// Hugging Face directory of the base model.
    pub model: PathBuf,
    /// Folder or file of `.txt` and `.jsonl` examples.
    pub data: PathBuf,
    /// Folder where the newest adapter is kept, as a PEFT directory.
    #[serde(default = "default_adapter")]
    pub adapter: PathBuf,
    /// Part of the examples that is never trained on.
    #[serde(default = "default_holdout")]
    pub holdout: f64,
    /// Threads that train; 0 for one for each core.
    #[serde(default = "default_threads")]
    pub threads: usize,
    /// Memory that the program may take while it trains, about, in MiB; any if not given.
    pub memory_budget_mib: Option<u64>,
    /// Whether blocks are computed twice, to hold less; a memory budget decides it by itself.
    #[serde(default)]
    pub recompute: bool,
    /// How the base model's matrices are held: `f32`, or `int8` in a quarter of the memory. It is
    /// this device's own choice: the files that the server asks for stay the same.
    #[serde(default, deserialize_with = "from_name")]
    pub base_precision: Precision,
    /// Who computes: `cpu`, `wgpu`, `wgpu:INDEX` or `wgpu:cpu`.
    #[serde(default, deserialize_with = "from_name")]
    pub device: DeviceChoice,
    /// Bounds on any plan.
    #[serde(default)]
    pub limits: Limits,
}

fn default_adapter() -> PathBuf {
    PathBuf::from("adapter")
}

fn default_state() -> PathBuf {
    PathBuf::from("state")
}

fn default_holdout() -> f64 {
    0.1
}

fn default_threads() -> usize {
    1
}

/// A value that is written as its name.
fn from_name<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?.parse().map_err(Error::custom)
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidClientConfig {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What it says cannot be used.
    #[error(transparent)]
    File(#[from] InvalidConfigFile),
    /// A value out of range.
    #[error("{path}: {field} is {value}: use {accepted}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
}

impl ClientConfig {
    /// Reads the configuration file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key, or a value out of range.
    pub fn read(path: &Path) -> Result<Self, InvalidClientConfig> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| InvalidClientConfig::Unreadable { path: path.into(), source })?;
        Self::from_text(path, &text)
    }

    /// Reads `text`, the content of the configuration file at `path`.
    ///
    /// # Errors
    /// An unknown key, or a value out of range.
    pub fn from_text(path: &Path, text: &str) -> Result<Self, InvalidClientConfig> {
        let mut config: Self = from_toml(&path.display().to_string(), text)?;
        let value = |field, value: String, accepted| {
            Err(InvalidClientConfig::Value { path: path.into(), field, value, accepted })
        };
        if !config.server.starts_with("https://") {
            return value("server", config.server, "an address that begins with https://");
        }
        if !(0.0..1.0).contains(&config.holdout) {
            return value("holdout", config.holdout.to_string(), "0 or more, below 1");
        }
        if config.recompute && config.memory_budget_mib.is_some() {
            let accepted = "false beside memory_budget_mib, which decides by itself what fits";
            return value("recompute", "true".to_owned(), accepted);
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        for file in [
            &mut config.ca,
            &mut config.certificate,
            &mut config.key,
            &mut config.model,
            &mut config.data,
            &mut config.adapter,
            &mut config.state,
        ]
        .into_iter()
        .chain(&mut config.ledger_key)
        {
            *file = folder.join(&*file);
        }
        Ok(config)
    }

    /// How the base model is held, and who computes.
    #[must_use]
    pub fn base_options(&self) -> BaseOptions {
        BaseOptions { precision: self.base_precision, device: self.device }
    }

    /// How this device trains.
    #[must_use]
    pub fn trainer_options(&self) -> TrainerOptions {
        TrainerOptions {
            threads: self.threads,
            memory_budget: self.memory_budget_mib.map(|mib| mib.saturating_mul(1 << 20)),
            recompute: self.recompute,
            ..TrainerOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use floret_model::Gpu;

    use super::*;

    const GOOD: &str = r#"
        version = 1
        server = "https://127.0.0.1:7878"
        name = "phone-1"
        ca = "ca.pem"
        certificate = "cert.pem"
        key = "key.pem"
        model = "/models/base"
        data = "data"
        [limits]
        max_steps = 5
    "#;

    fn read(text: &str) -> Result<ClientConfig, InvalidClientConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.toml");
        std::fs::write(&path, text).unwrap();
        ClientConfig::read(&path)
    }

    #[test]
    fn paths_are_relative_to_the_file_and_limits_have_defaults() {
        let config = read(GOOD).unwrap();
        assert!(config.ca.is_absolute() && config.ca.ends_with("ca.pem"));
        assert_eq!(config.model, Path::new("/models/base"));
        assert_eq!(config.limits, Limits { max_steps: 5, ..Limits::default() });
        assert_eq!(config.base_options(), BaseOptions::default());
        assert_eq!(config.trainer_options().memory_budget, None);
    }

    #[test]
    fn precision_and_device_are_named_and_the_budget_is_in_mib() {
        let lines = "data = \"data\"\nmemory_budget_mib = 3\nbase_precision = \"int8\"\n\
                     device = \"wgpu:2\"";
        let config = read(&GOOD.replace("data = \"data\"", lines)).unwrap();
        let device = DeviceChoice::Wgpu(Gpu::Index(2));
        assert_eq!(config.base_options(), BaseOptions { precision: Precision::Int8, device });
        assert_eq!(config.trainer_options().memory_budget, Some(3 << 20));
    }

    #[test]
    fn bad_values_are_named() {
        let data = "data = \"data\"";
        let beside = |line: &str| format!("{data}\n{line}");
        for (line, word) in [
            ("base_precision = \"fp4\"", "use f32 or int8"),
            ("device = \"cuda\"", "wgpu:cpu"),
            ("device = 0", "line"),
            ("memory_budget_mib = -1", "memory_budget_mib"),
            ("recompute = true\nmemory_budget_mib = 9", "recompute is true"),
            ("memory_budget = 9", "did you mean `memory_budget_mib`?"),
        ] {
            let error = read(&GOOD.replace(data, &beside(line))).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        for (from, to, word) in [
            ("https://", "http://", "server"),
            ("phone-1", "Phone 1", "client name"),
            ("max_steps", "max_step", "did you mean `max_steps`?"),
            ("version = 1", "version = 3", "version"),
            ("data = \"data\"", "data = \"data\"\nholdout = 1.5", "holdout"),
        ] {
            let error = read(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let missing = ClientConfig::read(Path::new("/nowhere/client.toml")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/client.toml"));
    }
}
