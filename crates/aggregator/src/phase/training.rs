//! Training: a cohort is at work, and its updates are folded as they come.

use std::collections::{BTreeMap, BTreeSet};

use floret_core::{ClientId, ClientUpdate, Digest, Layout, Receipt, Round, Time, Version};

use crate::clipped::ClippedDelta;
use crate::combine::WeightedMean;
use crate::config::RunConfig;
use crate::message::{Record, Rejection, Reply, RoundSummary, Step};

#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) round: Round,
    base_version: Version,
    pub(crate) opened_at: Time,
    pub(crate) closes_at: Time,
    cohort: BTreeMap<ClientId, Member>,
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

/// Whether a round can close, and how.
pub(crate) enum Verdict {
    Commit(String),
    Abandon(String),
}

impl Training {
    pub(crate) fn open(
        config: &RunConfig,
        layout: &Layout,
        round: Round,
        base_version: Version,
        cohort: Vec<ClientId>,
        at: Time,
    ) -> Self {
        Self {
            round,
            base_version,
            opened_at: at,
            closes_at: at.after(config.timing.report_deadline),
            cohort: cohort.into_iter().map(|client| (client, Member::Assigned)).collect(),
            mean: WeightedMean::new(layout.len()),
        }
    }

    /// Whether `client` still owes an update.
    pub(crate) fn awaits(&self, client: &ClientId) -> bool {
        matches!(self.cohort.get(client), Some(Member::Assigned))
    }

    /// Decides on an update. A refusal of what the update says is a fact of the round and takes its
    /// client out of it.
    pub(crate) fn report(
        &self,
        config: &RunConfig,
        layout: &Layout,
        client: &ClientId,
        update: &ClientUpdate,
        payload_digest: Digest,
    ) -> Step {
        let answer = |reply| Step { records: Vec::new(), reply };
        match self.cohort.get(client) {
            None => return answer(Err(Rejection::NotInCohort(client.clone()))),
            Some(Member::Reported(receipt)) => {
                return answer(repeat(receipt, payload_digest, self.round));
            }
            Some(Member::Refused(reason) | Member::Declined(reason)) => {
                let (round, reason) = (self.round, reason.clone());
                return answer(Err(Rejection::OutOfRound { round, reason }));
            }
            Some(Member::Assigned) => {}
        }
        match admit(config, layout, update) {
            Ok(delta) => {
                let weight = update.num_examples.min(config.aggregation.max_examples);
                let receipt = Receipt { round: self.round, payload_digest, weight };
                let client = client.clone();
                let record = Record::Accepted { client, receipt: receipt.clone(), delta };
                Step { records: vec![record], reply: Ok(Reply::Accepted(receipt)) }
            }
            Err(rejection) => {
                let client = client.clone();
                let record = Record::Refused { client, rejection: rejection.clone() };
                Step { records: vec![record], reply: Err(rejection) }
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

    pub(crate) fn accept(&mut self, client: ClientId, receipt: Receipt, delta: &ClippedDelta) {
        self.mean.add(delta, receipt.weight);
        self.cohort.insert(client, Member::Reported(receipt));
    }

    pub(crate) fn refuse(&mut self, client: ClientId, reason: String) {
        self.cohort.insert(client, Member::Refused(reason));
    }

    pub(crate) fn declined(&mut self, client: ClientId, reason: String) {
        self.cohort.insert(client, Member::Declined(reason));
    }

    /// Whether the round can close at `now`.
    pub(crate) fn verdict(&self, config: &RunConfig, now: Time) -> Option<Verdict> {
        let (size, quorum) = (config.cohort.size as usize, config.cohort.quorum as usize);
        let accepted = self.count(|member| matches!(member, Member::Reported(_)));
        let awaited = self.count(|member| matches!(member, Member::Assigned));
        let updates = format!("{accepted} of {} updates", self.cohort.len());
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

    /// The combined delta.
    pub(crate) fn combined(&self, config: &RunConfig) -> Vec<f32> {
        self.mean.mean(config.aggregation.clip_norm)
    }

    pub(crate) fn summary(&self, now: Time, reason: String) -> RoundSummary {
        let pick = |f: fn(&Member) -> Option<&String>| {
            let members = self.cohort.iter();
            members.filter_map(|(id, member)| Some((id.clone(), f(member)?.clone()))).collect()
        };
        let awaited = self.cohort.iter().filter(|(_, member)| matches!(member, Member::Assigned));
        RoundSummary {
            round: self.round,
            base_version: self.base_version,
            selected: self.cohort.len(),
            accepted: self.count(|member| matches!(member, Member::Reported(_))),
            weight: self.mean.weight(),
            refused: pick(|member| match member {
                Member::Refused(reason) => Some(reason),
                _ => None,
            }),
            declined: pick(|member| match member {
                Member::Declined(reason) => Some(reason),
                _ => None,
            }),
            dropped_out: awaited.map(|(client, _)| client.clone()).collect(),
            duration_ms: self.opened_at.until(now).as_millis() as u64,
            reason,
        }
    }

    /// Clients that declined or were refused.
    pub(crate) fn gave_nothing(&self) -> BTreeSet<ClientId> {
        let out = |member: &Member| matches!(member, Member::Refused(_) | Member::Declined(_));
        let members = self.cohort.iter().filter(|(_, member)| out(member));
        members.map(|(client, _)| client.clone()).collect()
    }

    /// The receipts of the round, for clients that ask again after it closed.
    pub(crate) fn into_receipts(self) -> BTreeMap<ClientId, Receipt> {
        let reported = self.cohort.into_iter().filter_map(|(client, member)| match member {
            Member::Reported(receipt) => Some((client, receipt)),
            _ => None,
        });
        reported.collect()
    }

    pub(crate) fn count(&self, is: impl Fn(&Member) -> bool) -> usize {
        self.cohort.values().filter(|member| is(member)).count()
    }
}

/// The answer to a second report: the same receipt for the same payload, a refusal for another.
pub(crate) fn repeat(
    receipt: &Receipt,
    payload_digest: Digest,
    round: Round,
) -> Result<Reply, Rejection> {
    if receipt.payload_digest == payload_digest {
        Ok(Reply::Accepted(receipt.clone()))
    } else {
        Err(Rejection::DifferentReport(round))
    }
}

fn admit(
    config: &RunConfig,
    layout: &Layout,
    update: &ClientUpdate,
) -> Result<ClippedDelta, Rejection> {
    if update.num_examples == 0 {
        return Err(Rejection::ZeroExamples);
    }
    Ok(ClippedDelta::decode(&update.payload, layout, config.aggregation.clip_norm)?)
}
