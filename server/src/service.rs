//! The gRPC service: what comes in is checked here, decided by the driver, and answered here.

pub(crate) mod download;
pub(crate) mod incoming;
mod refusal;
pub(crate) mod transfers;
pub(crate) mod turnstile;
mod upload;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use floret_aggregator::ledger::Scribe;
use floret_aggregator::{Input, Reply};
use floret_core::payload::Compression;
use floret_core::{ClientId, Digest, Round, RunId, Version};
use floret_proto::limits::{PROTOCOL, REASON_BYTES_MAX};
use floret_proto::v1::federation_server::Federation;
use floret_proto::{convert, v1};
use futures_util::Stream;
use prost::Message;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{DriverHandle, NoAnswer, Published};
use crate::metrics::Metrics;
use crate::patience::Patience;
use download::Downloads;
use incoming::{Incoming, Key};
use refusal::Refusal;
use transfers::{Queue, Room, Transfers};
use turnstile::Turnstile;

/// What the calls of all connections share.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) driver: DriverHandle,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) attendance: Arc<Attendance>,
    /// Signs receipts for this run.
    pub(crate) scribe: Arc<Scribe>,
    pub(crate) run: RunId,
    /// Room for adapters and updates in flight: memory does not grow with the cohort.
    pub(crate) transfers: Arc<Transfers>,
    /// What went down to whom.
    pub(crate) downloads: Arc<Downloads>,
    /// What came of uploads that broke.
    pub(crate) incoming: Arc<Incoming>,
    /// Where check-ins wait.
    pub(crate) turnstile: Turnstile,
    /// Calls that wait for the driver.
    pub(crate) calls: Queue,
    /// For small calls, and for what waits.
    pub(crate) request_timeout: Duration,
    /// For transfers.
    pub(crate) patience: Patience,
    /// How updates and steps of the adapter are encoded: devices must speak both.
    pub(crate) compressions: Vec<Compression>,
    /// Largest payload of the run's layout, in bytes.
    pub(crate) payload_max: usize,
}

/// Which devices were here, and which of them know that the run is over.
#[derive(Debug, Default)]
pub(crate) struct Attendance(Mutex<BTreeMap<ClientId, bool>>);

impl Attendance {
    fn note(&self, client: &ClientId, told: bool) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.insert(client.clone(), told);
    }

    /// Whether every device that was here knows that the run is over.
    pub(crate) fn all_told(&self) -> bool {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.values().all(|told| *told)
    }
}

#[tonic::async_trait]
impl Federation for Service {
    type FetchAdapterStream = Pin<Box<dyn Stream<Item = Result<v1::AdapterChunk, Status>> + Send>>;

    async fn check_in(
        &self,
        request: Request<v1::CheckInRequest>,
    ) -> Result<Response<v1::CheckInResponse>, Status> {
        let client = identity(&request)?;
        let request = self.heard(request);
        self.answer("check-in", self.welcome(&client, &request).await)
    }

    async fn fetch_adapter(
        &self,
        request: Request<v1::FetchAdapterRequest>,
    ) -> Result<Response<Self::FetchAdapterStream>, Status> {
        let client = identity(&request)?;
        let request = self.heard(request);
        let stream =
            self.send_adapter(client, request).await.map_err(|refusal| self.refuse(refusal))?;
        self.metrics.answered("fetch-adapter");
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report(
        &self,
        request: Request<Streaming<v1::ReportChunk>>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let client = identity(&request)?;
        self.answer("report", self.take_report(client, request.into_inner()).await)
    }

    async fn standing(
        &self,
        request: Request<v1::StandingRequest>,
    ) -> Result<Response<v1::StandingResponse>, Status> {
        let client = identity(&request)?;
        let request = self.heard(request);
        self.answer("standing", self.tell_standing(client, request).await)
    }

    async fn decline(
        &self,
        request: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineResponse>, Status> {
        let client = identity(&request)?;
        let request = self.heard(request);
        self.answer("decline", self.note_decline(client, request).await)
    }
}

impl Service {
    async fn welcome(
        &self,
        client: &ClientId,
        request: &v1::CheckInRequest,
    ) -> Result<v1::CheckInResponse, Refusal> {
        let (min, max) = (request.protocol_min, request.protocol_max);
        if !(min..=max).contains(&PROTOCOL) {
            return Err(Refusal::Protocol { min, max });
        }
        let spoken: Vec<_> =
            request.compressions.iter().filter_map(|name| convert::codec(*name)).collect();
        let unknown = |run: &&Compression| !spoken.contains(&run.codec());
        if let Some(run) = self.compressions.iter().find(unknown) {
            return Err(Refusal::Compression { run: *run, device: spoken });
        }
        let answer = match self.find_work(client).await? {
            Reply::Train(plan) => v1::check_in_response::Answer::Plan((*plan).into()),
            Reply::ComeBack { earliest, latest } => {
                v1::check_in_response::Answer::Retry(convert::retry_window(earliest, latest))
            }
            Reply::RunEnded(end) => v1::check_in_response::Answer::End(v1::RunEnd {
                completed: end.completed,
                version: end.version.0,
                message: end.message,
                adapter_digest: convert::digest_bytes(self.served(end.version)),
            }),
            Reply::Accepted(_) | Reply::Awaited(_) | Reply::DeclineNoted => {
                return Err(Refusal::Stopped);
            }
        };
        let told = matches!(answer, v1::check_in_response::Answer::End(_));
        self.attendance.note(client, told);
        Ok(v1::CheckInResponse { answer: Some(answer) })
    }

    /// Digest of the adapter of `version`, if that is served.
    fn served(&self, version: Version) -> Option<Digest> {
        let adapter = &self.published.borrow().adapter;
        (adapter.version == version).then_some(adapter.digest)
    }

    async fn tell_standing(
        &self,
        client: ClientId,
        request: v1::StandingRequest,
    ) -> Result<v1::StandingResponse, Refusal> {
        use v1::standing_response::Standing;
        let convert::StandingRequest { run, round, payload_digest } = request.try_into()?;
        let question = Input::Standing { run, round, payload_digest };
        let standing = match self.ask(client.clone(), question, None).await {
            Ok(Reply::Awaited(within)) => {
                let received = payload_digest.map_or(0, |payload_digest| {
                    self.incoming.received(&Key { client, round, payload_digest })
                });
                Standing::Awaited(convert::awaited(received, within))
            }
            Err(Refusal::Rejected(rejection)) => {
                let (reason, message) = (rejection.code().to_owned(), rejection.to_string());
                Standing::Over(v1::Over { reason, message })
            }
            answer => Standing::Receipt(self.receipt(&client, answer?)?),
        };
        Ok(v1::StandingResponse { standing: Some(standing) })
    }

    /// The signed receipt that `reply` holds.
    fn receipt(&self, client: &ClientId, reply: Reply) -> Result<v1::ReportResponse, Refusal> {
        let Reply::Accepted(receipt) = reply else { return Err(Refusal::Stopped) };
        let signature = receipt.sign(&self.run, client, self.scribe.key());
        Ok(convert::report_response(&receipt, &signature))
    }

    async fn note_decline(
        &self,
        client: ClientId,
        request: v1::DeclineRequest,
    ) -> Result<v1::DeclineResponse, Refusal> {
        let (round, reason) = (Round(request.round), printable(&request.reason));
        self.ask(client, Input::Decline { round, reason }, None).await?;
        Ok(v1::DeclineResponse {})
    }

    async fn ask(
        &self,
        client: ClientId,
        input: Input,
        room: Option<Room>,
    ) -> Result<Reply, Refusal> {
        let waiting = self.calls.wait();
        let answer = timeout(self.request_timeout, self.driver.ask(client, input, room)).await;
        match answer.unwrap_or(Err(NoAnswer::Busy)) {
            Ok(answer) => {
                waiting.served();
                Ok(answer?)
            }
            Err(NoAnswer::Busy) => Err(Refusal::Busy(self.calls.retry_after())),
            Err(NoAnswer::Stopped) => Err(Refusal::Stopped),
        }
    }

    /// Counts a message that came in.
    fn heard<T: Message>(&self, request: Request<T>) -> T {
        let message = request.into_inner();
        self.metrics.bytes_up.inc_by(message.encoded_len() as u64);
        message
    }

    /// Counts and sends an answer.
    fn answer<T: Message>(
        &self,
        call: &'static str,
        answer: Result<T, Refusal>,
    ) -> Result<Response<T>, Status> {
        let message = answer.map_err(|refusal| self.refuse(refusal))?;
        self.metrics.answered(call);
        self.metrics.bytes_down.inc_by(message.encoded_len() as u64);
        Ok(Response::new(message))
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.metrics.refused(refusal.code());
        refusal.into()
    }
}

/// The name in the certificate that the connection began with.
fn identity<T>(request: &Request<T>) -> Result<ClientId, Status> {
    let client = request.extensions().get::<ClientId>().cloned();
    client.ok_or_else(|| Status::internal("the connection has no identity"))
}

/// A device's words, made safe for logs: one line of bounded length.
fn printable(reason: &str) -> String {
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line[..line.floor_char_boundary(REASON_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_bounded_line() {
        assert_eq!(printable("low\nbattery\u{1b}[31m"), "low battery [31m");
        assert!(printable(&"ä".repeat(1000)).len() <= REASON_BYTES_MAX);
    }

    #[test]
    fn everyone_is_told_when_each_heard_the_end_last() {
        let [a, b]: [ClientId; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let attendance = Attendance::default();
        assert!(attendance.all_told());
        attendance.note(&a, false);
        attendance.note(&b, true);
        assert!(!attendance.all_told());
        attendance.note(&a, true);
        assert!(attendance.all_told());
    }
}
