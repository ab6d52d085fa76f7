//! The event loop: whoever is due next acts, in virtual time.
//!
//! What a device does and what the coordinator decides is not in here; this file carries inputs
//! from one to the other, as `client` and `server` do over a network, and lets things go wrong on
//! the way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::{
    Coordinator, Input as ServerInput, MemoryStore, Reply, Report, RoundSummary, Store,
};
use floret_core::{
    Adapter, ClientId, ClientUpdate, Payload, Seed, SignedReceipt, SigningKey, Time, Version,
};
use floret_device::session::RunEnd;
use floret_device::{
    Action, Control, Input, Session, TrainError, Trainer, TrainingOutcome, TrainingTask,
};

use crate::behaviour::Behaviour;
use crate::crowd::{Crowd, Population};
use crate::device::DeviceStore;
use crate::server::{Restart, Server, Unanswered};

/// One aggregator, its devices and what trains them.
pub struct World<T, S = MemoryStore> {
    server: Server<S>,
    crowd: Crowd,
    /// What becomes of a device's work is drawn from it.
    seed: Seed,
    trainer: T,
    now: Time,
    /// What happens next, the earliest first.
    agenda: BinaryHeap<Reverse<(Time, Event)>>,
    /// Whether the agenda has [`Event::Look`].
    looking: bool,
    /// What devices work on, by when they are done and index.
    work: BTreeMap<(Time, usize), Work>,
    traffic: Traffic,
    /// What each device fetched since its last update that counts, in bytes, by index.
    unsettled: BTreeMap<usize, u64>,
    /// Signs receipts.
    key: SigningKey,
}

/// Something on the agenda.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The device of this index acts.
    Act(usize),
    /// Its training ends.
    Trained(usize),
    /// Nobody was found who may come: it is time to look again.
    Look,
}

/// A training, of which nobody needs to know what it gives before it ends: until then, others begin
/// that can be computed with it.
struct Work {
    task: Arc<TrainingTask>,
    outcome: Option<Result<TrainingOutcome, TrainError>>,
}

/// How long nobody is looked for after nobody was found.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Bytes that devices moved, whether anything came of it or not. Calls beside the payloads and adapters
/// are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Of the payloads that they sent.
    pub up: u64,
    /// Of the adapters that they fetched, or of the steps that lead there from the adapter that they
    /// held, as the server would send them. A device holds what it fetched last until it crashes. The
    /// last adapter, which devices fetch when the run is over, is not among them.
    pub down: u64,
}

/// How a simulated run ended.
#[derive(Debug)]
pub struct Ending {
    /// The coordinator in its last state.
    pub coordinator: Coordinator,
    /// What happened in each round.
    pub rounds: Vec<RoundSummary>,
    /// How often the server went down.
    pub crashes: u32,
    /// Virtual time that passed.
    pub duration: Duration,
}

/// A simulation that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// Training failed for a reason other than the device's data.
    #[error("client {client}: {error}")]
    Training {
        /// Whose.
        client: ClientId,
        /// Why.
        error: TrainError,
    },
    /// The run did not end in the time it was given.
    #[error("the run did not end within {0:?} of virtual time")]
    TooLong(Duration),
}

impl<T: Trainer> World<T> {
    /// A world of `sessions`, whose latencies and drop-outs follow `behaviour` by `seed`.
    #[must_use]
    pub fn new(
        coordinator: Coordinator,
        sessions: Vec<Session>,
        trainer: T,
        behaviour: Behaviour,
        seed: &Seed,
    ) -> Self {
        let server = Server::in_memory(coordinator);
        let devices = sessions.into_iter().map(|session| (session, DeviceStore::none()));
        let crowd = Crowd::of_residents(devices.collect(), behaviour, seed);
        Self::begin(server, crowd, trainer, seed)
    }

    /// A world whose devices come out of `population` while the coordinator wants some, and go when
    /// their work is done. If it wants as many as there are, all of them are there.
    #[must_use]
    pub fn populated(
        coordinator: Coordinator,
        population: impl Population + 'static,
        trainer: T,
        behaviour: Behaviour,
        seed: &Seed,
    ) -> Self {
        let server = Server::in_memory(coordinator);
        let trusted = server.coordinator.config().cohort.trusted.as_ref();
        let crowd = Crowd::of_population(Box::new(population), trusted, behaviour, seed);
        Self::begin(server, crowd, trainer, seed)
    }
}

impl<T: Trainer, S: Store> World<T, S> {
    /// A world whose server and devices keep what must outlive a crash. When a store fails, its owner
    /// goes down and comes up again: the server by `restart`, a device by its own store's.
    #[must_use]
    pub fn durable(
        mut restart: Restart<S>,
        devices: Vec<(Session, DeviceStore)>,
        trainer: T,
        behaviour: Behaviour,
        seed: &Seed,
    ) -> Self {
        let (coordinator, store) = restart(Time::default());
        let server = Server::new(coordinator, store, Some(restart));
        let crowd = Crowd::of_residents(devices, behaviour, seed);
        Self::begin(server, crowd, trainer, seed)
    }

    fn begin(server: Server<S>, mut crowd: Crowd, trainer: T, seed: &Seed) -> Self {
        let mut agenda = BinaryHeap::new();
        for index in crowd.indices() {
            let arrives = Time::default().after(crowd.device(index).draws.latency());
            agenda.push(Reverse((arrives, Event::Act(index))));
        }
        let (seed, key) = (seed.clone(), SigningKey::from_secret(&[0; 32]));
        Self {
            server,
            crowd,
            seed,
            trainer,
            now: Time::default(),
            agenda,
            looking: false,
            work: BTreeMap::new(),
            traffic: Traffic::default(),
            unsettled: BTreeMap::new(),
            key,
        }
    }

    /// Signs receipts with `key`.
    #[must_use]
    pub fn signed_with(self, key: SigningKey) -> Self {
        Self { key, ..self }
    }

    /// Runs until every device that is there has heard that the run is over, for at most `limit` of
    /// virtual time.
    ///
    /// # Errors
    /// A trainer that fails, or a run that does not end.
    pub fn run(mut self, limit: Duration) -> Result<Ending, WorldError> {
        let mut rounds = Vec::new();
        while let Some(summary) = self.next_round(limit)? {
            rounds.push(summary);
        }
        Ok(Ending {
            rounds,
            crashes: self.server.crashes,
            duration: Time::default().until(self.now),
            coordinator: self.server.coordinator,
        })
    }

    /// Runs until a round closes and gives what happened in it; none once the run is over and every
    /// device that is there has heard so. The virtual time since the beginning is at most `limit`.
    ///
    /// # Errors
    /// A trainer that fails, or a run that does not end.
    pub fn next_round(&mut self, limit: Duration) -> Result<Option<RoundSummary>, WorldError> {
        let end = Time::default().after(limit);
        loop {
            self.now = self.server.pass_time(self.now, self.now);
            if let Some(summary) = self.server.closed.pop_front() {
                return Ok(Some(summary));
            }
            self.look();
            let Some(Reverse((due, event))) = self.agenda.pop() else { return Ok(None) };
            self.now = self.server.pass_time(self.now, due).max(due);
            if self.now > end {
                return Err(WorldError::TooLong(limit));
            }
            match event {
                Event::Look => self.looking = false,
                Event::Act(index) => {
                    if let Some(rest) = self.act(index) {
                        // At least a millisecond, so that virtual time moves.
                        let next = self.now.after(rest.max(Duration::from_millis(1)));
                        self.agenda.push(Reverse((next, event)));
                    }
                }
                Event::Trained(index) => {
                    let sending = self.trained(index, due)?;
                    self.agenda.push(Reverse((self.now.after(sending), Event::Act(index))));
                }
            }
        }
    }

    /// The coordinator as it is now.
    #[must_use]
    pub fn coordinator(&self) -> &Coordinator {
        &self.server.coordinator
    }

    /// What devices moved until now.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// `adapter` as the device `index` has it: with its own factor, in a run in which one stays there.
    #[must_use]
    pub fn personalised(&self, index: usize, adapter: &Adapter) -> Adapter {
        let config = self.server.coordinator.config();
        match self.crowd.own(index).filter(|_| config.training.personal_b) {
            Some(own) => own.personalised(&config.run, adapter.clone()),
            None => adapter.clone(),
        }
    }

    /// What trains the devices.
    pub fn trainer(&mut self) -> &mut T {
        &mut self.trainer
    }

    /// Lets as many devices come as the coordinator has use for.
    fn look(&mut self) {
        let coordinator = &self.server.coordinator;
        let (wanted, now, round) = (coordinator.wanted(), self.now, coordinator.state().round);
        // Nobody else is of use before the trusted one is there.
        let mut misses = coordinator.misses(now).is_some() && self.crowd.lacks_trusted();
        while !self.looking && (misses || self.crowd.lacks(wanted)) {
            let woken = match std::mem::take(&mut misses) {
                true => self.crowd.wake_trusted(now, round),
                false => self.crowd.wake(now, round),
            };
            let next = match woken {
                Some(index) => {
                    let latency = self.crowd.device(index).draws.latency();
                    (now.after(latency), Event::Act(index))
                }
                None => {
                    self.looking = true;
                    (now.after(LOOK_AGAIN), Event::Look)
                }
            };
            self.agenda.push(Reverse(next));
        }
    }

    /// Lets a device do one thing; gives how long that takes it, or none once it is gone or trains.
    fn act(&mut self, index: usize) -> Option<Duration> {
        let now = self.now;
        let device = self.crowd.device(index);
        if device.draws.crashes() {
            device.crash();
        }
        let client = device.session.client().clone();
        let latency = device.draws.latency();
        let action = device.next_action(now);
        let free = matches!(action, Action::CheckIn | Action::Wait(_));
        if free && !self.crowd.stays(index, now) {
            return None;
        }
        match action {
            Action::Stop(_) => return None,
            Action::Wait(rest) => return Some(rest),
            Action::CheckIn => {
                let reply = self.tell(index, &client, ServerInput::CheckIn);
                return Some(self.checked_in(index, reply, latency));
            }
            Action::Fetch { version, .. } => return Some(latency + self.fetch(index, version)),
            Action::AskStanding { run, round } => {
                let question = ServerInput::Standing { run, round, payload_digest: None };
                match self.tell(index, &client, question) {
                    Ok(Reply::Awaited(within)) => self.bring_back(index, Input::Awaited(within)),
                    Err(Unanswered::Lost) => {}
                    Ok(_) | Err(Unanswered::Rejected(_)) => self.bring_back(index, Input::Over),
                }
            }
            Action::Train(task) => {
                self.train(index, task);
                return None;
            }
            Action::Report(update) => self.report(index, &client, &update),
            Action::Decline { round, reason } => {
                let told = self.tell(index, &client, ServerInput::Decline { round, reason });
                if !matches!(told, Err(Unanswered::Lost)) {
                    self.bring_back(index, Input::DeclineNoted);
                }
            }
        }
        Some(latency)
    }

    /// Brings a device the adapter of `version`; gives how long its bytes take.
    fn fetch(&mut self, index: usize, version: Version) -> Duration {
        let device = self.crowd.device(index);
        let Some((adapter, bytes)) = self.server.serve(version, device.held) else {
            let reason = "the round went on without it".to_owned();
            self.bring_back(index, Input::FetchRefused(reason));
            return Duration::ZERO;
        };
        device.held = Some(adapter.digest());
        let (receiving, adapter) = (device.draws.receiving(bytes), adapter.clone());
        self.traffic.down += bytes as u64;
        *self.unsettled.entry(index).or_default() += bytes as u64;
        self.bring_back(index, Input::Fetched(adapter));
        receiving
    }

    fn checked_in(
        &mut self,
        index: usize,
        reply: Result<Reply, Unanswered>,
        latency: Duration,
    ) -> Duration {
        let input = match reply {
            Ok(Reply::Train(plan)) => {
                self.crowd.begin(index);
                let device = self.crowd.device(index);
                let (nature, client) = (device.draws.nature, device.session.client());
                if nature.lot(&self.seed, plan.round, client).drops_out {
                    // Silent until the round is long over; then it is free again.
                    return plan.report_within + latency;
                }
                Input::Assigned(plan)
            }
            Ok(Reply::ComeBack { earliest, latest }) => {
                Input::ComeBack(self.crowd.device(index).draws.within(earliest, latest))
            }
            Ok(Reply::RunEnded(end)) => Input::RunEnded(RunEnd {
                completed: end.completed,
                version: end.version,
                adapter_digest: None,
                message: end.message,
            }),
            Ok(Reply::Accepted(_) | Reply::Awaited(_) | Reply::DeclineNoted) | Err(_) => {
                Input::ComeBack(latency)
            }
        };
        self.bring_back(index, input);
        latency
    }

    /// Begins a training.
    fn train(&mut self, index: usize, task: Arc<TrainingTask>) {
        let (now, steps) = (self.now, self.trainer.steps(&task));
        let draws = &mut self.crowd.device(index).draws;
        let fails = draws.nature.lot(&self.seed, task.plan.round, &task.client).fails;
        let training = draws.training(steps);
        self.crowd.drain(index, now, training);
        let done = now.after(training);
        let failure = || TrainError::Unsupported("training failed on this device".to_owned());
        let outcome = fails.then(|| Err(failure()));
        self.work.insert((done, index), Work { task, outcome });
        self.agenda.push(Reverse((done, Event::Trained(index))));
    }

    /// Brings a device what the training gave that ended at `done`; gives how long it sends its update.
    fn trained(&mut self, index: usize, done: Time) -> Result<Duration, WorldError> {
        let key = (done, index);
        if self.work.get(&key).is_some_and(|work| work.outcome.is_none()) {
            self.compute()?;
        }
        let outcome = self.work.remove(&key).and_then(|work| work.outcome);
        let outcome = outcome.unwrap_or_else(|| unreachable!("the training was computed"));
        self.bring_back(index, Input::Trained(outcome));
        let now = self.now;
        let device = self.crowd.device(index);
        Ok(match device.next_action(now) {
            Action::Report(update) => device.draws.sending(update.payload.bytes().len()),
            _ => Duration::ZERO,
        })
    }

    /// Trains those who are done first, as many as the trainer has use for at once.
    fn compute(&mut self) -> Result<(), WorldError> {
        let mut waiting = self.work.values_mut().filter(|work| work.outcome.is_none()).peekable();
        let at_once = waiting.peek().map_or(1, |work| self.trainer.at_once(&work.task).max(1));
        let mut waiting: Vec<&mut Work> = waiting.take(at_once).collect();
        let tasks: Vec<TrainingTask> =
            waiting.iter().map(|work| TrainingTask::clone(&work.task)).collect();
        let outcomes = self.trainer.train_all(&tasks, &mut |_| Control::Continue);
        for (work, outcome) in waiting.iter_mut().zip(outcomes) {
            work.outcome = Some(match outcome {
                // That training gives nothing can be the device's own affair.
                Err(error @ (TrainError::Cancelled | TrainError::Unsupported(_))) => {
                    return Err(WorldError::Training { client: work.task.client.clone(), error });
                }
                outcome => outcome,
            });
        }
        Ok(())
    }

    /// Sends a report. What does not arrive whole, or has no answer, is sent again.
    fn report(&mut self, index: usize, client: &ClientId, update: &ClientUpdate) {
        let payload_digest = update.payload.digest();
        let fate = self.crowd.device(index).draws.fate();
        let mut sent = update.clone();
        if fate.truncated {
            let bytes = update.payload.bytes();
            sent.payload = Payload::from_bytes(bytes[..bytes.len() / 2].to_vec());
        }
        let times = 1 + u64::from(fate.duplicated);
        self.traffic.up += times * sent.payload.bytes().len() as u64;
        let downloaded_bytes = self.unsettled.get(&index).copied().unwrap_or_default();
        let report = || {
            let update = sent.clone();
            ServerInput::Report(Report { update, payload_digest, downloaded_bytes })
        };
        let mut told = self.server.tell(self.now, client, report());
        if fate.duplicated {
            told = self.server.tell(self.now, client, report());
        }
        self.now = self.server.pass_time(self.now, self.now);
        let input = match told {
            _ if fate.lost_answer => return,
            Err(Unanswered::Lost) => return,
            Err(Unanswered::Rejected(rejection)) if rejection.code() == "wrong-digest" => return,
            Ok(Reply::Accepted(receipt)) => {
                self.unsettled.remove(&index);
                let signature = receipt.sign(&update.run, client, &self.key);
                Input::Acknowledged(SignedReceipt { receipt, signature })
            }
            Ok(_) => Input::ReportRefused("no receipt came".to_owned()),
            Err(Unanswered::Rejected(rejection)) => Input::ReportRefused(rejection.to_string()),
        };
        self.bring_back(index, input);
    }

    /// Gives a device an input. One that does not fit changes nothing: the device tries again.
    fn bring_back(&mut self, index: usize, input: Input) {
        self.crowd.device(index).bring_back(self.now, input);
    }

    /// Calls the server, whose answer may be lost and who may be asked twice.
    fn tell(
        &mut self,
        index: usize,
        client: &ClientId,
        input: ServerInput,
    ) -> Result<Reply, Unanswered> {
        let fate = self.crowd.device(index).draws.fate();
        let again = match &input {
            ServerInput::CheckIn if fate.duplicated => Some(ServerInput::CheckIn),
            _ => None,
        };
        let mut reply = self.server.tell(self.now, client, input);
        if let Some(again) = again {
            reply = self.server.tell(self.now, client, again);
        }
        self.now = self.server.pass_time(self.now, self.now);
        if fate.lost_answer { Err(Unanswered::Lost) } else { reply }
    }
}
