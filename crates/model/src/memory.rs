//! How much memory a training step takes, and which way of doing it fits a budget.

use std::fmt;

use floret_core::lora::TargetModule;
use floret_core::{LoraConfig, ModelConfig};

use crate::precision::Precision;

/// Bytes of an f32.
const F32: u64 = 4;

/// What a process holds before it loads a model, and what an allocator keeps beside what is in
/// use: measured, see docs/performance.md.
const RUNTIME: u64 = 24 << 20;

/// Logits held at once when memory is no concern: 64 MiB. The head is read twice for each chunk of
/// rows, so that smaller chunks cost time.
const LOGITS: usize = 1 << 24;

/// Logits held at once at the least: 4 MiB.
const FEW_LOGITS: usize = 1 << 20;

/// How one optimizer step is done. Every way gives the same gradient up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepPlan {
    /// Sequences that go through the model at once, at most.
    pub micro_batch: usize,
    /// Whether blocks keep only their input, and compute the rest again in the backward pass
    /// (Chen et al. 2016, arXiv 1604.06174, section 4).
    pub recompute: bool,
    /// Logits held at once, about.
    pub logits: usize,
}

impl StepPlan {
    /// All of a batch at once, and nothing computed twice.
    #[must_use]
    pub fn fastest(batch_size: usize) -> Self {
        Self { micro_batch: batch_size.max(1), recompute: false, logits: LOGITS }
    }
}

/// A training job, as far as memory is concerned.
#[derive(Debug, Clone)]
pub struct Workload<'a> {
    /// The base model.
    pub model: &'a ModelConfig,
    /// How it is held.
    pub precision: Precision,
    /// The adapter.
    pub lora: &'a LoraConfig,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Tokens in a sequence.
    pub sequence_length: usize,
}

/// No way of doing a step fits the budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "training needs about {} and memory_budget is {}: {hint}",
    MiB(*.needed),
    MiB(*.budget)
)]
pub struct DoesNotFit {
    needed: u64,
    budget: u64,
    hint: String,
}

/// A number of bytes, told in MiB.
struct MiB(u64);

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

impl Workload<'_> {
    /// Bytes that a process needs to train this way, at its peak.
    #[must_use]
    pub fn estimate(&self, plan: &StepPlan) -> u64 {
        let blocks = self.model.num_layers as u64;
        let tokens = (plan.micro_batch.min(self.batch_size) * self.sequence_length) as u64;
        let hidden = tokens * self.model.hidden_size as u64 * F32;
        let block = tokens * self.kept_by_block() * F32;
        let kept = if plan.recompute { blocks * hidden + block } else { blocks * block };
        let rows = (plan.logits / self.model.vocab_size).max(8) as u64;
        let logits = rows.min(tokens) * self.model.vocab_size as u64 * F32;
        // Beside the logits live their rows, the gradient of these, and what is gathered from them.
        let head = logits + 4 * hidden;
        RUNTIME + self.weights() + self.adapter() + kept + head.max(tokens * self.widest() * F32)
    }

    /// The cheapest way that fits `budget` bytes: smaller micro-batches before computing twice.
    ///
    /// # Errors
    /// None fits; the error tells what the smallest needs, and what would help.
    pub fn fit(&self, budget: u64) -> Result<StepPlan, DoesNotFit> {
        let mut needed = u64::MAX;
        for recompute in [false, true] {
            for logits in [LOGITS, FEW_LOGITS] {
                let mut micro_batch = self.batch_size.max(1);
                loop {
                    let plan = StepPlan { micro_batch, recompute, logits };
                    let bytes = self.estimate(&plan);
                    if bytes <= budget {
                        return Ok(plan);
                    }
                    needed = needed.min(bytes);
                    if micro_batch == 1 {
                        break;
                    }
                    micro_batch = micro_batch.div_ceil(2);
                }
            }
        }
        Err(DoesNotFit { needed, budget, hint: self.hint() })
    }

    /// What a user could change.
    #[must_use]
    fn hint(&self) -> String {
        let shorter = "give it more, or use shorter sequences or a smaller model";
        match self.precision {
            Precision::F32 => format!("hold the base as int8, {shorter}"),
            Precision::Int8 => shorter.to_owned(),
        }
    }

    /// Values of one token that one block keeps for its backward pass; see `ops`.
    fn kept_by_block(&self) -> u64 {
        let model = self.model;
        let adapted = |targets: &[TargetModule]| {
            targets.iter().any(|target| self.lora.target_modules.contains(target))
        };
        use TargetModule::{DownProj, GateProj, KProj, QProj, UpProj, VProj};
        let queries = model.num_heads * model.head_dim;
        let keys_values = 2 * model.num_kv_heads * model.head_dim;
        let mut kept = 2 * model.hidden_size; // the inputs of both norms
        kept += queries + keys_values + queries + model.num_heads; // attention's own
        kept += 2 * model.intermediate_size; // gate and up
        kept += self.lora.rank * self.lora.target_modules.len();
        for (targets, width) in [
            (&[QProj, KProj, VProj][..], model.hidden_size),
            (&[GateProj, UpProj], model.hidden_size),
            (&[DownProj], model.intermediate_size),
        ] {
            kept += if adapted(targets) { width } else { 0 };
        }
        kept as u64
    }

    /// Values of one token that live at once within a block's backward pass, beside what is kept.
    fn widest(&self) -> u64 {
        let model = self.model;
        let gate_up = 3 * model.intermediate_size;
        let heads = 2 * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
        (gate_up.max(heads) + 3 * model.hidden_size) as u64
    }

    /// The base model.
    fn weights(&self) -> u64 {
        let model = self.model;
        let maps = TargetModule::ALL.map(|target| model.linear_shape(target));
        let block: usize = maps.iter().map(|[rows, columns]| rows * columns).sum();
        let tables = if model.tie_embeddings { 1 } else { 2 };
        let values = model.num_layers * block + tables * model.vocab_size * model.hidden_size;
        let bytes = match self.precision {
            Precision::F32 => F32,
            Precision::Int8 => 1,
        };
        values as u64 * bytes
    }

    /// The adapter, its gradient, the optimizer's moments, and copies on the way.
    fn adapter(&self) -> u64 {
        let sides = |target: &TargetModule| self.model.linear_shape(*target).iter().sum::<usize>();
        let width: usize = self.lora.target_modules.iter().map(sides).sum();
        (self.model.num_layers * width * self.lora.rank) as u64 * 7 * F32
    }
}

#[cfg(test)]
mod tests;
