//! What outlives a round: the shell keeps it durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use floret_core::seed::Purpose;
use floret_core::{Adapter, ClientId, Layout, Receipt, Round, Time, Version};
use serde::{Deserialize, Serialize};

use crate::concerns::Concerns;
use crate::config::RunConfig;
use crate::message::{Counted, RoundSummary};
use crate::server_optimizer::Moments;

/// A run between two rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    /// Version of the adapter: committed rounds so far.
    pub version: Version,
    /// The last round that was opened.
    pub round: Round,
    /// The global adapter.
    pub adapter: Adapter,
    /// What the server optimizer remembers.
    pub moments: Moments,
    /// What the steps that devices download left out so far, in layout order: see [`crate::advance`].
    pub unsent: Option<Vec<f32>>,
    /// Rounds abandoned since the last commit.
    pub abandoned_in_a_row: u32,
    /// Counts over the whole run.
    pub totals: Totals,
    /// Set when the run is over.
    pub end: Option<RunEnd>,
    /// What the rounds so far give cause for.
    pub concerns: Concerns,
    /// Receipts of the last rounds that closed: a client whose answer was lost asks again.
    pub receipts: BTreeMap<Round, BTreeMap<ClientId, Receipt>>,
    /// Buffered work that was given out and is awaited.
    pub assignments: Assignments,
}

/// Work that was given out in a buffered round: at most one piece for each client.
pub type Assignments = BTreeMap<ClientId, Assignment>;

/// Work that was given out in a buffered round, and outlives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The round in which it was given out: its plan's, and its report's.
    pub round: Round,
    /// Version of the adapter that it starts from.
    pub version: Version,
    /// When it was given out.
    pub at: Time,
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
    /// Optimizer steps behind the updates that counted.
    #[serde(default)]
    pub steps: u64,
    /// Bytes of the payloads that counted in rounds that are over.
    #[serde(default)]
    pub bytes_up: u64,
    /// Bytes of adapters that went down for those.
    #[serde(default)]
    pub bytes_down: u64,
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
            moments: Moments::zero(layout.len()),
            unsent: None,
            adapter: Adapter::init(layout, &seed),
            abandoned_in_a_row: 0,
            totals: Totals::default(),
            end: None,
            concerns: Concerns::default(),
            receipts: BTreeMap::new(),
            assignments: Assignments::new(),
        }
    }
}

impl RunState {
    /// Rounds whose receipts are kept at least, and receipts that are kept at least.
    const RECEIPT_ROUNDS: usize = 8;
    const RECEIPTS: usize = 1024;

    /// What `client` was told of its update of `round`, in whichever round that counted.
    pub(crate) fn receipt(&self, client: &ClientId, round: Round) -> Option<&Receipt> {
        let mut all = self.receipts.values().rev().filter_map(|of| of.get(client));
        all.find(|receipt| receipt.round == round)
    }

    /// Keeps the receipts of a round that is over, and forgets the oldest.
    pub(crate) fn keep_receipts(&mut self, summary: &RoundSummary) {
        if summary.accepted.is_empty() {
            return;
        }
        let told = |counted: &Counted| (counted.client.clone(), counted.receipt.clone());
        self.receipts.insert(summary.round, summary.accepted.iter().map(told).collect());
        let mut kept: usize = self.receipts.values().map(BTreeMap::len).sum();
        while self.receipts.len() > Self::RECEIPT_ROUNDS
            && let Some(oldest) = self.receipts.first_entry()
            && kept - oldest.get().len() >= Self::RECEIPTS
        {
            kept -= oldest.remove().len();
        }
    }
}

impl Totals {
    /// Adds what happened in a round that is over.
    pub(crate) fn add(&mut self, summary: &RoundSummary) {
        match summary.committed {
            true => self.rounds_committed += 1,
            false => self.rounds_abandoned += 1,
        }
        self.updates_accepted += summary.accepted.len() as u64;
        let steps = summary.accepted.iter().map(|counted| u64::from(counted.receipt.num_steps));
        self.steps += steps.sum::<u64>();
        self.updates_refused += summary.refused.len() as u64;
        self.assignments_declined += summary.declined.len() as u64;
        self.drop_outs += summary.dropped_out.len() as u64;
        self.bytes_up += summary.bytes_up();
        self.bytes_down += summary.bytes_down();
    }
}
