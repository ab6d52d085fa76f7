//! Asks the session what to do, does it, and brings the result back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use floret_core::{
    Adapter, ClientUpdate, Digest, Layout, LoraConfig, PublicKey, Receipt, Round, RunId,
    SignedReceipt, Version,
};
use floret_device::session::{Outcome, RunEnd};
use floret_device::{
    Action, Input, Progress, Record, Session, Store as _, TrainError, TrainingOutcome, TrainingTask,
};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::connection::{CallError, CheckIn, Connection, Standing};
use crate::store::{DeviceStore, StoreError};
use crate::training_thread::{ThreadGone, TrainingThread};
use crate::transfer::Download;

/// How often the run's last adapter is asked for, when the server may already be stopping.
const LAST_FETCH_TRIES: u32 = 6;
/// Longest wait that a server can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// How often the clock is looked at while training goes on: the device may have slept.
const LOOK: Duration = Duration::from_secs(15);

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
type Trained = Result<Result<TrainingOutcome, TrainError>, ThreadGone>;
/// Training that goes on; dropping it cancels it.
type Training = Pin<Box<dyn Future<Output = Trained> + Send>>;

/// A device that takes part in a run.
pub struct Device {
    session: Session,
    connection: Connection,
    trainer: TrainingThread,
    backoff: Backoff,
    watch: Watch,
    clock: Clock,
    store: Option<DeviceStore>,
    ledger_key: Option<PublicKey>,
    /// What the adapter of the last plan looks like.
    shape: Option<(Option<RunId>, LoraConfig, Arc<Layout>)>,
    /// The adapter that came last.
    held: Option<Adapter>,
    /// An adapter that came in part.
    download: Option<Download>,
    training: Option<Training>,
    /// Whether the server may know the update already, or not want it any more.
    ask_first: bool,
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
        Self {
            session,
            connection,
            trainer,
            backoff,
            watch,
            clock: Clock::start(),
            store: None,
            ledger_key: None,
            shape: None,
            held: None,
            download: None,
            training: None,
            ask_first: false,
        }
    }

    /// Keeps in `store` what must outlive a crash, and goes on with what it holds already.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn with_store(mut self, mut store: DeviceStore) -> Result<Self, StoreError> {
        let kept = store.load()?;
        self.ask_first = kept.pending.is_some();
        self.session = self.session.with_kept(kept);
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
            let action = self.session.next_action(self.clock.now());
            if let Action::Stop(end) = action {
                tokio::select! {
                    () = self.fetch_last(&end) => {}
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
            Action::Fetch { version, digest, layout } => {
                Ok(self.fetch(version, digest, layout).await?)
            }
            Action::AskStanding { run, round } => self.ask_standing(&run, round).await,
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

    /// Fetches the adapter of a plan.
    async fn fetch(
        &mut self,
        version: Version,
        digest: Digest,
        layout: Arc<Layout>,
    ) -> Result<Option<Input>, CallError> {
        match self.download(version, Some(digest), layout).await {
            Ok(adapter) => Ok(Some(Input::Fetched(adapter))),
            Err(CallError::Refused { message, .. }) => Ok(Some(Input::FetchRefused(message))),
            Err(error) => Err(error),
        }
    }

    /// Fetches what this device does not hold of an adapter, or the rest of one that broke off.
    async fn download(
        &mut self,
        version: Version,
        digest: Option<Digest>,
        layout: Arc<Layout>,
    ) -> Result<Adapter, CallError> {
        if let Some(held) = self.held.as_ref().filter(|held| Some(held.digest()) == digest) {
            return Ok(held.clone());
        }
        let begun = self.download.take().filter(|download| download.is_of(digest));
        let new = || Download::new(version, digest, layout).holding(self.held.clone());
        let mut download = begun.unwrap_or_else(new);
        let fetched = self.connection.fetch(&mut download).await;
        match &fetched {
            Ok(adapter) => self.held = Some(adapter.clone()),
            Err(CallError::Refused { .. }) => {}
            Err(_) => self.download = Some(download),
        }
        fetched
    }

    /// Hands out the run's last adapter. The run is over: a server that is gone is no error.
    async fn fetch_last(&mut self, end: &RunEnd) {
        let Some((personal_of, lora, layout)) = self.shape.take() else { return };
        let version = end.version;
        let mut reason = String::new();
        for _ in 0..LAST_FETCH_TRIES {
            match self.download(version, end.adapter_digest, Arc::clone(&layout)).await {
                Ok(adapter) => {
                    let adapter = match personal_of {
                        Some(run) => self.session.own().personalised(&run, adapter),
                        None => adapter,
                    };
                    return (self.watch)(Event::Adapter { version, lora, adapter });
                }
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

    /// Trains, or goes on with it, until it is done or the clock must be looked at.
    async fn train(&mut self, task: Arc<TrainingTask>) -> Result<Option<Input>, ThreadGone> {
        if self.training.is_none() {
            let (watch, round) = (Arc::clone(&self.watch), task.plan.round);
            let told = move |progress| watch(Event::Training { round, progress });
            let trainer = self.trainer.clone();
            self.training = Some(Box::pin(async move { trainer.train(task, told).await }));
        }
        let now = self.clock.now();
        let left = self.session.deadline().map_or(Duration::ZERO, |deadline| now.until(deadline));
        match tokio::time::timeout(left.min(LOOK), trained(&mut self.training)).await {
            Ok(outcome) => Ok(Some(Input::Trained(outcome?))),
            Err(_) => Ok(None),
        }
    }

    /// Asks whether the round still awaits this device; training goes on meanwhile, and may end.
    async fn ask_standing(
        &mut self,
        run: &RunId,
        round: Round,
    ) -> Result<Option<Input>, DriverError> {
        let standing = tokio::select! {
            biased;
            outcome = trained(&mut self.training) => return Ok(Some(Input::Trained(outcome?))),
            standing = self.connection.standing(run, round, None) => standing?,
        };
        Ok(Some(match standing {
            Standing::Awaited { within, .. } => Input::Awaited(within),
            Standing::Counted(_) | Standing::Over { .. } => Input::Over,
        }))
    }

    /// Sends the update, or what the server does not have yet of it.
    async fn report(&mut self, update: &ClientUpdate) -> Result<Option<Input>, CallError> {
        let mut offset = 0;
        if std::mem::replace(&mut self.ask_first, true) {
            let digest = Some(update.payload.digest());
            match self.connection.standing(&update.run, update.round, digest).await? {
                Standing::Awaited { received, .. } => {
                    offset = received.min(update.payload.bytes().len());
                }
                Standing::Counted(signed) => return self.acknowledged(update, signed),
                Standing::Over { code, message } => return Ok(Some(refused(&code, &message))),
            }
        }
        match self.connection.report_from(update, offset).await {
            Ok(signed) => self.acknowledged(update, signed),
            Err(CallError::Refused { code, message }) => Ok(Some(refused(&code, &message))),
            Err(error) => Err(error),
        }
    }

    fn acknowledged(
        &self,
        update: &ClientUpdate,
        signed: SignedReceipt,
    ) -> Result<Option<Input>, CallError> {
        let client = self.session.client();
        let genuine = self
            .ledger_key
            .as_ref()
            .is_none_or(|key| signed.receipt.verify(&update.run, client, key, &signed.signature));
        match genuine {
            true => Ok(Some(Input::Acknowledged(signed))),
            false => Err(CallError::Contract(
                "the receipt is not signed with the key in ledger_key".to_owned(),
            )),
        }
    }

    /// Gives the session what was done. An input that does not fit (a damaged adapter, say) changes
    /// nothing, and the same action is tried again after a pause.
    fn bring_back(&mut self, input: Option<Input>) -> Result<(), DriverError> {
        let Some(input) = input else { return Ok(()) };
        let now = self.clock.now();
        let records = self
            .session
            .handle(now, input)
            .map_err(|fault| CallError::Unavailable { message: fault.to_string(), after: None })?;
        self.apply(records)
    }

    fn apply(&mut self, records: Vec<Record>) -> Result<(), DriverError> {
        if let Some(store) = &mut self.store {
            store.commit(&records)?;
        }
        for record in records {
            if let Record::Accepted { plan, layout, .. } = &record {
                let personal_of = plan.training.personal_b.then(|| plan.run.clone());
                self.shape = Some((personal_of, plan.lora.clone(), Arc::clone(layout)));
            }
            match &record {
                // Late work may be worth nothing any more.
                Record::Encoded(_) => {
                    let now = self.clock.now();
                    self.ask_first =
                        self.session.deadline().is_some_and(|deadline| deadline <= now);
                }
                Record::Settled { .. } => self.training = None,
                _ => {}
            }
            if let Some(event) = event(&record) {
                (self.watch)(event);
            }
            self.session.apply(record);
        }
        Ok(())
    }
}

/// The end of training that goes on; never, if none does.
async fn trained(training: &mut Option<Training>) -> Trained {
    let Some(running) = training else { return std::future::pending().await };
    let outcome = running.await;
    *training = None;
    outcome
}

fn refused(code: &str, message: &str) -> Input {
    Input::ReportRefused(format!("{message} ({code})"))
}

fn event(record: &Record) -> Option<Event> {
    match record {
        Record::Accepted { plan, .. } => {
            Some(Event::Assigned { round: plan.round, version: plan.version })
        }
        Record::Encoded(pending) => {
            let bytes = pending.update.payload.bytes().len();
            Some(Event::Reporting { round: pending.update.round, bytes })
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
        Record::Waiting(_) | Record::Extended(_) => None,
        Record::Settled { outcome: Outcome::Declined, .. } => None,
    }
}
