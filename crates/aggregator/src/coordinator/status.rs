//! Where a run stands, for people and metrics.

use floret_core::{ClientId, Digest, Time};
use serde::Serialize;

use super::Coordinator;
use crate::concerns::Concern;
use crate::config::Mode;
use crate::phase::Phase;
use crate::phase::buffering::Buffering;
use crate::phase::training::Training;
use crate::state::{RunEnd, Totals};

/// Where a run stands, for people and metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The run.
    pub run: String,
    /// `synchronous` or `buffered`.
    pub mode: &'static str,
    /// `selecting`, `training`, `buffering` or `ended`.
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
    /// Updates accepted, while training or buffering.
    pub accepted: Option<usize>,
    /// Updates that make a version, while buffering.
    pub buffer: Option<usize>,
    /// Clients at work, while buffering.
    pub at_work: Option<usize>,
    /// Seconds to the deadline, while training.
    pub deadline_in_s: Option<f64>,
    /// Rounds abandoned since the last commit.
    pub abandoned_in_a_row: u32,
    /// What people should hear of.
    pub concerns: Vec<Concern>,
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
        let (mut selecting, mut training, mut buffering) = (None, None, None);
        let phase = match &self.phase {
            Phase::Selecting(phase) => {
                selecting = Some(phase);
                "selecting"
            }
            Phase::Training(phase) => {
                training = Some(phase);
                "training"
            }
            Phase::Buffering(phase) => {
                buffering = Some(phase);
                "buffering"
            }
            Phase::Ended(_) => "ended",
        };
        let tally = training.map(Training::tally).or(buffering.map(Buffering::tally));
        let mut totals = state.totals;
        if let Some(tally) = tally {
            totals.updates_accepted += tally.accepted as u64;
            totals.updates_refused += tally.refused as u64;
            totals.assignments_declined += tally.declined as u64;
            totals.drop_outs += tally.dropped_out as u64;
        }
        Status {
            run: config.run.to_string(),
            mode: config.mode.name(),
            phase,
            rounds: config.rounds,
            round: state.round.0,
            version: state.version.0,
            adapter_digest: state.adapter.digest(),
            parameters: self.layout.len(),
            population: selecting.map(|selecting| selecting.population(config, now)),
            population_awaited: selecting.map(|_| config.cohort.awaited()),
            cohort: training.map(Training::selected),
            accepted: tally.map(|tally| tally.accepted),
            buffer: buffering.map(Buffering::size),
            at_work: tally.filter(|_| buffering.is_some()).map(|tally| tally.awaited),
            deadline_in_s: training.map(|training| now.until(training.closes_at).as_secs_f64()),
            abandoned_in_a_row: state.abandoned_in_a_row,
            concerns: self.concerns(now),
            totals,
            end: state.end.clone(),
        }
    }

    /// Clients that would get something to do by checking in: those that a cohort is drawn from, or
    /// for whom there is buffered work.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match (&self.phase, self.config.mode) {
            (Phase::Selecting(_), Mode::Synchronous) => self.config.cohort.awaited() as usize,
            (Phase::Buffering(buffering), Mode::Buffered(limits)) => {
                (limits.concurrency as usize).saturating_sub(buffering.tally().awaited)
            }
            _ => 0,
        }
    }

    /// The trusted client, if a cohort waits for it.
    #[must_use]
    pub fn misses(&self, now: Time) -> Option<&ClientId> {
        let Phase::Selecting(selecting) = &self.phase else { return None };
        let trusted = self.config.cohort.trusted.as_ref()?;
        (!selecting.is_connected(&self.config, trusted, now)).then_some(trusted)
    }

    fn concerns(&self, now: Time) -> Vec<Concern> {
        let mut found = self.state.concerns.list();
        if let Phase::Selecting(selecting) = &self.phase {
            let waited = selecting.since.until(now);
            let (here, awaited) =
                (selecting.population(&self.config, now), self.config.cohort.awaited());
            if waited > self.config.timing.report_deadline && here < awaited as usize {
                let message = format!(
                    "for {:.0} s not more than {here} of the {awaited} devices that a round awaits \
                     are connected",
                    waited.as_secs_f64()
                );
                found.push(Concern { kind: "devices-awaited", about: None, message });
            }
            if waited > self.config.timing.report_deadline
                && let Some(trusted) = self.misses(now)
            {
                let message = format!(
                    "for {:.0} s the trusted device {trusted}, without which no round opens, is not \
                     connected",
                    waited.as_secs_f64()
                );
                let about = Some(trusted.clone());
                found.push(Concern { kind: "trusted-awaited", about, message });
            }
        }
        found
    }
}
