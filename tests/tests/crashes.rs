//! Crashes at every operation of a disk: the run ends with the same adapter, bit for bit, and every
//! update that was acknowledged is there.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

use floret_aggregator::RunConfig;
use floret_aggregator::combine::Robust;
use floret_aggregator::config::Aggregation;
use floret_aggregator::server_optimizer::{Adaptive, ServerOptimizer};
use floret_core::Digest;
use floret_core::plan::TrainingConfig;
use floret_device::{Own, Store as _};
use floret_simulation::{Behaviour, Ending};
use floret_store::{Fault, SimulatedDisk};
use floret_tests::durable::{Accounts, Durable, buffered, everyone};

const DEVICES: usize = 6;
const ROUNDS: u32 = 3;

fn small() -> Durable {
    Durable::new(everyone(DEVICES as u32, ROUNDS), DEVICES)
}

/// The same with much left out of each update, which devices carry to the next.
fn lossy() -> Durable {
    Durable::new(with_feedback(everyone(DEVICES as u32, ROUNDS)), DEVICES)
}

fn with_feedback(config: RunConfig) -> RunConfig {
    RunConfig { compression: "bits1/2".parse().unwrap(), ..config }
}

/// What a device has of its own when all is over.
fn own(durable: &Durable, device: usize) -> Own {
    let (disk, name) = (durable.device_disks[device].clone(), format!("device-{device}"));
    disk.reboot();
    let mut store = floret_client::DeviceStore::open(disk, name.parse().unwrap()).unwrap();
    let kept = store.load().unwrap();
    assert!(kept.pending.is_none(), "{kept:?}");
    kept.own
}

/// Rounds that the residual of a device has come through, by its version and by its turn.
fn residual(durable: &Durable, device: usize) -> Option<(u64, u32)> {
    own(durable, device).residual.map(|residual| (residual.version.0, residual.turn))
}

fn adapter(ending: &Ending) -> Digest {
    let state = ending.coordinator.state();
    assert!(state.end.as_ref().unwrap().completed);
    state.adapter.digest()
}

fn check(durable: &Durable, ending: &Ending, want: Digest, what: &str) {
    assert_eq!(adapter(ending), want, "{what}");
    let updates = DEVICES * ROUNDS as usize;
    assert_eq!(durable.account_for(), Accounts { recorded: updates, receipts: updates }, "{what}");
    assert_eq!(ending.coordinator.state().totals.rounds_abandoned, 0, "{what}");
}

/// Runs once for each operation of the chosen disk and each kind of fault.
fn enumerate(start: fn() -> Durable, disk_of: fn(&Durable) -> &SimulatedDisk) -> (u64, u64) {
    let reference = start();
    let ending = reference.run(Behaviour::default(), 7);
    let want = adapter(&ending);
    check(&reference, &ending, want, "without a fault");
    // Before that is read, which reads the disk too.
    let operations = disk_of(&reference).operations();
    let left = own(&reference, 2);
    let mut points = 0;
    for at in 1..=operations {
        for fault in [Fault::Fail, Fault::Tear(at), Fault::Lose] {
            let durable = start();
            disk_of(&durable).fail_at(at, fault);
            let ending = durable.run(Behaviour::default(), 7);
            check(&durable, &ending, want, &format!("{fault:?} at operation {at}"));
            assert_eq!(own(&durable, 2), left, "{fault:?} at operation {at}");
            points += 1;
        }
    }
    (operations, points)
}

#[test]
fn a_server_that_crashes_at_any_operation_ends_with_the_same_adapter() {
    let (operations, points) = enumerate(small, |durable| &durable.disk);
    println!("server: {operations} operations of its disk, {points} crash points tried");
    assert!(operations > 100);
}

#[test]
fn a_device_that_crashes_at_any_operation_ends_with_the_same_adapter() {
    let (operations, points) = enumerate(small, |durable| &durable.device_disks[2]);
    println!("device: {operations} operations of its disk, {points} crash points tried");
    assert!(operations > 20);
}

/// A factor that stays on a device, and what it remembers for control variates, are there after a crash as without.
#[test]
fn what_a_device_keeps_survives_a_crash_at_any_operation_of_its_disk() {
    fn training(training: TrainingConfig) -> Durable {
        let compression = "sparse5%".parse().unwrap();
        let config = everyone(DEVICES as u32, ROUNDS);
        Durable::new(RunConfig { training, compression, ..config }, DEVICES)
    }
    for start in [
        (|| {
            training(TrainingConfig {
                sequence_length: 64,
                personal_b: true,
                ..TrainingConfig::default()
            })
        }) as fn() -> Durable,
        || {
            training(TrainingConfig {
                sequence_length: 64,
                scaffold: true,
                ..TrainingConfig::default()
            })
        },
    ] {
        let reference = start();
        adapter(&reference.run(Behaviour::default(), 7));
        let Own { residual, personal, control } = own(&reference, 2);
        assert!(residual.is_some() && personal.is_some() != control.is_some());
        let (operations, points) = enumerate(start, |durable| &durable.device_disks[2]);
        println!("kept: {operations} operations of a device's disk, {points} crash points tried");
    }
}

/// A rule that reads all updates of the round again from the disk when it closes, and an optimizer with
/// two moments: no crash in between changes a bit, and the ledger's updates give the same adapters.
#[test]
fn a_robust_run_that_crashes_at_any_operation_ends_with_the_same_adapter() {
    let aggregation = Aggregation {
        combine: Some(Robust::MultiKrum { byzantine: 1, keep: 4 }),
        measure_residual: true,
        server_optimizer: ServerOptimizer {
            learning_rate: 0.05,
            momentum: 0.9,
            adaptive: Some(Adaptive::Adam { beta2: 0.99, tau: 1e-3 }),
        },
        ..Aggregation::default()
    };
    let start = || {
        let config = RunConfig { aggregation, ..everyone(DEVICES as u32, ROUNDS) };
        let kept = Durable::new(config, DEVICES);
        Durable { retain: ROUNDS, keep_versions: ROUNDS as usize + 1, ..kept }
    };
    let reference = start();
    let ending = reference.run(Behaviour::default(), 7);
    let (operations, want) = (reference.disk.operations(), adapter(&ending));
    let check = |durable: &Durable, ending: &Ending, what: &str| {
        check(durable, ending, want, what);
        assert_eq!(durable.verify().recomputed, u64::from(ROUNDS), "{what}");
        assert!(ending.rounds.iter().all(|round| round.residual.is_some()), "{what}");
    };
    check(&reference, &ending, "without a fault");
    let mut points = 0;
    for at in 1..=operations {
        for fault in [Fault::Fail, Fault::Tear(at), Fault::Lose] {
            let durable = start();
            durable.disk.fail_at(at, fault);
            let ending = durable.run(Behaviour::default(), 7);
            check(&durable, &ending, &format!("{fault:?} at operation {at}"));
            points += 1;
        }
    }
    println!("robust: {operations} operations of the server's disk, {points} crash points tried");
    assert!(operations > 100);
}

#[test]
fn what_a_device_leaves_out_survives_a_crash_at_any_operation_of_its_disk() {
    let reference = lossy();
    let want = adapter(&reference.run(Behaviour::default(), 7));
    let (version, _) = residual(&reference, 2).unwrap();
    assert_eq!(version, u64::from(ROUNDS) - 1);
    assert_eq!(residual(&small(), 2), None);
    // Devices that crash in every other thing that they do, and keep it.
    let shaky = Behaviour { crash: 0.5, ..Behaviour::default() };
    assert_eq!(adapter(&lossy().run(shaky, 7)), want);
    let (operations, points) = enumerate(lossy, |durable| &durable.device_disks[2]);
    println!("lossy device: {operations} operations of its disk, {points} crash points tried");
    assert!(operations > 20);
}

/// Buffered rounds with crashes: whichever order that made, every acknowledged update is in the ledger
/// once, and every version is what its updates give.
fn check_buffered(durable: &Durable, ending: &Ending, what: &str) -> Accounts {
    let state = ending.coordinator.state();
    assert!(state.end.as_ref().unwrap().completed, "{what}");
    let accounts = durable.account_for();
    assert_eq!(accounts.recorded, accounts.receipts, "{what}");
    assert_eq!(accounts.recorded as u64, state.totals.updates_accepted, "{what}");
    let verified = durable.verify();
    assert_eq!(verified.recomputed, state.totals.rounds_committed, "{what}");
    accounts
}

#[test]
fn a_buffered_run_that_crashes_at_any_operation_loses_and_doubles_nothing() {
    let rounds = 5;
    let start = || Durable {
        retain: rounds * 2,
        keep_versions: rounds as usize + 1,
        ..Durable::new(buffered(3, 5, rounds), DEVICES)
    };
    let behaviour = Behaviour { straggler: 0.4, ..Behaviour::default() };
    let reference = start();
    let ending = reference.run(behaviour, 7);
    // Before the check, which reads the disk too.
    let (operations, mut points) = (reference.disk.operations(), 0);
    let accounts = check_buffered(&reference, &ending, "without a fault");
    assert_eq!(accounts.recorded, 3 * rounds as usize);
    let stale = ending.rounds.iter().flat_map(|round| &round.accepted).any(|of| of.staleness > 1);
    assert!(stale, "no update is stale");
    for at in 1..=operations {
        for fault in [Fault::Fail, Fault::Tear(at), Fault::Lose] {
            let durable = start();
            durable.disk.fail_at(at, fault);
            let ending = durable.run(behaviour, 7);
            check_buffered(&durable, &ending, &format!("{fault:?} at operation {at}"));
            points += 1;
        }
    }
    println!("buffered: {operations} operations of the server's disk, {points} crash points tried");
    assert!(operations > 100);
}

#[test]
fn a_hundred_buffered_rounds_in_a_bad_world_lose_nothing_and_count_nothing_twice() {
    for seed in [1, 2] {
        let config = RunConfig { max_abandoned: 10, ..buffered(5, 10, 100) };
        let config = if seed == 2 { with_feedback(config) } else { config };
        let durable = Durable::new(config, 16);
        let behaviour = Behaviour {
            drop_out: 0.2,
            duplicate: 0.05,
            truncate: 0.05,
            lost_answer: 0.05,
            crash: 0.02,
            straggler: 0.2,
            ..Behaviour::default()
        };
        let ending = durable.run(behaviour, seed);
        let state = ending.coordinator.state();
        let end = state.end.as_ref().unwrap();
        assert!(end.completed, "seed {seed}: {end:?}");
        let Accounts { recorded, receipts } = durable.account_for();
        println!("seed {seed}: {:?}, {receipts} receipts", state.totals);
        assert_eq!(state.totals.updates_accepted as usize, recorded, "seed {seed}");
        assert!(state.totals.drop_outs > 50 && recorded >= 500, "seed {seed}");
    }
}

/// Drop-outs, duplicates, truncated reports, lost answers, devices that crash, clocks that are off
/// by hours: 100 rounds with nothing lost and nothing counted twice.
#[test]
fn a_hundred_rounds_in_a_bad_world_lose_nothing_and_count_nothing_twice() {
    for seed in [1, 2] {
        println!("seed {seed}");
        let mut config = everyone(8, 100);
        if seed == 2 {
            config = with_feedback(config);
        }
        config.cohort.over_selection = 1.5;
        config.cohort.quorum = 4;
        config.max_abandoned = 10;
        let durable = Durable::new(config, 16);
        let behaviour = Behaviour {
            drop_out: 0.3,
            duplicate: 0.05,
            truncate: 0.05,
            lost_answer: 0.05,
            crash: 0.02,
            max_skew_s: 12.0 * 3600.0,
            ..Behaviour::default()
        };
        let ending = durable.run(behaviour, seed);
        let state = ending.coordinator.state();
        let end = state.end.as_ref().unwrap();
        assert!(end.completed, "seed {seed}: {end:?}");
        let Accounts { recorded, receipts } = durable.account_for();
        let totals = state.totals;
        assert_eq!(totals.updates_accepted as usize, recorded, "seed {seed}");
        println!("{totals:?}, {receipts} receipts");
        assert_eq!(totals.rounds_committed, 100, "seed {seed}");
        assert!(totals.drop_outs > 100 && recorded > 500, "seed {seed}");
    }
}
