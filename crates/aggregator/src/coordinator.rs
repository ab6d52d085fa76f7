//! The round state machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floret_core::seed::Purpose;
use floret_core::{
    Adapter, ClientId, ClientUpdate, Digest, Layout, Plan, Receipt, Round, Time, Version,
};

use serde::Serialize;

use crate::config::{InvalidRun, RunConfig};
use crate::message::{Input, Record, Rejection, Reply, Step};
use crate::phase::Phase;
use crate::phase::selecting::Selecting;
use crate::phase::training::{Member, Training, Verdict, repeat};
use crate::state::{RunEnd, RunState, Totals};

/// One run. Decide with [`Coordinator::handle`], change with [`Coordinator::apply`].
#[derive(Debug)]
pub struct Coordinator {
    config: RunConfig,
    layout: Arc<Layout>,
    state: RunState,
    phase: Phase,
    /// Receipts of the last round that closed: a client whose answer was lost asks again.
    closed: (Round, BTreeMap<ClientId, Receipt>),
}

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
    /// A coordinator that goes on from `state`. A round that was open is not part of the state: it
    /// is abandoned by starting anew, and its number is not used again.
    ///
    /// # Errors
    /// Settings that [`RunConfig::validate`] refuses, or a state of another layout.
    pub fn new(
        config: RunConfig,
        layout: Arc<Layout>,
        state: RunState,
    ) -> Result<Self, InvalidRun> {
        config.validate()?;
        let (want, got) = (layout.digest(), state.adapter.layout().digest());
        if want != got || state.momentum.len() != layout.len() {
            let (want, got) = (want.short(), got.short());
            return Err(InvalidRun::OtherLayout { want, got });
        }
        // A run goes on when it is started again: after it completed, if its configuration now asks
        // for more rounds; after it was given up, with a new count of abandoned rounds.
        let (phase, end) = if state.version.0 >= u64::from(config.rounds) {
            let end = all_committed(&config, state.version);
            (Phase::Ended(end.clone()), Some(end))
        } else {
            (Phase::Selecting(Selecting::default()), None)
        };
        let abandoned_in_a_row = if state.end.is_some() { 0 } else { state.abandoned_in_a_row };
        let state = RunState { end, abandoned_in_a_row, ..state };
        Ok(Self { config, layout, state, phase, closed: (Round(0), BTreeMap::new()) })
    }

    /// The run's settings.
    #[must_use]
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What must outlive a restart.
    #[must_use]
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Layout of the adapter.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Decides what a client's `input` means; changes nothing.
    #[must_use]
    pub fn handle(&self, now: Time, client: &ClientId, input: Input) -> Step {
        match input {
            Input::CheckIn => self.check_in(now, client),
            Input::Report { update, payload_digest } => {
                self.report(client, &update, payload_digest)
            }
            Input::Decline { round, reason } => match &self.phase {
                Phase::Training(training) if training.round == round => {
                    training.decline(client, reason)
                }
                // A round that is over needs nothing more.
                _ => answer(Ok(Reply::DeclineNoted)),
            },
        }
    }

    fn check_in(&self, now: Time, client: &ClientId) -> Step {
        match &self.phase {
            Phase::Selecting(_) => {
                let record = Record::CheckedIn { client: client.clone(), at: now };
                Step { records: vec![record], reply: Ok(self.come_back()) }
            }
            Phase::Training(training) if training.awaits(client) => {
                answer(Ok(Reply::Train(Box::new(self.plan(training, client, now)))))
            }
            Phase::Training(_) => answer(Ok(self.come_back())),
            Phase::Ended(end) => answer(Ok(Reply::RunEnded(end.clone()))),
        }
    }

    fn come_back(&self) -> Reply {
        let timing = &self.config.timing;
        Reply::ComeBack { earliest: timing.retry_min, latest: timing.retry_max }
    }

    fn plan(&self, training: &Training, client: &ClientId, now: Time) -> Plan {
        let (config, round) = (&self.config, training.round);
        Plan {
            run: config.run.clone(),
            round,
            version: self.state.version,
            adapter_digest: self.state.adapter.digest(),
            layout_digest: self.layout.digest(),
            base: config.base,
            lora: config.lora.clone(),
            training: config.training.clone(),
            compression: config.compression,
            clip_norm: config.aggregation.clip_norm,
            seed: config.seed.derive(Purpose::ClientRound, round, Some(client)),
            report_within: now.until(training.closes_at),
        }
    }

    fn report(&self, client: &ClientId, update: &ClientUpdate, payload_digest: Digest) -> Step {
        let round = update.round;
        // Bytes that changed on the way are the network's fault: they are sent again.
        let got = update.payload.digest();
        if got != payload_digest {
            return answer(Err(Rejection::WrongDigest { want: payload_digest, got }));
        }
        match &self.phase {
            Phase::Training(training) if training.round == round => {
                training.report(&self.config, &self.layout, client, update, payload_digest)
            }
            phase => match self.closed.1.get(client) {
                Some(receipt) if self.closed.0 == round => {
                    answer(repeat(receipt, payload_digest, round))
                }
                _ => answer(Err(unknown_round(phase, round))),
            },
        }
    }

    /// When [`Coordinator::handle_timeout`] should be called next; [`Time`] zero for at once.
    #[must_use]
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        match &self.phase {
            Phase::Selecting(selecting) => {
                let cohort = selecting.draw(&self.config, self.state.round.next(), now);
                cohort.map(|_| Time::default())
            }
            Phase::Training(training) => match training.verdict(&self.config, now) {
                Some(_) => Some(Time::default()),
                None => Some(training.closes_at),
            },
            Phase::Ended(_) => None,
        }
    }

    /// Opens or closes a round if it is time; changes nothing. Spurious calls are harmless.
    #[must_use]
    pub fn handle_timeout(&self, now: Time) -> Vec<Record> {
        match &self.phase {
            Phase::Selecting(selecting) => {
                let round = self.state.round.next();
                let cohort = selecting.draw(&self.config, round, now);
                cohort
                    .map(|cohort| Record::RoundOpened { round, cohort, at: now })
                    .into_iter()
                    .collect()
            }
            Phase::Training(training) => match training.verdict(&self.config, now) {
                Some(Verdict::Commit(reason)) => self.commit(training, now, reason),
                Some(Verdict::Abandon(reason)) => self.abandon(training, now, reason),
                None => Vec::new(),
            },
            Phase::Ended(_) => Vec::new(),
        }
    }

    fn commit(&self, training: &Training, now: Time, reason: String) -> Vec<Record> {
        let delta = training.combined(&self.config);
        let optimizer = self.config.aggregation.server_optimizer;
        let state = &self.state;
        let (values, momentum) = optimizer.step(state.adapter.values(), &state.momentum, &delta);
        let adapter = match Adapter::new(Arc::clone(&self.layout), values) {
            Ok(adapter) => adapter,
            // Clipped deltas and bounded settings keep this finite for any run of sane length.
            Err(error) => return self.abandon(training, now, error.to_string()),
        };
        let version = state.version.next();
        let summary = training.summary(now, reason);
        let mut records = vec![Record::RoundCommitted { summary, adapter, momentum }];
        if version.0 >= u64::from(self.config.rounds) {
            records.push(Record::RunEnded(all_committed(&self.config, version)));
        }
        records
    }

    fn abandon(&self, training: &Training, now: Time, reason: String) -> Vec<Record> {
        let in_a_row = self.state.abandoned_in_a_row + 1;
        let message = format!("{in_a_row} rounds in a row were abandoned, the last with {reason}");
        let mut records = vec![Record::RoundAbandoned { summary: training.summary(now, reason) }];
        if in_a_row >= self.config.max_abandoned {
            let version = self.state.version;
            records.push(Record::RunEnded(RunEnd { completed: false, version, message }));
        }
        records
    }

    /// Applies a record: the only place where state changes. Records that do not belong to the
    /// phase are ignored, so that replaying one twice does no harm.
    pub fn apply(&mut self, record: Record) {
        let totals = &mut self.state.totals;
        match (record, &mut self.phase) {
            (Record::CheckedIn { client, at }, Phase::Selecting(selecting)) => {
                selecting.checked_in(client, at);
            }
            (Record::RoundOpened { round, cohort, at }, Phase::Selecting(_)) => {
                let version = self.state.version;
                let open = Training::open(&self.config, &self.layout, round, version, cohort, at);
                self.state.round = round;
                self.phase = Phase::Training(open);
            }
            (Record::Accepted { client, receipt, delta }, Phase::Training(training))
                if training.awaits(&client) =>
            {
                training.accept(client, receipt, &delta);
                totals.updates_accepted += 1;
            }
            (Record::Refused { client, rejection }, Phase::Training(training)) => {
                training.refuse(client, rejection.to_string());
                totals.updates_refused += 1;
            }
            (Record::Declined { client, reason }, Phase::Training(training)) => {
                training.declined(client, reason);
                totals.assignments_declined += 1;
            }
            (Record::RoundCommitted { summary, adapter, momentum }, Phase::Training(_)) => {
                totals.rounds_committed += 1;
                totals.drop_outs += summary.dropped_out.len() as u64;
                self.state.version = self.state.version.next();
                self.state.adapter = adapter;
                self.state.momentum = momentum;
                self.state.abandoned_in_a_row = 0;
                self.close_round(summary.duration_ms);
            }
            (Record::RoundAbandoned { summary }, Phase::Training(_)) => {
                totals.rounds_abandoned += 1;
                totals.drop_outs += summary.dropped_out.len() as u64;
                self.state.abandoned_in_a_row += 1;
                self.close_round(summary.duration_ms);
            }
            (Record::RunEnded(end), _) => {
                self.state.end = Some(end.clone());
                self.phase = Phase::Ended(end);
            }
            _ => {}
        }
    }

    fn close_round(&mut self, duration_ms: u64) {
        let Phase::Training(training) = &self.phase else { return };
        let closed_at = training.opened_at.after(Duration::from_millis(duration_ms));
        let others_first = closed_at.after(self.config.timing.retry_max);
        let next = Phase::Selecting(Selecting::after(training.gave_nothing(), others_first));
        if let Phase::Training(training) = std::mem::replace(&mut self.phase, next) {
            self.closed = (training.round, training.into_receipts());
        }
    }

    /// Where the run stands at `now`.
    #[must_use]
    pub fn status(&self, now: Time) -> Status {
        let (state, config) = (&self.state, &self.config);
        let (selecting, training) = match &self.phase {
            Phase::Selecting(selecting) => (Some(selecting), None),
            Phase::Training(training) => (None, Some(training)),
            Phase::Ended(_) => (None, None),
        };
        let reported = |member: &Member| matches!(member, Member::Reported(_));
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
            cohort: training.map(|training| training.count(|_| true)),
            accepted: training.map(|training| training.count(reported)),
            deadline_in_s: training.map(|training| now.until(training.closes_at).as_secs_f64()),
            abandoned_in_a_row: state.abandoned_in_a_row,
            totals: state.totals,
            end: state.end.clone(),
        }
    }
}

fn answer(reply: Result<Reply, Rejection>) -> Step {
    Step { records: Vec::new(), reply }
}

fn all_committed(config: &RunConfig, version: Version) -> RunEnd {
    let message = format!("all {} rounds are committed", config.rounds);
    RunEnd { completed: true, version, message }
}

fn unknown_round(phase: &Phase, round: Round) -> Rejection {
    let hint = match phase {
        Phase::Selecting(_) => "no round is open; check in".to_owned(),
        Phase::Training(training) => format!("round {} is; check in", training.round),
        Phase::Ended(_) => return Rejection::RunEnded,
    };
    Rejection::UnknownRound { round, hint }
}

#[cfg(test)]
pub(crate) mod tests;
