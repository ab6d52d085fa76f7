//! What a connection tells of its calls: which, how long, how it ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::CallError;

/// A call of the wire contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallKind {
    /// Asking for work.
    CheckIn,
    /// Fetching an adapter.
    FetchAdapter,
    /// Sending an update.
    Report,
    /// Asking whether work still counts.
    Standing,
    /// Telling that a device gives nothing.
    Decline,
}

/// A call that ended.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Which.
    pub kind: CallKind,
    /// From its beginning to its answer, with the opening of a connection if there was none.
    pub lasted: Duration,
    /// Why there is no answer, if there is none.
    pub error: Option<&'a CallError>,
}

/// Hears of every call that ends; not of those that were given up before.
pub(crate) type WatchCalls = Arc<dyn Fn(&Call<'_>) + Send + Sync>;

/// A call that has begun.
pub(crate) struct Begun {
    kind: CallKind,
    at: Instant,
    watch: Option<WatchCalls>,
}

impl Begun {
    pub(crate) fn now(kind: CallKind, watch: Option<WatchCalls>) -> Self {
        Self { kind, at: Instant::now(), watch }
    }

    /// Tells how it ended, and hands that on.
    pub(crate) fn end<T>(self, answer: Result<T, CallError>) -> Result<T, CallError> {
        if let Some(watch) = &self.watch {
            let (kind, lasted) = (self.kind, self.at.elapsed());
            watch(&Call { kind, lasted, error: answer.as_ref().err() });
        }
        answer
    }
}
