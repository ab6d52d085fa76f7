//! `floret-lab load` with the real programs: a server's process, and devices to which things happen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

use serde_json::Value;

fn load(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floret-lab"));
    command.args(["load", "--json"]).args(args).output().unwrap()
}

/// The report of a load test that must succeed.
fn report(args: &[&str]) -> Value {
    let output = load(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !error.contains("there is no"),
        "{error}: the server is built beside this program by cargo test --workspace"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{error}\n{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_run_survives_slow_links_churn_drop_outs_and_faults() {
    let args = "--devices 12 --cohort 6 --rounds 2 --parameters 2000 --drop-out 0.1 --churn 0.1 \
                --faults 0.3 --slow 0.2 --seed 5 --timeout-s 120";
    let report = report(&args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(report["completed"], true, "{report}");
    assert_eq!((&report["rounds_committed"], &report["seed"]), (&2.into(), &5.into()));
    // Nobody is lost: each of the devices that were chosen gave its update in the end.
    assert_eq!(report["updates_accepted"], 12, "{report}");
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    assert_eq!(report["devices_told_the_end"], 12, "{report}");
    // Churn draws for each call, and there are dozens; every connection that is lost is replaced.
    let churn = report["mishaps"]["churn"].as_u64().unwrap();
    let opened = report["connections_opened"].as_u64().unwrap();
    assert!(churn > 0 && opened > 12, "{report}");
    assert!(report["check_in_ms"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    let (p50, p99) = (&report["report_ms"]["p50"], &report["report_ms"]["p99"]);
    assert!(0.0 < p50.as_f64().unwrap() && p50.as_f64() <= p99.as_f64(), "{report}");
    // An update of 1920 f32 values went up and an adapter down, with TLS and everything else.
    for key in ["bytes_up_per_update", "bytes_down_per_update"] {
        assert!((7_680.0..100_000.0).contains(&report[key].as_f64().unwrap()), "{report}");
    }
    assert!(report["server_peak_rss_mib"].as_f64().unwrap() > 1.0, "{report}");
    assert!(report["synced_write_mib_per_s"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn each_report_survives_a_cut_a_flip_or_a_second_sending() {
    let args = "--devices 8 --rounds 3 --parameters 16384 --faults 1 --seed 5 --timeout-s 120";
    let report = report(&args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(report["updates_accepted"], 24, "{report}");
    assert_eq!(report["every_device_reported"], true, "{report}");
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    let mishap = |kind: &str| report["mishaps"][kind].as_u64().unwrap_or(0);
    let kinds = ["cut", "flip", "repeat"].map(mishap);
    assert!(kinds.iter().all(|count| *count > 0), "{report}");
    assert_eq!(kinds.iter().sum::<u64>(), 24, "{report}");
    // What breaks a report is felt by its device; a repeated one is answered as before.
    let explained = report["errors_explained"].as_object().unwrap();
    let felt: u64 = explained.values().filter_map(Value::as_u64).sum();
    assert!(felt >= kinds[0] + kinds[1], "{report}");
}

#[test]
fn a_run_that_is_not_done_in_time_fails_and_says_so() {
    let args = ["--timeout-s", "1", "--slow", "1", "--slow-rate", "1024", "--parameters", "100000"];
    let late = load(&[&args[..], &["--devices", "2"]].concat());
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    let error = String::from_utf8_lossy(&late.stderr);
    assert!(error.contains("did not complete"), "{error}");
    let report: Value = serde_json::from_slice(&late.stdout).unwrap();
    assert_eq!(report["completed"], false);

    let more = load(&["--devices", "2", "--cohort", "3"]);
    assert!(String::from_utf8_lossy(&more.stderr).contains("add devices"), "{more:?}");
}
