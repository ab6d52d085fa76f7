//! Properties of whole runs, over seeds that are printed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::config::{BufferedConfig, CohortConfig, Mode};
use floret_aggregator::{Coordinator, RunConfig, RunState};
use floret_core::seed::{Purpose, uniform_f32};
use floret_core::{ClientId, Digest, Layout, Round, Seed};
use floret_device::{
    Control, Limits, Progress, Session, TrainError, Trainer, TrainingOutcome, TrainingTask,
};
use floret_simulation::{Behaviour, Distribution, Ending, ToyTrainer, World};
use rand_chacha::rand_core::Rng;
use support::{config, model};

fn simulate(config: RunConfig, devices: usize, behaviour: Behaviour, seed: u64) -> Ending {
    simulate_with(ToyTrainer, config, devices, behaviour, seed)
}

fn simulate_with(
    trainer: impl Trainer,
    config: RunConfig,
    devices: usize,
    behaviour: Behaviour,
    seed: u64,
) -> Ending {
    let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
    let state = RunState::first(&config, Arc::clone(&layout));
    let coordinator = Coordinator::new(config, layout, state).unwrap();
    let session = |index| {
        let client: ClientId = format!("device-{index}").parse().unwrap();
        Session::new(client, model(), Limits::default())
    };
    let sessions = (0..devices).map(session).collect();
    let world = World::new(coordinator, sessions, trainer, behaviour, &Seed::from_number(seed));
    world.run(Duration::from_secs(24 * 3600)).unwrap()
}

fn everyone(size: u32) -> CohortConfig {
    CohortConfig { size, over_selection: 1.0, quorum: size, min_population: 0, trusted: None }
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
    let run = |seed| simulate(config(cohort.clone()), 12, Behaviour::default(), seed);
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
    let cohort =
        CohortConfig { size: 5, over_selection: 1.6, quorum: 3, min_population: 0, trusted: None };
    for seed in 0..40 {
        let behaviour = Behaviour {
            drop_out: (seed % 10) as f32 / 10.0,
            training_s: Distribution::Uniform([0.0, if seed % 3 == 0 { 40.0 } else { 10.0 }]),
            ..Behaviour::default()
        };
        let ending = simulate(config(cohort.clone()), 9, behaviour, seed);
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

/// Goes a fiftieth of the way to a target of the client's own in each round.
struct Homing;

impl Homing {
    fn target(client: &ClientId, len: usize) -> Vec<f32> {
        let seed = Seed::from_number(3).derive(Purpose::Shuffle, Round(0), Some(client));
        let mut stream = seed.stream();
        (0..len).map(|_| uniform_f32(stream.next_u32()) - 0.5).collect()
    }
}

impl Trainer for Homing {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let values = task.adapter.values();
        let target = Self::target(&task.client, values.len());
        let values = values.iter().zip(target).map(|(x, target)| x + 0.02 * (target - x)).collect();
        Ok(TrainingOutcome { values, num_examples: 1, num_steps: 1, tokens: 1, last_loss: 0.0 })
    }
}

/// Squared distance of the last adapter from the mean of all targets, relative to the targets' own.
fn distance_from_the_mean_target(compression: &str, error_feedback: f32, mode: Mode) -> f64 {
    let devices = 8;
    let compression = compression.parse().unwrap();
    let rounds = 400;
    let config =
        RunConfig { compression, error_feedback, mode, rounds, ..config(everyone(devices)) };
    let ending = simulate_with(Homing, config, devices as usize, Behaviour::default(), 1);
    let state = ending.coordinator.state();
    assert!(state.end.as_ref().unwrap().completed);
    let values = state.adapter.values();
    let mut mean = vec![0.0; values.len()];
    for index in 0..devices {
        let client = format!("device-{index}").parse().unwrap();
        let target = Homing::target(&client, values.len());
        mean.iter_mut()
            .zip(target)
            .for_each(|(mean, x)| *mean += f64::from(x) / f64::from(devices));
    }
    let square = |x: f64| x * x;
    let energy: f64 = mean.iter().map(|x| square(*x)).sum();
    mean.iter().zip(values).map(|(x, y)| square(x - f64::from(*y))).sum::<f64>() / energy
}

/// Devices pull in different directions: what is left out of an update again and again must come at last.
#[test]
fn error_feedback_brings_a_run_to_where_uncompressed_deltas_do() {
    let distance = distance_from_the_mean_target;
    let uncompressed = distance("none", 0.0, Mode::Synchronous);
    println!("none: {uncompressed}");
    assert!(uncompressed < 1e-6);
    for compression in ["bits1/2", "bits1/4", "sparse20%"] {
        let with = distance(compression, 0.95, Mode::Synchronous);
        let without = distance(compression, 0.0, Mode::Synchronous);
        println!("{compression}: {with} with error feedback, {without} without");
        assert!(with < 0.05 && with < without / 2.0, "{compression}: {with} where {without}");
    }
}

/// Versions that pass while a device is at work make its residual older; it still helps.
#[test]
fn error_feedback_helps_in_buffered_rounds() {
    let mode = Mode::Buffered(BufferedConfig { buffer: 4, max_staleness: 20, concurrency: 8 });
    let with = distance_from_the_mean_target("bits1/2", 0.95, mode);
    let without = distance_from_the_mean_target("bits1/2", 0.0, mode);
    println!("{with} with error feedback, {without} without");
    assert!(with < 0.05 && with < without / 2.0, "{with} where {without}");
}
