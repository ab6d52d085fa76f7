//! What people should hear of while a run goes on: it must never look well on a part of its devices.

use std::collections::{BTreeMap, VecDeque};

use floret_core::{ClientId, Round};
use serde::{Deserialize, Serialize};

use crate::message::RoundSummary;

/// Refusals in a row that are no accident any more.
const REFUSALS: u32 = 3;
/// Rounds in a row with few updates that are no accident any more.
const FEW: usize = 3;
/// Few updates are less than this share of the most that a round had.
const SHARE: f64 = 0.75;

/// Something that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Concern {
    /// `quorum-missed`, `devices-shrinking`, `device-refused` or `devices-awaited`.
    pub kind: &'static str,
    /// The client that it is about, if it is about one.
    pub about: Option<ClientId>,
    /// In words, with the reason.
    pub message: String,
}

/// What the rounds so far give cause for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concerns {
    /// The last round, if it was abandoned, with the reason.
    missed: Option<(Round, String)>,
    /// Updates that counted in each of the last rounds.
    updates: VecDeque<usize>,
    /// The most that counted in any.
    most: usize,
    /// Clients whose last updates were all refused: how many, and the last reason.
    refused: BTreeMap<ClientId, (u32, String)>,
}

impl Concerns {
    /// A round is over.
    pub(crate) fn closed(&mut self, summary: &RoundSummary) {
        self.missed = None;
        if !summary.committed {
            self.missed = Some((summary.round, summary.reason.clone()));
        }
        self.most = self.most.max(summary.accepted.len());
        self.updates.push_back(summary.accepted.len());
        if self.updates.len() > FEW {
            self.updates.pop_front();
        }
        for counted in &summary.accepted {
            self.refused.remove(&counted.client);
        }
        for (client, reason) in &summary.refused {
            let (times, last) = self.refused.entry(client.clone()).or_default();
            *times += 1;
            last.clone_from(reason);
        }
    }

    /// Each of them, in words.
    #[must_use]
    pub fn list(&self) -> Vec<Concern> {
        let mut found = Vec::new();
        if let Some((round, reason)) = &self.missed {
            let message = format!("round {round} was abandoned: {reason}");
            found.push(Concern { kind: "quorum-missed", about: None, message });
        }
        let few = |updates: &usize| (*updates as f64) < SHARE * self.most as f64;
        if self.updates.len() == FEW && self.updates.iter().all(few) {
            let (now, most) = (self.updates.iter().max().copied().unwrap_or(0), self.most);
            let message =
                format!("the last {FEW} rounds had at most {now} updates, where one had {most}");
            found.push(Concern { kind: "devices-shrinking", about: None, message });
        }
        for (client, (times, reason)) in &self.refused {
            if *times >= REFUSALS {
                let message =
                    format!("{client} was refused {times} times in a row, the last time: {reason}");
                found.push(Concern {
                    kind: "device-refused",
                    about: Some(client.clone()),
                    message,
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Counted;
    use floret_core::{Digest, Receipt, Time, Version};

    fn round(round: u32, accepted: &[&str], refused: &[&str]) -> RoundSummary {
        let client = |name: &&str| name.parse::<ClientId>().unwrap();
        let receipt = |name| {
            let digest = Digest::of(b"x");
            let round = Round(round);
            let receipt = Receipt {
                round,
                payload_digest: digest,
                payload_bytes: 1,
                num_examples: 1,
                num_steps: 1,
                weight: 1,
                downloaded_bytes: 1,
            };
            Counted { client: client(name), receipt, staleness: 0 }
        };
        RoundSummary {
            round: Round(round),
            committed: accepted.len() > 1,
            base_version: Version(0),
            adapter_before: Digest::of(b"a"),
            opened_at: Time(0),
            closed_at: Time(1),
            selected: Vec::new(),
            accepted: accepted.iter().map(receipt).collect(),
            weight: 0,
            residual: None,
            refused: refused.iter().map(|name| (client(name), "not finite".to_owned())).collect(),
            declined: Vec::new(),
            dropped_out: Vec::new(),
            reason: "the deadline passed".into(),
        }
    }

    fn kinds(concerns: &Concerns) -> Vec<&'static str> {
        concerns.list().iter().map(|concern| concern.kind).collect()
    }

    #[test]
    fn a_missed_quorum_is_a_concern_until_a_round_is_committed() {
        let mut concerns = Concerns::default();
        concerns.closed(&round(1, &["a"], &[]));
        assert_eq!(kinds(&concerns), ["quorum-missed"]);
        assert!(concerns.list()[0].message.contains("round 1 was abandoned: the deadline passed"));
        concerns.closed(&round(2, &["a", "b"], &[]));
        assert!(kinds(&concerns).is_empty());
    }

    #[test]
    fn fewer_and_fewer_devices_are_a_concern_and_one_bad_round_is_not() {
        let all = ["a", "b", "c", "d"];
        let mut concerns = Concerns::default();
        for (number, some) in
            [&all[..], &all[..2], &all[..], &all[..2], &all[..2]].iter().enumerate()
        {
            concerns.closed(&round(number as u32 + 1, some, &[]));
            assert!(kinds(&concerns).is_empty());
        }
        concerns.closed(&round(6, &all[..2], &[]));
        assert_eq!(kinds(&concerns), ["devices-shrinking"]);
        concerns.closed(&round(7, &all, &[]));
        assert!(kinds(&concerns).is_empty());
    }

    #[test]
    fn a_device_that_is_refused_again_and_again_is_named() {
        let mut concerns = Concerns::default();
        for number in 1..=3 {
            assert!(kinds(&concerns).is_empty());
            concerns.closed(&round(number, &["a", "b"], &["c"]));
        }
        let [concern] = &concerns.list()[..] else { panic!("not one") };
        assert_eq!(concern.message, "c was refused 3 times in a row, the last time: not finite");
        concerns.closed(&round(4, &["a", "c"], &[]));
        assert!(kinds(&concerns).is_empty());
    }
}
