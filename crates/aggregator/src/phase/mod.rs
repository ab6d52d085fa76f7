//! The phases of a run. Each file owns exactly its phase's data.
//!
//! ```text
//! selecting -> training -> selecting ...       (a round committed or abandoned)
//!         \________ended________/              (all rounds committed, or too many abandoned)
//! ```

pub(crate) mod admission;
pub(crate) mod selecting;
pub(crate) mod training;

use floret_core::{Digest, Time, Version};
use selecting::Selecting;
use training::Training;

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
    /// Nothing more will happen.
    Ended(RunEnd),
}

/// A round that collects updates.
pub(crate) trait OpenRound {
    /// Whether it can close at `now`, and how.
    fn verdict(&self, config: &RunConfig, now: Time) -> Option<Verdict>;

    /// The combined delta.
    fn combined(&self, config: &RunConfig) -> Vec<f32>;

    /// What happened in it.
    fn summary(&self, closing: Closing) -> RoundSummary;
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
}
