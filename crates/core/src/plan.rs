//! What the server asks of a device in one round.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::BaseDigests;
use crate::id::{Digest, Round, RunId, Version};
use crate::json::is_default;
use crate::layout::Factor;
use crate::lora::LoraConfig;
use crate::payload::{Compression, Shared};
use crate::scope::Freeze;
use crate::seed::Seed;

/// One client's work in one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The run.
    pub run: RunId,
    /// The round; a report names it.
    pub round: Round,
    /// Version of the adapter to start from.
    pub version: Version,
    /// Digest of that adapter's bytes.
    pub adapter_digest: Digest,
    /// Digest of the adapter's layout.
    pub layout_digest: Digest,
    /// Digests of the base model and tokenizer.
    pub base: BaseDigests,
    /// LoRA settings.
    pub lora: LoraConfig,
    /// Rank components, the last, that nobody trains: they hold what the server folded into them.
    pub folded_rank: usize,
    /// How to train.
    pub training: TrainingConfig,
    /// How to encode the delta.
    pub compression: Compression,
    /// Share of what earlier encodings left out that is added to the delta, for each version that the
    /// device sat out: above 0, up to 1. 0 for no error feedback.
    pub error_feedback: f32,
    /// L2 norm to which the server clips the decoded delta.
    pub clip_norm: f32,
    /// Most updates that are added up with this one.
    pub summands: u32,
    /// Root of this client's draws in this round; never the run's.
    pub seed: Seed,
    /// How long from now the report is waited for.
    pub report_within: Duration,
}

impl Plan {
    /// What all clients that start from the same version share.
    #[must_use]
    pub fn shared(&self) -> Shared {
        let [a, b, c, d, ..] = self.adapter_digest.0;
        Shared {
            summands: self.summands,
            norm: self.clip_norm,
            turn: self.version.0 as u32,
            seed: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// Local training: AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the LoRA factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Optimizer steps: a device with little data goes over it again, in a new order each time.
    pub max_steps: u32,
    /// Passes over its own sequences after which a device stops, though it has steps left; 0 for no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub max_epochs: u32,
    /// Sequences per micro-batch.
    pub batch_size: u32,
    /// Tokens per sequence.
    pub sequence_length: u32,
    /// Micro-batches per optimizer step.
    pub accumulation: u32,
    /// Learning rate.
    pub learning_rate: f32,
    /// Learning rate of the run's last round, to which it falls in equal steps from version to version; 0 for one
    /// that stays. A plan has its own round's rate, and 0 here.
    #[serde(skip_serializing_if = "is_default")]
    pub final_learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Global L2 norm to which each step's gradient is clipped; 0 for no clipping.
    pub max_grad_norm: f32,
    /// Which factor stays as it is.
    #[serde(skip_serializing_if = "Freeze::is_none")]
    pub freeze: Freeze,
    /// Whether B stays with each device: it trains, is never sent, and goes on from where it was in the device's next round
    /// (FedSA-LoRA, Guo et al. 2025, arXiv 2410.01463, section 3.2). A is shared.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub personal_b: bool,
    /// Whether a device that permits a lower rank than the run's trains its first components alone,
    /// instead of declining.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested_ranks: bool,
    /// μ of FedProx (Li et al. 2020, arXiv 1812.06127, equation 2): training also minimises
    /// μ / 2 ‖w - w₀‖², for the values w₀ that it starts from. 0 for none.
    #[serde(skip_serializing_if = "is_default")]
    pub proximal: f32,
    /// Whether control variates keep clients from drifting to their own optima: SCAFFOLD (Karimireddy et al. 2020, arXiv
    /// 1910.06378, algorithm 1, option II), in units of a round's change. For small populations, most of which take part
    /// in each round.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub scaffold: bool,
    /// λ of FedRot-LoRA (2026, arXiv 2602.23638): how far a device turns its factors back towards those that it began
    /// with before it sends anything, 0 for not at all to 1 for as far as a rotation can.
    #[serde(skip_serializing_if = "is_default")]
    pub alignment: f32,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            max_steps: 10,
            max_epochs: 0,
            batch_size: 8,
            sequence_length: 128,
            accumulation: 1,
            learning_rate: 3e-3,
            final_learning_rate: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            freeze: Freeze::None,
            personal_b: false,
            nested_ranks: false,
            proximal: 0.0,
            scaffold: false,
            alignment: 0.0,
        }
    }
}

/// A training setting that is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("training {field} is {value}: use {accepted}")]
pub struct InvalidTraining {
    field: &'static str,
    value: f64,
    accepted: &'static str,
}

impl TrainingConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn validate(&self) -> Result<(), InvalidTraining> {
        let counts = [
            ("max_steps", self.max_steps, 1_000_000),
            ("batch_size", self.batch_size, 65_536),
            ("sequence_length", self.sequence_length, 1 << 20),
            ("accumulation", self.accumulation, 65_536),
        ];
        for (field, value, limit) in counts {
            let least = if field == "sequence_length" { 2 } else { 1 };
            if !(least..=limit).contains(&value) {
                let accepted = "a whole number from 1 (sequence_length: 2) to its limit";
                return Err(InvalidTraining { field, value: value.into(), accepted });
            }
        }
        type Check = (&'static str, f32, fn(f32) -> bool, &'static str);
        let numbers: [Check; 9] = [
            ("learning_rate", self.learning_rate, |x| x > 0.0 && x <= 10.0, "above 0, up to 10"),
            (
                "final_learning_rate",
                self.final_learning_rate,
                |x| (0.0..=10.0).contains(&x),
                "0 (learning_rate stays), or up to 10",
            ),
            ("beta1", self.beta1, |x| (0.0..1.0).contains(&x), "0 or more, below 1"),
            ("beta2", self.beta2, |x| (0.0..1.0).contains(&x), "0 or more, below 1"),
            ("epsilon", self.epsilon, |x| x > 0.0 && x <= 1.0, "above 0, up to 1"),
            ("weight_decay", self.weight_decay, |x| (0.0..=10.0).contains(&x), "0 to 10"),
            ("max_grad_norm", self.max_grad_norm, |x| x.is_finite() && x >= 0.0, "0 or more"),
            ("proximal", self.proximal, |x| (0.0..=1000.0).contains(&x), "0 to 1000"),
            ("alignment", self.alignment, |x| (0.0..=1.0).contains(&x), "0 to 1"),
        ];
        for (field, value, in_range, accepted) in numbers {
            if !in_range(value) {
                return Err(InvalidTraining { field, value: value.into(), accepted });
            }
        }
        Ok(())
    }

    /// The factor that no update of `version` changes: it does not train, or it stays with each device.
    #[must_use]
    pub fn unsent(&self, version: Version) -> Option<Factor> {
        if self.personal_b { Some(Factor::B) } else { self.freeze.frozen(version) }
    }

    /// Optimizer steps of a device that holds so many sequences: each takes a batch, or what the epoch has left.
    #[must_use]
    pub fn steps(&self, sequences: usize) -> u32 {
        let batch = (self.batch_size as usize).saturating_mul(self.accumulation as usize).max(1);
        let epoch = u32::try_from(sequences.div_ceil(batch)).unwrap_or(u32::MAX);
        match self.max_epochs {
            0 => self.max_steps,
            epochs => self.max_steps.min(epoch.saturating_mul(epochs)).max(1),
        }
    }

    /// The training that starts from `version` of a run of `rounds` versions: with the learning rate of that
    /// version.
    #[must_use]
    pub fn from_version(&self, version: Version, rounds: u32) -> Self {
        let last = f64::from(rounds.saturating_sub(1).max(1));
        let gone = (version.0 as f64 / last).min(1.0);
        let [first, end] = [self.learning_rate, self.final_learning_rate].map(f64::from);
        let rate = if end == 0.0 { first } else { first + gone * (end - first) };
        Self { learning_rate: rate as f32, final_learning_rate: 0.0, ..self.clone() }
    }

    /// Tokens that a round trains on at most.
    #[must_use]
    pub fn max_tokens(&self) -> u64 {
        [self.batch_size, self.sequence_length, self.accumulation]
            .into_iter()
            .fold(u64::from(self.max_steps), |product, factor| {
                product.saturating_mul(u64::from(factor))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_field_is_named() {
        let good = TrainingConfig::default;
        good().validate().unwrap();
        let bad = [
            (TrainingConfig { max_steps: 0, ..good() }, "max_steps"),
            (TrainingConfig { sequence_length: 1, ..good() }, "sequence_length"),
            (TrainingConfig { learning_rate: f32::NAN, ..good() }, "learning_rate"),
            (TrainingConfig { final_learning_rate: -1.0, ..good() }, "final_learning_rate"),
            (TrainingConfig { beta2: 1.0, ..good() }, "beta2"),
            (TrainingConfig { max_grad_norm: f32::INFINITY, ..good() }, "max_grad_norm"),
            (TrainingConfig { proximal: -0.1, ..good() }, "proximal"),
            (TrainingConfig { alignment: 1.5, ..good() }, "alignment"),
        ];
        for (config, field) in bad {
            assert!(config.validate().unwrap_err().to_string().contains(field));
        }
    }

    #[test]
    fn epochs_bound_the_steps_of_a_device_with_few_sequences() {
        let training = TrainingConfig {
            max_steps: 10,
            max_epochs: 2,
            batch_size: 4,
            accumulation: 2,
            ..TrainingConfig::default()
        };
        assert_eq!([0, 1, 8, 9, 24, 1000].map(|of| training.steps(of)), [1, 2, 2, 4, 6, 10]);
        assert_eq!(TrainingConfig { max_epochs: 0, ..training }.steps(1), 10);
    }

    #[test]
    fn a_learning_rate_falls_from_version_to_version() {
        let training = TrainingConfig {
            learning_rate: 0.5,
            final_learning_rate: 0.25,
            ..TrainingConfig::default()
        };
        let rate = |version| training.from_version(Version(version), 5).learning_rate;
        assert_eq!([0, 1, 2, 3, 4, 5].map(rate), [0.5, 0.4375, 0.375, 0.3125, 0.25, 0.25]);
        let stays = TrainingConfig::default();
        assert_eq!(stays.from_version(Version(3), 5), stays);
        // A run of one round begins as any other.
        assert_eq!(training.from_version(Version(0), 1).learning_rate, 0.5);
    }

    #[test]
    fn token_bound_does_not_wrap() {
        assert_eq!(TrainingConfig::default().max_tokens(), 10 * 8 * 128);
        let all = u32::MAX;
        let huge = TrainingConfig {
            max_steps: all,
            batch_size: all,
            sequence_length: all,
            ..TrainingConfig::default()
        };
        assert_eq!(huge.max_tokens(), u64::MAX);
    }
}
