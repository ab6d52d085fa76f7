//! What a run is, and which settings are refused.

use std::time::Duration;

use floret_core::base::BaseDigests;
use floret_core::json::is_default;
use floret_core::lora::InvalidLora;
use floret_core::payload::Compression;
use floret_core::plan::{InvalidTraining, TrainingConfig};
use floret_core::scope::Freeze;
use floret_core::{ClientId, ClientUpdate, Layout, LoraConfig, RunId, Scope, Seed, Version};
use serde::{Deserialize, Serialize};

use crate::combine::fold::Fold;
use crate::combine::hetlora::Hetlora;
use crate::combine::least_squares::LeastSquares;
use crate::combine::normalized::{self, Share};
use crate::combine::stacked::Stacked;
use crate::combine::{Combine, Robust, WeightedMean};
use crate::mode::FRESH_WEIGHT;
pub use crate::mode::{BufferedConfig, Mode};
use crate::server_optimizer::ServerOptimizer;
pub use factors::MixedRanks;

mod combine;
mod compression;
mod factors;
mod optimizer;
mod personal;
mod scaffold;
mod steps;

/// Settings of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    /// Its name.
    pub run: RunId,
    /// Rounds to commit.
    pub rounds: u32,
    /// Rounds that may be abandoned in a row before the run is given up.
    pub max_abandoned: u32,
    /// Root of the run's draws; never leaves the server.
    pub seed: Seed,
    /// Digests of the base model and tokenizer that devices must hold.
    pub base: BaseDigests,
    /// LoRA settings.
    pub lora: LoraConfig,
    /// How devices train.
    pub training: TrainingConfig,
    /// How devices encode their deltas.
    pub compression: Compression,
    /// Share of what a device's encodings left out that it keeps for each version that it sat out; 0
    /// for no error feedback. See [`RunConfig::feedback`].
    pub error_feedback: f32,
    /// When a round closes.
    pub mode: Mode,
    /// Whom a synchronous round chooses, and how many it needs.
    pub cohort: CohortConfig,
    /// Deadlines and retry windows.
    pub timing: Timing,
    /// How updates become the next adapter.
    pub aggregation: Aggregation,
}

/// Whom a round chooses, and how many it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CohortConfig {
    /// Updates wanted: a round closes when it has this many.
    pub size: u32,
    /// Clients chosen for each update wanted; at least 1.
    pub over_selection: f64,
    /// Updates needed: with fewer at its deadline a round is abandoned.
    pub quorum: u32,
    /// Connected clients awaited before a cohort is drawn; 0 for as many as are chosen.
    pub min_population: u32,
    /// A client that the operator trusts, as the rule FLTrust needs it: it is in every cohort, and a round without its
    /// update is abandoned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<ClientId>,
}

impl Default for CohortConfig {
    fn default() -> Self {
        Self { size: 4, over_selection: 1.0, quorum: 3, min_population: 0, trusted: None }
    }
}

impl CohortConfig {
    /// Clients chosen for a round.
    #[must_use]
    pub fn selected(&self) -> u32 {
        (f64::from(self.size) * self.over_selection).ceil() as u32
    }

    /// Connected clients awaited before a cohort is drawn.
    #[must_use]
    pub fn awaited(&self) -> u32 {
        self.min_population.max(self.selected())
    }
}

/// Deadlines and retry windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the opening of a synchronous round to its deadline; from a buffered assignment to its.
    pub report_deadline: Duration,
    /// Earliest return of a client that was turned away.
    pub retry_min: Duration,
    /// Latest return of a client that was turned away.
    pub retry_max: Duration,
}

impl Timing {
    /// How long a client counts as connected after a check-in.
    #[must_use]
    pub fn presence(&self) -> Duration {
        (self.retry_max * 3).max(Duration::from_secs(10))
    }
}

/// How updates become the next adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregation {
    /// L2 norm to which the server clips each decoded delta.
    pub clip_norm: f32,
    /// Most examples that count for one client's weight: its number is its own claim. In buffered
    /// rounds, staleness alone makes the weight.
    pub max_examples: u32,
    /// How many deltas become one; none for the weighted mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub combine: Option<Robust>,
    /// Whether clients that did more steps than others count for no more: see [`crate::combine::normalized`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub normalize_steps: bool,
    /// With `training.nested_ranks`, how clients of mixed ranks make one adapter.
    #[serde(skip_serializing_if = "is_default")]
    pub mixed_ranks: MixedRanks,
    /// Rank components, the last, that nobody trains: they hold what the mean of factors leaves out of the mean of
    /// products. 0 for none. See [`crate::combine::fold`].
    #[serde(skip_serializing_if = "is_default")]
    pub fold_residual: usize,
    /// Whether B makes up for what the mean of factors leaves out, as far as it can: see
    /// [`crate::combine::least_squares`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub least_squares: bool,
    /// Whether each round measures how far what it combined to is from the mean of its clients' products.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub measure_residual: bool,
    /// Whether each version's factors become those of their product's singular value decomposition, where
    /// B alone trains: FedSVD.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refactor: bool,
    /// Most memory, in bytes, for the deltas of a round that are needed at once. It changes no result,
    /// and so is not written with the settings.
    #[serde(skip_serializing)]
    pub max_buffered_bytes: u64,
    /// How the combined delta moves the adapter.
    pub server_optimizer: ServerOptimizer,
    /// How the adapter's steps are encoded for devices that hold an earlier version: what they hold
    /// then is what everyone holds.
    #[serde(skip_serializing_if = "Compression::is_none")]
    pub download_compression: Compression,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self {
            clip_norm: 10.0,
            max_examples: 10_000,
            combine: None,
            normalize_steps: false,
            mixed_ranks: MixedRanks::Nested,
            fold_residual: 0,
            least_squares: false,
            measure_residual: false,
            refactor: false,
            max_buffered_bytes: 1 << 30,
            server_optimizer: ServerOptimizer::default(),
            download_compression: Compression::None,
        }
    }
}

impl Aggregation {
    /// Whether all updates of a round are needed at once when it closes.
    #[must_use]
    pub fn needs_updates(&self) -> bool {
        self.measure_residual || self.rule().is_some()
    }

    /// The rule that the settings name in the place of the weighted mean, if they do.
    #[must_use]
    pub fn rule(&self) -> Option<Box<dyn Combine>> {
        if let Some(robust) = self.combine {
            return Some(Box::new(robust));
        }
        match self.mixed_ranks {
            MixedRanks::Hetlora => return Some(Box::new(Hetlora)),
            MixedRanks::Stacked => return Some(Box::new(Stacked)),
            MixedRanks::Nested | MixedRanks::ZeroPadding => {}
        }
        match self.fold_residual {
            0 if self.least_squares => Some(Box::new(LeastSquares)),
            0 => None,
            components => Some(Box::new(Fold { components })),
        }
    }

    /// What of an adapter of `rank` components updates change that start from `version`.
    #[must_use]
    pub fn scope(&self, training: &TrainingConfig, rank: usize, version: Version) -> Scope {
        let frozen = training.unsent(version);
        Scope { frozen, rank: rank.saturating_sub(self.fold_residual) }
    }

    /// What the weighted mean of a synchronous round gives, from an adapter of the values `before`.
    #[must_use]
    pub fn mean(
        &self,
        mean: &WeightedMean,
        (layout, before): (&Layout, &[f32]),
        training: &TrainingConfig,
        counted: impl Iterator<Item = Share>,
    ) -> Vec<f32> {
        let mut mean = match self.mixed_ranks {
            MixedRanks::ZeroPadding => mean.zero_padded(layout, self.clip_norm, before),
            _ => mean.mean(layout, self.clip_norm),
        };
        if self.normalize_steps {
            normalized::normalize(&mut mean, (training.max_steps, self.max_examples), counted);
        }
        mean
    }
}

/// A setting that is out of range, or a combination that is forbidden.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidRun {
    /// LoRA settings.
    #[error("[lora] {0}")]
    Lora(#[from] InvalidLora),
    /// Training settings.
    #[error("[training] {0}")]
    Training(#[from] InvalidTraining),
    /// Any other setting.
    #[error("{setting} is {value}: use {accepted}")]
    Setting {
        /// Section and key.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// State of another run, base model or adapter.
    #[error(
        "the saved state has an adapter of layout {got}, and the configuration asks for {want}: \
         restore the model and [lora] settings that the run began with, or begin a new run"
    )]
    OtherLayout {
        /// Of the configuration.
        want: String,
        /// Of the state.
        got: String,
    },
}

fn setting(
    setting: &'static str,
    value: impl ToString,
    accepted: impl Into<String>,
) -> Result<(), InvalidRun> {
    Err(InvalidRun::Setting { setting, value: value.to_string(), accepted: accepted.into() })
}

impl RunConfig {
    /// Largest cohort.
    pub const COHORT_MAX: u32 = 100_000;

    /// Checks ranges and combinations.
    ///
    /// # Errors
    /// Names the first setting that is refused.
    pub fn validate(&self) -> Result<(), InvalidRun> {
        self.lora.validate()?;
        self.training.validate()?;
        if self.rounds == 0 {
            return setting("run.rounds", 0, "1 or more");
        }
        if self.max_abandoned == 0 {
            return setting("run.max_abandoned", 0, "1 or more");
        }
        if !(0.0..=1.0).contains(&self.error_feedback) {
            return setting("run.error_feedback", self.error_feedback, "0 to 1; 0 is none");
        }
        match &self.mode {
            Mode::Synchronous => self.validate_cohort()?,
            Mode::Buffered(buffered) => validate_buffered(buffered)?,
        }
        self.validate_training()?;
        self.validate_compression()?;
        self.validate_factors()?;
        self.validate_personal()?;
        self.validate_scaffold()?;
        self.validate_timing()?;
        self.validate_aggregation()
    }

    /// What of an adapter of `version` trains: of each client's own rank, an update tells.
    #[must_use]
    pub fn scope(&self, version: Version) -> Scope {
        self.aggregation.scope(&self.training, self.lora.rank, version)
    }

    /// What only makes sense when all updates of a round start from the same version, or are compared.
    fn validate_training(&self) -> Result<(), InvalidRun> {
        let synchronous = self.mode.is_synchronous();
        if self.training.freeze == Freeze::Alternate && !synchronous {
            let accepted = "\"none\" or \"a\" with run.mode = \"buffered\", where updates of a \
                            buffer may have trained different factors";
            return setting("training.freeze", "\"alternate\"", accepted);
        }
        Ok(())
    }

    /// The weight of an update of `client` in a synchronous round: the number of examples that it says are behind it.
    /// The robust rules give each the same say, and a sum of linear payloads has no weights. Where one client is
    /// trusted, it alone has a weight: that of the others is what it makes of them.
    #[must_use]
    pub fn weight(&self, client: &ClientId, update: &ClientUpdate) -> u32 {
        if let Some(trusted) = &self.cohort.trusted {
            return u32::from(trusted == client);
        }
        let equal = self.aggregation.combine.is_some()
            || matches!(self.compression, Compression::Linear(_));
        let examples = update.num_examples.min(self.aggregation.max_examples);
        match self.aggregation.normalize_steps {
            _ if equal => 1,
            true => normalized::weight(examples, update.num_steps, self.training.max_steps),
            false => examples,
        }
    }

    /// Most updates that make a version together.
    #[must_use]
    pub fn summands(&self) -> u32 {
        match &self.mode {
            Mode::Synchronous => self.cohort.selected(),
            Mode::Buffered(buffered) => buffered.buffer.saturating_add(buffered.concurrency),
        }
    }

    /// The error feedback of plans: none where the compression needs none.
    #[must_use]
    pub fn feedback(&self) -> f32 {
        if self.compression.wants_feedback() { self.error_feedback } else { 0.0 }
    }

    fn validate_cohort(&self) -> Result<(), InvalidRun> {
        let cohort = &self.cohort;
        if !(1..=Self::COHORT_MAX).contains(&cohort.size) {
            let accepted = format!("1 to {}", Self::COHORT_MAX);
            return setting("cohort.size", cohort.size, accepted);
        }
        if !(1..=cohort.size).contains(&cohort.quorum) {
            let accepted = format!("1 to cohort.size = {}", cohort.size);
            return setting("cohort.quorum", cohort.quorum, accepted);
        }
        if !(1.0..=10.0).contains(&cohort.over_selection) {
            return setting("cohort.over_selection", cohort.over_selection, "1 to 10");
        }
        if cohort.min_population != 0 && cohort.min_population < cohort.selected() {
            let chosen = cohort.selected();
            let accepted =
                format!("0, or at least the {chosen} clients that size and over_selection choose");
            return setting("cohort.min_population", cohort.min_population, accepted);
        }
        let (chosen, max_examples) = (cohort.selected(), self.aggregation.max_examples);
        // A weight that no u32 holds fits no sum.
        let most = match self.aggregation.normalize_steps {
            true => normalized::largest_weight(max_examples, self.training.max_steps),
            false => Some(max_examples),
        };
        if !most.is_some_and(|most| WeightedMean::fits(chosen, most)) {
            let accepted = format!("less: {chosen} clients of this weight overflow the 63-bit sum");
            return setting("aggregation.max_examples", max_examples, accepted);
        }
        Ok(())
    }

    fn validate_timing(&self) -> Result<(), InvalidRun> {
        let timing = &self.timing;
        let day = Duration::from_secs(24 * 3600);
        if !(Duration::from_millis(100)..=30 * day).contains(&timing.report_deadline) {
            let value = timing.report_deadline.as_secs_f64();
            return setting("timing.report_deadline_s", value, "0.1 to 2592000 (30 days)");
        }
        if timing.retry_min < Duration::from_millis(10) || timing.retry_max > day {
            return setting("timing.retry_s", "out of range", "0.01 to 86400");
        }
        if timing.retry_max < timing.retry_min {
            let value = timing.retry_max.as_secs_f64();
            return setting("timing.retry_max_s", value, "at least timing.retry_min_s");
        }
        Ok(())
    }

    fn validate_aggregation(&self) -> Result<(), InvalidRun> {
        let aggregation = &self.aggregation;
        let clip = aggregation.clip_norm;
        if !(clip.is_finite() && clip > 0.0) {
            return setting(
                "aggregation.clip_norm",
                clip,
                "a positive number: there is no run without",
            );
        }
        if aggregation.max_examples == 0 {
            return setting("aggregation.max_examples", 0, "1 or more");
        }
        if let Some(rule) = aggregation.combine {
            self.validate_combine(rule)?;
        }
        self.validate_trusted()?;
        self.validate_steps()?;
        if aggregation.needs_updates() && !self.mode.is_synchronous() {
            let accepted = "\"synchronous\" with a rule of [aggregation] or measure_residual: updates \
                            of a buffer begin with different adapters, and cannot be compared";
            return setting("run.mode", self.mode.name(), accepted);
        }
        optimizer::validate(aggregation.server_optimizer)
    }

    /// Whether the updates that a round needs at once fit `aggregation.max_buffered_bytes`, for an
    /// adapter of `bytes` bytes.
    ///
    /// # Errors
    /// They do not.
    pub fn fits_memory(&self, bytes: usize) -> Result<(), InvalidRun> {
        let needed = u64::from(self.cohort.size).saturating_mul(bytes as u64);
        let limit = self.aggregation.max_buffered_bytes;
        if self.aggregation.needs_updates() && needed > limit {
            let accepted = format!(
                "at least {needed}, for cohort.size = {} deltas of {bytes} bytes that \
                 the rule of [aggregation] or measure_residual needs at once",
                self.cohort.size
            );
            return setting("aggregation.max_buffered_bytes", limit, accepted);
        }
        Ok(())
    }
}

/// Staleness alone makes weights here, so that sums are bounded by the number of updates.
fn validate_buffered(buffered: &BufferedConfig) -> Result<(), InvalidRun> {
    let BufferedConfig { buffer, max_staleness, concurrency } = *buffered;
    let counts = [("buffered.buffer", buffer), ("buffered.concurrency", concurrency)];
    for (name, value) in counts {
        if !(1..=RunConfig::COHORT_MAX).contains(&value) {
            return setting(name, value, format!("1 to {}", RunConfig::COHORT_MAX));
        }
    }
    // Everyone who is at work may report to a buffer that is about to be full.
    if !WeightedMean::fits(buffer + concurrency, FRESH_WEIGHT) {
        let accepted = format!("less: {buffer} and {concurrency} updates overflow the 63-bit sum");
        return setting("buffered.buffer", buffer, accepted);
    }
    if max_staleness > BufferedConfig::STALENESS_MAX {
        let accepted = format!("0 to {}", BufferedConfig::STALENESS_MAX);
        return setting("buffered.max_staleness", max_staleness, accepted);
    }
    Ok(())
}
