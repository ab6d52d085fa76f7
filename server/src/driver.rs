//! The run's one owner: a thread that asks the coordinator, makes its answers durable, and only
//! then sends them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use floret_aggregator::coordinator::Status;
use floret_aggregator::steps::Steps;
use floret_aggregator::{Coordinator, Input, Record, Rejection, Reply, Store as _};
use floret_core::{Adapter, ClientId, Digest, Version};
use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record_log;
use crate::service::transfers::Room;
use crate::store::{RunStore, StoreError};

/// Longest wait of the driver, and least age at which a status is published anew without news.
const TICK: Duration = Duration::from_millis(500);
/// Most commands that share one commit.
const BATCH: usize = 256;

/// What everyone may read without asking the driver.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) status: Status,
    pub(crate) adapter: Arc<PublishedAdapter>,
    /// Why the driver stopped, if it did: the disk does not hold what was decided last.
    pub(crate) failure: Option<Arc<StoreError>>,
}

/// What a device that waits for work waits for: a round that opens or closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    phase: &'static str,
    round: u32,
}

impl Turn {
    fn of(status: &Status) -> Self {
        Self { phase: status.phase, round: status.round }
    }
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
    /// What leads to it from earlier versions.
    pub(crate) steps: Steps,
}

impl PublishedAdapter {
    fn new(version: Version, adapter: &Adapter, steps: Steps) -> Arc<Self> {
        let bytes = adapter.to_bytes().into();
        Arc::new(Self { version, digest: adapter.digest(), bytes, steps })
    }
}

struct Command {
    client: ClientId,
    input: Input,
    end: CommandEnd,
}

/// What is left of a command once it is decided.
struct CommandEnd {
    reply: oneshot::Sender<Result<Reply, Rejection>>,
    /// Held until the command is done, even if nobody waits for it any more: what waits in the
    /// queue counts as in flight.
    _room: Option<Room>,
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
        room: Option<Room>,
    ) -> Result<Result<Reply, Rejection>, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        let end = CommandEnd { reply, _room: room };
        let command = Command { client, input, end };
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
    pub(crate) turns: watch::Receiver<Turn>,
    pub(crate) thread: JoinHandle<()>,
}

impl Driver {
    /// Starts the thread.
    pub(crate) fn start(
        keeper: Keeper,
        metrics: Arc<Metrics>,
        queue_length: usize,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(queue_length);
        let state = keeper.coordinator.state();
        let first = Published {
            status: keeper.coordinator.status(keeper.clock.now()),
            adapter: PublishedAdapter::new(state.version, &state.adapter, Steps::default()),
            failure: None,
        };
        metrics.observe(&first.status);
        let (turner, turns) = watch::channel(Turn::of(&first.status));
        let (publisher, published) = watch::channel(first);
        let now = Instant::now();
        let (phase_since, published_at) = (now, now);
        let steps = Steps::default();
        let owner =
            Owner { keeper, inbox, publisher, turner, steps, metrics, phase_since, published_at };
        let thread = std::thread::Builder::new().name("floret-driver".into());
        let thread = thread.spawn(move || owner.run())?;
        Ok(Self { handle: DriverHandle { commands }, published, turns, thread })
    }
}

/// A run and where it is kept; both agree when they are handed over.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) coordinator: Coordinator,
    pub(crate) store: RunStore,
    pub(crate) clock: Clock,
    /// Where the copy for other programs goes.
    pub(crate) state_dir: PathBuf,
}

/// What the thread owns.
struct Owner {
    keeper: Keeper,
    inbox: Receiver<Command>,
    publisher: watch::Sender<Published>,
    turner: watch::Sender<Turn>,
    steps: Steps,
    metrics: Arc<Metrics>,
    phase_since: Instant,
    published_at: Instant,
}

/// Records that become durable together, and the answers that wait for it.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    answers: Vec<Answer>,
}

struct Answer {
    command: CommandEnd,
    reply: Result<Reply, Rejection>,
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
            let mut batch = Batch::default();
            let wait = self.pass_time(&mut batch)?;
            self.commit(batch)?;
            if self.published_at.elapsed() >= TICK {
                self.publish();
            }
            match self.inbox.recv_timeout(wait) {
                Ok(command) => self.answer_waiting(command)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Decides on a command and on those that wait behind it, as far as they fit one batch: they
    /// share one commit.
    fn answer_waiting(&mut self, first: Command) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let mut next = Some(first);
        while let Some(Command { client, input, end }) = next {
            let step = self.keeper.coordinator.handle(self.keeper.clock.now(), &client, input);
            self.apply(step.records, &mut batch);
            batch.answers.push(Answer { command: end, reply: step.reply });
            self.pass_time(&mut batch)?;
            next = if batch.answers.len() < BATCH { self.inbox.try_recv().ok() } else { None };
        }
        self.commit(batch)
    }

    /// Opens and closes rounds whose time has come; returns how long nothing more will happen.
    fn pass_time(&mut self, batch: &mut Batch) -> Result<Duration, StoreError> {
        loop {
            let now = self.keeper.clock.now();
            match self.keeper.coordinator.poll_timeout(now) {
                None => return Ok(TICK),
                Some(at) if now < at => return Ok(now.until(at).min(TICK)),
                Some(_) => {
                    // A round that reads its updates again finds them in the store.
                    if self.keeper.coordinator.needs_updates() {
                        self.commit(std::mem::take(batch))?;
                    }
                    let Keeper { coordinator, store, .. } = &self.keeper;
                    let records = coordinator.handle_timeout(now, store)?;
                    self.apply(records, batch);
                }
            }
        }
    }

    /// State on disk is behind memory from here to the commit; no answer is sent and nothing is
    /// published in between.
    fn apply(&mut self, records: Vec<Record>, batch: &mut Batch) {
        for record in records {
            record_log::log(&record);
            self.time_phase(&record);
            self.steps.keep(&record);
            self.keeper.coordinator.apply(&record);
            batch.records.push(record);
        }
    }

    /// Makes a batch durable, publishes what changed, and sends its answers.
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let Keeper { coordinator, store, state_dir, .. } = &mut self.keeper;
        store.commit(&batch.records, coordinator.state())?;
        let closes = |record: &Record| {
            use Record::{RoundAbandoned, RoundCommitted, RunEnded};
            matches!(record, RoundCommitted { .. } | RoundAbandoned { .. } | RunEnded(_))
        };
        if batch.records.iter().any(closes)
            && let Some(saved) = store.saved()
        {
            saved.publish(state_dir)?;
        }
        // Check-ins may be many, and wait for the next tick.
        if batch.records.iter().any(Record::is_durable) {
            self.publish();
        }
        for Answer { command, reply } in batch.answers {
            // A device that hung up meanwhile asks again.
            let _ = command.reply.send(reply);
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
        if let Record::RoundCommitted { summary, .. } = record {
            summary.residual.iter().for_each(|residual| self.metrics.measured(residual));
        }
        self.phase_since = Instant::now();
    }

    fn publish(&mut self) {
        self.published_at = Instant::now();
        let Keeper { coordinator, clock, .. } = &self.keeper;
        let status = coordinator.status(clock.now());
        self.metrics.observe(&status);
        let known: Vec<_> = self.publisher.borrow().status.concerns.clone();
        for concern in status.concerns.iter().filter(|concern| {
            // A count in the words changes; the concern stays the same.
            !known.iter().any(|known| known.kind == concern.kind && known.about == concern.about)
        }) {
            warn!(kind = concern.kind, "{}", concern.message);
        }
        let (state, turn) = (coordinator.state(), Turn::of(&status));
        self.publisher.send_modify(|published| {
            published.status = status;
            if published.adapter.version != state.version {
                let steps = self.steps.clone();
                published.adapter = PublishedAdapter::new(state.version, &state.adapter, steps);
            }
        });
        self.turner.send_if_modified(|last| std::mem::replace(last, turn) != turn);
    }
}
