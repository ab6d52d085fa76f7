//! Why a call is refused, as a gRPC status: a code, one word for programs, a sentence for people.

use std::time::Duration;

use floret_aggregator::Rejection;
use floret_core::payload::{Codec, Compression};
use floret_core::{Digest, Version};
use floret_proto::convert::InvalidMessage;
use floret_proto::gather::BrokenReport;
use floret_proto::limits::{PROTOCOL, REASON_KEY, RETRY_AFTER_KEY};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// When a device that met a server on its way down should come back.
const RESTART: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "the device speaks protocol {min} to {max}, and the server {PROTOCOL}: update the older"
    )]
    Protocol { min: u32, max: u32 },
    #[error("the run uses compression {run}, and the device speaks {device:?}")]
    Compression { run: Compression, device: Vec<Codec> },
    #[error("version {asked} of the adapter is not served, {current} is: check in again")]
    UnknownVersion { asked: Version, current: Version },
    #[error("the adapter asked for is {asked:?}, and {current:?} is served: check in again")]
    OtherAdapter { asked: Digest, current: Digest },
    #[error("the adapter has {total} bytes, and byte {offset} is asked for: begin at 0")]
    BeyondEnd { offset: usize, total: usize },
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    #[error(transparent)]
    Report(#[from] BrokenReport),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Come back after this long.
    #[error("the server is busy: come back in {} s, and go on where this ended", .0.as_secs())]
    Busy(Duration),
    #[error("the transfer was silent or too slow: go on with it when the network is faster")]
    TooSlow,
    #[error("this device has begun another transfer, or asked where it stands")]
    Superseded,
    #[error("the server is stopping: try again later")]
    Stopped,
    /// The stream broke: whatever tonic made of it.
    #[error("{0}")]
    Stream(Status),
}

impl Refusal {
    /// One word, for metrics and programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Protocol { .. } => "protocol",
            Self::Compression { .. } => "compression",
            Self::UnknownVersion { .. } => "unknown-version",
            Self::OtherAdapter { .. } => "other-adapter",
            Self::BeyondEnd { .. } | Self::Report(BrokenReport::Offset { .. }) => "unknown-offset",
            Self::Message(_) => "invalid-message",
            Self::Report(BrokenReport::Length(_)) => "wrong-length",
            Self::Report(_) => "invalid-message",
            Self::Rejected(rejection) => rejection.code(),
            Self::Busy(_) => "busy",
            Self::Superseded => "superseded",
            Self::TooSlow => "too-slow",
            Self::Stopped => "stopping",
            Self::Stream(_) => "broken-stream",
        }
    }

    fn grpc_code(&self) -> Code {
        match self {
            Self::Protocol { .. }
            | Self::Compression { .. }
            | Self::UnknownVersion { .. }
            | Self::OtherAdapter { .. } => Code::FailedPrecondition,
            Self::BeyondEnd { .. } | Self::Report(BrokenReport::Offset { .. }) => Code::OutOfRange,
            Self::Message(_) | Self::Report(_) => Code::InvalidArgument,
            Self::Rejected(rejection) => rejection_code(rejection),
            Self::Busy(_) => Code::ResourceExhausted,
            Self::Superseded => Code::Aborted,
            Self::TooSlow => Code::DeadlineExceeded,
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
        Rejection::ZeroExamples | Rejection::FrozenFactor | Rejection::Update(_) => {
            Code::InvalidArgument
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = (refusal.grpc_code(), refusal.code());
        let after = match &refusal {
            Refusal::Busy(after) => Some(*after),
            _ if code == Code::Unavailable => Some(RESTART),
            _ => None,
        };
        let mut status = match refusal {
            Refusal::Stream(status) => status,
            refusal => Self::new(code, refusal.to_string()),
        };
        let metadata = status.metadata_mut();
        metadata.insert(REASON_KEY, MetadataValue::from_static(reason));
        if let Some(after) = after {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            metadata.insert(RETRY_AFTER_KEY, MetadataValue::from(millis));
        }
        status
    }
}
