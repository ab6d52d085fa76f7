//! Why a call is refused, as a gRPC status: a code, one word for programs, a sentence for people.

use std::time::Duration;

use floret_aggregator::Rejection;
use floret_core::Version;
use floret_core::payload::Compression;
use floret_proto::gather::BrokenReport;
use floret_proto::limits::{PROTOCOL, REASON_KEY, RETRY_AFTER_KEY};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::driver::NoAnswer;

/// When a device that met a full queue should come back.
const RETRY_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "the device speaks protocol {min} to {max}, and the server {PROTOCOL}: update the older"
    )]
    Protocol { min: u32, max: u32 },
    #[error("the run's updates use compression {run:?}, and the device speaks {device:?}")]
    Compression { run: Compression, device: Vec<Compression> },
    #[error("version {asked} of the adapter is not served, {current} is: check in again")]
    UnknownVersion { asked: Version, current: Version },
    #[error(transparent)]
    Report(#[from] BrokenReport),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the server is busy: try again")]
    Busy,
    #[error("the call was not done within {0:?}: try again on a faster network")]
    TooSlow(Duration),
    #[error("the server is stopping: try again later")]
    Stopped,
    /// The stream broke: whatever tonic made of it.
    #[error("{0}")]
    Stream(Status),
}

impl From<NoAnswer> for Refusal {
    fn from(no_answer: NoAnswer) -> Self {
        match no_answer {
            NoAnswer::Busy => Self::Busy,
            NoAnswer::Stopped => Self::Stopped,
        }
    }
}

impl Refusal {
    /// One word, for metrics and programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Protocol { .. } => "protocol",
            Self::Compression { .. } => "compression",
            Self::UnknownVersion { .. } => "unknown-version",
            Self::Report(BrokenReport::Length(_)) => "wrong-length",
            Self::Report(_) => "invalid-message",
            Self::Rejected(rejection) => rejection.code(),
            Self::Busy => "busy",
            Self::TooSlow(_) => "too-slow",
            Self::Stopped => "stopping",
            Self::Stream(_) => "broken-stream",
        }
    }

    fn grpc_code(&self) -> Code {
        match self {
            Self::Protocol { .. } | Self::Compression { .. } | Self::UnknownVersion { .. } => {
                Code::FailedPrecondition
            }
            Self::Report(_) => Code::InvalidArgument,
            Self::Rejected(rejection) => rejection_code(rejection),
            Self::Busy => Code::ResourceExhausted,
            Self::TooSlow(_) => Code::DeadlineExceeded,
            Self::Stopped => Code::Unavailable,
            Self::Stream(status) => status.code(),
        }
    }
}

fn rejection_code(rejection: &Rejection) -> Code {
    match rejection {
        Rejection::UnknownRound { .. }
        | Rejection::OutOfRound { .. }
        | Rejection::TooStale { .. }
        | Rejection::OtherRun(_)
        | Rejection::RunEnded => Code::FailedPrecondition,
        Rejection::NotInCohort(_) => Code::PermissionDenied,
        Rejection::DifferentReport(_) => Code::AlreadyExists,
        Rejection::WrongDigest { .. } => Code::DataLoss,
        Rejection::ZeroExamples | Rejection::Update(_) => Code::InvalidArgument,
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = (refusal.grpc_code(), refusal.code());
        let mut status = match refusal {
            Refusal::Stream(status) => status,
            refusal => Self::new(code, refusal.to_string()),
        };
        let metadata = status.metadata_mut();
        metadata.insert(REASON_KEY, MetadataValue::from_static(reason));
        if matches!(code, Code::ResourceExhausted | Code::Unavailable) {
            let millis = RETRY_AFTER.as_millis() as u64;
            metadata.insert(RETRY_AFTER_KEY, MetadataValue::from(millis));
        }
        status
    }
}
