//! Transfers that break go on where they were, slow ones last, silent and trickling ones end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use floret_core::payload::Compression;
use floret_core::{Adapter, Digest, Payload};
use floret_proto::limits::RETRY_AFTER_KEY;
use floret_proto::v1;
use floret_proto::v1::report_chunk::Part;
use floret_proto::v1::standing_response::Standing;
use floret_server::Server;
use support::*;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// A site whose rounds take one update, and its first device in the first round.
async fn training(mut site: Site) -> (Site, Server, Client) {
    (site.config.cohort.size, site.config.cohort.quorum) = (1, 1);
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    assert_eq!(work(&mut client).await.unwrap().round.0, 1);
    (site, server, client)
}

/// A report that is sent by hand.
struct ByHand {
    chunks: mpsc::Sender<v1::ReportChunk>,
    call: JoinHandle<Result<v1::ReportResponse, Status>>,
}

impl ByHand {
    async fn begin(client: &Client, payload: &[u8]) -> Self {
        let (chunks, receiver) = mpsc::channel(1);
        chunks.send(header(1, payload)).await.unwrap();
        let mut client = client.clone();
        let call = tokio::spawn(async move {
            Ok(client.report(ReceiverStream::new(receiver)).await?.into_inner())
        });
        Self { chunks, call }
    }

    /// Sends `bytes` in pieces of `size` with a pause after each, until the server has enough.
    async fn send(&self, bytes: &[u8], size: usize, pause: Duration) {
        for piece in bytes.chunks(size) {
            if self.chunks.send(data(piece)).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn end(self) -> Result<v1::ReportResponse, Status> {
        drop(self.chunks);
        self.call.await.unwrap()
    }
}

/// The rest of a report, from byte `offset` on.
fn rest(payload: &[u8], offset: usize) -> Vec<v1::ReportChunk> {
    let mut first = header(1, payload);
    if let Some(Part::Header(header)) = &mut first.part {
        header.offset = offset as u64;
    }
    let chunks = payload[offset..].chunks(10_000).map(data);
    std::iter::once(first).chain(chunks).collect()
}

async fn standing(client: &mut Client, round: u32, payload: &[u8]) -> Standing {
    let payload_digest = Digest::of(payload).0.to_vec();
    let request = v1::StandingRequest { run: "run".into(), round, payload_digest };
    client.standing(request).await.unwrap().into_inner().standing.unwrap()
}

async fn received(client: &mut Client, payload: &[u8]) -> usize {
    match standing(client, 1, payload).await {
        Standing::Awaited(awaited) => awaited.received_bytes as usize,
        other => panic!("not awaited: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_begins_at_the_byte_that_is_asked_for() {
    let (_site, server, mut client) = training(Site::new(512)).await;
    let adapter = server.adapter();
    let total = adapter.bytes.len();
    for offset in [1, 100_000, total - 1, total] {
        let digest = adapter.digest.0.to_vec();
        let request =
            v1::FetchAdapterRequest { adapter_digest: digest, ..fetch_from(0, offset as u64) };
        let mut stream = client.fetch_adapter(request).await.unwrap().into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await.unwrap() {
            bytes.extend_from_slice(&chunk.data);
        }
        assert!(bytes == adapter.bytes[offset..], "from {offset}: {} bytes", bytes.len());
    }
    let status = client.fetch_adapter(fetch_from(0, total as u64 + 1)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::OutOfRange, "unknown-offset"));
    assert!(status.message().contains(&total.to_string()), "{status}");
    let other = Digest::of(b"other").0.to_vec();
    let request = v1::FetchAdapterRequest { adapter_digest: other, ..fetch_from(0, 0) };
    let status = client.fetch_adapter(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "other-adapter"));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_upload_goes_on_where_it_broke() {
    let (site, server, mut client) = training(Site::new(512)).await;
    let payload = site.payload(0.5);
    assert_eq!(received(&mut client, &payload).await, 0);
    let broken = ByHand::begin(&client, &payload).await;
    broken.send(&payload[..200_000], 10_000, Duration::ZERO).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    broken.call.abort();
    tokio::time::sleep(Duration::from_millis(100)).await;

    let kept = received(&mut client, &payload).await;
    assert_eq!(kept, 200_000);
    // Another update of the same device has nothing.
    assert_eq!(received(&mut client, &site.payload(0.25)).await, 0);
    let before = metric(&server, "floret_received_bytes_total").await;
    let receipt = send(&mut client, rest(&payload, kept)).await.unwrap();
    let moved = metric(&server, "floret_received_bytes_total").await - before;
    let left = (payload.len() - kept) as f64;
    assert!(moved >= left && moved < left + 1000.0, "{moved} bytes for the last {left}");
    assert_eq!(std::fs::read_dir(site.home.incoming()).unwrap().count(), 0);
    // It counts: in the round, and once that is over.
    for _ in 0..2 {
        let answer = standing(&mut client, 1, &payload).await;
        assert_eq!(answer, Standing::Receipt(receipt.clone()));
        while server.status().version == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for (round, payload, want) in
        [(7, payload.clone(), "unknown-round"), (1, site.payload(0.25), "different-report")]
    {
        match standing(&mut client, round, &payload).await {
            Standing::Over(over) => assert_eq!(over.reason, want, "{}", over.message),
            other => panic!("{want}: {other:?}"),
        }
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_nobody_missed_does_not_hold_the_bytes() {
    let (site, server, client) = training(Site::new(512)).await;
    let payload = site.payload(0.5);
    let lost = ByHand::begin(&client, &payload).await;
    lost.send(&payload[..100_000], 10_000, Duration::ZERO).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The device comes back over another network, and the old connection is still open.
    let mut again = site.device(&server, "phone").await;
    assert_eq!(received(&mut again, &payload).await, 100_000);
    send(&mut again, rest(&payload, 100_000)).await.unwrap();
    let status = lost.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Aborted, "superseded"));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_beginning_costs_a_fresh_upload_only() {
    let (site, server, mut client) = training(Site::new(512)).await;
    let payload = site.payload(0.5);
    let status = send(&mut client, rest(&payload, 1)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::OutOfRange, "unknown-offset"));
    let broken = ByHand::begin(&client, &payload).await;
    broken.send(&vec![7; 50_000], 10_000, Duration::ZERO).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(received(&mut client, &payload).await, 50_000);
    let status = send(&mut client, rest(&payload, 50_000)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::DataLoss, "wrong-digest"));
    assert_eq!(received(&mut client, &payload).await, 0);
    send(&mut client, chunks(1, &payload)).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_steady_arrives_and_a_trickle_does_not() {
    let mut site = Site::new(64);
    site.config.limits.stall_timeout_s = 0.5;
    site.config.limits.request_timeout_s = 0.5;
    site.config.limits.min_bytes_per_s = 2000;
    let (site, server, client) = training(site).await;
    let payload = site.payload(0.5);

    let began = Instant::now();
    let trickle = ByHand::begin(&client, &payload).await;
    trickle.send(&payload[..8000], 20, Duration::from_millis(50)).await;
    let status = trickle.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, "too-slow"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

    let began = Instant::now();
    let steady = ByHand::begin(&client, &payload).await;
    steady.send(&payload, 1000, Duration::from_millis(50)).await;
    steady.end().await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_makes_way_for_a_fast_one_and_loses_nothing() {
    let mut site = Site::new(256);
    (site.config.cohort.size, site.config.cohort.quorum) = (2, 1);
    site.config.limits.stall_timeout_s = 0.4;
    site.config.limits.max_transfer_bytes = 64 * 1024;
    let server = site.start().await;
    let mut fast = site.device(&server, "fast").await;
    let mut slow = site.device(&server, "slow").await;
    let (one, two) = tokio::join!(work(&mut fast), work(&mut slow));
    assert!(one.is_some() && two.is_some());

    // It takes all room there is, and would take four seconds.
    let payload = site.payload(0.5);
    let crawling = ByHand::begin(&slow, &payload).await;
    let crawl = crawling.send(&payload, 1000, Duration::from_millis(30));
    let passing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        send(&mut fast, chunks(1, &payload)).await.unwrap();
        began.elapsed()
    };
    let ((), waited) = tokio::join!(crawl, passing);
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    let status = crawling.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "busy"));
    let after = status.metadata().get(RETRY_AFTER_KEY).unwrap().to_str().unwrap();
    assert!((1000..=60_000).contains(&after.parse::<u64>().unwrap()), "{after}");
    let kept = received(&mut slow, &payload).await;
    assert!(kept > 5000 && kept < payload.len(), "{kept}");
    send(&mut slow, rest(&payload, kept)).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_download_makes_way_too() {
    let mut site = Site::new(8192);
    site.config.limits.stall_timeout_s = 0.3;
    site.config.limits.max_concurrent_transfers = 1;
    let server = site.start().await;
    let mut slow = site.device(&server, "slow").await;
    let mut fast = site.device(&server, "fast").await;
    let adapter = server.adapter();
    let mut crawling = slow.fetch_adapter(fetch_from(0, 0)).await.unwrap().into_inner();
    let passing = tokio::spawn(async move { fetch(&mut fast, 0).await });
    let mut got = Vec::new();
    let end = loop {
        match crawling.message().await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk.data),
            end => break end,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let status = end.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "busy"));
    assert_eq!(passing.await.unwrap().unwrap(), adapter.bytes);
    assert!(!got.is_empty() && got[..] == adapter.bytes[..got.len()], "{} bytes", got.len());
    server.stop().await.unwrap();
}

/// A device that holds an earlier version gets the steps that lead from there, and has the server's
/// adapter bit for bit.
#[tokio::test(flavor = "multi_thread")]
async fn steps_lead_from_the_adapter_held_to_the_one_wanted() {
    let mut site = Site::new(512);
    site.config.run.rounds = 3;
    site.config.aggregation.download_compression = Compression::Int8;
    let (site, server, mut client) = training(site).await;
    let layout = site.layout();
    let adapter = |bytes: &[u8]| Adapter::from_bytes(layout.clone(), bytes).unwrap();
    let first = adapter(&server.adapter().bytes);
    let mut held = Vec::new();
    for round in 1..=2u32 {
        held.push(adapter(&server.adapter().bytes));
        send(&mut client, chunks(round, &site.payload(0.01 * round as f32))).await.unwrap();
        assert_eq!(work(&mut client).await.unwrap().version.0, u64::from(round));
    }
    let last = server.adapter();
    for (steps, held) in [(2, &held[0]), (1, &held[1])] {
        let request =
            v1::FetchAdapterRequest { held_digest: held.digest().0.to_vec(), ..fetch_from(2, 0) };
        let mut stream = client.fetch_adapter(request).await.unwrap().into_inner();
        let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
        while let Some(chunk) = stream.message().await.unwrap() {
            assert!(lengths.is_empty() || chunk.step_bytes.is_empty());
            lengths.extend(chunk.step_bytes);
            bytes.extend_from_slice(&chunk.data);
        }
        assert_eq!(lengths.len(), steps);
        assert!(bytes.len() * 2 < last.bytes.len(), "{} bytes", bytes.len());
        let mut rest = &bytes[..];
        let reached = lengths.iter().fold(held.clone(), |adapter, length| {
            let (step, behind) = rest.split_at(*length as usize);
            rest = behind;
            adapter.plus(&Payload::from_bytes(step.to_vec()).decode(&layout).unwrap()).unwrap()
        });
        assert_eq!((reached.digest(), rest.len()), (last.digest, 0));
    }
    let unknown = Digest::of(b"unknown").0.to_vec();
    let request = v1::FetchAdapterRequest { held_digest: unknown, ..fetch_from(2, 0) };
    let chunk = client.fetch_adapter(request).await.unwrap().into_inner().message().await;
    assert!(chunk.unwrap().unwrap().step_bytes.is_empty());
    server.stop().await.unwrap();

    // A server that has started again has no steps: the whole is sent, and what was not sent is not lost.
    let server = site.start().await;
    assert_eq!(server.adapter().digest, last.digest);
    let mut client = site.device(&server, "phone").await;
    let held_digest = first.digest().0.to_vec();
    let request = v1::FetchAdapterRequest { held_digest, ..fetch_from(2, 0) };
    let chunk = client.fetch_adapter(request).await.unwrap().into_inner().message().await;
    assert!(chunk.unwrap().unwrap().step_bytes.is_empty());
    server.stop().await.unwrap();
    let unsent = site.home.state().join("adapters/unsent-00000002.f32");
    assert_eq!(std::fs::metadata(unsent).unwrap().len(), layout.bytes() as u64);
}
