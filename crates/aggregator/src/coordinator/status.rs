//! Where a run stands, for people and metrics.

use floret_core::{Digest, Time};
use serde::Serialize;

use super::Coordinator;
use crate::phase::Phase;
use crate::phase::training::Training;
use crate::state::{RunEnd, Totals};

/// Where a run stands, for people and metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The run.
    pub run: String,
    /// `selecting`, `training` or `ended`.
    pub phase: &'static str,
    /// Rounds to commit.
    pub rounds: u32,
    /// The last round that was opened.
    pub round: u32,
    /// Version of the adapter.
    pub version: u64,
    /// Digest of the adapter.
    pub adapter_digest: Digest,
    /// Values of the adapter.
    pub parameters: usize,
    /// Clients connected, while selecting.
    pub population: Option<usize>,
    /// Clients that must be connected before a round opens, while selecting.
    pub population_awaited: Option<u32>,
    /// Clients chosen, while training.
    pub cohort: Option<usize>,
    /// Updates accepted, while training.
    pub accepted: Option<usize>,
    /// Seconds to the deadline, while training.
    pub deadline_in_s: Option<f64>,
    /// Rounds abandoned since the last commit.
    pub abandoned_in_a_row: u32,
    /// Counts over the whole run.
    pub totals: Totals,
    /// How the run ended.
    pub end: Option<RunEnd>,
}

impl Coordinator {
    /// Where the run stands at `now`.
    #[must_use]
    pub fn status(&self, now: Time) -> Status {
        let (state, config) = (&self.state, &self.config);
        let (selecting, training) = match &self.phase {
            Phase::Selecting(selecting) => (Some(selecting), None),
            Phase::Training(training) => (None, Some(training)),
            Phase::Ended(_) => (None, None),
        };
        let mut totals = state.totals;
        if let Some(training) = training {
            let tally = training.tally();
            totals.updates_accepted += tally.accepted as u64;
            totals.updates_refused += tally.refused as u64;
            totals.assignments_declined += tally.declined as u64;
        }
        Status {
            run: config.run.to_string(),
            phase: match &self.phase {
                Phase::Selecting(_) => "selecting",
                Phase::Training(_) => "training",
                Phase::Ended(_) => "ended",
            },
            rounds: config.rounds,
            round: state.round.0,
            version: state.version.0,
            adapter_digest: state.adapter.digest(),
            parameters: self.layout.len(),
            population: selecting.map(|selecting| selecting.population(config, now)),
            population_awaited: selecting.map(|_| config.cohort.awaited()),
            cohort: training.map(Training::selected),
            accepted: training.map(|training| training.tally().accepted),
            deadline_in_s: training.map(|training| now.until(training.closes_at).as_secs_f64()),
            abandoned_in_a_row: state.abandoned_in_a_row,
            totals,
            end: state.end.clone(),
        }
    }
}
