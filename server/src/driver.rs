//! The run's one owner: a thread that asks the coordinator, makes its answers durable, and only
//! then sends them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use floret_aggregator::coordinator::Status;
use floret_aggregator::{Coordinator, Input, Record, Rejection, Reply};
use floret_core::{Adapter, ClientId, Digest, Time, Version};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tracing::error;

use crate::metrics::Metrics;
use crate::record_log;
use crate::store::{Store, StoreError};

/// Longest wait of the driver, and least age at which a status is published anew without news.
const TICK: Duration = Duration::from_millis(500);

/// What everyone may read without asking the driver.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) status: Status,
    pub(crate) adapter: Arc<PublishedAdapter>,
    /// Why the driver stopped, if it did: the disk does not hold what was decided last.
    pub(crate) failure: Option<Arc<StoreError>>,
}

/// The global adapter, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedAdapter {
    /// Its version.
    pub version: Version,
    /// Digest of its bytes.
    pub digest: Digest,
    /// f32 little-endian values in layout order.
    pub bytes: Bytes,
}

impl PublishedAdapter {
    fn new(version: Version, adapter: &Adapter) -> Arc<Self> {
        let bytes = adapter.to_bytes().into();
        Arc::new(Self { version, digest: adapter.digest(), bytes })
    }
}

struct Command {
    client: ClientId,
    input: Input,
    reply: oneshot::Sender<Result<Reply, Rejection>>,
    /// Held until the command is done, even if nobody waits for it any more: what waits in the
    /// queue counts as in flight.
    _transfer: Option<OwnedSemaphorePermit>,
}

/// Asks the driver. The driver ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct DriverHandle {
    commands: SyncSender<Command>,
}

/// Why the driver gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Too many calls wait already.
    Busy,
    /// The driver is gone.
    Stopped,
}

impl DriverHandle {
    pub(crate) async fn ask(
        &self,
        client: ClientId,
        input: Input,
        transfer: Option<OwnedSemaphorePermit>,
    ) -> Result<Result<Reply, Rejection>, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        let command = Command { client, input, reply, _transfer: transfer };
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => NoAnswer::Busy,
            TrySendError::Disconnected(_) => NoAnswer::Stopped,
        })?;
        answer.await.map_err(|_| NoAnswer::Stopped)
    }
}

/// A driver that was started.
pub(crate) struct Driver {
    pub(crate) handle: DriverHandle,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) thread: JoinHandle<()>,
}

impl Driver {
    /// Starts the thread. `store` holds the coordinator's state already.
    pub(crate) fn start(
        coordinator: Coordinator,
        store: Store,
        metrics: Arc<Metrics>,
        queue_length: usize,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(queue_length);
        let state = coordinator.state();
        let first = Published {
            status: coordinator.status(Time::default()),
            adapter: PublishedAdapter::new(state.version, &state.adapter),
            failure: None,
        };
        metrics.observe(&first.status);
        let (publisher, published) = watch::channel(first);
        let origin = Instant::now();
        let (phase_since, published_at) = (origin, origin);
        let owner = Owner {
            coordinator,
            store,
            inbox,
            publisher,
            metrics,
            origin,
            phase_since,
            published_at,
        };
        let thread = std::thread::Builder::new().name("floret-driver".into());
        let thread = thread.spawn(move || owner.run())?;
        Ok(Self { handle: DriverHandle { commands }, published, thread })
    }
}

/// What the thread owns.
struct Owner {
    coordinator: Coordinator,
    store: Store,
    inbox: Receiver<Command>,
    publisher: watch::Sender<Published>,
    metrics: Arc<Metrics>,
    /// Time zero of the coordinator.
    origin: Instant,
    phase_since: Instant,
    published_at: Instant,
}

impl Owner {
    fn run(mut self) {
        if let Err(failure) = self.drive() {
            error!(error = %failure, "the run stops: what was decided last cannot be made durable");
            self.publisher.send_modify(|published| published.failure = Some(Arc::new(failure)));
        }
    }

    /// Works until every handle is gone, or until the disk fails.
    fn drive(&mut self) -> Result<(), StoreError> {
        loop {
            let wait = self.pass_time()?;
            if self.published_at.elapsed() >= TICK {
                self.publish();
            }
            match self.inbox.recv_timeout(wait) {
                Ok(command) => self.answer(command)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn answer(&mut self, command: Command) -> Result<(), StoreError> {
        let step = self.coordinator.handle(self.now(), &command.client, command.input);
        self.commit(step.records)?;
        // A device that hung up meanwhile asks again.
        let _ = command.reply.send(step.reply);
        Ok(())
    }

    /// Opens and closes rounds whose time has come; returns how long nothing more will happen.
    fn pass_time(&mut self) -> Result<Duration, StoreError> {
        loop {
            let now = self.now();
            match self.coordinator.poll_timeout(now) {
                None => return Ok(TICK),
                Some(at) if now < at => return Ok(now.until(at).min(TICK)),
                Some(_) => self.commit(self.coordinator.handle_timeout(now))?,
            }
        }
    }

    /// Applies records and makes the outcome durable. State on disk is behind memory for a moment,
    /// but no answer is sent and nothing is published before it has caught up.
    fn commit(&mut self, records: Vec<Record>) -> Result<(), StoreError> {
        let durable = records.iter().any(|record| {
            use Record::{RoundAbandoned, RoundCommitted, RoundOpened, RunEnded};
            let closed = matches!(record, RoundCommitted { .. } | RoundAbandoned { .. });
            closed || matches!(record, RoundOpened { .. } | RunEnded(_))
        });
        // Check-ins may be many, and wait for the next tick.
        let news = records.iter().any(|record| !matches!(record, Record::CheckedIn { .. }));
        for record in records {
            record_log::log(&record);
            self.time_phase(&record);
            self.coordinator.apply(record);
        }
        if durable {
            self.store.save(self.coordinator.state())?;
        }
        if news {
            self.publish();
        }
        Ok(())
    }

    fn time_phase(&mut self, record: &Record) {
        let ended = match record {
            Record::RoundOpened { .. } => "selecting",
            Record::RoundCommitted { .. } | Record::RoundAbandoned { .. } => "training",
            _ => return,
        };
        self.metrics.phase_ended(ended, self.phase_since.elapsed());
        self.phase_since = Instant::now();
    }

    fn publish(&mut self) {
        self.published_at = Instant::now();
        let status = self.coordinator.status(self.now());
        self.metrics.observe(&status);
        let state = self.coordinator.state();
        self.publisher.send_modify(|published| {
            published.status = status;
            if published.adapter.version != state.version {
                published.adapter = PublishedAdapter::new(state.version, &state.adapter);
            }
        });
    }

    fn now(&self) -> Time {
        Time::default().after(self.origin.elapsed())
    }
}
