//! The phases of a run. Each file owns exactly its phase's data.
//!
//! ```text
//! selecting -> training -> selecting ...       (a round committed or abandoned)
//!         \________ended________/              (all rounds committed, or too many abandoned)
//! ```
//!
//! In buffered mode, `buffering` stands in the place of `training`, and selecting opens it at once.

pub(crate) mod admission;
pub(crate) mod buffering;
pub(crate) mod selecting;
pub(crate) mod training;

use buffering::Buffering;
use floret_core::{ClientId, Digest, Layout, Receipt, Round, Time, Version};
use selecting::Selecting;
use training::Training;

use crate::combine::residual::Residual;
use crate::config::RunConfig;
use crate::message::RoundSummary;
use crate::state::RunEnd;

/// Where a run stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Clients are gathering.
    Selecting(Selecting),
    /// A cohort is at work.
    Training(Training),
    /// Updates are collected from whoever comes.
    Buffering(Buffering),
    /// Nothing more will happen.
    Ended(RunEnd),
}

impl Phase {
    /// The round that is open.
    pub(crate) fn open_round(&self) -> Option<&dyn OpenRound> {
        match self {
            Self::Training(training) => Some(training),
            Self::Buffering(buffering) => Some(buffering),
            Self::Selecting(_) | Self::Ended(_) => None,
        }
    }
}

/// A round that collects updates.
pub(crate) trait OpenRound {
    /// Whether it can close at `now`, and how.
    fn verdict(&self, config: &RunConfig, now: Time) -> Option<Verdict>;

    /// The mean of the updates that count, for the linear rule, to an adapter of the values `before`.
    fn mean(&self, config: &RunConfig, layout: &Layout, before: &[f32]) -> Vec<f32>;

    /// The updates that count, in ClientId order.
    fn counted(&self) -> Vec<(&ClientId, &Receipt)>;

    /// What happened in it.
    fn summary(&self, closing: Closing) -> RoundSummary;
}

/// How many members are in which state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) awaited: usize,
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    pub(crate) declined: usize,
    /// Those that a summary will name later are not among them.
    pub(crate) dropped_out: usize,
}

/// Whether a round can close, and how.
pub(crate) enum Verdict {
    Commit(String),
    Abandon(String),
}

/// What a round does not know of its own end.
pub(crate) struct Closing {
    pub(crate) at: Time,
    pub(crate) committed: bool,
    pub(crate) reason: String,
    /// The adapter that it began with.
    pub(crate) base_version: Version,
    pub(crate) adapter_before: Digest,
    pub(crate) residual: Option<Residual>,
}

impl Closing {
    /// The summary of a round of which nobody is named yet.
    pub(crate) fn summary(self, round: Round, opened_at: Time, weight: u64) -> RoundSummary {
        RoundSummary {
            round,
            committed: self.committed,
            base_version: self.base_version,
            adapter_before: self.adapter_before,
            opened_at,
            closed_at: self.at,
            selected: Vec::new(),
            accepted: Vec::new(),
            weight,
            residual: self.residual,
            refused: Vec::new(),
            declined: Vec::new(),
            dropped_out: Vec::new(),
            reason: self.reason,
        }
    }
}
