//! Where a shell keeps what must outlive a crash of the device.

use std::convert::Infallible;
use std::sync::Arc;

use floret_core::ClientUpdate;

use crate::session::Record;

/// Keeps a session, so that what it owes the server outlives a crash.
pub trait Store {
    /// Why something cannot be kept or read.
    type Error: std::error::Error + 'static;

    /// Makes `records` durable, in order. No byte of an update may leave before this returns.
    ///
    /// # Errors
    /// The disk failed.
    fn commit(&mut self, records: &[Record]) -> Result<(), Self::Error>;

    /// The update that the server has not answered yet.
    ///
    /// # Errors
    /// The disk failed, or what it holds is damaged.
    fn load(&mut self) -> Result<Option<Arc<ClientUpdate>>, Self::Error>;
}

/// Keeps nothing: for devices that no crash can touch.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStore;

impl Store for NoStore {
    type Error = Infallible;

    fn commit(&mut self, _: &[Record]) -> Result<(), Infallible> {
        Ok(())
    }

    fn load(&mut self) -> Result<Option<Arc<ClientUpdate>>, Infallible> {
        Ok(None)
    }
}
