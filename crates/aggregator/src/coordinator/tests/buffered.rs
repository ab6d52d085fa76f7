//! Buffered rounds.

use super::*;
use crate::mode::staleness_weight;

const K: u32 = 2;

fn buffered() -> RunConfig {
    let mode = BufferedConfig { buffer: K, max_staleness: 2, concurrency: 4 };
    RunConfig { mode: Mode::Buffered(mode), rounds: 6, ..config() }
}

fn open() -> Run {
    let mut run = Run::new(buffered());
    run.tick();
    assert_eq!((run.status().mode, run.status().phase), ("buffered", "buffering"));
    run
}

/// Two clients of this name give an update each, which closes a round.
fn commit_one(run: &mut Run, name: &str) {
    for client in [format!("{name}-1"), format!("{name}-2")] {
        let round = run.plan(&client).round.0;
        run.report(&client, round, small()).unwrap();
    }
}

fn weight(reply: Result<Reply, Rejection>) -> u32 {
    match reply {
        Ok(Reply::Accepted(receipt)) => receipt.weight,
        other => panic!("not accepted: {other:?}"),
    }
}

/// The summary of the last round that closed.
fn last_round(run: &Run) -> RoundSummary {
    let summary = |record: &Record| match record {
        Record::RoundCommitted { summary, .. } | Record::RoundAbandoned { summary } => {
            Some(summary.clone())
        }
        _ => None,
    };
    run.records.iter().rev().find_map(summary).unwrap()
}

#[test]
fn a_full_buffer_makes_a_version_and_stale_updates_weigh_less() {
    let mut run = open();
    let slow = run.plan("slow");
    assert_eq!((slow.round, slow.version), (Round(1), Version(0)));
    commit_one(&mut run, "a");
    commit_one(&mut run, "b");
    let before = run.coordinator.state().adapter.clone();
    assert_eq!((run.status().version, run.status().at_work), (2, Some(1)));
    // Two versions behind, and named by the round that it was assigned in.
    let slow = run.report("slow", 1, payload(|_| 0.01));
    assert_eq!(weight(slow), staleness_weight(2));
    let fresh = run.plan("fresh");
    assert_eq!((fresh.round, fresh.version), (Round(3), Version(2)));
    assert_eq!(weight(run.report("fresh", 3, payload(|_| 0.02))), 1 << 16);
    let state = run.coordinator.state();
    assert_eq!((state.version, state.totals.updates_accepted), (Version(3), 6));
    let moved = before.values().iter().zip(state.adapter.values()).map(|(x, y)| y - x);
    let want = (0.01 / 3f32.sqrt() + 0.02) / 2.0;
    assert!(moved.into_iter().all(|change| (change - want).abs() < 1e-6));
    let summary = last_round(&run);
    let counted = summary.accepted.iter().map(|of| (of.client.as_str(), of.staleness));
    assert_eq!(counted.collect::<Vec<_>>(), [("fresh", 0), ("slow", 2)]);
    assert_eq!(summary.selected, ["fresh".parse().unwrap()]);
}

#[test]
fn an_update_that_is_too_stale_is_refused_and_frees_its_place() {
    let mut run = open();
    run.plan("slow");
    ["a", "b", "c"].into_iter().for_each(|name| commit_one(&mut run, name));
    assert_eq!(code(run.report("slow", 1, small())), "too-stale");
    assert_eq!((run.status().at_work, run.status().totals.updates_refused), (Some(0), 1));
    assert_eq!(code(run.report("slow", 1, small())), "out-of-round");
    assert_eq!(run.plan("slow").version, Version(3));
}

#[test]
fn places_are_limited_and_a_client_has_one_and_is_chosen_once_in_a_round() {
    let mut run = open();
    let come_back = |reply| matches!(reply, Ok(Reply::ComeBack { .. }));
    let first = run.plan("a");
    assert_eq!(run.plan("a"), first);
    ["b", "c", "d"].into_iter().for_each(|client| drop(run.plan(client)));
    assert!(come_back(run.check_in("e")));
    run.send("b", Input::Decline { round: Round(1), reason: "limits".into() }).unwrap();
    assert!(come_back(run.check_in("b")));
    run.plan("e");
    run.report("a", 1, small()).unwrap();
    // Whoever is in the buffer, or was assigned in this round, waits for the next.
    assert!(come_back(run.check_in("a")));
    run.report("c", 1, small()).unwrap();
    assert_eq!((run.plan("a").round, run.plan("b").round), (Round(2), Round(2)));
    // A client that asks again after a commit has lost its work: it gets some on the new version.
    assert_eq!((run.plan("d").round, run.plan("d").version), (Round(2), Version(1)));
    assert_eq!(code(run.report("d", 1, small())), "out-of-round");
    assert_eq!((run.status().totals.drop_outs, run.status().at_work), (1, Some(4)));
}

#[test]
fn silent_clients_drop_out_and_a_round_that_all_left_is_abandoned() {
    let mut run = open();
    // Nobody came yet: the round waits.
    run.now = Time(500_000);
    run.tick();
    assert_eq!(run.status().totals.rounds_abandoned, 0);
    run.plan("a");
    run.plan("b");
    run.report("b", 1, small()).unwrap();
    run.now = Time(530_000);
    run.plan("c");
    run.now = Time(560_000);
    run.tick();
    assert_eq!((run.status().at_work, run.status().totals.drop_outs), (Some(1), 1));
    assert_eq!(code(run.report("a", 1, small())), "out-of-round");
    run.now = Time(590_000);
    run.tick();
    let status = run.status();
    assert_eq!((status.round, status.version, status.totals.rounds_abandoned), (2, 0, 1));
    let summary = last_round(&run);
    assert!(summary.reason.starts_with("1 of 2 updates"), "{}", summary.reason);
    assert_eq!((summary.accepted.len(), summary.dropped_out.len()), (1, 2));
    // The next round ends like this too, and the run with it.
    run.plan("a");
    run.now = Time(700_000);
    run.tick();
    assert!(!run.status().end.unwrap().completed);
}

#[test]
fn repeats_get_the_same_receipt_many_versions_later() {
    let mut run = open();
    run.plan("slow");
    commit_one(&mut run, "a");
    let receipt = run.report("slow", 1, small()).unwrap();
    assert_eq!(run.report("slow", 1, small()).unwrap(), receipt);
    assert_eq!(code(run.report("slow", 1, payload(|_| 0.5))), "different-report");
    run.plan("b");
    run.report("b", 2, small()).unwrap();
    ["c", "d", "e"].into_iter().for_each(|name| commit_one(&mut run, name));
    assert_eq!(run.report("slow", 1, small()).unwrap(), receipt);
    assert_eq!(code(run.report("slow", 1, payload(|_| 0.5))), "different-report");
    assert_eq!(code(run.report("b", 1, small())), "unknown-round");
    assert_eq!(run.status().totals.updates_accepted, 10);
}

#[test]
fn bad_updates_are_refused_and_take_their_assignment_away() {
    let mut run = open();
    let mut nan = small().bytes().to_vec();
    nan[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    run.plan("a");
    assert_eq!(code(run.report("a", 1, Payload::from_bytes(nan))), "not-finite");
    assert_eq!(code(run.report("a", 1, small())), "out-of-round");
    assert_eq!(code(run.report("z", 1, small())), "unknown-round");
    assert_eq!((run.status().at_work, run.status().totals.updates_refused), (Some(0), 1));
}

#[test]
fn the_recorded_order_gives_the_same_bits_and_state() {
    let mut run = open();
    let first = RunState::first(&buffered(), layout());
    run.plan("slow");
    ["a", "b"].into_iter().for_each(|name| commit_one(&mut run, name));
    run.report("slow", 1, small()).unwrap();
    run.plan("fresh");
    let replay = |run: &Run, from: &RunState| {
        let coordinator = Coordinator::new(buffered(), layout(), from.clone()).unwrap();
        let store = MemoryStore::new(&coordinator);
        let mut again = Run { coordinator, now: run.now, store, records: Vec::new() };
        again.apply(run.records.clone());
        again
    };
    let mut again = replay(&run, &first);
    assert_eq!(again.coordinator.state(), run.coordinator.state());
    assert_eq!(again.status(), run.status());
    assert_eq!(again.plan("fresh"), run.plan("fresh"));
    for run in [&mut run, &mut again] {
        run.report("fresh", 3, payload(|i| (i as f32).sin())).unwrap();
    }
    assert_eq!(again.coordinator.state(), run.coordinator.state());
    // Records that come twice change nothing.
    let twice = replay(&run, run.coordinator.state());
    assert_eq!(twice.coordinator.state(), run.coordinator.state());
}

#[test]
fn work_outlives_a_restart_but_not_other_settings() {
    let mut run = open();
    run.plan("slow");
    commit_one(&mut run, "a");
    run.plan("b");
    run.report("b", 2, small()).unwrap();
    run.plan("c");
    let first = RunState::first(&buffered(), layout());
    let restart = |config: RunConfig| {
        let coordinator = Coordinator::new(config, layout(), first.clone()).unwrap();
        let store = MemoryStore::new(&coordinator);
        let mut again = Run { coordinator, now: Time(900_000), store, records: Vec::new() };
        again.apply(run.records.clone());
        again
    };
    let mut same = restart(buffered());
    assert!(same.coordinator.resume(same.now, None).is_empty());
    same.tick();
    assert_eq!((same.status().at_work, same.status().accepted), (Some(2), Some(1)));
    assert_eq!(same.plan("c").report_within, Duration::from_secs(60));
    assert_eq!(weight(same.report("slow", 1, small())), staleness_weight(1));

    let mut other = restart(RunConfig { mode: Mode::Synchronous, ..buffered() });
    let records = other.coordinator.resume(other.now, Some("the settings changed"));
    other.apply(records);
    let summary = last_round(&other);
    assert_eq!((summary.accepted.len(), summary.dropped_out.len()), (1, 2));
    assert_eq!((other.status().phase, other.status().totals.updates_accepted), ("selecting", 3));
    assert!(other.coordinator.state().assignments.is_empty());
    assert_eq!(code(other.report("slow", 1, small())), "unknown-round");
}
