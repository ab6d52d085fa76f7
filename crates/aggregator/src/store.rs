//! Where a shell keeps what the coordinator recorded.

use std::collections::BTreeMap;

use floret_core::{ClientId, Receipt};

use crate::clipped::Admitted;
use crate::coordinator::Coordinator;
use crate::message::Record;
use crate::state::RunState;

/// Where the updates of the open round are read again when it closes, by a rule that needs them all.
pub trait UpdateSource {
    /// Why something cannot be kept or read.
    type Error: std::error::Error + 'static;

    /// The update of `client` that counts in the open round, and of which it has this receipt.
    ///
    /// # Errors
    /// The disk failed, or what it holds is damaged.
    fn update(&self, client: &ClientId, receipt: &Receipt) -> Result<Admitted, Self::Error>;
}

/// Keeps a run, so that it goes on after any crash.
pub trait Store: UpdateSource {
    /// Makes `records` durable, in order; `state` is the coordinator's after applying them. When
    /// this returns, they outlive any crash; when it fails, the caller must stop without an answer,
    /// for they may or may not.
    ///
    /// # Errors
    /// The disk failed.
    fn commit(&mut self, records: &[Record], state: &RunState) -> Result<(), Self::Error>;

    /// The run after the last round that was closed; `None` for one that never began.
    ///
    /// # Errors
    /// The disk failed, or what it holds is damaged.
    fn load(&mut self) -> Result<Option<RunState>, Self::Error>;

    /// Hands out the records of the round that is open, in order and one at a time: applying them
    /// restores it.
    ///
    /// # Errors
    /// The disk failed, or what it holds is damaged.
    fn replay(&mut self, apply: &mut dyn FnMut(Record)) -> Result<(), Self::Error>;
}

/// Keeps what the open round may need again, in memory: for runs that no crash can touch.
#[derive(Debug, Default)]
pub struct MemoryStore {
    keeps_updates: bool,
    updates: BTreeMap<ClientId, Admitted>,
}

/// An update that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the update of {0} is not in memory: it was not committed in this round")]
pub struct NotInMemory(ClientId);

impl MemoryStore {
    /// A store for a run of this coordinator: without a rule that needs them, it keeps no updates.
    #[must_use]
    pub fn new(coordinator: &Coordinator) -> Self {
        Self { keeps_updates: coordinator.needs_updates(), updates: BTreeMap::new() }
    }
}

impl UpdateSource for MemoryStore {
    type Error = NotInMemory;

    fn update(&self, client: &ClientId, _: &Receipt) -> Result<Admitted, NotInMemory> {
        self.updates.get(client).cloned().ok_or_else(|| NotInMemory(client.clone()))
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, records: &[Record], _: &RunState) -> Result<(), NotInMemory> {
        for record in records {
            match record {
                Record::Accepted { client, update, .. } if self.keeps_updates => {
                    self.updates.insert(client.clone(), update.clone());
                }
                Record::RoundCommitted { .. } | Record::RoundAbandoned { .. } => {
                    self.updates.clear();
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn load(&mut self) -> Result<Option<RunState>, NotInMemory> {
        Ok(None)
    }

    fn replay(&mut self, _: &mut dyn FnMut(Record)) -> Result<(), NotInMemory> {
        Ok(())
    }
}
