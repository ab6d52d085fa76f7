//! Whole rounds over real mutual TLS.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use floret_aggregator::combine::Robust;
use floret_core::peft::from_peft;
use floret_core::{Adapter, Digest, ModelConfig, Version};
use support::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn three_devices_run_two_rounds_to_the_end() {
    let site = Site::new(64);
    let server = site.start().await;
    assert_eq!(server.status().phase, "selecting");
    let first = server.adapter();
    let mut tasks = Vec::new();
    for (index, name) in ["phone-1", "phone-2", "phone-3"].into_iter().enumerate() {
        let mut client = site.device(&server, name).await;
        let payload = site.payload(1e-3 * (index + 1) as f32);
        tasks.push(tokio::spawn(async move {
            let mut rounds = Vec::new();
            while let Some(plan) = work(&mut client).await {
                let bytes = fetch(&mut client, plan.version.0).await.unwrap();
                assert_eq!(Digest::of(&bytes), plan.adapter_digest);
                let receipt = send(&mut client, chunks(plan.round.0, &payload)).await.unwrap();
                assert_eq!((receipt.round, receipt.weight), (plan.round.0, 7));
                rounds.push(plan.round.0);
            }
            rounds
        }));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), [1, 2]);
    }
    let end = server.wait_for_end().await.unwrap();
    assert!(end.completed && end.version == Version(2), "{end:?}");
    assert!(server.wait_until_told(std::time::Duration::from_secs(5)).await);

    // The mean of 1e-3, 2e-3 and 3e-3, twice.
    let read = |bytes: &[u8]| Adapter::from_bytes(site.layout(), bytes).unwrap();
    let (before, after) = (read(&first.bytes), read(&server.adapter().bytes));
    for (x, y) in before.values().iter().zip(after.values()) {
        assert!((y - x - 4e-3).abs() < 1e-6, "{x} {y}");
    }
    let totals = server.status().totals;
    assert_eq!((totals.rounds_committed, totals.updates_accepted), (2, 6));
    server.stop().await.unwrap();
    check_export(&site, &after);
}

/// One of three devices sends a hundred times as much: the median and what it measures come from the
/// disk, and `verify` gets the same from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_robust_rule_reads_what_is_stored() {
    let mut site = Site::new(8);
    site.config.run.rounds = 1;
    site.config.run.retain_updates_rounds = 1;
    site.config.aggregation.combine = Some(Robust::Median {});
    site.config.aggregation.measure_residual = true;
    let server = site.start().await;
    let first = server.adapter();
    let mut tasks = Vec::new();
    for (name, value) in [("a", 1e-3), ("b", 0.2), ("c", 2e-3)] {
        let mut client = site.device(&server, name).await;
        let payload = site.payload(value);
        tasks.push(tokio::spawn(async move {
            let plan = work(&mut client).await.unwrap();
            send(&mut client, chunks(plan.round.0, &payload)).await.unwrap().weight
        }));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), 1);
    }
    assert!(server.wait_for_end().await.unwrap().completed);
    let read = |bytes: &[u8]| Adapter::from_bytes(site.layout(), bytes).unwrap();
    let (before, after) = (read(&first.bytes), read(&server.adapter().bytes));
    for (x, y) in before.values().iter().zip(after.values()) {
        assert!((y - x - 2e-3).abs() < 1e-6, "{x} {y}");
    }
    assert!(metric(&server, "floret_residual_ratio").await > 0.0);
    server.stop().await.unwrap();
    let key = floret_server::ledger_key::read_public(&site.home).unwrap();
    let verified = floret_server::verify(&site.home, &site.config, &key).unwrap();
    assert_eq!(verified.recomputed, 1);
}

fn check_export(site: &Site, adapter: &Adapter) {
    let out = site.dir.path().join("peft");
    let export =
        |version, force| floret_server::export(&site.home, &site.config, &out, version, force);
    let exported = export(None, false).unwrap();
    assert_eq!((exported.version, exported.digest), (Version(2), adapter.digest()));
    let read = |file: &str| std::fs::read(out.join(file)).unwrap();
    let model =
        String::from_utf8(std::fs::read(site.dir.path().join("model/config.json")).unwrap());
    let (lora, peft) = from_peft(
        &String::from_utf8(read("adapter_config.json")).unwrap(),
        &read("adapter_model.safetensors"),
        &ModelConfig::from_json(&model.unwrap()).unwrap(),
    )
    .unwrap();
    assert_eq!((lora, peft.digest()), (site.config.lora.clone(), adapter.digest()));
    let error = export(None, false).unwrap_err().to_string();
    assert!(error.contains("--force"), "{error}");
    assert_eq!(export(Some(Version(1)), true).unwrap().version, Version(1));
    let error = export(Some(Version(9)), true).unwrap_err().to_string();
    assert!(error.contains("version 9 is not kept: choose one of 0, 1, 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_report_gets_the_same_receipt_and_another_is_refused() {
    let site = Site::new(8);
    let server = site.start().await;
    let mut devices = Vec::new();
    for name in ["a", "b", "c"] {
        let mut device = site.device(&server, name).await;
        device.check_in(hello(floret_proto::v1::Compression::None)).await.unwrap();
        devices.push(device);
    }
    let payload = site.payload(0.5);
    let receipt = send(&mut devices[0], chunks(1, &payload)).await.unwrap();
    assert_eq!(send(&mut devices[0], chunks(1, &payload)).await.unwrap(), receipt);
    let other = send(&mut devices[0], chunks(1, &site.payload(0.25))).await.unwrap_err();
    assert_eq!((other.code(), reason(&other)), (Code::AlreadyExists, "different-report"));

    let decline = floret_proto::v1::DeclineRequest { round: 1, reason: "low\nbattery".into() };
    devices[1].decline(decline).await.unwrap();
    let late = send(&mut devices[1], chunks(1, &payload)).await.unwrap_err();
    assert_eq!((late.code(), reason(&late)), (Code::FailedPrecondition, "out-of-round"));
    assert!(late.message().contains("low battery"), "{late}");

    // The last update closes the round; a receipt that was lost is given again.
    let last = send(&mut devices[2], chunks(1, &payload)).await.unwrap();
    assert_eq!(send(&mut devices[2], chunks(1, &payload)).await.unwrap(), last);
    while server.status().version == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    let status: serde_json::Value = serde_json::from_str(&page(&server, "/status").await).unwrap();
    assert_eq!(status["version"], 1);
    assert_eq!(status["totals"]["assignments_declined"], 1);
    assert!(status["server"]["bytes_up"].as_u64().unwrap() > 4 * payload.len() as u64);
    assert_eq!(page(&server, "/healthz").await, "ok");
    assert_eq!(metric(&server, "floret_rounds_committed_total").await, 1.0);
    assert_eq!(metric(&server, "floret_updates_accepted_total").await, 2.0);
    assert_eq!(metric(&server, "floret_connections").await, 3.0);
    assert_eq!(metric(&server, "floret_refusals_total{reason=\"different-report\"}").await, 1.0);
    server.stop().await.unwrap();
}
