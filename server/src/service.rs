//! The gRPC service: what comes in is checked here, decided by the driver, and answered here.

mod download;
mod refusal;
mod upload;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use floret_aggregator::ledger::Scribe;
use floret_aggregator::{Input, Reply};
use floret_core::payload::Compression;
use floret_core::{ClientId, ClientUpdate, Payload, Round, RunId};
use floret_proto::limits::{PROTOCOL, REASON_BYTES_MAX};
use floret_proto::v1::federation_server::Federation;
use floret_proto::{convert, v1};
use futures_util::Stream;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{DriverHandle, Published};
use crate::metrics::Metrics;
use refusal::Refusal;

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
    /// One permit for each adapter or update in flight: memory does not grow with the cohort.
    pub(crate) transfers: Arc<Semaphore>,
    pub(crate) request_timeout: Duration,
    /// The run's compression.
    pub(crate) compression: Compression,
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
        let request = self.incoming(request);
        self.answer("check-in", self.welcome(&client, &request).await)
    }

    async fn fetch_adapter(
        &self,
        request: Request<v1::FetchAdapterRequest>,
    ) -> Result<Response<Self::FetchAdapterStream>, Status> {
        let version = self.incoming(request).version;
        let stream = self.send_adapter(version).await.map_err(|refusal| self.refuse(refusal))?;
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

    async fn decline(
        &self,
        request: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineResponse>, Status> {
        let client = identity(&request)?;
        let request = self.incoming(request);
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
            request.compressions.iter().filter_map(|name| convert::compression(*name)).collect();
        if !spoken.contains(&self.compression) {
            return Err(Refusal::Compression { run: self.compression, device: spoken });
        }
        let answer = match self.ask(client.clone(), Input::CheckIn, None).await? {
            Reply::Train(plan) => v1::check_in_response::Answer::Plan((*plan).into()),
            Reply::ComeBack { earliest, latest } => {
                v1::check_in_response::Answer::Retry(convert::retry_window(earliest, latest))
            }
            Reply::RunEnded(end) => v1::check_in_response::Answer::End(v1::RunEnd {
                completed: end.completed,
                version: end.version.0,
                message: end.message,
            }),
            Reply::Accepted(_) | Reply::DeclineNoted => return Err(Refusal::Stopped),
        };
        let told = matches!(answer, v1::check_in_response::Answer::End(_));
        self.attendance.note(client, told);
        Ok(v1::CheckInResponse { answer: Some(answer) })
    }

    /// Takes a report once a transfer is free; the payload's memory is given back before another
    /// may begin.
    async fn take_report(
        &self,
        client: ClientId,
        mut stream: Streaming<v1::ReportChunk>,
    ) -> Result<v1::ReportResponse, Refusal> {
        let permit = self.permit().await?;
        let transfer = upload::receive(&mut stream, self.payload_max, &self.metrics);
        let received = timeout(self.request_timeout, transfer).await;
        let (header, payload) = received.map_err(|_| Refusal::TooSlow(self.request_timeout))??;
        let update = ClientUpdate {
            run: header.run,
            round: header.round,
            num_examples: header.num_examples,
            payload: Payload::from_bytes(payload),
        };
        let report = Input::Report { update, payload_digest: header.payload_digest };
        let Reply::Accepted(receipt) = self.ask(client.clone(), report, Some(permit)).await? else {
            return Err(Refusal::Stopped);
        };
        let signature = receipt.sign(&self.run, &client, self.scribe.key());
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

    /// Waits for one of the transfers that may be in flight at once.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let transfers = Arc::clone(&self.transfers).acquire_owned();
        match timeout(self.request_timeout, transfers).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Refusal::Stopped),
            Err(_) => Err(Refusal::Busy),
        }
    }

    async fn ask(
        &self,
        client: ClientId,
        input: Input,
        transfer: Option<OwnedSemaphorePermit>,
    ) -> Result<Reply, Refusal> {
        let answer = self.driver.ask(client, input, transfer);
        match timeout(self.request_timeout, answer).await {
            Ok(answer) => Ok(answer??),
            Err(_) => Err(Refusal::Busy),
        }
    }

    /// Counts a message that came in.
    fn incoming<T: Message>(&self, request: Request<T>) -> T {
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
