//! What goes into the coordinator and what comes out of it.

use std::time::Duration;

use floret_core::payload::InvalidPayload;
use floret_core::{ClientId, ClientUpdate, Digest, Plan, Receipt, Round, RunId, Time, Version};
use serde::Serialize;

use crate::advance::After;
use crate::clipped::{Admitted, InvalidUpdate};
use crate::combine::residual::Residual;
use crate::state::{Assignment, RunEnd};

/// What a client says. Its identity comes from its certificate, beside it.
#[derive(Debug)]
pub enum Input {
    /// The client asks for work.
    CheckIn,
    /// The client returns its update.
    Report(Report),
    /// The client asks whether its work still counts.
    Standing {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
        /// Digest of its payload, once there is one.
        payload_digest: Option<Digest>,
    },
    /// The client gives nothing in this round.
    Decline {
        /// The round.
        round: Round,
        /// Its reason.
        reason: String,
    },
}

/// An update as it comes.
#[derive(Debug)]
pub struct Report {
    /// The update.
    pub update: ClientUpdate,
    /// Digest of the payload, as the client computed it.
    pub payload_digest: Digest,
    /// Bytes of adapters that were sent to the client since its update before: the server's own count.
    pub downloaded_bytes: u64,
}

/// What the coordinator decided. The reply is sent once every record is durable and applied.
#[derive(Debug)]
pub struct Step {
    /// Facts to make durable and apply, in order.
    pub records: Vec<Record>,
    /// The answer.
    pub reply: Result<Reply, Rejection>,
}

/// The answer to a client.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The client is in the cohort: this is its work.
    Train(Box<Plan>),
    /// Nothing for now: come back within this window.
    ComeBack {
        /// Not earlier than this from now.
        earliest: Duration,
        /// Not later than this from now.
        latest: Duration,
    },
    /// The run is over.
    RunEnded(RunEnd),
    /// The update counts.
    Accepted(Receipt),
    /// The client's update is awaited for this long.
    Awaited(Duration),
    /// Heard: the client gives nothing in this round.
    DeclineNoted,
}

/// Why a report or a decline is refused: the client's fault, not ours.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// A round that is not open.
    #[error("round {round} is not open: {hint}")]
    UnknownRound {
        /// The round that the client named.
        round: Round,
        /// Which round is open.
        hint: String,
    },
    /// An update of another run.
    #[error("the update belongs to run {0}, and this server's run is another")]
    OtherRun(RunId),
    /// A client that was not chosen.
    #[error("client {0} is not in the cohort of this round")]
    NotInCohort(ClientId),
    /// A second report that differs from the first.
    #[error("this client already reported another update in round {0}")]
    DifferentReport(Round),
    /// A report from a client that was refused or that declined in this round.
    #[error("this client is out of round {round}: {reason}")]
    OutOfRound {
        /// The round.
        round: Round,
        /// What it was refused for, or why it declined.
        reason: String,
    },
    /// An update from too old a version.
    #[error(
        "the update is {staleness} versions behind, and buffered.max_staleness is {limit}: check in"
    )]
    TooStale {
        /// Versions since the one that it started from.
        staleness: u64,
        /// Most that are accepted.
        limit: u32,
    },
    /// Bytes that changed on the way.
    #[error("the payload has digest {got:?}, and the report says {want:?}: send it again")]
    WrongDigest {
        /// In the report.
        want: Digest,
        /// Of the bytes that came.
        got: Digest,
    },
    /// No examples.
    #[error("the update says that it comes from zero examples")]
    ZeroExamples,
    /// A change of what the plan leaves as it is.
    #[error("the update changes a factor that the plan freezes")]
    FrozenFactor,
    /// A payload that gives no delta.
    #[error(transparent)]
    Update(#[from] InvalidUpdate),
    /// The run is over.
    #[error("the run is over")]
    RunEnded,
}

impl Rejection {
    /// A short word for metrics and programs; one for each reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownRound { .. } => "unknown-round",
            Self::OtherRun(_) => "other-run",
            Self::NotInCohort(_) => "not-in-cohort",
            Self::DifferentReport(_) => "different-report",
            Self::OutOfRound { .. } => "out-of-round",
            Self::TooStale { .. } => "too-stale",
            Self::WrongDigest { .. } => "wrong-digest",
            Self::ZeroExamples => "zero-examples",
            Self::FrozenFactor => "frozen-factor",
            Self::Update(InvalidUpdate::Payload(InvalidPayload::Length { .. })) => "wrong-length",
            Self::Update(InvalidUpdate::Payload(InvalidPayload::NotFinite)) => "not-finite",
            Self::Update(InvalidUpdate::Payload(_)) => "damaged-payload",
            Self::Update(InvalidUpdate::Clip(_)) => "not-finite",
            Self::RunEnded => "run-ended",
        }
    }
}

/// A fact. State changes by these alone.
#[derive(Debug, Clone)]
pub enum Record {
    /// A client was seen.
    CheckedIn {
        /// The client.
        client: ClientId,
        /// When.
        at: Time,
    },
    /// A round opened.
    RoundOpened {
        /// The round.
        round: Round,
        /// The clients chosen; none in a buffered round, which assigns them one by one.
        cohort: Vec<ClientId>,
        /// When it opened.
        at: Time,
    },
    /// A client got work in a buffered round.
    Assigned {
        /// The client.
        client: ClientId,
        /// Its work.
        assignment: Assignment,
    },
    /// A buffered assignment came to nothing: its time is over, or its client asked for other work.
    DroppedOut {
        /// The client.
        client: ClientId,
    },
    /// An update counts.
    Accepted {
        /// Whose.
        client: ClientId,
        /// What the client is told.
        receipt: Receipt,
        /// The update.
        update: Admitted,
    },
    /// An update was refused, and its client is out of the round.
    Refused {
        /// Whose.
        client: ClientId,
        /// Why, as one word: [`Rejection::code`].
        code: String,
        /// Why, for people.
        reason: String,
    },
    /// A client gives nothing in this round.
    Declined {
        /// The client.
        client: ClientId,
        /// Its reason.
        reason: String,
    },
    /// A round gave a new adapter.
    RoundCommitted {
        /// What happened in it.
        summary: RoundSummary,
        /// The new adapter, with what its next step needs.
        after: Box<After>,
    },
    /// A round gave nothing.
    RoundAbandoned {
        /// What happened in it.
        summary: RoundSummary,
    },
    /// The run is over.
    RunEnded(RunEnd),
}

/// What happened in a round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundSummary {
    /// The round.
    pub round: Round,
    /// Whether it gave a new adapter.
    pub committed: bool,
    /// Version of the adapter that it began with.
    pub base_version: Version,
    /// Digest of that adapter.
    pub adapter_before: Digest,
    /// When it opened.
    pub opened_at: Time,
    /// When it closed.
    pub closed_at: Time,
    /// Clients chosen, or assigned, in it.
    pub selected: Vec<ClientId>,
    /// Updates that count.
    pub accepted: Vec<Counted>,
    /// Sum of their weights.
    pub weight: u64,
    /// How far the mean of factors is from that of their products, if it was measured.
    pub residual: Option<Residual>,
    /// Clients refused, with the reason.
    pub refused: Vec<(ClientId, String)>,
    /// Clients that declined, with their reason.
    pub declined: Vec<(ClientId, String)>,
    /// Clients that were chosen and never answered.
    pub dropped_out: Vec<ClientId>,
    /// Why it was committed or abandoned.
    pub reason: String,
}

/// An update that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Whose.
    pub client: ClientId,
    /// What the client was told; its round is the one that the client was assigned in.
    pub receipt: Receipt,
    /// Versions since the one that it started from; 0 in a synchronous round.
    pub staleness: u64,
}

impl RoundSummary {
    /// From its opening to its close.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.opened_at.until(self.closed_at)
    }

    /// Bytes of the payloads that count.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.accepted.iter().map(|counted| counted.receipt.payload_bytes).sum()
    }

    /// Bytes of adapters that went down for the updates that count.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.accepted.iter().map(|counted| counted.receipt.downloaded_bytes).sum()
    }
}

impl Record {
    /// Whether it must outlive a crash. Who is connected shows anew after one.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !matches!(self, Self::CheckedIn { .. })
    }
}
