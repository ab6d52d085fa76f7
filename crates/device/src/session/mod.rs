//! The state machine of one device in one run.
//!
//! ```text
//! idle -> fetching -> training -> reporting -> idle
//!   \-> declining -> idle            (a plan refused, or training that failed)
//!   \-> ended
//! ```
//!
//! A deadline that passes while fetching or training gives nothing up: the device asks the server,
//! who may have extended it, and goes on meanwhile.

mod fetching;
mod idle;
mod reporting;
mod training;

use std::sync::Arc;
use std::time::Duration;

use floret_core::{
    Adapter, ClientId, ClientUpdate, Digest, Layout, Plan, Round, RunId, Scope, SignedReceipt,
    Time, Version,
};

use crate::limits::{Limits, LocalModel};
use crate::own::Own;
use crate::pipeline::Pending;
use crate::store::Kept;
use crate::trainer::{TrainError, TrainingOutcome, TrainingTask};
use fetching::Fetching;

/// Least time between two questions whether the server still waits.
const ASK_PAUSE: Duration = Duration::from_secs(1);

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
    /// Ask whether the server still awaits this device in this round; bring back [`Input::Awaited`]
    /// or [`Input::Over`]. What was begun goes on meanwhile, and may be brought back instead.
    AskStanding {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
    },
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
    /// Digest of the adapter of that version, if the server told it.
    pub adapter_digest: Option<Digest>,
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
    /// The server awaits this device's update, for this long.
    Awaited(Duration),
    /// The round is over for this device.
    Over,
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
        /// What of it trains.
        scope: Scope,
        /// When it expires.
        deadline: Time,
    },
    /// The server waits longer: until this time.
    Extended(Time),
    /// The adapter is here; training can begin.
    Ready(Arc<TrainingTask>),
    /// The update is encoded; these very bytes are sent until the server answers.
    Encoded(Pending),
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
    /// The deadline passed, and the server does not wait any more.
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
    /// What follows from the updates that count.
    own: Own,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Idle(idle::Idle),
    Fetching(Fetching),
    Training(training::Training),
    Reporting(reporting::Reporting),
    Declining { round: Round, reason: String },
    Ended(RunEnd),
}

impl Session {
    /// A session that has not yet checked in.
    #[must_use]
    pub fn new(client: ClientId, model: LocalModel, limits: Limits) -> Self {
        let phase = Phase::Idle(idle::Idle::default());
        Self { client, model, limits, own: Own::default(), phase }
    }

    /// The device after a crash: idle, and nothing is owed but what a store has kept.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self::new(self.client.clone(), self.model.clone(), self.limits.clone())
    }

    /// The same session, with what a store has kept: an update is sent first.
    #[must_use]
    pub fn with_kept(self, kept: Kept) -> Self {
        let Kept { pending, own } = kept;
        let phase = match pending {
            Some(pending) => Phase::Reporting(reporting::Reporting { pending }),
            None => self.phase,
        };
        Self { own, phase, ..self }
    }

    /// What follows from the updates that counted.
    #[must_use]
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// The device's name.
    #[must_use]
    pub fn client(&self) -> &ClientId {
        &self.client
    }

    /// What to do at `now`. Asking twice gives the same answer.
    #[must_use]
    pub fn next_action(&self, now: Time) -> Action {
        if let Some((plan, deadline)) = self.phase.assignment()
            && *deadline <= now
        {
            return Action::AskStanding { run: plan.run.clone(), round: plan.round };
        }
        match &self.phase {
            Phase::Idle(idle) => idle.action(now),
            Phase::Fetching(fetching) => fetching.action(),
            Phase::Training(training) => Action::Train(Arc::clone(&training.task)),
            Phase::Reporting(reporting) => Action::Report(Arc::clone(&reporting.pending.update)),
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
                fetching.fetched(&self.client, &self.own, adapter)?
            }
            (Phase::Fetching(fetching), Input::FetchRefused(reason)) => {
                Record::Settled { round: fetching.plan.round, outcome: Outcome::Refused(reason) }
            }
            (Phase::Fetching(_) | Phase::Training(_), Input::Awaited(within)) => {
                Record::Extended(now.after(within.max(ASK_PAUSE)))
            }
            (Phase::Fetching(Fetching { plan, .. }), Input::Over) => expired(plan.round),
            (Phase::Training(training), Input::Over) => expired(training.task.plan.round),
            (Phase::Training(training), Input::Trained(outcome)) => {
                training.trained(outcome, self.own.residual.as_deref())
            }
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

    /// When time alone changes what [`Session::next_action`] says of an assignment.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.phase.assignment().map(|(_, deadline)| *deadline)
    }

    /// Applies a record: the only place where state changes.
    pub fn apply(&mut self, record: Record) {
        let deadline = self.deadline().unwrap_or_default();
        self.phase = match record {
            Record::Extended(until) => {
                match &mut self.phase {
                    Phase::Fetching(fetching) => fetching.deadline = until,
                    Phase::Training(training) => training.deadline = until,
                    _ => {}
                }
                return;
            }
            Record::Waiting(until) => Phase::Idle(idle::Idle { until }),
            Record::Accepted { plan, layout, scope, deadline } => {
                Phase::Fetching(Fetching { plan, layout, scope, deadline })
            }
            Record::Ready(task) => Phase::Training(training::Training { task, deadline }),
            Record::Encoded(pending) => Phase::Reporting(reporting::Reporting { pending }),
            Record::Declined { round, reason } => Phase::Declining { round, reason },
            Record::Settled { outcome, .. } => {
                if let (Phase::Reporting(reporting), Outcome::Acknowledged(_)) =
                    (&mut self.phase, outcome)
                {
                    self.own = std::mem::take(&mut self.own).then(&reporting.pending.next);
                }
                Phase::Idle(idle::Idle::default())
            }
            Record::Ended(end) => Phase::Ended(end),
        };
    }
}

fn expired(round: Round) -> Record {
    Record::Settled { round, outcome: Outcome::Expired }
}

impl Phase {
    /// The plan that is being worked on, and when the server stops waiting for it.
    fn assignment(&self) -> Option<(&Plan, &Time)> {
        match self {
            Self::Fetching(fetching) => Some((&fetching.plan, &fetching.deadline)),
            Self::Training(training) => Some((&training.task.plan, &training.deadline)),
            Self::Idle(_) | Self::Reporting(_) | Self::Declining { .. } | Self::Ended(_) => None,
        }
    }

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
            Self::Awaited(_) => "a longer deadline",
            Self::Over => "the end of the round",
            Self::Trained(_) => "an outcome of training",
            Self::Acknowledged(_) => "a receipt",
            Self::ReportRefused(_) => "a refusal",
            Self::DeclineNoted => "an answer to declining",
        }
    }
}

#[cfg(test)]
mod tests;
