//! A report's chunks become a payload: bounded by its header, and that by the run's layout.

use floret_aggregator::{Input, Reply, Report};
use floret_core::{ClientId, ClientUpdate, Payload};
use floret_proto::convert::ReportHeader;
use floret_proto::gather::{BrokenReport, report_header};
use floret_proto::v1;
use floret_proto::v1::report_chunk::Part;
use prost::Message;
use tokio::time::{sleep_until, timeout};
use tonic::Streaming;

use super::Service;
use super::incoming::{Key, Upload};
use super::refusal::Refusal;

type Chunks = Streaming<v1::ReportChunk>;

impl Service {
    /// Takes a report once there is room for its payload. What came of one that breaks, or that
    /// cannot be decided now, is kept.
    pub(super) async fn take_report(
        &self,
        client: ClientId,
        mut chunks: Chunks,
    ) -> Result<v1::ReportResponse, Refusal> {
        let header = self.receive_header(&mut chunks).await?;
        // It may hold the room that this one waits for.
        self.incoming.set_aside(&client);
        let room = self.transfers.room(header.payload_bytes).await?;
        let upload = self.incoming.begin(client.clone(), &header)?;
        let payload = match self.receive(&mut chunks, &upload).await {
            Ok(()) => upload.finish().ok_or(Refusal::Superseded)??,
            Err(refusal) => {
                if matches!(refusal, Refusal::Report(_)) {
                    upload.discard();
                }
                return Err(refusal);
            }
        };
        let (round, payload_digest) = (header.round, header.payload_digest);
        let payload = Payload::from_bytes(payload);
        let run = header.run;
        let (num_examples, num_steps) = (header.num_examples, header.num_steps);
        let update = ClientUpdate { run, round, num_examples, num_steps, payload: payload.clone() };
        let downloaded_bytes = self.downloads.to(&client);
        let report = Input::Report(Report { update, payload_digest, downloaded_bytes });
        let answer = self.ask(client.clone(), report, Some(room)).await;
        if let Ok(Reply::Accepted(_)) = answer {
            self.downloads.settled(&client);
        }
        if let Err(Refusal::Busy(_)) = answer {
            let key = Key { client: client.clone(), round, payload_digest };
            self.incoming.keep(key, payload.bytes());
        }
        self.receipt(&client, answer?)
    }

    async fn receive_header(&self, chunks: &mut Chunks) -> Result<ReportHeader, Refusal> {
        let first = timeout(self.request_timeout, chunks.message()).await;
        let first = first.map_err(|_| Refusal::TooSlow)?.map_err(Refusal::Stream)?;
        let first = first.ok_or(BrokenReport::Header)?;
        self.metrics.bytes_up.inc_by(first.encoded_len() as u64);
        Ok(report_header(&first, self.payload_max)?)
    }

    /// Reads a report to its end. A slow one makes way while others wait: it goes on later.
    async fn receive(&self, chunks: &mut Chunks, upload: &Upload) -> Result<(), Refusal> {
        let mut pace = self.patience.begin();
        loop {
            let chunk = tokio::select! {
                chunk = chunks.message() => chunk.map_err(Refusal::Stream)?,
                () = sleep_until(pace.deadline()) => return Err(Refusal::TooSlow),
                () = upload.superseded() => return Err(Refusal::Superseded),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            self.metrics.bytes_up.inc_by(chunk.encoded_len() as u64);
            let Some(Part::Data(data)) = &chunk.part else {
                return Err(BrokenReport::Header.into());
            };
            pace.moved(data.len());
            upload.push(&chunk)?;
            if pace.lasted() > self.patience.stall && self.transfers.are_awaited() {
                return Err(self.transfers.busy());
            }
        }
    }
}
