//! A device of a world: a session with its own clock and store, which a crash takes down together.

use std::time::Duration;

use floret_core::{Digest, Time};
use floret_device::{Action, Input, Kept, Own, Record, Session, Store};

use crate::behaviour::Draws;

type Commit = Box<dyn FnMut(&[Record]) -> bool>;
type Restart = Box<dyn FnMut() -> (Commit, Kept)>;

/// Where a device keeps what must outlive a crash.
pub struct DeviceStore {
    commit: Commit,
    restart: Restart,
    kept: Kept,
}

impl DeviceStore {
    /// Keeps nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::holding(Own::default())
    }

    /// Keeps nothing, and holds what follows from earlier updates.
    pub(crate) fn holding(own: Own) -> Self {
        let commit = || -> Commit { Box::new(|_| true) };
        let kept = Kept { pending: None, own };
        let again = kept.clone();
        let restart = move || (commit(), again.clone());
        Self { commit: commit(), restart: Box::new(restart), kept }
    }

    /// A store that `open` opens, at first and again after each crash.
    ///
    /// # Panics
    /// When what an opened store holds cannot be read.
    pub fn opened_by<S: Store + 'static>(mut open: impl FnMut() -> S + 'static) -> Self {
        let mut restart = move || {
            let mut store = open();
            let kept = store.load().unwrap_or_else(|error| panic!("a device's store: {error}"));
            let commit: Commit = Box::new(move |records| store.commit(records).is_ok());
            (commit, kept)
        };
        let (commit, kept) = restart();
        Self { commit, restart: Box::new(restart), kept }
    }
}

/// A session with its clock and store.
pub(crate) struct Device {
    pub(crate) session: Session,
    pub(crate) draws: Draws,
    /// Whether it has work, or had some a moment ago.
    pub(crate) at_work: bool,
    /// The adapter that it fetched last, which a crash forgets.
    pub(crate) held: Option<Digest>,
    store: DeviceStore,
    /// How far its clock is ahead of the world's.
    skew: Duration,
}

impl Device {
    pub(crate) fn new(session: Session, mut store: DeviceStore, mut draws: Draws) -> Self {
        let skew = draws.skew();
        let session = session.with_kept(std::mem::take(&mut store.kept));
        Self { session, draws, at_work: false, held: None, store, skew }
    }

    /// Goes down and comes up again with what the store holds.
    pub(crate) fn crash(&mut self) {
        let (commit, kept) = (self.store.restart)();
        self.store.commit = commit;
        self.held = None;
        self.session = self.session.restarted().with_kept(kept);
    }

    pub(crate) fn next_action(&self, now: Time) -> Action {
        self.session.next_action(now.after(self.skew))
    }

    pub(crate) fn bring_back(&mut self, now: Time, input: Input) {
        let records = self.session.handle(now.after(self.skew), input).unwrap_or_default();
        self.record(records);
    }

    fn record(&mut self, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        if !(self.store.commit)(&records) {
            return self.crash();
        }
        for record in records {
            self.session.apply(record);
        }
    }
}
