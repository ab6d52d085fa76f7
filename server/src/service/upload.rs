//! A report's chunks become a payload: bounded by its header, and that by the run's layout.

use floret_proto::convert::ReportHeader;
use floret_proto::gather::ReportGather;
use floret_proto::v1;
use prost::Message;
use tonic::Streaming;

use super::refusal::Refusal;
use crate::metrics::Metrics;

/// Reads a report to its end. What devices announce bounds the payload's buffer, the layout bounds
/// that, and there are only as many buffers as transfers.
pub(super) async fn receive(
    stream: &mut Streaming<v1::ReportChunk>,
    payload_max: usize,
    metrics: &Metrics,
) -> Result<(ReportHeader, Vec<u8>), Refusal> {
    let mut report = ReportGather::new(payload_max);
    while let Some(chunk) = stream.message().await.map_err(Refusal::Stream)? {
        metrics.bytes_up.inc_by(chunk.encoded_len() as u64);
        report.push(&chunk)?;
    }
    Ok(report.finish()?)
}
