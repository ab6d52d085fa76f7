//! What the server does not take, and how it says so.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use floret_core::Digest;
use floret_proto::v1;
use floret_proto::v1::report_chunk::Part;
use support::*;
use tonic::Code;

/// A site of one device in an open round.
async fn training() -> (Site, floret_server::Server, Client) {
    let mut site = Site::new(8);
    (site.config.cohort.size, site.config.cohort.quorum) = (1, 1);
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    assert_eq!(work(&mut client).await.unwrap().round.0, 1);
    (site, server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certificates_of_the_runs_authority_come_in() {
    let (site, other) = (Site::new(8), Site::new(8));
    let server = site.start().await;
    for identity in [Some(other.identity("phone")), None] {
        // With TLS 1.3 the client learns of its refusal at its first call.
        if let Ok(mut client) = connect(server.address(), &site.ca(), identity).await {
            client.check_in(hello(v1::Compression::None)).await.unwrap_err();
        }
    }
    // The client may know before the server has counted.
    for _ in 0..100 {
        if metric(&server, "floret_handshakes_failed_total").await >= 2.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // Clients may have tried more than once.
    assert!(metric(&server, "floret_handshakes_failed_total").await >= 2.0);
    // And the device does not talk to a server of another authority.
    let identity = Some(site.identity("phone"));
    assert!(connect(server.address(), &other.ca(), identity).await.is_err());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_common_protocol_or_compression_names_both() {
    let mut site = Site::new(8);
    site.config.run.compression = "bits1/2".parse().unwrap();
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    let future =
        v1::CheckInRequest { protocol_min: 7, protocol_max: 9, ..hello(v1::Compression::Bits) };
    let status = client.check_in(future).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "protocol"));
    assert!(status.message().contains("7 to 9, and the server 1"), "{status}");
    // A device that is older than the codec speaks others alone.
    let status = client.check_in(hello(v1::Compression::None)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "compression"));
    assert!(
        status.message().contains("bits1/2") && status.message().contains("[None]"),
        "{status}"
    );
    client.check_in(hello(v1::Compression::Bits)).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_reports_are_refused_and_a_good_one_still_counts() {
    let (site, server, mut client) = training().await;
    let payload = site.payload(0.5);
    let with = |change: fn(&mut v1::ReportHeader)| {
        let mut chunks = chunks(1, &payload);
        if let Some(Part::Header(header)) = &mut chunks[0].part {
            change(header);
        }
        chunks
    };
    let cut = payload.len() - 1;
    let longer = [payload.as_slice(), &[0]].concat();
    let cases = [
        (vec![], Code::InvalidArgument, "invalid-message"),
        (vec![data(&payload)], Code::InvalidArgument, "invalid-message"),
        (vec![header(1, &payload); 2], Code::InvalidArgument, "invalid-message"),
        (vec![v1::ReportChunk { part: None }], Code::InvalidArgument, "invalid-message"),
        (with(|header| header.payload_bytes = 1 << 40), Code::InvalidArgument, "invalid-message"),
        (with(|header| header.payload_bytes += 1), Code::InvalidArgument, "invalid-message"),
        (with(|header| header.payload_digest.clear()), Code::InvalidArgument, "invalid-message"),
        (vec![header(1, &payload), data(&payload[..cut])], Code::InvalidArgument, "wrong-length"),
        (vec![header(1, &payload), data(&longer)], Code::InvalidArgument, "wrong-length"),
        (with(|header| header.round = 2), Code::FailedPrecondition, "unknown-round"),
        (
            with(|header| header.payload_digest = Digest::of(b"other").0.to_vec()),
            Code::DataLoss,
            "wrong-digest",
        ),
    ];
    for (index, (chunks, code, word)) in cases.into_iter().enumerate() {
        let status = send(&mut client, chunks).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (code, word), "case {index}: {status}");
    }
    send(&mut client, chunks(1, &payload)).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_update_says_takes_its_device_out_of_the_round() {
    for (change, word) in [
        (|payload: &mut Vec<u8>| payload.extend([0, 0, 192, 127]), "not-finite"),
        (|payload: &mut Vec<u8>| payload.extend([0, 0, 0]), "wrong-length"),
        (|payload: &mut Vec<u8>| payload[0] = b'?', "damaged-payload"),
    ] as [(fn(&mut Vec<u8>), &str); 3]
    {
        let (site, server, mut client) = training().await;
        let mut payload = site.payload(0.5);
        payload.truncate(payload.len() - 4);
        change(&mut payload);
        let status = send(&mut client, chunks(1, &payload)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, word), "{status}");
        assert_eq!(metric(&server, "floret_updates_refused_total").await, 1.0);
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_to_the_round_and_unknown_versions_are_refused() {
    let (site, server, mut client) = training().await;
    let mut stranger = site.device(&server, "other").await;
    let payload = site.payload(0.5);
    let status = send(&mut stranger, chunks(1, &payload)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "not-in-cohort"));
    let status = fetch(&mut client, 5).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "unknown-version"));
    assert!(status.message().contains("version 5") && status.message().contains('0'), "{status}");
    assert_eq!(fetch(&mut client, 0).await.unwrap(), server.adapter().bytes);
    server.stop().await.unwrap();
}
