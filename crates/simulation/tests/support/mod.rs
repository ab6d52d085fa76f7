//! Settings of small runs.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that cannot go on fails")]

use std::time::Duration;

use floret_aggregator::RunConfig;
use floret_aggregator::config::{Aggregation, CohortConfig, Mode, Timing};
use floret_core::base::BaseDigests;
use floret_core::lora::TargetModule;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{Digest, LoraConfig, ModelConfig, Seed};
use floret_device::LocalModel;

pub fn model() -> LocalModel {
    let config = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 16,
        "vocab_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}"#;
    let digest = Digest::of(b"base");
    LocalModel {
        config: ModelConfig::from_json(config).unwrap(),
        digests: BaseDigests { base: digest, tokenizer: digest },
    }
}

pub fn config(cohort: CohortConfig) -> RunConfig {
    RunConfig {
        run: "simulated".parse().unwrap(),
        rounds: 5,
        max_abandoned: 3,
        seed: Seed::from_number(21),
        base: model().digests,
        lora: LoraConfig {
            rank: 2,
            alpha: 4.0,
            use_rslora: false,
            target_modules: vec![TargetModule::QProj, TargetModule::VProj],
        },
        training: TrainingConfig { sequence_length: 64, ..TrainingConfig::default() },
        compression: Compression::Int8,
        error_feedback: 0.95,
        mode: Mode::Synchronous,
        cohort,
        timing: Timing {
            report_deadline: Duration::from_secs(30),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(3),
        },
        aggregation: Aggregation::default(),
    }
}
