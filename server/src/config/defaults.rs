//! What an option is when `server.toml` does not name it. The sample says the same, and a test
//! compares them.

use std::net::{Ipv4Addr, SocketAddr};

use floret_aggregator::config::{Aggregation, BufferedConfig, CohortConfig};
use floret_core::LoraConfig;
use floret_core::config_file::ConfigVersion;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;

use super::{Config, Limits, ModeName, ModelSection, RunSection, ServerSection, TimingSection};

impl Default for Config {
    fn default() -> Self {
        Self {
            version: ConfigVersion,
            run: RunSection::default(),
            model: ModelSection::default(),
            lora: LoraConfig::default(),
            training: TrainingConfig::default(),
            cohort: CohortConfig::default(),
            buffered: BufferedConfig::default(),
            timing: TimingSection::default(),
            aggregation: Aggregation::default(),
            server: ServerSection::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for RunSection {
    fn default() -> Self {
        let name = "run".parse().unwrap_or_else(|_| unreachable!("`run` is a valid name"));
        Self {
            name,
            rounds: 10,
            max_abandoned: 5,
            mode: ModeName::default(),
            compression: Compression::Int8.into(),
            error_feedback: 0.95,
            retain_updates_rounds: 0,
            seed: None,
        }
    }
}

impl Default for ModelSection {
    fn default() -> Self {
        Self { dir: "model".into() }
    }
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7878)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 7879)),
            hosts: vec!["localhost".into(), "127.0.0.1".into()],
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_streams_per_connection: 8,
            max_concurrent_transfers: 64,
            max_transfer_bytes: 16 << 20,
            max_partial_uploads: 64,
            max_partial_bytes: 256 << 20,
            queue_length: 1024,
            handshake_timeout_s: 10.0,
            request_timeout_s: 120.0,
            stall_timeout_s: 30.0,
            min_bytes_per_s: 1024,
            connection_max_age_s: 3600.0,
            shutdown_grace_s: 10.0,
            keep_versions: 10,
        }
    }
}
