//! Training: a cohort is at work, and its updates are folded as they come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floret_core::{ClientId, Layout, Receipt, Round, Time};

use super::admission::{Standing, Terms, answer, decide, repeat};
use super::{Closing, OpenRound, Tally, Verdict};
use crate::clipped::Admitted;
use crate::combine::WeightedMean;
use crate::combine::normalized::Share;
use crate::config::RunConfig;
use crate::message::{Counted, Record, Rejection, Reply, Report, RoundSummary, Step};

#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) round: Round,
    opened_at: Time,
    pub(crate) closes_at: Time,
    cohort: BTreeMap<ClientId, Member>,
    tally: Tally,
    mean: WeightedMean,
}

/// What is known of a cohort's member.
#[derive(Debug)]
pub(crate) enum Member {
    /// Its update is awaited.
    Assigned,
    /// Its update counts.
    Reported(Receipt),
    /// Its update was refused.
    Refused(String),
    /// It gives nothing.
    Declined(String),
}

impl Training {
    pub(crate) fn open(
        config: &RunConfig,
        layout: &Layout,
        round: Round,
        cohort: &[ClientId],
        at: Time,
    ) -> Self {
        Self {
            round,
            opened_at: at,
            closes_at: at.after(config.timing.report_deadline),
            tally: Tally { awaited: cohort.len(), ..Tally::default() },
            cohort: cohort.iter().map(|client| (client.clone(), Member::Assigned)).collect(),
            mean: WeightedMean::new(layout),
        }
    }

    /// The round goes on after a restart at `now`: its devices get the whole time again.
    pub(crate) fn resume(&mut self, now: Time, report_deadline: Duration) {
        self.closes_at = now.after(report_deadline);
    }

    /// Whether `client` still owes an update.
    pub(crate) fn awaits(&self, client: &ClientId) -> bool {
        matches!(self.cohort.get(client), Some(Member::Assigned))
    }

    /// Whether the update of `client` counts.
    fn counts(&self, client: &ClientId) -> bool {
        matches!(self.cohort.get(client), Some(Member::Reported(_)))
    }

    /// Where the work of `client` stands, or why it does not count.
    pub(crate) fn standing(&self, client: &ClientId) -> Result<Standing<'_>, Rejection> {
        match self.cohort.get(client) {
            None => Err(Rejection::NotInCohort(client.clone())),
            Some(Member::Assigned) => Ok(Standing::Awaited(self.closes_at)),
            Some(Member::Reported(receipt)) => Ok(Standing::Counted(receipt)),
            Some(Member::Refused(reason) | Member::Declined(reason)) => {
                Err(Rejection::OutOfRound { round: self.round, reason: reason.clone() })
            }
        }
    }

    /// Decides on an update. A refusal of what the update says is a fact of the round and takes its
    /// client out of it.
    pub(crate) fn report(&self, terms: Terms<'_>, client: &ClientId, report: Report) -> Step {
        match self.standing(client) {
            Err(rejection) => answer(Err(rejection)),
            Ok(Standing::Counted(receipt)) => repeat(receipt, report.payload_digest, self.round),
            Ok(Standing::Awaited(_)) => {
                let weight = terms.config.weight(client, &report.update);
                decide(terms, client, report, weight)
            }
        }
    }

    pub(crate) fn decline(&self, client: &ClientId, reason: String) -> Step {
        let (records, reply) = match self.cohort.get(client) {
            None => (Vec::new(), Err(Rejection::NotInCohort(client.clone()))),
            Some(Member::Assigned) => {
                let client = client.clone();
                (vec![Record::Declined { client, reason }], Ok(Reply::DeclineNoted))
            }
            Some(_) => (Vec::new(), Ok(Reply::DeclineNoted)),
        };
        Step { records, reply }
    }

    /// Folds an update, once: a client that is not awaited changes nothing.
    pub(crate) fn accept(&mut self, client: &ClientId, receipt: Receipt, update: &Admitted) {
        if self.awaits(client) {
            self.mean.add(update.delta(), receipt.weight);
            self.settle(client, Member::Reported(receipt));
        }
    }

    pub(crate) fn refuse(&mut self, client: &ClientId, reason: String) {
        self.settle(client, Member::Refused(reason));
    }

    pub(crate) fn declined(&mut self, client: &ClientId, reason: String) {
        self.settle(client, Member::Declined(reason));
    }

    fn settle(&mut self, client: &ClientId, as_what: Member) {
        let Some(member @ Member::Assigned) = self.cohort.get_mut(client) else { return };
        self.tally.awaited -= 1;
        match &as_what {
            Member::Assigned => self.tally.awaited += 1,
            Member::Reported(_) => self.tally.accepted += 1,
            Member::Refused(_) => self.tally.refused += 1,
            Member::Declined(_) => self.tally.declined += 1,
        }
        *member = as_what;
    }

    /// How many members are in which state.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Clients chosen.
    pub(crate) fn selected(&self) -> usize {
        self.cohort.len()
    }

    /// Clients that declined or were refused so far.
    pub(crate) fn gave_nothing(&self) -> BTreeSet<ClientId> {
        let out = |member: &Member| matches!(member, Member::Refused(_) | Member::Declined(_));
        let members = self.cohort.iter().filter(|(_, member)| out(member));
        members.map(|(client, _)| client.clone()).collect()
    }
}

impl OpenRound for Training {
    fn verdict(&self, config: &RunConfig, now: Time) -> Option<Verdict> {
        let (size, quorum) = (config.cohort.size as usize, config.cohort.quorum as usize);
        let Tally { accepted, awaited, .. } = self.tally;
        let updates = format!("{accepted} of {} updates", self.cohort.len());
        let trusted = config.cohort.trusted.as_ref();
        if let Some(trusted) = trusted.filter(|trusted| !self.counts(trusted)) {
            let why = match (self.awaits(trusted), self.closes_at <= now) {
                (false, _) => "gives nothing",
                (true, true) => "did not report before the deadline",
                (true, false) => return None,
            };
            return Some(Verdict::Abandon(format!(
                "{updates}: the trusted client {trusted} {why}"
            )));
        }
        if accepted >= size {
            return Some(Verdict::Commit(format!("all {size} wanted updates came")));
        }
        if accepted + awaited < quorum {
            return Some(Verdict::Abandon(format!(
                "{updates}, and the {awaited} still awaited cannot make the quorum of {quorum}"
            )));
        }
        let why = match (awaited == 0, self.closes_at <= now) {
            (true, _) => "nobody is awaited any more",
            (false, true) => "the deadline passed",
            (false, false) => return None,
        };
        if accepted >= quorum {
            Some(Verdict::Commit(format!("{updates}: {why}, and the quorum is {quorum}")))
        } else {
            Some(Verdict::Abandon(format!("{updates}: {why}, and the quorum is {quorum}")))
        }
    }

    fn mean(&self, config: &RunConfig, layout: &Layout, before: &[f32]) -> Vec<f32> {
        let counted = self.counted().into_iter().map(|(_, receipt)| Share::of(receipt));
        config.aggregation.mean(&self.mean, (layout, before), &config.training, counted)
    }

    fn counted(&self) -> Vec<(&ClientId, &Receipt)> {
        let reported = self.cohort.iter().filter_map(|(client, member)| match member {
            Member::Reported(receipt) => Some((client, receipt)),
            Member::Assigned | Member::Refused(_) | Member::Declined(_) => None,
        });
        reported.collect()
    }

    fn summary(&self, closing: Closing) -> RoundSummary {
        let mut summary = closing.summary(self.round, self.opened_at, self.mean.weight());
        summary.selected = self.cohort.keys().cloned().collect();
        for (client, member) in &self.cohort {
            let client = client.clone();
            match member {
                Member::Assigned => summary.dropped_out.push(client),
                Member::Reported(receipt) => {
                    let receipt = receipt.clone();
                    summary.accepted.push(Counted { client, receipt, staleness: 0 });
                }
                Member::Refused(reason) => summary.refused.push((client, reason.clone())),
                Member::Declined(reason) => summary.declined.push((client, reason.clone())),
            }
        }
        summary
    }
}
