//! How much memory a training step takes, and which way of doing it fits a budget.

use std::fmt;

use floret_core::lora::TargetModule;
use floret_core::{LoraConfig, ModelConfig};

use crate::kernels::matmul::PACKED;
use crate::precision::Precision;
use crate::weights::{WeightSpec, Weights};

/// Bytes of an f32.
const F32: u64 = 4;

/// What a process holds before it loads a model, and what an allocator keeps beside what is in
/// use.
const RUNTIME: u64 = 24 << 20;

/// Per cent that an allocator holds beside what is in use: the estimates without it were up to a
/// tenth below the peaks in docs/performance.md.
const SLACK: u64 = 10;

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
    /// Threads that compute.
    pub threads: usize,
    /// Stacks of clients that train side by side.
    pub clients: usize,
    /// Clients of a stack, whose batches go through the base model as one.
    pub stack: usize,
}

/// Bytes that this machine, or the container that it runs in, could give a process, where the system
/// tells: Linux does.
pub(crate) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)?;
    let of_container = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let limit = of_container("memory.max").zip(of_container("memory.current"));
    let left = limit.map_or(u64::MAX, |(most, held)| most.saturating_sub(held));
    Some(free.min(left))
}

/// No way of doing a step fits the budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "training needs about {} and memory_budget_mib allows {}: {hint}",
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
        let tokens = plan.micro_batch.clamp(1, self.batch_size.max(1)) as u64;
        let stack = self.stack as u64;
        let tokens = tokens * self.sequence_length as u64 * stack;
        let hidden = tokens * self.model.hidden_size as u64 * F32;
        let block = tokens * self.kept_by_block() * F32;
        let kept = if plan.recompute { blocks * hidden + block } else { blocks * block };
        let vocab = self.model.vocab_size as u64;
        let rows = (plan.logits as u64 / vocab).max(8);
        let logits = rows.min(tokens) * vocab * F32;
        // A product packs all of the head at once, up to 512 columns deep; of an int8 head, a panel.
        let packed = match self.precision {
            Precision::F32 => vocab * self.model.hidden_size.min(512) as u64 * F32,
            Precision::Int8 => 0,
        };
        // Beside the logits live their rows, the gradient of these, and what is gathered from them.
        let head = logits.max(hidden) + 4 * hidden + packed;
        let within = tokens * self.widest() * F32 + stack * self.largest_pair() * F32;
        let threads = self.threads as u64 * self.thread();
        let one = kept + head.max(within) + stack * self.adapter();
        let train = one * self.clients as u64 + threads + PACKED as u64;
        // A matrix is read as bytes, then as f32, before it is quantised.
        let load = match self.precision {
            Precision::F32 => 0,
            Precision::Int8 => 2 * self.largest_matrix() * F32,
        };
        (RUNTIME + self.weights() + train.max(load)) / 100 * (100 + SLACK)
    }

    /// The cheapest way that fits `budget` bytes: smaller micro-batches before computing twice.
    ///
    /// # Errors
    /// None fits; the error tells what the smallest needs, and what would help.
    pub fn fit(&self, budget: u64) -> Result<StepPlan, DoesNotFit> {
        let mut needed = u64::MAX;
        for plan in self.plans() {
            let bytes = self.estimate(&plan);
            if bytes <= budget {
                return Ok(plan);
            }
            needed = needed.min(bytes);
        }
        let int8 = Self { precision: Precision::Int8, ..self.clone() };
        let int8_fits = int8.plans().any(|plan| int8.estimate(&plan) <= budget);
        let hint = if int8_fits { "hold the base as int8, or " } else { "" };
        let hint = format!("{hint}give it more, or use shorter sequences or a smaller model");
        Err(DoesNotFit { needed, budget, hint })
    }

    /// Ways of doing a step, the cheapest in time first.
    fn plans(&self) -> impl Iterator<Item = StepPlan> + use<> {
        let halves = |&size: &usize| (size > 1).then(|| size.div_ceil(2));
        let sizes: Vec<usize> =
            std::iter::successors(Some(self.batch_size.max(1)), halves).collect();
        [false, true].into_iter().flat_map(move |recompute| {
            let sizes = sizes.clone();
            [LOGITS, FEW_LOGITS].into_iter().flat_map(move |logits| {
                let plan = move |micro_batch| StepPlan { micro_batch, recompute, logits };
                sizes.clone().into_iter().map(plan)
            })
        })
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
        (gate_up.max(heads) + 3 * model.hidden_size + 3 * self.lora.rank) as u64
    }

    /// What one thread has for itself: attention's blocks, and packed parts of products.
    fn thread(&self) -> u64 {
        let head_dim = self.model.head_dim.next_multiple_of(16);
        let attention = self.sequence_length * (64 + 4 * head_dim) + 128 * head_dim;
        (2 << 20) + attention as u64 * F32
    }

    /// The base model.
    fn weights(&self) -> u64 {
        let model = self.model;
        let specs = Weights::of(model);
        let bytes = |spec: &WeightSpec| match (self.precision, spec.shape.len()) {
            (Precision::Int8, 2) => (spec.len() + spec.shape[0] * F32 as usize) as u64,
            _ => spec.len() as u64 * F32,
        };
        specs.leaves().into_iter().map(bytes).sum()
    }

    /// Values of the largest matrix.
    fn largest_matrix(&self) -> u64 {
        let specs = Weights::of(self.model);
        specs.leaves().into_iter().map(|spec| spec.len() as u64).max().unwrap_or(0)
    }

    /// Values of the adapter's share of the gradient of one block's largest map.
    fn largest_pair(&self) -> u64 {
        let sides = |target: &TargetModule| self.model.linear_shape(*target).iter().sum::<usize>();
        let widest = self.lora.target_modules.iter().map(sides).max().unwrap_or(0);
        (3 * widest * self.lora.rank) as u64
    }

    /// The adapter, its gradient, the optimizer's moments, and copies on the way.
    fn adapter(&self) -> u64 {
        let sides = |target: &TargetModule| self.model.linear_shape(*target).iter().sum::<usize>();
        let width: usize = self.lora.target_modules.iter().map(sides).sum();
        (self.model.num_layers * width * self.lora.rank) as u64 * 8 * F32
    }
}

#[cfg(test)]
mod tests;
