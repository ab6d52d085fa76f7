//! The state machine of one device in one run.
//!
//! ```text
//! idle -> fetching -> training -> reporting -> idle
//!   \-> declining -> idle            (a plan refused, or training that failed)
//!   \-> ended
//! ```

mod fetching;
mod idle;
mod reporting;
mod training;

use std::sync::Arc;
use std::time::Duration;

use floret_core::{
    Adapter, ClientId, ClientUpdate, Digest, Layout, Plan, Round, SignedReceipt, Time, Version,
};

use crate::limits::{Limits, LocalModel};
use crate::trainer::{TrainError, TrainingOutcome, TrainingTask};

/// What the shell should do next.
#[derive(Debug, Clone)]
pub enum Action {
    /// Ask the server for work; bring back [`Input::Assigned`], [`Input::ComeBack`] or
    /// [`Input::RunEnded`].
    CheckIn,
    /// Wait at least this long and check in then.
    Wait(Duration),
    /// Fetch an adapter; bring back [`Input::Fetched`].
    Fetch {
        /// Its version.
        version: Version,
        /// Digest of its bytes.
        digest: Digest,
        /// Its layout.
        layout: Arc<Layout>,
    },
    /// Train; bring back [`Input::Trained`].
    Train(Arc<TrainingTask>),
    /// Send the update; bring back [`Input::Acknowledged`] or [`Input::ReportRefused`].
    Report(Arc<ClientUpdate>),
    /// Tell the server that this device gives nothing in this round; bring back
    /// [`Input::DeclineNoted`].
    Decline {
        /// The round.
        round: Round,
        /// The reason, which holds nothing private.
        reason: String,
    },
    /// The run is over.
    Stop(RunEnd),
}

/// How a run ended, as the server told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// Whether every round was committed.
    pub completed: bool,
    /// The last version of the adapter.
    pub version: Version,
    /// What the server said of it.
    pub message: String,
}

/// What the shell brings back.
#[derive(Debug)]
pub enum Input {
    /// The server wants this device's work.
    Assigned(Box<Plan>),
    /// The server has nothing for now; come back within this window.
    ComeBack(Duration),
    /// The run is over.
    RunEnded(RunEnd),
    /// The adapter that was asked for.
    Fetched(Adapter),
    /// The server no longer has that adapter: the round went on without this device.
    FetchRefused(String),
    /// Training ended.
    Trained(Result<TrainingOutcome, TrainError>),
    /// The server counted the update.
    Acknowledged(SignedReceipt),
    /// The server refused the update, with its reason.
    ReportRefused(String),
    /// The server heard that this device declined.
    DeclineNoted,
}

/// A change of the session: what [`Session::apply`] takes.
#[derive(Debug, Clone)]
pub enum Record {
    /// Wait until this time before the next check-in.
    Waiting(Time),
    /// A plan was accepted; `deadline` is when the server stops waiting for it.
    Accepted {
        /// The plan.
        plan: Box<Plan>,
        /// Layout of its adapter.
        layout: Arc<Layout>,
        /// When it expires.
        deadline: Time,
    },
    /// The adapter is here; training can begin.
    Ready(Arc<TrainingTask>),
    /// The update is encoded; these very bytes are sent until the server answers.
    Encoded(Arc<ClientUpdate>),
    /// The device gives nothing in this round.
    Declined {
        /// The round.
        round: Round,
        /// Why.
        reason: String,
    },
    /// The round is over for this device.
    Settled {
        /// The round.
        round: Round,
        /// How it ended.
        outcome: Outcome,
    },
    /// The run is over.
    Ended(RunEnd),
}

/// How a round ended for this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The update counts.
    Acknowledged(SignedReceipt),
    /// The server refused the update.
    Refused(String),
    /// The device declined.
    Declined,
    /// The deadline passed first.
    Expired,
}

/// An input that does not fit: the shell asks again, or gives up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An input that this phase does not wait for.
    #[error("the session is {phase} and does not wait for {input}")]
    Unexpected {
        /// The phase.
        phase: &'static str,
        /// The input.
        input: &'static str,
    },
    /// Another adapter than the plan's.
    #[error("the adapter that came has digest {got:?}, and the plan names {want:?}")]
    WrongAdapter {
        /// The plan's.
        want: Digest,
        /// What came.
        got: Digest,
    },
}

/// One device in one run. See the module's diagram.
#[derive(Debug)]
pub struct Session {
    client: ClientId,
    model: LocalModel,
    limits: Limits,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Idle(idle::Idle),
    Fetching(fetching::Fetching),
    Training(training::Training),
    Reporting(reporting::Reporting),
    Declining { round: Round, reason: String },
    Ended(RunEnd),
}

impl Session {
    /// A session that has not yet checked in.
    #[must_use]
    pub fn new(client: ClientId, model: LocalModel, limits: Limits) -> Self {
        Self { client, model, limits, phase: Phase::Idle(idle::Idle::default()) }
    }

    /// The device after a crash: idle, and nothing is owed but what a store has kept.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self::new(self.client.clone(), self.model.clone(), self.limits.clone())
    }

    /// The same session, with the update that a store has kept: it is sent first.
    #[must_use]
    pub fn with_pending(self, update: Option<Arc<ClientUpdate>>) -> Self {
        match update {
            Some(update) => {
                Self { phase: Phase::Reporting(reporting::Reporting { update }), ..self }
            }
            None => self,
        }
    }

    /// The device's name.
    #[must_use]
    pub fn client(&self) -> &ClientId {
        &self.client
    }

    /// What to do at `now`. Asking twice gives the same answer.
    #[must_use]
    pub fn next_action(&self, now: Time) -> Action {
        match &self.phase {
            Phase::Idle(idle) => idle.action(now),
            Phase::Fetching(fetching) => fetching.action(),
            Phase::Training(training) => Action::Train(Arc::clone(&training.task)),
            Phase::Reporting(reporting) => Action::Report(Arc::clone(&reporting.update)),
            Phase::Declining { round, reason } => {
                Action::Decline { round: *round, reason: reason.clone() }
            }
            Phase::Ended(end) => Action::Stop(end.clone()),
        }
    }

    /// Decides what `input` means; changes nothing.
    ///
    /// # Errors
    /// An input that does not fit.
    pub fn handle(&self, now: Time, input: Input) -> Result<Vec<Record>, Fault> {
        let record = match (&self.phase, input) {
            (Phase::Idle(_), Input::Assigned(plan)) => {
                idle::assigned(now, plan, &self.model, &self.limits)
            }
            (Phase::Idle(_), Input::ComeBack(after)) => Record::Waiting(now.after(after)),
            (Phase::Idle(_), Input::RunEnded(end)) => Record::Ended(end),
            (Phase::Fetching(fetching), Input::Fetched(adapter)) => {
                fetching.fetched(&self.client, adapter)?
            }
            (Phase::Fetching(fetching), Input::FetchRefused(reason)) => {
                Record::Settled { round: fetching.plan.round, outcome: Outcome::Refused(reason) }
            }
            (Phase::Training(training), Input::Trained(outcome)) => training.trained(outcome),
            (Phase::Reporting(reporting), Input::Acknowledged(receipt)) => {
                reporting.settled(Outcome::Acknowledged(receipt))
            }
            (Phase::Reporting(reporting), Input::ReportRefused(reason)) => {
                reporting.settled(Outcome::Refused(reason))
            }
            (Phase::Declining { round, .. }, Input::DeclineNoted) => {
                Record::Settled { round: *round, outcome: Outcome::Declined }
            }
            (phase, input) => {
                return Err(Fault::Unexpected { phase: phase.name(), input: input.name() });
            }
        };
        Ok(vec![record])
    }

    /// When [`Session::handle_timeout`] has something to say.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match &self.phase {
            Phase::Fetching(fetching) => Some(fetching.deadline),
            Phase::Training(training) => Some(training.deadline),
            Phase::Idle(_) | Phase::Reporting(_) | Phase::Declining { .. } | Phase::Ended(_) => {
                None
            }
        }
    }

    /// Gives up a round whose deadline has passed; changes nothing. Spurious calls are harmless.
    #[must_use]
    pub fn handle_timeout(&self, now: Time) -> Vec<Record> {
        let round = match &self.phase {
            Phase::Fetching(fetching) => fetching.plan.round,
            Phase::Training(training) => training.task.plan.round,
            Phase::Idle(_) | Phase::Reporting(_) | Phase::Declining { .. } | Phase::Ended(_) => {
                return Vec::new();
            }
        };
        match self.poll_timeout() {
            Some(deadline) if deadline <= now => {
                vec![Record::Settled { round, outcome: Outcome::Expired }]
            }
            _ => Vec::new(),
        }
    }

    /// Applies a record: the only place where state changes.
    pub fn apply(&mut self, record: Record) {
        let deadline = self.poll_timeout().unwrap_or_default();
        self.phase = match record {
            Record::Waiting(until) => Phase::Idle(idle::Idle { until }),
            Record::Accepted { plan, layout, deadline } => {
                Phase::Fetching(fetching::Fetching { plan, layout, deadline })
            }
            Record::Ready(task) => Phase::Training(training::Training { task, deadline }),
            Record::Encoded(update) => Phase::Reporting(reporting::Reporting { update }),
            Record::Declined { round, reason } => Phase::Declining { round, reason },
            Record::Settled { .. } => Phase::Idle(idle::Idle::default()),
            Record::Ended(end) => Phase::Ended(end),
        };
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Fetching(_) => "fetching",
            Self::Training(_) => "training",
            Self::Reporting(_) => "reporting",
            Self::Declining { .. } => "declining",
            Self::Ended(_) => "ended",
        }
    }
}

impl Input {
    fn name(&self) -> &'static str {
        match self {
            Self::Assigned(_) => "an assignment",
            Self::ComeBack(_) => "a retry window",
            Self::RunEnded(_) => "the end of the run",
            Self::Fetched(_) => "an adapter",
            Self::FetchRefused(_) => "a refusal of an adapter",
            Self::Trained(_) => "an outcome of training",
            Self::Acknowledged(_) => "a receipt",
            Self::ReportRefused(_) => "a refusal",
            Self::DeclineNoted => "an answer to declining",
        }
    }
}

#[cfg(test)]
mod tests;
