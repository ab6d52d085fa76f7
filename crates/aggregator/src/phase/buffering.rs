//! Buffering: clients start whenever they come, and their updates are folded as they come back, until
//! the buffer is full (FedBuff, Nguyen et al. 2022, arXiv 2106.06639, algorithm 1).
//!
//! Assignments outlive the round in which they were made. A client is assigned at most once in a
//! round, so that no seed of (round, client) is used twice, and counts at most once in a buffer.

mod outstanding;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floret_core::{ClientId, Layout, Receipt, Round, Time, Version};

use super::admission::{Standing, Terms, answer, decide, refuse, repeat};
use super::{Closing, OpenRound, Tally, Verdict};
use crate::clipped::Admitted;
use crate::combine::WeightedMean;
use crate::config::RunConfig;
use crate::message::{Counted, Record, Rejection, Reply, Report, RoundSummary, Step};
use crate::mode::{BufferedConfig, staleness_weight};
use crate::state::{Assignment, Assignments};
use outstanding::Outstanding;

#[derive(Debug)]
pub(crate) struct Buffering {
    pub(crate) round: Round,
    limits: BufferedConfig,
    opened_at: Time,
    /// Where assignments of this round start.
    version: Version,
    /// Awaited, from this round and earlier ones.
    outstanding: Outstanding,
    /// Assigned in this round.
    selected: BTreeSet<ClientId>,
    /// In the buffer.
    counted: BTreeMap<ClientId, Counted>,
    /// Assignments that came to nothing during this round, by the round that they are of.
    lost: BTreeMap<(Round, ClientId), Lost>,
    tally: Tally,
    sum: WeightedMean,
    /// The last assignment, or the opening.
    quiet_since: Time,
}

/// Why an assignment came to nothing.
#[derive(Debug)]
enum Lost {
    Refused(String),
    Declined(String),
    DroppedOut,
}

impl Buffering {
    pub(crate) fn open(
        limits: BufferedConfig,
        layout: &Layout,
        (round, version): (Round, Version),
        outstanding: Assignments,
        at: Time,
    ) -> Self {
        Self {
            round,
            limits,
            opened_at: at,
            version,
            tally: Tally { awaited: outstanding.len(), ..Tally::default() },
            outstanding: outstanding.into(),
            selected: BTreeSet::new(),
            counted: BTreeMap::new(),
            lost: BTreeMap::new(),
            sum: WeightedMean::new(layout),
            quiet_since: at,
        }
    }

    /// The round goes on after a restart at `now`: whoever is at work gets the whole time again.
    pub(crate) fn resume(&mut self, now: Time) {
        self.outstanding = self.outstanding.renewed(now);
        self.quiet_since = now;
    }

    /// Nobody is awaited any more.
    pub(crate) fn drop_everyone(&mut self) {
        let everyone: Vec<_> =
            self.outstanding.by_age().map(|(_, client)| client.clone()).collect();
        everyone.iter().for_each(|client| self.drop_out(client));
    }

    /// What the round leaves to the next one.
    pub(crate) fn into_outstanding(self) -> Assignments {
        self.outstanding.into_assignments()
    }

    /// The work that a client gets, if there is some, and the records that go before it. One that asks
    /// while it is awaited has lost its work, or the answer: it gets the same plan again, or, once
    /// that starts from an old version, another one.
    pub(crate) fn check_in(
        &self,
        now: Time,
        client: &ClientId,
    ) -> (Vec<Record>, Option<Assignment>) {
        let mut records = Vec::new();
        match self.outstanding.get(client) {
            Some(assignment) if assignment.version == self.version => {
                return (records, Some(*assignment));
            }
            Some(_) => records.push(Record::DroppedOut { client: client.clone() }),
            None if self.outstanding.len() >= self.limits.concurrency as usize => {
                return (records, None);
            }
            None => {}
        }
        let had_its_turn = self.selected.contains(client) || self.counted.contains_key(client);
        if self.is_full() || had_its_turn {
            return (records, None);
        }
        let assignment = Assignment { round: self.round, version: self.version, at: now };
        records.push(Record::Assigned { client: client.clone(), assignment });
        (records, Some(assignment))
    }

    /// Decides on an update; `None` if this round knows nothing of its assignment.
    pub(crate) fn report(
        &self,
        terms: Terms<'_>,
        client: &ClientId,
        report: Report,
    ) -> Option<Step> {
        let round = report.update.round;
        Some(match self.standing(terms.config, client, round) {
            // A fact of the round: the assignment is given up.
            Err(rejection @ Rejection::TooStale { .. }) => refuse(client, rejection),
            Err(rejection) => answer(Err(rejection)),
            Ok(Some(Standing::Counted(receipt))) => repeat(receipt, report.payload_digest, round),
            Ok(Some(Standing::Awaited(_))) => {
                let weight = staleness_weight(self.staleness(self.outstanding.get(client)?));
                decide(terms, client, report, weight)
            }
            Ok(None) => return None,
        })
    }

    /// Where the work of `client` that was given out in `round` stands, or why it does not count;
    /// `None` if this round knows nothing of it.
    pub(crate) fn standing(
        &self,
        config: &RunConfig,
        client: &ClientId,
        round: Round,
    ) -> Result<Option<Standing<'_>>, Rejection> {
        if let Some(counted) = self.counted.get(client).filter(|of| of.receipt.round == round) {
            return Ok(Some(Standing::Counted(&counted.receipt)));
        }
        if let Some(lost) = self.lost.get(&(round, client.clone())) {
            return Err(Rejection::OutOfRound { round, reason: lost.to_string() });
        }
        let Some(assignment) = self.outstanding.get(client).filter(|of| of.round == round) else {
            return Ok(None);
        };
        let (staleness, limit) = (self.staleness(assignment), self.limits.max_staleness);
        if staleness > u64::from(limit) {
            return Err(Rejection::TooStale { staleness, limit });
        }
        Ok(Some(Standing::Awaited(assignment.at.after(config.timing.report_deadline))))
    }

    pub(crate) fn decline(&self, client: &ClientId, round: Round, reason: String) -> Step {
        let awaited = self.outstanding.get(client).is_some_and(|of| of.round == round);
        let record = Record::Declined { client: client.clone(), reason };
        let records = if awaited { vec![record] } else { Vec::new() };
        Step { records, reply: Ok(Reply::DeclineNoted) }
    }

    /// Versions since the one that an assignment started from.
    fn staleness(&self, assignment: &Assignment) -> u64 {
        self.version.0.saturating_sub(assignment.version.0)
    }

    /// One record for each assignment whose time is over.
    pub(crate) fn expired(&self, now: Time, deadline: Duration) -> Vec<Record> {
        let over = self.outstanding.by_age().take_while(|(at, _)| at.after(deadline) <= now);
        over.map(|(_, client)| Record::DroppedOut { client: client.clone() }).collect()
    }

    /// When the next assignment's time is over, or that of a round for which nobody works.
    pub(crate) fn next_deadline(&self, deadline: Duration) -> Option<Time> {
        let expires = self.outstanding.by_age().next().map(|(at, _)| at.after(deadline));
        let quiet = self.was_worked_for().then(|| self.quiet_since.after(deadline));
        expires.or(quiet)
    }

    pub(crate) fn assign(&mut self, client: &ClientId, assignment: Assignment) {
        if assignment.round == self.round && self.selected.insert(client.clone()) {
            self.outstanding.put(client, assignment);
            self.tally.awaited = self.outstanding.len();
            self.quiet_since = self.quiet_since.max(assignment.at);
        }
    }

    /// Folds an update, once: a client that is not awaited changes nothing.
    pub(crate) fn accept(&mut self, client: &ClientId, receipt: Receipt, update: &Admitted) {
        let Some(assignment) = self.outstanding.take(client) else { return };
        self.sum.add(update.delta(), receipt.weight);
        let staleness = self.staleness(&assignment);
        let counted = Counted { client: client.clone(), receipt, staleness };
        self.counted.insert(client.clone(), counted);
        self.tally.awaited -= 1;
        self.tally.accepted += 1;
    }

    pub(crate) fn refuse(&mut self, client: &ClientId, reason: String) {
        self.lose(client, Lost::Refused(reason));
    }

    pub(crate) fn declined(&mut self, client: &ClientId, reason: String) {
        self.lose(client, Lost::Declined(reason));
    }

    pub(crate) fn drop_out(&mut self, client: &ClientId) {
        self.lose(client, Lost::DroppedOut);
    }

    fn lose(&mut self, client: &ClientId, how: Lost) {
        let Some(assignment) = self.outstanding.take(client) else { return };
        self.tally.awaited -= 1;
        match how {
            Lost::Refused(_) => self.tally.refused += 1,
            Lost::Declined(_) => self.tally.declined += 1,
            Lost::DroppedOut => self.tally.dropped_out += 1,
        }
        self.lost.insert((assignment.round, client.clone()), how);
    }

    /// How many assignments are in which state.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Updates that make a version.
    pub(crate) fn size(&self) -> usize {
        self.limits.buffer as usize
    }

    fn is_full(&self) -> bool {
        self.counted.len() >= self.limits.buffer as usize
    }

    fn was_worked_for(&self) -> bool {
        !(self.selected.is_empty() && self.counted.is_empty() && self.lost.is_empty())
    }
}

impl OpenRound for Buffering {
    /// A round is given up when nobody is at work and nobody came for work for a whole deadline. One
    /// that nobody ever worked for waits, as a cohort does for its clients.
    fn verdict(&self, config: &RunConfig, now: Time) -> Option<Verdict> {
        let (count, size) = (self.counted.len(), self.limits.buffer);
        if self.is_full() {
            return Some(Verdict::Commit(format!("the buffer of {size} updates is full")));
        }
        let patience = config.timing.report_deadline;
        let idle = self.outstanding.len() == 0 && self.was_worked_for();
        (idle && self.quiet_since.after(patience) <= now).then(|| {
            let patience = patience.as_secs_f64();
            Verdict::Abandon(format!(
                "{count} of {size} updates: nobody is at work, and nobody new came for {patience} s"
            ))
        })
    }

    fn mean(&self, config: &RunConfig, _: &Layout, _: &[f32]) -> Vec<f32> {
        self.sum.over(self.limits.divisor(), config.aggregation.clip_norm)
    }

    fn counted(&self) -> Vec<(&ClientId, &Receipt)> {
        self.counted.iter().map(|(client, counted)| (client, &counted.receipt)).collect()
    }

    fn summary(&self, closing: Closing) -> RoundSummary {
        let mut summary = closing.summary(self.round, self.opened_at, self.sum.weight());
        summary.selected = self.selected.iter().cloned().collect();
        summary.accepted = self.counted.values().cloned().collect();
        for ((_, client), lost) in &self.lost {
            let client = client.clone();
            match lost {
                Lost::Refused(reason) => summary.refused.push((client, reason.clone())),
                Lost::Declined(reason) => summary.declined.push((client, reason.clone())),
                Lost::DroppedOut => summary.dropped_out.push(client),
            }
        }
        summary
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(reason) | Self::Declined(reason) => f.write_str(reason),
            Self::DroppedOut => f.write_str("its time was over, or it asked for other work"),
        }
    }
}
