//! A report's chunks become a payload: bounded by its header, and that by the run's layout.

use floret_proto::convert::ReportHeader;
use floret_proto::v1;
use floret_proto::v1::report_chunk::Part;
use prost::Message;
use tonic::Streaming;

use super::refusal::Refusal;
use crate::metrics::Metrics;

/// Reads a report to its end. The payload's buffer is made once: growing it would leave holes in the
/// heap. What devices announce bounds it, the layout bounds that, and there are only as many buffers
/// as transfers.
pub(super) async fn receive(
    stream: &mut Streaming<v1::ReportChunk>,
    payload_max: usize,
    metrics: &Metrics,
) -> Result<(ReportHeader, Vec<u8>), Refusal> {
    let Some(Part::Header(header)) = next(stream, metrics).await? else {
        return Err(Refusal::Header);
    };
    let header = ReportHeader::check(&header, payload_max)?;
    let announced = header.payload_bytes;
    let mut payload = Vec::with_capacity(announced);
    while let Some(part) = next(stream, metrics).await? {
        let Part::Data(data) = part else { return Err(Refusal::Header) };
        if data.len() > announced - payload.len() {
            return Err(Refusal::Length { announced, problem: "more bytes" });
        }
        payload.extend_from_slice(&data);
    }
    if payload.len() < announced {
        return Err(Refusal::Length { announced, problem: "fewer bytes" });
    }
    Ok((header, payload))
}

/// The next part; `None` at the end of the stream. A chunk without a part is no header.
async fn next(
    stream: &mut Streaming<v1::ReportChunk>,
    metrics: &Metrics,
) -> Result<Option<Part>, Refusal> {
    let Some(chunk) = stream.message().await.map_err(Refusal::Stream)? else { return Ok(None) };
    metrics.bytes_up.inc_by(chunk.encoded_len() as u64);
    chunk.part.map(Some).ok_or(Refusal::Header)
}
