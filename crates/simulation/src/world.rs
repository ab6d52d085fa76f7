//! The event loop: whoever is due next acts, in virtual time.
//!
//! What a device does and what the coordinator decides is not in here; this file carries inputs
//! from one to the other, as `client` and `server` do over a network.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::{Coordinator, Input as ServerInput, Record, Reply, RoundSummary};
use floret_core::seed::Purpose;
use floret_core::{ClientId, ClientUpdate, Round, Seed, Time};
use floret_device::session::RunEnd;
use floret_device::{Action, Control, Input, Session, TrainError, Trainer, TrainingTask};

use crate::behaviour::{Behaviour, Draws};

/// One aggregator, its devices and what trains them.
#[derive(Debug)]
pub struct World<T> {
    coordinator: Coordinator,
    devices: Vec<Device>,
    trainer: T,
    now: Time,
    /// When each device acts next: (time, index), the earliest first.
    agenda: BinaryHeap<Reverse<(Time, usize)>>,
    rounds: Vec<RoundSummary>,
}

#[derive(Debug)]
struct Device {
    session: Session,
    draws: Draws,
}

/// How a simulated run ended.
#[derive(Debug)]
pub struct Ending {
    /// The coordinator in its last state.
    pub coordinator: Coordinator,
    /// What happened in each round.
    pub rounds: Vec<RoundSummary>,
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
        let device = |session: Session| {
            let seed = seed.derive(Purpose::RetryJitter, Round(0), Some(session.client()));
            Device { session, draws: Draws::new(behaviour, &seed) }
        };
        let mut devices: Vec<Device> = sessions.into_iter().map(device).collect();
        let arrival = |(index, device): (usize, &mut Device)| {
            Reverse((Time::default().after(device.draws.latency()), index))
        };
        let agenda = devices.iter_mut().enumerate().map(arrival).collect();
        Self { coordinator, devices, trainer, now: Time::default(), agenda, rounds: Vec::new() }
    }

    /// Runs until every device has heard that the run is over, for at most `limit` of virtual time.
    ///
    /// # Errors
    /// A trainer that fails, or a run that does not end.
    pub fn run(mut self, limit: Duration) -> Result<Ending, WorldError> {
        let end = Time::default().after(limit);
        while let Some(Reverse((due, index))) = self.agenda.pop() {
            self.timeouts_until(due);
            self.now = self.now.max(due);
            if self.now > end {
                return Err(WorldError::TooLong(limit));
            }
            if let Some(rest) = self.act(index)? {
                // At least a millisecond, so that virtual time moves.
                let next = self.now.after(rest.max(Duration::from_millis(1)));
                self.agenda.push(Reverse((next, index)));
            }
        }
        let duration = Time::default().until(self.now);
        Ok(Ending { coordinator: self.coordinator, rounds: self.rounds, duration })
    }

    /// Lets a device do one thing; gives how long that takes it, or none once it has stopped.
    fn act(&mut self, index: usize) -> Result<Option<Duration>, WorldError> {
        let now = self.now;
        let device = &mut self.devices[index];
        for record in device.session.handle_timeout(now) {
            device.session.apply(record);
        }
        let client = device.session.client().clone();
        let latency = device.draws.latency();
        match device.session.next_action(now) {
            Action::Stop(_) => return Ok(None),
            Action::Wait(rest) => return Ok(Some(rest)),
            Action::CheckIn => {
                let reply = self.tell(&client, ServerInput::CheckIn);
                return Ok(Some(self.checked_in(index, reply, latency)));
            }
            Action::Fetch { .. } => {
                let adapter = self.coordinator.state().adapter.clone();
                self.bring_back(index, Input::Fetched(adapter));
            }
            Action::Train(task) => return self.train(index, &task).map(Some),
            Action::Report(update) => self.report(index, &client, &update),
            Action::Decline { round, reason } => {
                let _ = self.tell(&client, ServerInput::Decline { round, reason });
                self.bring_back(index, Input::DeclineNoted);
            }
        }
        Ok(Some(latency))
    }

    fn checked_in(
        &mut self,
        index: usize,
        reply: Result<Reply, String>,
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
            Ok(Reply::RunEnded(end)) => {
                let (completed, version) = (end.completed, end.version);
                Input::RunEnded(RunEnd { completed, version, message: end.message })
            }
            Ok(Reply::Accepted(_) | Reply::DeclineNoted) | Err(_) => Input::ComeBack(latency),
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

    fn report(&mut self, index: usize, client: &ClientId, update: &ClientUpdate) {
        let payload_digest = update.payload.digest();
        let report = ServerInput::Report { update: update.clone(), payload_digest };
        let input = match self.tell(client, report) {
            Ok(Reply::Accepted(receipt)) => Input::Acknowledged(receipt),
            Ok(_) => Input::ReportRefused("no receipt came".to_owned()),
            Err(reason) => Input::ReportRefused(reason),
        };
        self.bring_back(index, input);
    }

    /// Gives a device an input. One that does not fit (an adapter that the round has left behind)
    /// changes nothing: the device tries again until its deadline.
    fn bring_back(&mut self, index: usize, input: Input) {
        let session = &mut self.devices[index].session;
        for record in session.handle(self.now, input).unwrap_or_default() {
            session.apply(record);
        }
    }

    /// Tells the coordinator something: decide, apply, then answer.
    fn tell(&mut self, client: &ClientId, input: ServerInput) -> Result<Reply, String> {
        let step = self.coordinator.handle(self.now, client, input);
        self.apply(step.records);
        self.timeouts_until(self.now);
        step.reply.map_err(|rejection| rejection.to_string())
    }

    /// Lets the coordinator's timeouts up to `until` happen, each at its own time.
    fn timeouts_until(&mut self, until: Time) {
        while let Some(due) = self.coordinator.poll_timeout(self.now).filter(|due| *due <= until) {
            self.now = self.now.max(due);
            let records = self.coordinator.handle_timeout(self.now);
            self.apply(records);
        }
    }

    fn apply(&mut self, records: Vec<Record>) {
        for record in records {
            if let Record::RoundCommitted { summary, .. } | Record::RoundAbandoned { summary } =
                &record
            {
                self.rounds.push(summary.clone());
            }
            self.coordinator.apply(record);
        }
    }
}
