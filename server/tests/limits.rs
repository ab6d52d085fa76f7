//! Slow, stalled and too many peers, and a shutdown among them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use floret_proto::limits::RETRY_AFTER_KEY;
use floret_proto::v1;
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// A report that sends its header and then nothing, for as long as the sender lives.
async fn stall(
    client: &Client,
    header: v1::ReportChunk,
) -> (mpsc::Sender<v1::ReportChunk>, tokio::task::JoinHandle<Result<(), Status>>) {
    let (sender, chunks) = mpsc::channel(4);
    sender.send(header).await.unwrap();
    let mut client = client.clone();
    let call =
        tokio::spawn(async move { client.report(ReceiverStream::new(chunks)).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    (sender, call)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_peer_holds_its_transfer_for_the_stall_timeout_only() {
    let mut site = Site::new(8);
    site.config.limits.max_concurrent_transfers = 1;
    site.config.limits.stall_timeout_s = 0.6;
    site.config.limits.request_timeout_s = 0.9;
    let server = site.start().await;
    let slow = site.device(&server, "slow").await;
    let other = site.device(&server, "other").await;
    let mut quick = site.device(&server, "quick").await;
    let (_sender, call) = stall(&slow, header(1, &site.payload(1.0))).await;

    let began = Instant::now();
    assert_eq!(fetch(&mut quick, 0).await.unwrap(), server.adapter().bytes);
    assert!(began.elapsed() > Duration::from_millis(300), "{:?}", began.elapsed());
    let status = call.await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, "too-slow"));

    // Two stalled peers in a row: whoever waits too long is told to come back.
    let (_first, first) = stall(&slow, header(1, &site.payload(1.0))).await;
    let (_second, second) = stall(&other, header(1, &site.payload(1.0))).await;
    let busy = fetch(&mut quick, 0).await;
    let outcomes = [first.await.unwrap(), second.await.unwrap(), busy.map(|_| ())];
    let told = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let busy = told.filter(|status| status.code() == Code::ResourceExhausted);
    assert!(busy.clone().count() >= 1, "{outcomes:?}");
    for status in busy {
        assert_eq!(reason(status), "busy");
        assert!(status.metadata().contains_key(RETRY_AFTER_KEY));
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_loses_its_download() {
    let mut site = Site::new(8192);
    site.config.limits.max_concurrent_transfers = 1;
    site.config.limits.stall_timeout_s = 0.5;
    let server = site.start().await;
    let mut slow = site.device(&server, "slow").await;
    let mut quick = site.device(&server, "quick").await;
    let request = fetch_from(0, 0);
    let mut stalled = slow.fetch_adapter(request).await.unwrap().into_inner();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let bytes = fetch(&mut quick, 0).await.unwrap();
    assert_eq!(bytes, server.adapter().bytes);
    let mut got = 0;
    let end = loop {
        match stalled.message().await {
            Ok(Some(chunk)) => got += chunk.data.len(),
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(got < bytes.len(), "{got}");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_are_refused_and_silent_ones_are_closed() {
    let mut site = Site::new(8);
    site.config.limits.max_connections = 1;
    site.config.limits.handshake_timeout_s = 0.3;
    let server = site.start().await;
    // A peer that connects and says nothing.
    let silent = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let identity = Some(site.identity("phone"));
    assert!(connect(server.address(), &site.ca(), identity).await.is_err());
    assert_eq!(metric(&server, "floret_connections_refused_total").await, 1.0);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(metric(&server, "floret_handshakes_failed_total").await, 1.0);
    drop(silent);
    site.device(&server, "phone").await.check_in(hello(v1::Compression::None)).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_connections_are_closed_in_good_order() {
    let mut site = Site::new(8);
    site.config.limits.connection_max_age_s = 0.2;
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    for _ in 0..5 {
        client.check_in(hello(v1::Compression::None)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_calls_finish_and_does_not_wait_for_stalled_ones() {
    let mut site = Site::new(8);
    (site.config.cohort.size, site.config.cohort.quorum) = (2, 1);
    let server = site.start().await;
    let mut good = site.device(&server, "good").await;
    let stalled = site.device(&server, "stalled").await;
    let mut other = stalled.clone();
    let (one, two) = tokio::join!(work(&mut good), work(&mut other));
    assert!(one.is_some() && two.is_some());
    let payload = site.payload(0.5);
    let (sender, finishing) = stall(&good, header(1, &payload)).await;
    let (_stuck, stuck) = stall(&stalled, header(1, &payload)).await;

    let address = server.address();
    let began = Instant::now();
    let stopping = tokio::spawn(server.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "it still accepts");
    sender.send(data(&payload)).await.unwrap();
    drop(sender);
    finishing.await.unwrap().unwrap();
    stopping.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(stuck.await.unwrap().is_err());
}
