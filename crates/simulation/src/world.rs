//! The event loop: whoever is due next acts, in virtual time.
//!
//! What a device does and what the coordinator decides is not in here; this file carries inputs
//! from one to the other, as `client` and `server` do over a network, and lets things go wrong on
//! the way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::{
    Coordinator, Input as ServerInput, MemoryStore, Reply, RoundSummary, Store,
};
use floret_core::seed::Purpose;
use floret_core::{ClientId, ClientUpdate, Payload, Round, Seed, SignedReceipt, SigningKey, Time};
use floret_device::session::RunEnd;
use floret_device::{Action, Control, Input, Session, TrainError, Trainer, TrainingTask};

use crate::behaviour::{Behaviour, Draws};
use crate::device::{Device, DeviceStore};
use crate::server::{Restart, Server, Unanswered};

/// One aggregator, its devices and what trains them.
pub struct World<T, S = MemoryStore> {
    server: Server<S>,
    devices: Vec<Device>,
    trainer: T,
    now: Time,
    /// When each device acts next: (time, index), the earliest first.
    agenda: BinaryHeap<Reverse<(Time, usize)>>,
    /// Signs receipts.
    key: SigningKey,
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
        let store = MemoryStore::new(coordinator.config());
        let server = Server::new(coordinator, store, None);
        let devices = sessions.into_iter().map(|session| (session, DeviceStore::none()));
        Self::populated(server, devices.collect(), trainer, behaviour, seed)
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
        Self::populated(server, devices, trainer, behaviour, seed)
    }

    fn populated(
        server: Server<S>,
        devices: Vec<(Session, DeviceStore)>,
        trainer: T,
        behaviour: Behaviour,
        seed: &Seed,
    ) -> Self {
        let device = |(session, store): (Session, DeviceStore)| {
            let seed = seed.derive(Purpose::RetryJitter, Round(0), Some(session.client()));
            Device::new(session, store, Draws::new(behaviour, &seed))
        };
        let mut devices: Vec<Device> = devices.into_iter().map(device).collect();
        let arrival = |(index, device): (usize, &mut Device)| {
            Reverse((Time::default().after(device.draws.latency()), index))
        };
        let agenda = devices.iter_mut().enumerate().map(arrival).collect();
        let key = SigningKey::from_secret(&[0; 32]);
        Self { server, devices, trainer, now: Time::default(), agenda, key }
    }

    /// Signs receipts with `key`.
    #[must_use]
    pub fn signed_with(self, key: SigningKey) -> Self {
        Self { key, ..self }
    }

    /// Runs until every device has heard that the run is over, for at most `limit` of virtual time.
    ///
    /// # Errors
    /// A trainer that fails, or a run that does not end.
    pub fn run(mut self, limit: Duration) -> Result<Ending, WorldError> {
        let end = Time::default().after(limit);
        while let Some(Reverse((due, index))) = self.agenda.pop() {
            self.now = self.server.pass_time(self.now, due).max(due);
            if self.now > end {
                return Err(WorldError::TooLong(limit));
            }
            if let Some(rest) = self.act(index)? {
                // At least a millisecond, so that virtual time moves.
                let next = self.now.after(rest.max(Duration::from_millis(1)));
                self.agenda.push(Reverse((next, index)));
            }
        }
        Ok(Ending {
            coordinator: self.server.coordinator,
            rounds: self.server.rounds,
            crashes: self.server.crashes,
            duration: Time::default().until(self.now),
        })
    }

    /// Lets a device do one thing; gives how long that takes it, or none once it has stopped.
    fn act(&mut self, index: usize) -> Result<Option<Duration>, WorldError> {
        let now = self.now;
        let device = &mut self.devices[index];
        if device.draws.crashes() {
            device.crash();
        }
        let client = device.session.client().clone();
        let latency = device.draws.latency();
        match device.next_action(now) {
            Action::Stop(_) => return Ok(None),
            Action::Wait(rest) => return Ok(Some(rest)),
            Action::CheckIn => {
                let reply = self.tell(index, &client, ServerInput::CheckIn);
                return Ok(Some(self.checked_in(index, reply, latency)));
            }
            Action::Fetch { version, .. } => {
                let state = self.server.coordinator.state();
                let input = match state.version == version {
                    true => Input::Fetched(state.adapter.clone()),
                    false => Input::FetchRefused("the round went on without it".to_owned()),
                };
                self.bring_back(index, input);
            }
            Action::AskStanding { run, round } => {
                let question = ServerInput::Standing { run, round, payload_digest: None };
                match self.tell(index, &client, question) {
                    Ok(Reply::Awaited(within)) => self.bring_back(index, Input::Awaited(within)),
                    Err(Unanswered::Lost) => {}
                    Ok(_) | Err(Unanswered::Rejected(_)) => self.bring_back(index, Input::Over),
                }
            }
            Action::Train(task) => return self.train(index, &task).map(Some),
            Action::Report(update) => self.report(index, &client, &update),
            Action::Decline { round, reason } => {
                let told = self.tell(index, &client, ServerInput::Decline { round, reason });
                if !matches!(told, Err(Unanswered::Lost)) {
                    self.bring_back(index, Input::DeclineNoted);
                }
            }
        }
        Ok(Some(latency))
    }

    fn checked_in(
        &mut self,
        index: usize,
        reply: Result<Reply, Unanswered>,
        latency: Duration,
    ) -> Duration {
        let input = match reply {
            Ok(Reply::Train(plan)) => {
                let deadline = plan.report_within;
                if self.devices[index].draws.drops_out() {
                    // Silent until the round is long over; then it checks in again.
                    return deadline + latency;
                }
                Input::Assigned(plan)
            }
            Ok(Reply::ComeBack { earliest, latest }) => {
                Input::ComeBack(self.devices[index].draws.within(earliest, latest))
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

    fn train(&mut self, index: usize, task: &Arc<TrainingTask>) -> Result<Duration, WorldError> {
        let mut go_on = |_| Control::Continue;
        let outcomes = self.trainer.train(std::slice::from_ref(task.as_ref()), &mut go_on);
        let outcome = match outcomes {
            Ok(outcomes) => outcomes.into_iter().next().ok_or(TrainError::NoData),
            Err(error @ (TrainError::NoData | TrainError::Diverged { .. })) => Err(error),
            Err(error) => {
                return Err(WorldError::Training { client: task.client.clone(), error });
            }
        };
        self.bring_back(index, Input::Trained(outcome));
        Ok(self.devices[index].draws.training())
    }

    /// Sends a report. What does not arrive whole, or has no answer, is sent again.
    fn report(&mut self, index: usize, client: &ClientId, update: &ClientUpdate) {
        let payload_digest = update.payload.digest();
        let fate = self.devices[index].draws.fate();
        let mut sent = update.clone();
        if fate.truncated {
            let bytes = update.payload.bytes();
            sent.payload = Payload::from_bytes(bytes[..bytes.len() / 2].to_vec());
        }
        let report = || ServerInput::Report { update: sent.clone(), payload_digest };
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
        self.devices[index].bring_back(self.now, input);
    }

    /// Calls the server, whose answer may be lost and who may be asked twice.
    fn tell(
        &mut self,
        index: usize,
        client: &ClientId,
        input: ServerInput,
    ) -> Result<Reply, Unanswered> {
        let fate = self.devices[index].draws.fate();
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
