//! The calls of the wire contract over mutual TLS, with what went over the wire counted.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floret_core::payload::Codec;
use floret_core::{Digest, Round, RunId, SignedReceipt, Version};
use floret_device::Input;
use floret_device::session::RunEnd;
use floret_proto::convert::{self, StandingRequest};
use floret_proto::limits::{MESSAGE_BYTES_MAX, PROTOCOL, REASON_KEY, RETRY_AFTER_KEY};
use floret_proto::v1;
use floret_proto::v1::federation_client::FederationClient;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::calls::{Begun, Call, CallKind, WatchCalls};
use crate::dial::Dialer;
use crate::transfer::signed;

/// Longest wait for the answer to a small call.
const PATIENCE: Duration = Duration::from_secs(60);

/// TLS alerts that tell of bytes that changed on the way, by their names in rustls.
const DAMAGE: [&str; 4] = ["BadRecordMac", "DecodeError", "RecordOverflow", "UnexpectedMessage"];

/// Bytes that gRPC puts before each message.
const FRAME: usize = 5;

/// Who this device is, and whom it believes; PEM.
pub struct Credentials {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// A file of credentials that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct UnreadableCredentials {
    path: PathBuf,
    source: io::Error,
}

impl Credentials {
    /// Reads the authority's certificate, the device's certificate and its key.
    ///
    /// # Errors
    /// The first file that cannot be read.
    pub fn read(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, UnreadableCredentials> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|source| UnreadableCredentials { path: path.into(), source })
        };
        Ok(Self { ca: read(ca)?, certificate: read(certificate)?, key: read(key)? })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Bytes of gRPC messages so far, before TLS.
#[derive(Debug, Default)]
pub struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
}

impl Traffic {
    /// Bytes sent.
    #[must_use]
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Bytes received.
    #[must_use]
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self, message: &impl Message) {
        self.up.fetch_add((message.encoded_len() + FRAME) as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, message: &impl Message) {
        self.down.fetch_add((message.encoded_len() + FRAME) as u64, Ordering::Relaxed);
    }
}

/// A call that gave no answer that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server cannot be reached, or is busy: try again.
    #[error("{message}")]
    Unavailable {
        /// What happened.
        message: String,
        /// Not earlier than this, if the server said so.
        after: Option<Duration>,
    },
    /// The server refused, with its reason.
    #[error("{message}")]
    Refused {
        /// The reason as one word; empty if the server gave none.
        code: String,
        /// The reason for people.
        message: String,
    },
    /// The two sides do not believe each other's certificate: trying again does not help.
    #[error(
        "the server and this device do not accept each other: {0}; check that ca, certificate and \
         key come from this server's `enroll`"
    )]
    NotTrusted(String),
    /// The server's answer breaks the contract.
    #[error("the server's answer breaks the contract: {0}")]
    Contract(String),
}

/// A connection to the server; it is opened when first used, and again when it was lost.
#[derive(Clone)]
pub struct Connection {
    pub(crate) client: FederationClient<Channel>,
    pub(crate) traffic: Arc<Traffic>,
    watch: Option<WatchCalls>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("traffic", &self.traffic).finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection to `server`, such as `https://floret.example:7878`.
    ///
    /// # Errors
    /// An address or PEM that cannot be used.
    pub fn new(server: &str, credentials: &Credentials) -> Result<Self, tonic::transport::Error> {
        Ok(Self::over(endpoint(server, credentials)?.connect_lazy()))
    }

    /// A connection to `server` over streams that `dial` opens, with TLS on top: a socket that is
    /// slowed or cut, say.
    ///
    /// # Errors
    /// An address or PEM that cannot be used.
    pub fn dialed<F, S>(
        server: &str,
        credentials: &Credentials,
        dial: impl FnMut() -> F + Send + 'static,
    ) -> Result<Self, tonic::transport::Error>
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let endpoint = endpoint(server, credentials)?;
        Ok(Self::over(endpoint.connect_with_connector_lazy(Dialer(dial))))
    }

    fn over(channel: Channel) -> Self {
        let client = FederationClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { client, traffic: Arc::default(), watch: None }
    }

    /// The same connection, with `watch` hearing of each of its calls.
    #[must_use]
    pub fn watched(self, watch: impl Fn(&Call<'_>) + Send + Sync + 'static) -> Self {
        Self { watch: Some(Arc::new(watch)), ..self }
    }

    pub(crate) fn begin(&self, kind: CallKind) -> Begun {
        Begun::now(kind, self.watch.clone())
    }

    /// What went over it so far.
    #[must_use]
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Asks for work. A window is answered as its two ends.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn check_in(&mut self) -> Result<CheckIn, CallError> {
        let call = self.begin(CallKind::CheckIn);
        call.end(self.ask_for_work().await)
    }

    async fn ask_for_work(&mut self) -> Result<CheckIn, CallError> {
        let request = v1::CheckInRequest {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            compressions: Codec::ALL.map(|codec| v1::Compression::from(codec).into()).to_vec(),
        };
        self.traffic.sent(&request);
        let response = patiently(self.client.check_in(request)).await?;
        self.traffic.received(&response);
        let missing = || CallError::Contract("the answer to a check-in is empty".to_owned());
        match response.answer.ok_or_else(missing)? {
            v1::check_in_response::Answer::Plan(plan) => {
                let plan = plan.try_into();
                let plan = plan.map_err(|error| CallError::Contract(format!("{error}")))?;
                Ok(CheckIn::Answer(Input::Assigned(Box::new(plan))))
            }
            v1::check_in_response::Answer::Retry(window) => Ok(CheckIn::ComeBack {
                earliest: Duration::from_millis(window.earliest_ms),
                latest: Duration::from_millis(window.latest_ms),
            }),
            v1::check_in_response::Answer::End(end) => {
                let adapter_digest = convert::end_digest(&end)
                    .map_err(|error| CallError::Contract(error.to_string()))?;
                let (completed, version) = (end.completed, Version(end.version));
                let end = RunEnd { completed, version, adapter_digest, message: end.message };
                Ok(CheckIn::Answer(Input::RunEnded(end)))
            }
        }
    }

    /// Asks whether this device's work in `round` still counts, and how much of its update, if there
    /// is one, the server has.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn standing(
        &mut self,
        run: &RunId,
        round: Round,
        payload_digest: Option<Digest>,
    ) -> Result<Standing, CallError> {
        let request = StandingRequest { run: run.clone(), round, payload_digest };
        let call = self.begin(CallKind::Standing);
        call.end(self.ask_standing(request.into()).await)
    }

    async fn ask_standing(&mut self, request: v1::StandingRequest) -> Result<Standing, CallError> {
        use v1::standing_response::Standing as Answer;
        self.traffic.sent(&request);
        let response = patiently(self.client.standing(request)).await?;
        self.traffic.received(&response);
        match response.standing {
            Some(Answer::Awaited(awaited)) => Ok(Standing::Awaited {
                received: usize::try_from(awaited.received_bytes).unwrap_or(usize::MAX),
                within: Duration::from_millis(awaited.report_within_ms),
            }),
            Some(Answer::Receipt(receipt)) => Ok(Standing::Counted(signed(&receipt)?)),
            Some(Answer::Over(over)) => {
                Ok(Standing::Over { code: over.reason, message: over.message })
            }
            None => Err(CallError::Contract("the answer to a standing is empty".to_owned())),
        }
    }

    /// Tells that this device gives nothing in `round`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn decline(&mut self, round: Round, reason: &str) -> Result<(), CallError> {
        let call = self.begin(CallKind::Decline);
        call.end(self.send_decline(round, reason).await)
    }

    async fn send_decline(&mut self, round: Round, reason: &str) -> Result<(), CallError> {
        let request = v1::DeclineRequest { round: round.0, reason: reason.to_owned() };
        self.traffic.sent(&request);
        let response = patiently(self.client.decline(request)).await?;
        self.traffic.received(&response);
        Ok(())
    }
}

/// How the server is reached; nothing is opened yet.
fn endpoint(server: &str, credentials: &Credentials) -> Result<Endpoint, tonic::transport::Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&credentials.ca))
        .identity(Identity::from_pem(&credentials.certificate, &credentials.key));
    Ok(Endpoint::from_shared(server.to_owned())?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(20))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20)))
}

/// The answer to a check-in.
#[derive(Debug)]
pub enum CheckIn {
    /// Work, or the end of the run.
    Answer(Input),
    /// Nothing for now.
    ComeBack {
        /// Not earlier than this from now.
        earliest: Duration,
        /// Not later than this from now.
        latest: Duration,
    },
}

/// Where a device's work stands.
#[derive(Debug)]
pub enum Standing {
    /// The server awaits the update.
    Awaited {
        /// Bytes of the payload that it has.
        received: usize,
        /// For how long.
        within: Duration,
    },
    /// The update counts already.
    Counted(SignedReceipt),
    /// The work does not count.
    Over {
        /// Why, as one word.
        code: String,
        /// Why, for people.
        message: String,
    },
}

async fn patiently<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    let response = tokio::time::timeout(PATIENCE, call).await.map_err(|_| too_slow(PATIENCE))?;
    response.map(tonic::Response::into_inner).map_err(explain)
}

pub(crate) fn too_slow(patience: Duration) -> CallError {
    let message = format!("nothing came from the server within {} s", patience.as_secs());
    CallError::Unavailable { message, after: None }
}

/// What a failed call means for the device.
pub(crate) fn explain(status: Status) -> CallError {
    let metadata = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
    let mut message = status.message().to_owned();
    let mut cause = Error::source(&status);
    while let Some(error) = cause {
        let text = error.to_string();
        if is_distrust(&text) {
            return CallError::NotTrusted(text);
        }
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    let code = metadata(REASON_KEY).unwrap_or_default().to_owned();
    if may_pass(status.code(), &code) {
        let after = metadata(RETRY_AFTER_KEY).and_then(|ms| ms.parse().ok());
        return CallError::Unavailable { message, after: after.map(Duration::from_millis) };
    }
    CallError::Refused { code, message }
}

/// Whether the text of a TLS error says that one side does not believe the other.
fn is_distrust(text: &str) -> bool {
    let damaged = DAMAGE.iter().any(|alert| text.contains(alert));
    text.contains("invalid peer certificate") || (text.contains("fatal alert") && !damaged)
}

/// Whether the same call may succeed later.
fn may_pass(code: Code, reason: &str) -> bool {
    match code {
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled => {
            true
        }
        // Without a reason, these come from the transport and not from the server's rules.
        Code::Unknown | Code::Internal => reason.is_empty() || reason == "broken-stream",
        // Damage on the way, or two sides that disagree on what came: the same bytes are sent again.
        _ => ["wrong-digest", "unknown-offset", "superseded"].contains(&reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, reason: &'static str, retry: &'static str) -> Status {
        let mut status = Status::new(code, "words");
        for (key, value) in [(REASON_KEY, reason), (RETRY_AFTER_KEY, retry)] {
            if !value.is_empty() {
                status.metadata_mut().insert(key, value.parse().unwrap());
            }
        }
        status
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let after = Some(Duration::from_millis(1500));
        let busy = explain(status(Code::ResourceExhausted, "busy", "1500"));
        assert_eq!(busy, CallError::Unavailable { message: "words".into(), after });
        for (code, reason) in [
            (Code::DeadlineExceeded, "too-slow"),
            (Code::Unavailable, "stopping"),
            (Code::Unknown, "broken-stream"),
            (Code::Internal, ""),
        ] {
            let error = explain(status(code, reason, ""));
            assert!(matches!(error, CallError::Unavailable { .. }), "{reason}: {error}");
        }
        let damaged = explain(status(Code::DataLoss, "wrong-digest", ""));
        assert!(matches!(damaged, CallError::Unavailable { .. }));
        let refused = explain(status(Code::InvalidArgument, "not-finite", ""));
        assert!(matches!(refused, CallError::Refused { code, .. } if code == "not-finite"));
    }

    #[test]
    fn damage_on_the_way_is_no_distrust() {
        for (text, passes) in [
            ("received fatal alert: BadRecordMac", true),
            ("received fatal alert: UnknownCA", false),
            ("received fatal alert: CertificateExpired", false),
            ("invalid peer certificate: UnknownIssuer", false),
            ("connection reset by peer", true),
        ] {
            let source = io::Error::new(io::ErrorKind::InvalidData, text);
            let error = explain(Status::from_error(Box::new(source)));
            assert_eq!(matches!(error, CallError::Unavailable { .. }), passes, "{error:?}");
            assert_eq!(matches!(error, CallError::NotTrusted(_)), !passes, "{error:?}");
        }
    }
}
