//! Where a shell keeps what must outlive a crash of the device.

use std::convert::Infallible;

use crate::own::Own;
use crate::pipeline::Pending;
use crate::session::Record;

/// What a session owes the server and knows from earlier rounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The update that the server has not answered yet.
    pub pending: Option<Pending>,
    /// What follows from the updates that count.
    pub own: Own,
}

/// Keeps a session, so that what it owes the server outlives a crash.
pub trait Store {
    /// Why something cannot be kept or read.
    type Error: std::error::Error + 'static;

    /// Makes `records` durable, in order: an update with what it leaves out, and both its answer and
    /// what follows from that. No byte of an update may leave before this returns.
    ///
    /// # Errors
    /// The disk failed.
    fn commit(&mut self, records: &[Record]) -> Result<(), Self::Error>;

    /// What is kept.
    ///
    /// # Errors
    /// The disk failed, or what it holds is damaged.
    fn load(&mut self) -> Result<Kept, Self::Error>;
}

/// Keeps nothing: for devices that no crash can touch.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStore;

impl Store for NoStore {
    type Error = Infallible;

    fn commit(&mut self, _: &[Record]) -> Result<(), Infallible> {
        Ok(())
    }

    fn load(&mut self) -> Result<Kept, Infallible> {
        Ok(Kept::default())
    }
}
