//! The round state machine.

mod combining;
mod status;

use floret_core::seed::Purpose;
use floret_core::{ClientId, Digest, Layout, Plan, Round, RunId, Time, Version};
use std::sync::Arc;
use std::time::Duration;

use crate::advance::{Before, advance};
use crate::combine::Combine;
use crate::combine::residual::Residual;
use crate::config::{InvalidRun, Mode, RunConfig};
use crate::message::{Input, Record, Rejection, Reply, Report, RoundSummary, Step};
use crate::phase::admission::{Standing, Terms, answer, repeat};
use crate::phase::buffering::Buffering;
use crate::phase::selecting::Selecting;
use crate::phase::training::Training;
use crate::phase::{Closing, OpenRound, Phase, Verdict};
use crate::state::{Assignment, RunEnd, RunState};
use crate::store::UpdateSource;

pub use status::Status;

/// One run. Decide with [`Coordinator::handle`], change with [`Coordinator::apply`].
#[derive(Debug)]
pub struct Coordinator {
    config: RunConfig,
    layout: Arc<Layout>,
    state: RunState,
    phase: Phase,
    /// In the place of the one that the settings name.
    rule: Option<Box<dyn Combine>>,
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
        config.fits_memory(layout.bytes())?;
        let (want, got) = (layout.digest(), state.adapter.layout().digest());
        if want != got || !state.moments.fit(layout.len()) || !fits(&state.unsent, &layout) {
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
        Ok(Self { config, layout, state, phase, rule: None })
    }

    /// The run's settings.
    #[must_use]
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Goes on at `now` after a restart: whoever is at work gets the whole time again. A round that
    /// `because` cannot go on is abandoned, by the records that this returns, and buffered work that
    /// was given out is not awaited any more.
    #[must_use]
    pub fn resume(&mut self, now: Time, because: Option<&str>) -> Vec<Record> {
        let Some(reason) = because else {
            match &mut self.phase {
                Phase::Training(training) => {
                    training.resume(now, self.config.timing.report_deadline);
                }
                Phase::Buffering(buffering) => buffering.resume(now),
                Phase::Selecting(selecting) => {
                    selecting.since = now;
                    self.state.assignments.values_mut().for_each(|of| of.at = now);
                }
                Phase::Ended(_) => {}
            }
            return Vec::new();
        };
        self.state.assignments.clear();
        if let Phase::Buffering(buffering) = &mut self.phase {
            buffering.drop_everyone();
        }
        let round = self.phase.open_round();
        round.map(|round| self.abandon(round, now, reason.to_owned())).unwrap_or_default()
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
            Input::Report(report) => self.report(client, report),
            Input::Standing { run, round, payload_digest } => {
                answer(self.standing(now, client, run, round, payload_digest))
            }
            Input::Decline { round, reason } => match &self.phase {
                Phase::Training(training) if training.round == round => {
                    training.decline(client, reason)
                }
                Phase::Buffering(buffering) => buffering.decline(client, round, reason),
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
                let (round, until) = (training.round, training.closes_at);
                answer(Ok(Reply::Train(Box::new(self.plan(client, round, now.until(until))))))
            }
            Phase::Training(_) => answer(Ok(self.come_back())),
            Phase::Buffering(buffering) => {
                let (records, work) = buffering.check_in(now, client);
                let deadline = self.config.timing.report_deadline;
                let plan =
                    |of: Assignment| self.plan(client, of.round, now.until(of.at.after(deadline)));
                let reply = work.map(|of| Reply::Train(Box::new(plan(of))));
                Step { records, reply: Ok(reply.unwrap_or_else(|| self.come_back())) }
            }
            Phase::Ended(end) => answer(Ok(Reply::RunEnded(end.clone()))),
        }
    }

    fn come_back(&self) -> Reply {
        let timing = &self.config.timing;
        Reply::ComeBack { earliest: timing.retry_min, latest: timing.retry_max }
    }

    /// A client's work on the current version.
    fn plan(&self, client: &ClientId, round: Round, report_within: Duration) -> Plan {
        let config = &self.config;
        Plan {
            run: config.run.clone(),
            round,
            version: self.state.version,
            adapter_digest: self.state.adapter.digest(),
            layout_digest: self.layout.digest(),
            base: config.base,
            lora: config.lora.clone(),
            folded_rank: config.aggregation.fold_residual,
            training: config.training.from_version(self.state.version, config.rounds),
            compression: config.compression,
            error_feedback: config.feedback(),
            clip_norm: config.aggregation.clip_norm,
            summands: config.summands(),
            seed: config.seed.derive(Purpose::ClientRound, round, Some(client)),
            report_within,
        }
    }

    fn report(&self, client: &ClientId, report: Report) -> Step {
        let Report { update, payload_digest, .. } = &report;
        let (round, payload_digest) = (update.round, *payload_digest);
        if update.run != self.config.run {
            return answer(Err(Rejection::OtherRun(update.run.clone())));
        }
        // Bytes that changed on the way are the network's fault: they are sent again.
        let got = update.payload.digest();
        if got != payload_digest {
            return answer(Err(Rejection::WrongDigest { want: payload_digest, got }));
        }
        let (config, layout, version) = (&self.config, &self.layout, self.state.version);
        let terms = Terms { config, layout, version };
        let step = match &self.phase {
            Phase::Training(training) if training.round == round => {
                Some(training.report(terms, client, report))
            }
            Phase::Buffering(buffering) => buffering.report(terms, client, report),
            _ => None,
        };
        step.unwrap_or_else(|| match self.state.receipt(client, round) {
            Some(receipt) => repeat(receipt, payload_digest, round),
            None => answer(Err(unknown_round(&self.phase, round))),
        })
    }

    /// Whether the work of `client` in `round` still counts: it is awaited, or it has its receipt, or
    /// the refusal that a report would get.
    fn standing(
        &self,
        now: Time,
        client: &ClientId,
        run: RunId,
        round: Round,
        payload_digest: Option<Digest>,
    ) -> Result<Reply, Rejection> {
        if run != self.config.run {
            return Err(Rejection::OtherRun(run));
        }
        let standing = match &self.phase {
            Phase::Training(training) if training.round == round => {
                Some(training.standing(client)?)
            }
            Phase::Buffering(buffering) => buffering.standing(&self.config, client, round)?,
            _ => None,
        };
        let standing =
            standing.or_else(|| self.state.receipt(client, round).map(Standing::Counted));
        match standing {
            Some(Standing::Awaited(until)) => Ok(Reply::Awaited(now.until(until))),
            Some(Standing::Counted(receipt)) => {
                let asked = payload_digest.unwrap_or(receipt.payload_digest);
                repeat(receipt, asked, round).reply
            }
            None => Err(unknown_round(&self.phase, round)),
        }
    }

    /// When [`Coordinator::handle_timeout`] should be called next; [`Time`] zero for at once.
    #[must_use]
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let at_once = self.phase.open_round().and_then(|round| round.verdict(&self.config, now));
        if at_once.is_some() {
            return Some(Time::default());
        }
        match &self.phase {
            Phase::Selecting(selecting) => self.opening(selecting, now).map(|_| Time::default()),
            Phase::Training(training) => Some(training.closes_at),
            Phase::Buffering(buffering) => {
                buffering.next_deadline(self.config.timing.report_deadline)
            }
            Phase::Ended(_) => None,
        }
    }

    /// Opens or closes a round if it is time; changes nothing. Spurious calls are harmless. A round
    /// that closes may read its updates again: all that were accepted must be in `updates`.
    ///
    /// # Errors
    /// An update cannot be read.
    pub fn handle_timeout<S: UpdateSource>(
        &self,
        now: Time,
        updates: &S,
    ) -> Result<Vec<Record>, S::Error> {
        Ok(match &self.phase {
            Phase::Selecting(selecting) => self.opening(selecting, now).into_iter().collect(),
            Phase::Training(training) => self.close(training, now, updates)?,
            Phase::Buffering(buffering) => {
                let closed = self.close(buffering, now, updates)?;
                match closed.is_empty() {
                    true => buffering.expired(now, self.config.timing.report_deadline),
                    false => closed,
                }
            }
            Phase::Ended(_) => Vec::new(),
        })
    }

    /// The next round's opening, if it is time: a buffered one needs no clients to begin.
    fn opening(&self, selecting: &Selecting, now: Time) -> Option<Record> {
        let round = self.state.round.next();
        let cohort = match self.config.mode {
            Mode::Synchronous => selecting.draw(&self.config, round, now)?,
            Mode::Buffered(_) => Vec::new(),
        };
        Some(Record::RoundOpened { round, cohort, at: now })
    }

    /// Closes a round if it is time.
    fn close<S: UpdateSource>(
        &self,
        round: &dyn OpenRound,
        now: Time,
        updates: &S,
    ) -> Result<Vec<Record>, S::Error> {
        Ok(match round.verdict(&self.config, now) {
            Some(Verdict::Commit(reason)) => {
                let combined = self.combine(round, updates)?;
                self.commit(round, now, reason, combined)
            }
            Some(Verdict::Abandon(reason)) => self.abandon(round, now, reason),
            None => Vec::new(),
        })
    }

    fn commit(
        &self,
        round: &dyn OpenRound,
        now: Time,
        reason: String,
        (delta, residual): (Vec<f32>, Option<Residual>),
    ) -> Vec<Record> {
        let RunState { adapter, moments, .. } = &self.state;
        let held = self.config.scope(self.state.version).outside(&self.layout);
        let unsent = self.state.unsent.as_deref();
        let before = Before { adapter, moments, unsent, held: &held };
        let after = match advance(before, &self.config.aggregation, self.state.round, &delta) {
            Ok(after) => after,
            // Clipped deltas and bounded settings keep this finite for any run of sane length.
            Err(error) => return self.abandon(round, now, error.to_string()),
        };
        let version = self.state.version.next();
        let closing = Closing { residual, ..self.closing(now, true, reason) };
        let summary = round.summary(closing);
        let mut records = vec![Record::RoundCommitted { summary, after: Box::new(after) }];
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
        Closing { at, committed, reason, base_version, adapter_before, residual: None }
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
                self.phase = self.open_round(*round, cohort, *at);
                self.state.round = *round;
            }
            (Record::Assigned { client, assignment }, Phase::Buffering(buffering)) => {
                buffering.assign(client, *assignment);
            }
            (Record::DroppedOut { client }, Phase::Buffering(buffering)) => {
                buffering.drop_out(client);
            }
            (Record::Accepted { client, receipt, update }, Phase::Training(training)) => {
                training.accept(client, receipt.clone(), update);
            }
            (Record::Accepted { client, receipt, update }, Phase::Buffering(buffering)) => {
                buffering.accept(client, receipt.clone(), update);
            }
            (Record::Refused { client, reason, .. }, Phase::Training(training)) => {
                training.refuse(client, reason.clone());
            }
            (Record::Refused { client, reason, .. }, Phase::Buffering(buffering)) => {
                buffering.refuse(client, reason.clone());
            }
            (Record::Declined { client, reason }, Phase::Training(training)) => {
                training.declined(client, reason.clone());
            }
            (Record::Declined { client, reason }, Phase::Buffering(buffering)) => {
                buffering.declined(client, reason.clone());
            }
            (
                Record::RoundCommitted { summary, after },
                Phase::Training(_) | Phase::Buffering(_),
            ) => {
                self.state.version = self.state.version.next();
                self.state.adapter = after.adapter.clone();
                self.state.moments.clone_from(&after.moments);
                self.state.unsent.clone_from(&after.unsent);
                self.state.abandoned_in_a_row = 0;
                self.close_round(summary);
            }
            (Record::RoundAbandoned { summary }, Phase::Training(_) | Phase::Buffering(_)) => {
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

    /// The phase that a round begins with. What a round without a cohort is follows from the record
    /// alone: one that was opened under other settings is replayed all the same.
    fn open_round(&self, round: Round, cohort: &[ClientId], at: Time) -> Phase {
        let (config, layout, state) = (&self.config, &self.layout, &self.state);
        if !cohort.is_empty() {
            return Phase::Training(Training::open(config, layout, round, cohort, at));
        }
        let limits = config.mode.buffered().unwrap_or_default();
        let (base, outstanding) = ((round, state.version), state.assignments.clone());
        Phase::Buffering(Buffering::open(limits, layout, base, outstanding, at))
    }

    fn close_round(&mut self, summary: &RoundSummary) {
        let next = Phase::Selecting(Selecting::default());
        match std::mem::replace(&mut self.phase, next) {
            Phase::Training(training) => {
                let others_first = summary.closed_at.after(self.config.timing.retry_max);
                let gave_nothing = training.gave_nothing();
                let selecting = Selecting::after(summary.closed_at, gave_nothing, others_first);
                self.phase = Phase::Selecting(selecting);
            }
            Phase::Buffering(buffering) => self.state.assignments = buffering.into_outstanding(),
            Phase::Selecting(_) | Phase::Ended(_) => {}
        }
        self.state.totals.add(summary);
        self.state.concerns.closed(summary);
        self.state.keep_receipts(summary);
    }
}

/// Whether what was not sent is of this layout.
fn fits(unsent: &Option<Vec<f32>>, layout: &Layout) -> bool {
    unsent.as_ref().is_none_or(|unsent| unsent.len() == layout.len())
}

fn all_committed(config: &RunConfig, version: Version) -> RunEnd {
    let message = format!("all {} rounds are committed", config.rounds);
    RunEnd { completed: true, version, message }
}

fn unknown_round(phase: &Phase, round: Round) -> Rejection {
    let hint = match phase {
        Phase::Selecting(_) => "no round is open; check in".to_owned(),
        Phase::Training(training) => format!("round {} is; check in", training.round),
        Phase::Buffering(_) => "this client has no work of it; check in".to_owned(),
        Phase::Ended(_) => return Rejection::RunEnded,
    };
    Rejection::UnknownRound { round, hint }
}

#[cfg(test)]
pub(crate) mod tests;
