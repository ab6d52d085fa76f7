//! Streams of chunks, framed as gRPC frames them (a byte, a length of four bytes, a message): those
//! of a report as the server gathers them, or of an adapter as a device does. The first byte chooses,
//! and the second is the largest length that the receiver permits.

use floret_core::{Adapter, Digest, Round};
use floret_proto::convert::ReportHeader;
use floret_proto::gather::{Pieces, ReportGather, report_header};
use floret_proto::v1;
use floret_proto::v1::report_chunk::Part;
use prost::Message;

use super::model_fixture::layouts;
use super::{Target, choice};

pub(super) const TARGET: Target =
    Target { name: "chunks", run, limit, seeds, share: 12, longest: 1000 };

/// What came of a report before it broke.
const KEPT: u8 = 0xab;

fn run(data: &[u8]) -> bool {
    let (side, rest) = choice(data, 2);
    let (max, frames) = choice(rest, 256);
    if side == 0 { report(frames, max) } else { adapter(frames) }
}

/// The messages of a stream; the last may be cut short.
fn messages(mut stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (header, rest) = stream.split_first_chunk::<5>()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let (message, rest) = rest.split_at(length.min(rest.len()));
        stream = rest;
        Some(message)
    })
}

/// A report of which as many bytes came before as the largest payload has.
fn report(frames: &[u8], payload_max: usize) -> bool {
    let mut messages = messages(frames).map(v1::ReportChunk::decode);
    let Some(Ok(first)) = messages.next() else { return false };
    let Ok(header) = report_header(&first, payload_max) else { return false };
    let kept = vec![KEPT; payload_max];
    let Ok(mut gather) = ReportGather::new(&header, kept) else { panic!("an offset within it") };
    for chunk in messages {
        let Ok(chunk) = chunk else { return false };
        if gather.push(&chunk).is_err() {
            return false;
        }
    }
    if gather.check().is_err() {
        return false;
    }
    let payload = gather.into_received();
    assert!(payload.len() == header.payload_bytes && payload.len() <= payload_max);
    assert!(payload[..header.offset].iter().all(|byte| *byte == KEPT));
    true
}

fn adapter(frames: &[u8]) -> bool {
    let layout = &layouts()[0];
    let mut pieces = Pieces::new(layout.bytes());
    for message in messages(frames) {
        let Ok(chunk) = v1::AdapterChunk::decode(message) else { return false };
        if pieces.push(&chunk.data).is_err() {
            return false;
        }
    }
    let Ok(bytes) = pieces.finish() else { return false };
    let Ok(adapter) = Adapter::from_bytes(layout.clone().into(), &bytes) else { return false };
    assert_eq!(adapter.to_bytes(), bytes);
    true
}

/// A chunk at a time, the payload, and an adapter with its digest's buffer.
fn limit(data: &[u8]) -> usize {
    3 * data.len() + 32 * 1024
}

fn frames(side: u8, max: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = vec![side, max];
    for message in messages {
        stream.push(0);
        stream.extend(u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
        stream.extend(message);
    }
    stream
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let chunk = |part| v1::ReportChunk { part: Some(part) }.encode_to_vec();
    let data = |bytes: &[u8]| chunk(Part::Data(bytes.to_vec().into()));
    let header_at = |offset, payload_bytes| {
        let payload_digest = Digest::of(b"abcdef");
        let header = ReportHeader {
            run: "run".parse().unwrap_or_else(|error| unreachable!("{error}")),
            round: Round(1),
            num_examples: 2,
            num_steps: 1,
            payload_bytes,
            payload_digest,
            offset,
        };
        chunk(Part::Header(header.into()))
    };
    let header = |payload_bytes| header_at(0, payload_bytes);
    let piece = |length| {
        let data = vec![0x3d; length].into();
        v1::AdapterChunk { data, step_bytes: Vec::new() }.encode_to_vec()
    };
    let size = layouts()[0].bytes();
    vec![
        ("report", frames(0, 200, &[header(6), data(b"ab"), data(b"cdef")])),
        ("report-rest", frames(0, 200, &[header_at(4, 6), data(b"ef")])),
        ("report-nothing-left", frames(0, 200, &[header_at(6, 6)])),
        ("report-full", frames(0, 64, &[header(64), data(&[7; 64])])),
        ("report-empty", frames(0, 64, &[header(0), data(b"")])),
        ("two-headers", frames(0, 64, &[header(3), header(3)])),
        ("adapter", frames(1, 0, &[piece(size / 2), piece(size - size / 2)])),
        ("adapter-bytewise", frames(1, 0, &vec![piece(1); size])),
    ]
}
