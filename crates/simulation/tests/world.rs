//! Properties of whole runs, over seeds that are printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::config::CohortConfig;
use floret_aggregator::{Coordinator, RunConfig, RunState};
use floret_core::{ClientId, Digest, Layout, Seed};
use floret_device::{Limits, Session};
use floret_simulation::{Behaviour, Distribution, Ending, ToyTrainer, World};
use support::{config, model};

fn simulate(config: RunConfig, devices: usize, behaviour: Behaviour, seed: u64) -> Ending {
    let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
    let state = RunState::first(&config, Arc::clone(&layout));
    let coordinator = Coordinator::new(config, layout, state).unwrap();
    let session = |index| {
        let client: ClientId = format!("device-{index}").parse().unwrap();
        Session::new(client, model(), Limits::default())
    };
    let sessions = (0..devices).map(session).collect();
    let world = World::new(coordinator, sessions, ToyTrainer, behaviour, &Seed::from_number(seed));
    world.run(Duration::from_secs(24 * 3600)).unwrap()
}

fn everyone(size: u32) -> CohortConfig {
    CohortConfig { size, over_selection: 1.0, quorum: size, min_population: 0 }
}

fn digest(ending: &Ending) -> Digest {
    ending.coordinator.state().adapter.digest()
}

/// The plan's ninth idea: the cohort depends on (seed, round, population) alone and sums are
/// integers, so with quorum = cohort and no deadline missed, other latencies (another order of
/// arrival) end in the same adapter, bit for bit.
#[test]
fn the_order_of_arrival_does_not_change_a_bit() {
    let run = |seed| simulate(config(everyone(6)), 6, Behaviour::default(), seed);
    let reference = run(1);
    assert!(reference.coordinator.state().end.as_ref().unwrap().completed);
    for seed in 2..12 {
        assert_eq!(digest(&run(seed)), digest(&reference), "seed {seed}");
    }
    // The same holds when a cohort is drawn from a larger population that is all connected.
    let cohort = CohortConfig { min_population: 12, ..everyone(4) };
    let run = |seed| simulate(config(cohort), 12, Behaviour::default(), seed);
    let reference = run(1);
    for seed in 2..6 {
        assert_eq!(digest(&run(seed)), digest(&reference), "seed {seed}");
    }
    assert_ne!(
        digest(&reference),
        digest(&simulate(config(everyone(6)), 6, Behaviour::default(), 1))
    );
}

#[test]
fn drop_outs_never_hang_a_run_and_are_all_accounted_for() {
    let cohort = CohortConfig { size: 5, over_selection: 1.6, quorum: 3, min_population: 0 };
    for seed in 0..40 {
        let behaviour = Behaviour {
            drop_out: (seed % 10) as f32 / 10.0,
            training_s: Distribution::Uniform([0.0, if seed % 3 == 0 { 40.0 } else { 10.0 }]),
            ..Behaviour::default()
        };
        let ending = simulate(config(cohort), 9, behaviour, seed);
        let state = ending.coordinator.state();
        let end = state.end.as_ref().unwrap();
        let committed = ending.rounds.iter().filter(|round| round.committed).count() as u64;
        assert_eq!(state.version.0, committed, "seed {seed}");
        assert_eq!(end.completed, state.version.0 == 5, "seed {seed}: {end:?}");
        for round in &ending.rounds {
            let out = round.refused.len() + round.declined.len() + round.dropped_out.len();
            assert_eq!(round.accepted.len() + out, round.selected.len(), "seed {seed}: {round:?}");
        }
        let accepted: usize = ending.rounds.iter().map(|round| round.accepted.len()).sum();
        assert_eq!(state.totals.updates_accepted, accepted as u64, "seed {seed}");
    }
}

#[test]
fn a_world_where_everyone_drops_out_fails_loudly() {
    let behaviour = Behaviour { drop_out: 1.0, ..Behaviour::default() };
    let ending = simulate(config(everyone(3)), 3, behaviour, 5);
    let end = ending.coordinator.state().end.clone().unwrap();
    assert!(!end.completed && end.message.contains("3 rounds in a row"), "{end:?}");
    assert_eq!(ending.coordinator.state().totals.drop_outs, 9);
}
