//! What outlives a restart, and what a failing disk does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use floret_server::ServerError;
use support::*;
use tokio::net::TcpListener;
use tonic::Code;

fn single() -> Site {
    let mut site = Site::new(8);
    (site.config.cohort.size, site.config.cohort.quorum) = (1, 1);
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_the_open_round_and_repeats_receipts() {
    let mut site = single();
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    let plan = work(&mut client).await.unwrap();
    let receipt = send(&mut client, chunks(plan.round.0, &site.payload(0.5))).await.unwrap();
    let plan = work(&mut client).await.unwrap();
    assert_eq!((plan.round.0, plan.version.0), (2, 1));
    let adapter = server.adapter();
    server.stop().await.unwrap();

    let server = site.start().await;
    assert_eq!((server.status().version, server.adapter()), (1, adapter));
    let mut client = site.device(&server, "phone").await;
    // The answer of a round that is over is the same, signature included.
    let again = send(&mut client, chunks(1, &site.payload(0.5))).await.unwrap();
    assert_eq!(again, receipt);
    let status = send(&mut client, chunks(9, &site.payload(0.5))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "unknown-round"));
    let plan = work(&mut client).await.unwrap();
    assert_eq!((plan.round.0, plan.version.0), (2, 1));
    send(&mut client, chunks(2, &site.payload(0.5))).await.unwrap();
    assert!(server.wait_for_end().await.unwrap().completed);
    server.stop().await.unwrap();

    // The end outlives a restart too, until the settings ask for more rounds.
    let server = site.start().await;
    assert!(server.wait_for_end().await.unwrap().completed);
    server.stop().await.unwrap();
    site.config.run.rounds = 3;
    let server = site.start().await;
    assert_eq!((server.status().phase, server.status().version), ("selecting", 2));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_or_other_settings_cannot_use_the_state() {
    let mut site = single();
    let server = site.start().await;
    let start = async |site: &Site| {
        let [listener, admin] =
            [(); 2].map(|()| async { TcpListener::bind("127.0.0.1:0").await.unwrap() });
        let (listener, admin) = tokio::join!(listener, admin);
        floret_server::Server::start(&site.home, &site.config, listener, admin).await
    };
    let error = start(&site).await.unwrap_err().to_string();
    assert!(error.contains("in use by another floret-server"), "{error}");
    server.stop().await.unwrap();

    let rank = std::mem::replace(&mut site.config.lora.rank, 4);
    let error = start(&site).await.unwrap_err().to_string();
    assert!(error.contains("another set of LoRA settings"), "{error}");
    site.config.lora.rank = rank;
    // The same layout with another scale would change what the saved values mean.
    let alpha = std::mem::replace(&mut site.config.lora.alpha, 99.0);
    let error = start(&site).await.unwrap_err().to_string();
    assert!(error.contains("another set of LoRA settings"), "{error}");
    site.config.lora.alpha = alpha;
    site.config.cohort.quorum = 9;
    let error = start(&site).await.unwrap_err();
    assert!(matches!(error, ServerError::Run(_)), "{error}");
    site.config.cohort.quorum = 1;
    start(&site).await.unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_stops_the_run_before_any_answer() {
    let site = single();
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    let plan = work(&mut client).await.unwrap();
    // A rename onto a directory fails, whoever runs the test.
    let manifest = site.home.state().join("run.json");
    std::fs::rename(&manifest, site.dir.path().join("run.json")).unwrap();
    std::fs::create_dir(&manifest).unwrap();
    // The round would close with this update: both are one commit.
    let status = send(&mut client, chunks(plan.round.0, &site.payload(0.5))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "stopping"));

    let error = server.wait_for_failure().await;
    assert!(matches!(&error, ServerError::Store(_)), "{error}");
    assert!(error.to_string().contains("cannot write") && error.to_string().contains("run.json"));
    let status = client.check_in(hello(floret_proto::v1::Compression::None)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "stopping"));
    assert!(page(&server, "/healthz").await.contains("run.json"));
    assert!(server.stop().await.is_err());

    // What the database had taken is there.
    std::fs::remove_dir(&manifest).unwrap();
    let server = site.start().await;
    assert_eq!((server.status().version, server.status().totals.updates_accepted), (1, 1));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_whose_settings_changed_is_abandoned_on_the_record() {
    let mut site = single();
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    assert_eq!(work(&mut client).await.unwrap().round.0, 1);
    server.stop().await.unwrap();
    site.config.aggregation.clip_norm = 3.0;
    let server = site.start().await;
    let mut client = site.device(&server, "phone").await;
    let plan = work(&mut client).await.unwrap();
    assert_eq!((plan.round.0, plan.clip_norm), (2, 3.0));
    assert_eq!(server.status().totals.rounds_abandoned, 1);
    server.stop().await.unwrap();
    let ledger = std::fs::read_to_string(site.home.state().join("ledger.jsonl")).unwrap();
    assert!(ledger.lines().nth(1).unwrap().contains("the run's settings changed"), "{ledger}");
    let key = floret_server::ledger_key::read_public(&site.home).unwrap();
    let verified = floret_server::verify(&site.home, &site.config, &key).unwrap();
    assert_eq!((verified.entries, verified.rounds), (3, 1));
}
