//! The aggregator of a world: a coordinator and its store, which a crash takes down together.

use std::collections::VecDeque;

use floret_aggregator::steps::Steps;
use floret_aggregator::{
    Coordinator, Input, MemoryStore, Record, Rejection, Reply, RoundSummary, Store,
};
use floret_core::{Adapter, ClientId, Digest, Time, Version};

/// Starts a server again, from what its store holds, at a time.
pub type Restart<S> = Box<dyn FnMut(Time) -> (Coordinator, S)>;

/// A coordinator and its store.
pub(crate) struct Server<S> {
    pub(crate) coordinator: Coordinator,
    store: S,
    restart: Option<Restart<S>>,
    steps: Steps,
    /// Rounds that closed and that nobody has looked at yet.
    pub(crate) closed: VecDeque<RoundSummary>,
    pub(crate) crashes: u32,
}

/// Why a call has no answer.
pub(crate) enum Unanswered {
    /// The server refused it.
    Rejected(Rejection),
    /// The server went down before it answered.
    Lost,
}

impl Server<MemoryStore> {
    /// One that nothing takes down.
    pub(crate) fn in_memory(coordinator: Coordinator) -> Self {
        let store = MemoryStore::new(&coordinator);
        Self::new(coordinator, store, None)
    }
}

impl<S: Store> Server<S> {
    pub(crate) fn new(coordinator: Coordinator, store: S, restart: Option<Restart<S>>) -> Self {
        let (steps, closed) = (Steps::default(), VecDeque::new());
        Self { coordinator, store, restart, steps, closed, crashes: 0 }
    }

    /// Tells the coordinator something: decide, apply, record, then answer.
    pub(crate) fn tell(
        &mut self,
        now: Time,
        client: &ClientId,
        input: Input,
    ) -> Result<Reply, Unanswered> {
        let step = self.coordinator.handle(now, client, input);
        match self.record(now, step.records) {
            true => step.reply.map_err(Unanswered::Rejected),
            false => Err(Unanswered::Lost),
        }
    }

    /// The adapter of `version`, and how many bytes bring it to a device that holds the adapter `held`:
    /// none, steps, or the whole. None if it is not the current one.
    pub(crate) fn serve(
        &self,
        version: Version,
        held: Option<Digest>,
    ) -> Option<(&Adapter, usize)> {
        let state = self.coordinator.state();
        let adapter = Some(&state.adapter).filter(|_| state.version == version)?;
        let steps = |held| self.steps.since(held).map(|(_, bytes)| bytes.len());
        let bytes = match held {
            Some(held) if held == adapter.digest() => 0,
            held => held.and_then(steps).unwrap_or(adapter.layout().bytes()),
        };
        Some((adapter, bytes))
    }

    /// Lets the coordinator's timeouts up to `until` happen, each at its own time.
    pub(crate) fn pass_time(&mut self, mut now: Time, until: Time) -> Time {
        while let Some(due) = self.coordinator.poll_timeout(now).filter(|due| *due <= until) {
            now = now.max(due);
            match self.coordinator.handle_timeout(now, &self.store) {
                Ok(records) => {
                    self.record(now, records);
                }
                Err(error) => self.start_again(now, &error),
            }
        }
        now
    }

    /// Whether the records are durable. If not, the server is down and up again when this returns.
    fn record(&mut self, now: Time, records: Vec<Record>) -> bool {
        for record in &records {
            self.steps.keep(record);
            self.coordinator.apply(record);
        }
        if let Err(error) = self.store.commit(&records, self.coordinator.state()) {
            self.start_again(now, &error);
            return false;
        }
        for record in records {
            if let Record::RoundCommitted { summary, .. } | Record::RoundAbandoned { summary } =
                record
            {
                self.closed.push_back(summary);
            }
        }
        true
    }

    fn start_again(&mut self, now: Time, error: &S::Error) {
        let Some(restart) = &mut self.restart else {
            panic!("the store of a world that cannot restart its server failed: {error}");
        };
        self.crashes += 1;
        self.steps = Steps::default();
        (self.coordinator, self.store) = restart(now);
    }
}
