//! Where a shell keeps what the coordinator recorded.

use std::convert::Infallible;

use crate::message::Record;
use crate::state::RunState;

/// Keeps a run, so that it goes on after any crash.
pub trait Store {
    /// Why something cannot be kept or read.
    type Error: std::error::Error + 'static;

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

/// Keeps nothing: for runs that no crash can touch.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStore;

impl Store for NoStore {
    type Error = Infallible;

    fn commit(&mut self, _: &[Record], _: &RunState) -> Result<(), Infallible> {
        Ok(())
    }

    fn load(&mut self) -> Result<Option<RunState>, Infallible> {
        Ok(None)
    }

    fn replay(&mut self, _: &mut dyn FnMut(Record)) -> Result<(), Infallible> {
        Ok(())
    }
}
