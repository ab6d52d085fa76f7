//! A run that does not go well says so.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_refused_again_and_again_is_in_status_and_metrics() {
    let mut site = Site::new(8);
    (site.config.cohort.size, site.config.cohort.quorum) = (2, 1);
    site.config.run.rounds = 3;
    let server = site.start().await;
    let mut good = site.device(&server, "good").await;
    let mut bad = site.device(&server, "bad").await;
    let mut broken = site.payload(0.5);
    broken[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    for round in 1..=3 {
        assert!(server.status().concerns.is_empty());
        let (a, b) = tokio::join!(work(&mut good), work(&mut bad));
        assert_eq!([a.unwrap().round.0, b.unwrap().round.0], [round, round]);
        let status = send(&mut bad, chunks(round, &broken)).await.unwrap_err();
        assert_eq!(reason(&status), "not-finite");
        send(&mut good, chunks(round, &site.payload(0.5))).await.unwrap();
    }
    assert!(server.wait_for_end().await.unwrap().completed);
    let [concern] = &server.status().concerns[..] else { panic!("not one") };
    assert!(concern.message.starts_with("bad was refused 3 times in a row"), "{concern:?}");
    assert_eq!(metric(&server, "floret_concerns{kind=\"device-refused\"}").await, 1.0);
    server.stop().await.unwrap();
    // A restart knows it still.
    let server = site.start().await;
    assert_eq!(server.status().concerns.len(), 1);
    server.stop().await.unwrap();
}
