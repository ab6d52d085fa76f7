//! The round state machine.

mod status;

use floret_core::seed::Purpose;
use floret_core::{Adapter, ClientId, ClientUpdate, Digest, Layout, Plan, Round, Time, Version};
use std::sync::Arc;

use crate::config::{InvalidRun, RunConfig};
use crate::message::{Input, Record, Rejection, Reply, RoundSummary, Step};
use crate::phase::admission::{answer, repeat};
use crate::phase::selecting::Selecting;
use crate::phase::training::Training;
use crate::phase::{Closing, OpenRound, Phase, Verdict};
use crate::state::{RunEnd, RunState};

pub use status::Status;

/// One run. Decide with [`Coordinator::handle`], change with [`Coordinator::apply`].
#[derive(Debug)]
pub struct Coordinator {
    config: RunConfig,
    layout: Arc<Layout>,
    state: RunState,
    phase: Phase,
}

impl Coordinator {
    /// A coordinator that goes on from `state`. Applying the records that a store kept of an open
    /// round, and then calling [`Coordinator::resume`], restores that round too.
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
        Ok(Self { config, layout, state, phase })
    }

    /// The run's settings.
    #[must_use]
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Goes on at `now` after a restart: devices of an open round get the whole time again, and one
    /// that `because` cannot go on is abandoned, by the records that this returns.
    #[must_use]
    pub fn resume(&mut self, now: Time, because: Option<&str>) -> Vec<Record> {
        if let (Phase::Training(training), Some(reason)) = (&self.phase, because) {
            return self.abandon(training, now, reason.to_owned());
        }
        if let Phase::Training(training) = &mut self.phase {
            training.resume(now, self.config.timing.report_deadline);
        }
        Vec::new()
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
            Input::Report { update, payload_digest } => self.report(client, update, payload_digest),
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

    fn report(&self, client: &ClientId, update: ClientUpdate, payload_digest: Digest) -> Step {
        let round = update.round;
        if update.run != self.config.run {
            return answer(Err(Rejection::OtherRun(update.run)));
        }
        // Bytes that changed on the way are the network's fault: they are sent again.
        let got = update.payload.digest();
        if got != payload_digest {
            return answer(Err(Rejection::WrongDigest { want: payload_digest, got }));
        }
        match &self.phase {
            Phase::Training(training) if training.round == round => {
                training.report(&self.config, &self.layout, client, update, payload_digest)
            }
            phase => match self.state.receipts.get(&round).and_then(|of| of.get(client)) {
                Some(receipt) => repeat(receipt, payload_digest, round),
                None => answer(Err(unknown_round(phase, round))),
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
            Phase::Training(training) => self.close(training, now),
            Phase::Ended(_) => Vec::new(),
        }
    }

    /// Closes a round if it is time.
    fn close(&self, round: &dyn OpenRound, now: Time) -> Vec<Record> {
        match round.verdict(&self.config, now) {
            Some(Verdict::Commit(reason)) => self.commit(round, now, reason),
            Some(Verdict::Abandon(reason)) => self.abandon(round, now, reason),
            None => Vec::new(),
        }
    }

    fn commit(&self, round: &dyn OpenRound, now: Time, reason: String) -> Vec<Record> {
        let delta = round.combined(&self.config);
        let optimizer = self.config.aggregation.server_optimizer;
        let state = &self.state;
        let (values, momentum) = optimizer.step(state.adapter.values(), &state.momentum, &delta);
        let adapter = match Adapter::new(Arc::clone(&self.layout), values) {
            Ok(adapter) => adapter,
            // Clipped deltas and bounded settings keep this finite for any run of sane length.
            Err(error) => return self.abandon(round, now, error.to_string()),
        };
        let version = state.version.next();
        let summary = round.summary(self.closing(now, true, reason));
        let mut records = vec![Record::RoundCommitted { summary, adapter, momentum }];
        if version.0 >= u64::from(self.config.rounds) {
            records.push(Record::RunEnded(all_committed(&self.config, version)));
        }
        records
    }

    fn abandon(&self, round: &dyn OpenRound, now: Time, reason: String) -> Vec<Record> {
        let in_a_row = self.state.abandoned_in_a_row + 1;
        let message = format!("{in_a_row} rounds in a row were abandoned, the last with {reason}");
        let summary = round.summary(self.closing(now, false, reason));
        let mut records = vec![Record::RoundAbandoned { summary }];
        if in_a_row >= self.config.max_abandoned {
            let version = self.state.version;
            records.push(Record::RunEnded(RunEnd { completed: false, version, message }));
        }
        records
    }

    fn closing(&self, at: Time, committed: bool, reason: String) -> Closing {
        let (base_version, adapter_before) = (self.state.version, self.state.adapter.digest());
        Closing { at, committed, reason, base_version, adapter_before }
    }

    /// Applies a record: the only place where state changes. Records that do not belong to the
    /// phase are ignored, so that replaying one twice does no harm.
    pub fn apply(&mut self, record: &Record) {
        match (record, &mut self.phase) {
            (Record::CheckedIn { client, at }, Phase::Selecting(selecting)) => {
                selecting.checked_in(client.clone(), *at);
            }
            (Record::RoundOpened { round, cohort, at }, Phase::Selecting(_))
                if *round > self.state.round =>
            {
                let open = Training::open(&self.config, &self.layout, *round, cohort, *at);
                self.state.round = *round;
                self.phase = Phase::Training(open);
            }
            (Record::Accepted { client, receipt, update }, Phase::Training(training)) => {
                training.accept(client, receipt.clone(), update);
            }
            (Record::Refused { client, reason, .. }, Phase::Training(training)) => {
                training.refuse(client, reason.clone());
            }
            (Record::Declined { client, reason }, Phase::Training(training)) => {
                training.declined(client, reason.clone());
            }
            (Record::RoundCommitted { summary, adapter, momentum }, Phase::Training(_)) => {
                self.state.version = self.state.version.next();
                self.state.adapter = adapter.clone();
                self.state.momentum.clone_from(momentum);
                self.state.abandoned_in_a_row = 0;
                self.close_round(summary);
            }
            (Record::RoundAbandoned { summary }, Phase::Training(_)) => {
                self.state.abandoned_in_a_row += 1;
                self.close_round(summary);
            }
            (Record::RunEnded(end), _) => {
                self.state.end = Some(end.clone());
                self.phase = Phase::Ended(end.clone());
            }
            _ => {}
        }
    }

    fn close_round(&mut self, summary: &RoundSummary) {
        let Phase::Training(training) = &self.phase else { return };
        let others_first = summary.closed_at.after(self.config.timing.retry_max);
        self.phase = Phase::Selecting(Selecting::after(training.gave_nothing(), others_first));
        self.state.totals.add(summary);
        let receipts = &mut self.state.receipts;
        receipts.insert(summary.round, summary.accepted.iter().cloned().collect());
        while receipts.len() > RunState::RECEIPT_ROUNDS {
            receipts.pop_first();
        }
    }
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
