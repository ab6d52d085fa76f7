//! Asks the session what to do, does it, and brings the result back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use floret_core::{
    Adapter, ClientUpdate, Layout, LoraConfig, PublicKey, Receipt, Round, Time, Version,
};
use floret_device::session::{Outcome, RunEnd};
use floret_device::{
    Action, Input, Progress, Record, Session, Store as _, TrainError, TrainingTask,
};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::connection::{CallError, CheckIn, Connection};
use crate::store::{DeviceStore, StoreError};
use crate::training_thread::{ThreadGone, TrainingThread};

/// How often the run's last adapter is asked for, when the server may already be stopping.
const LAST_FETCH_TRIES: u32 = 6;
/// Longest wait that a server can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// What a device does, for whoever watches. It holds nothing of the device's data.
#[derive(Debug, Clone)]
pub enum Event {
    /// The server cannot be reached or is busy; the next try comes after `wait`.
    Retrying {
        /// What happened.
        message: String,
        /// How long until the next try.
        wait: Duration,
    },
    /// A plan was accepted.
    Assigned {
        /// The round.
        round: Round,
        /// The adapter that it starts from.
        version: Version,
    },
    /// An adapter is here: the one that a round starts from, or the run's last.
    Adapter {
        /// Its version.
        version: Version,
        /// Its settings.
        lora: LoraConfig,
        /// The adapter.
        adapter: Adapter,
    },
    /// A training step is done.
    Training {
        /// The round.
        round: Round,
        /// How far training has come.
        progress: Progress,
    },
    /// The update is encoded and on its way.
    Reporting {
        /// The round.
        round: Round,
        /// Size of the payload.
        bytes: usize,
    },
    /// The update counts.
    Counted(Receipt),
    /// The round is over for this device, and its work does not count.
    NotCounted {
        /// The round.
        round: Round,
        /// Why.
        reason: String,
    },
    /// The run is over.
    Ended(RunEnd),
    /// The run is over, and its last adapter did not come.
    NoLastAdapter {
        /// Why.
        reason: String,
    },
}

/// Why a device stops before the run is over.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// It was asked to.
    #[error("stopped")]
    Stopped,
    /// Trying again does not help.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What must outlive a crash cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing can be trained any more.
    #[error(transparent)]
    Training(#[from] ThreadGone),
}

type Watch = Arc<dyn Fn(Event) + Send + Sync>;

/// A device that takes part in a run.
pub struct Device {
    session: Session,
    connection: Connection,
    trainer: TrainingThread,
    backoff: Backoff,
    watch: Watch,
    origin: Instant,
    store: Option<DeviceStore>,
    ledger_key: Option<PublicKey>,
    /// What the adapter of the last plan looks like.
    shape: Option<(LoraConfig, Arc<Layout>)>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.session.client())
    }
}

impl Device {
    /// A device that has not yet checked in; `watch` hears what it does.
    #[must_use]
    pub fn new(
        session: Session,
        connection: Connection,
        trainer: TrainingThread,
        backoff: Backoff,
        watch: impl Fn(Event) + Send + Sync + 'static,
    ) -> Self {
        let watch = Arc::new(watch);
        let origin = Instant::now();
        let (store, ledger_key, shape) = (None, None, None);
        Self { session, connection, trainer, backoff, watch, origin, store, ledger_key, shape }
    }

    /// Keeps in `store` what must outlive a crash, and goes on with what it holds already.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn with_store(mut self, mut store: DeviceStore) -> Result<Self, StoreError> {
        self.session = self.session.with_pending(store.load()?);
        self.store = Some(store);
        Ok(self)
    }

    /// Believes no receipt that is not signed with this key.
    #[must_use]
    pub fn with_ledger_key(mut self, key: PublicKey) -> Self {
        self.ledger_key = Some(key);
        self
    }

    /// Takes part until the run is over, or until `stop` is cancelled. A server that cannot be
    /// reached is tried again without end.
    ///
    /// # Errors
    /// The device was stopped, or the server's answers make going on pointless.
    pub async fn run(mut self, stop: CancellationToken) -> Result<RunEnd, DriverError> {
        loop {
            let expired = self.session.handle_timeout(self.now());
            self.apply(expired)?;
            let action = self.session.next_action(self.now());
            if let Action::Stop(end) = action {
                tokio::select! {
                    () = self.fetch_last(end.version) => {}
                    () = stop.cancelled() => {}
                }
                return Ok(end);
            }
            let done = tokio::select! {
                done = self.perform(action) => done,
                () = stop.cancelled() => return Err(DriverError::Stopped),
            };
            match done.and_then(|input| self.bring_back(input)) {
                Ok(()) => self.backoff.reset(),
                Err(DriverError::Call(CallError::Unavailable { message, after })) => {
                    let wait = self.backoff.failed(after);
                    (self.watch)(Event::Retrying { message, wait });
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return Err(DriverError::Stopped),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what the session asks for. `None` means that time alone has passed.
    async fn perform(&mut self, action: Action) -> Result<Option<Input>, DriverError> {
        match action {
            Action::CheckIn => match self.connection.check_in().await? {
                CheckIn::Answer(input) => Ok(Some(input)),
                CheckIn::ComeBack { earliest, latest } => {
                    let wait = self.backoff.draw(earliest, latest).min(LONGEST_WAIT);
                    Ok(Some(Input::ComeBack(wait)))
                }
            },
            Action::Wait(rest) => {
                tokio::time::sleep(rest).await;
                Ok(None)
            }
            Action::Fetch { version, layout, .. } => Ok(self.fetch(version, layout).await?),
            Action::Train(task) => Ok(self.train(task).await?),
            Action::Report(update) => Ok(self.report(&update).await?),
            Action::Decline { round, reason } => {
                match self.connection.decline(round, &reason).await {
                    Ok(()) | Err(CallError::Refused { .. }) => Ok(Some(Input::DeclineNoted)),
                    Err(error) => Err(error.into()),
                }
            }
            Action::Stop(_) => Ok(None),
        }
    }

    async fn fetch(
        &mut self,
        version: Version,
        layout: Arc<Layout>,
    ) -> Result<Option<Input>, CallError> {
        match self.connection.fetch_adapter(version, layout).await {
            Ok(adapter) => Ok(Some(Input::Fetched(adapter))),
            Err(CallError::Refused { message, .. }) => Ok(Some(Input::FetchRefused(message))),
            Err(error) => Err(error),
        }
    }

    /// Hands out the run's last adapter. The run is over: a server that is gone is no error.
    async fn fetch_last(&mut self, version: Version) {
        let Some((lora, layout)) = self.shape.take() else { return };
        let mut reason = String::new();
        for _ in 0..LAST_FETCH_TRIES {
            match self.connection.fetch_adapter(version, Arc::clone(&layout)).await {
                Ok(adapter) => return (self.watch)(Event::Adapter { version, lora, adapter }),
                Err(CallError::Unavailable { message, after }) => {
                    reason = message;
                    tokio::time::sleep(self.backoff.failed(after)).await;
                }
                Err(error) => {
                    reason = error.to_string();
                    break;
                }
            }
        }
        let reason = format!("the last adapter could not be fetched: {reason}");
        (self.watch)(Event::NoLastAdapter { reason });
    }

    async fn train(&mut self, task: Arc<TrainingTask>) -> Result<Option<Input>, ThreadGone> {
        let (watch, round) = (Arc::clone(&self.watch), task.plan.round);
        let told = move |progress| watch(Event::Training { round, progress });
        let training = self.trainer.train(task, told);
        match tokio::time::timeout(self.time_left(), training).await {
            Ok(Ok(Err(TrainError::Cancelled))) | Err(_) => Ok(None),
            Ok(outcome) => Ok(Some(Input::Trained(outcome?))),
        }
    }

    async fn report(&mut self, update: &ClientUpdate) -> Result<Option<Input>, CallError> {
        match self.connection.report(update).await {
            Ok(signed) => {
                let client = self.session.client();
                let genuine = self.ledger_key.as_ref().is_none_or(|key| {
                    signed.receipt.verify(&update.run, client, key, &signed.signature)
                });
                match genuine {
                    true => Ok(Some(Input::Acknowledged(signed))),
                    false => Err(CallError::Contract(
                        "the receipt is not signed with the key in ledger_key".to_owned(),
                    )),
                }
            }
            Err(CallError::Refused { code, message }) => {
                Ok(Some(Input::ReportRefused(format!("{message} ({code})"))))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the session what was done. An input that does not fit (a damaged adapter, say) changes
    /// nothing, and the same action is tried again after a pause.
    fn bring_back(&mut self, input: Option<Input>) -> Result<(), DriverError> {
        let Some(input) = input else { return Ok(()) };
        let records = self
            .session
            .handle(self.now(), input)
            .map_err(|fault| CallError::Unavailable { message: fault.to_string(), after: None })?;
        self.apply(records)
    }

    fn apply(&mut self, records: Vec<Record>) -> Result<(), DriverError> {
        if let Some(store) = &mut self.store {
            store.commit(&records)?;
        }
        for record in records {
            if let Record::Accepted { plan, layout, .. } = &record {
                self.shape = Some((plan.lora.clone(), Arc::clone(layout)));
            }
            if let Some(event) = event(&record) {
                (self.watch)(event);
            }
            self.session.apply(record);
        }
        Ok(())
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Until the deadline of the open round.
    fn time_left(&self) -> Duration {
        let deadline = self.session.poll_timeout();
        deadline.map_or(Duration::ZERO, |deadline| self.now().until(deadline))
    }
}

fn event(record: &Record) -> Option<Event> {
    match record {
        Record::Accepted { plan, .. } => {
            Some(Event::Assigned { round: plan.round, version: plan.version })
        }
        Record::Encoded(update) => {
            let bytes = update.payload.bytes().len();
            Some(Event::Reporting { round: update.round, bytes })
        }
        Record::Declined { round, reason } => {
            Some(Event::NotCounted { round: *round, reason: format!("declined: {reason}") })
        }
        Record::Settled { outcome: Outcome::Acknowledged(signed), .. } => {
            Some(Event::Counted(signed.receipt.clone()))
        }
        Record::Settled { round, outcome: Outcome::Refused(reason) } => {
            Some(Event::NotCounted { round: *round, reason: format!("refused: {reason}") })
        }
        Record::Settled { round, outcome: Outcome::Expired } => {
            let reason = "the deadline passed".to_owned();
            Some(Event::NotCounted { round: *round, reason })
        }
        Record::Ended(end) => Some(Event::Ended(end.clone())),
        Record::Ready(task) => Some(Event::Adapter {
            version: task.plan.version,
            lora: task.plan.lora.clone(),
            adapter: task.adapter.clone(),
        }),
        Record::Waiting(_) => None,
        Record::Settled { outcome: Outcome::Declined, .. } => None,
    }
}
