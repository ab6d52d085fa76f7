//! What a device is willing to do, and which plans it declines.

use std::sync::Arc;

use floret_core::base::BaseDigests;
use floret_core::{Digest, Layout, ModelConfig, Plan, Scope};
use serde::{Deserialize, Serialize};

/// Bounds that the device's owner sets on any plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Optimizer steps in a round.
    pub max_steps: u32,
    /// Tokens trained on in a round.
    pub max_tokens: u64,
    /// Tokens in a micro-batch: what the memory of a training step grows with.
    pub max_batch_tokens: u64,
    /// Rank components that train: with nested ranks no more than these, else all but those that are folded.
    pub max_rank: usize,
    /// Size of the adapter in f32, in bytes: what is downloaded, and the most that is uploaded.
    pub max_adapter_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_steps: 1_000,
            max_tokens: 4_000_000,
            max_batch_tokens: 16_384,
            max_rank: 64,
            max_adapter_bytes: 256 << 20,
        }
    }
}

/// The base model on this device.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalModel {
    /// Its shape.
    pub config: ModelConfig,
    /// Digests of its files.
    pub digests: BaseDigests,
}

/// Why a device declines a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another base model, tokenizer or layout than the plan's.
    #[error("the plan is for the {what} {want:?}, and this device has {got:?}")]
    Mismatch {
        /// Which of the three.
        what: &'static str,
        /// The plan's.
        want: Digest,
        /// The device's.
        got: Digest,
    },
    /// More than the device's owner permits.
    #[error("the plan asks for {asked} {what}, and this device permits {limit}")]
    OverLimit {
        /// What of.
        what: &'static str,
        /// In the plan.
        asked: u64,
        /// On the device.
        limit: u64,
    },
    /// A setting out of range.
    #[error("the plan is not valid: {0}")]
    Invalid(String),
}

/// Checks a plan against the device's model and limits, and gives the adapter's layout and the part of
/// it that this device trains.
///
/// # Errors
/// The first reason to decline it.
pub fn check_plan(
    plan: &Plan,
    model: &LocalModel,
    limits: &Limits,
) -> Result<(Arc<Layout>, Scope), Refusal> {
    let invalid = |error: &dyn std::error::Error| Refusal::Invalid(error.to_string());
    plan.training.validate().map_err(|error| invalid(&error))?;
    if !(0.0..=1.0).contains(&plan.error_feedback) {
        let problem = format!("its error feedback is {}: use 0 to 1", plan.error_feedback);
        return Err(Refusal::Invalid(problem));
    }
    same("base model", plan.base.base, model.digests.base)?;
    same("tokenizer", plan.base.tokenizer, model.digests.tokenizer)?;
    let trained = plan.lora.rank.saturating_sub(plan.folded_rank);
    if trained == 0 {
        return Err(Refusal::Invalid("no rank component is left to train".to_owned()));
    }
    let rank = match plan.training.nested_ranks && limits.max_rank > 0 {
        true => trained.min(limits.max_rank),
        false => trained,
    };
    within("as LoRA rank", rank as u64, limits.max_rank as u64)?;
    let layout = Layout::new(&model.config, &plan.lora).map_err(|error| invalid(&error))?;
    same("adapter layout", plan.layout_digest, layout.digest())?;
    within("bytes of adapter", layout.bytes() as u64, limits.max_adapter_bytes as u64)?;
    within("steps", plan.training.max_steps.into(), limits.max_steps.into())?;
    within("tokens", plan.training.max_tokens(), limits.max_tokens)?;
    let batch = u64::from(plan.training.batch_size) * u64::from(plan.training.sequence_length);
    within("tokens in a micro-batch", batch, limits.max_batch_tokens)?;
    let longest = model.config.max_positions as u64;
    within("tokens per sequence", plan.training.sequence_length.into(), longest)?;
    let frozen = plan.training.freeze.frozen(plan.version);
    Ok((Arc::new(layout), Scope { frozen, rank }))
}

fn same(what: &'static str, want: Digest, got: Digest) -> Result<(), Refusal> {
    if want == got { Ok(()) } else { Err(Refusal::Mismatch { what, want, got }) }
}

fn within(what: &'static str, asked: u64, limit: u64) -> Result<(), Refusal> {
    if asked <= limit { Ok(()) } else { Err(Refusal::OverLimit { what, asked, limit }) }
}
