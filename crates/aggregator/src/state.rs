//! What outlives a round: the shell keeps it durable.

use std::sync::Arc;

use floret_core::seed::Purpose;
use floret_core::{Adapter, Layout, Round, Version};
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

/// A run between two rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    /// Version of the adapter: committed rounds so far.
    pub version: Version,
    /// The last round that was opened.
    pub round: Round,
    /// The global adapter.
    pub adapter: Adapter,
    /// Momentum of the server optimizer, in layout order.
    pub momentum: Vec<f32>,
    /// Rounds abandoned since the last commit.
    pub abandoned_in_a_row: u32,
    /// Counts over the whole run.
    pub totals: Totals,
    /// Set when the run is over.
    pub end: Option<RunEnd>,
}

/// Counts over the whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Rounds that gave a new adapter.
    pub rounds_committed: u64,
    /// Rounds that gave nothing.
    pub rounds_abandoned: u64,
    /// Updates that counted.
    pub updates_accepted: u64,
    /// Updates that were refused.
    pub updates_refused: u64,
    /// Assignments that were declined.
    pub assignments_declined: u64,
    /// Assignments that were never answered.
    pub drop_outs: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEnd {
    /// Whether every round was committed.
    pub completed: bool,
    /// The last version of the adapter.
    pub version: Version,
    /// In words.
    pub message: String,
}

impl RunState {
    /// The state before the first round.
    #[must_use]
    pub fn first(config: &RunConfig, layout: Arc<Layout>) -> Self {
        let seed = config.seed.derive(Purpose::AdapterInit, Round(0), None);
        Self {
            version: Version(0),
            round: Round(0),
            momentum: vec![0.0; layout.len()],
            adapter: Adapter::init(layout, &seed),
            abandoned_in_a_row: 0,
            totals: Totals::default(),
            end: None,
        }
    }
}
