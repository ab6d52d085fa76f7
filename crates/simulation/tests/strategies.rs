//! Strategies in whole runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::config::{CohortConfig, MixedRanks};
use floret_aggregator::{Coordinator, RunConfig, RunState};
use floret_core::payload::Compression;
use floret_core::scope::Freeze;
use floret_core::{Layout, Seed};
use floret_device::{
    Control, Limits, Progress, Session, TrainError, Trainer, TrainingOutcome, TrainingTask,
};
use floret_simulation::{Behaviour, Ending, ToyTrainer, World};
use support::model;

const DEVICES: u32 = 6;

fn everyone() -> RunConfig {
    let size = DEVICES;
    support::config(CohortConfig {
        size,
        over_selection: 1.0,
        quorum: size,
        min_population: 0,
        trusted: None,
    })
}

/// A world of devices whose ranks are those of `max_ranks`, in turn.
fn world<T: Trainer>(
    config: RunConfig,
    (trainer, behaviour): (T, Behaviour),
    max_ranks: &[usize],
    seed: u64,
) -> World<T> {
    let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
    let state = RunState::first(&config, Arc::clone(&layout));
    let coordinator = Coordinator::new(config, layout, state).unwrap();
    let session = |(index, max_rank): (u32, &usize)| {
        let limits = Limits { max_rank: *max_rank, ..Limits::default() };
        Session::new(format!("device-{index}").parse().unwrap(), model(), limits)
    };
    let sessions = (0..DEVICES).zip(max_ranks.iter().cycle()).map(session).collect();
    let seed = Seed::from_number(seed);
    World::new(coordinator, sessions, trainer, behaviour, &seed)
}

/// The end of a run of devices that train as toys do.
fn simulate(config: RunConfig, max_ranks: &[usize], seed: u64) -> Ending {
    ending(world(config, (ToyTrainer, Behaviour::default()), max_ranks, seed))
}

/// The end of a run of devices that train as `trainer` says.
fn simulate_with<T: Trainer>(config: RunConfig, trainer: T) -> Ending {
    ending(world(config, (trainer, Behaviour::default()), &[2], 1))
}

fn ending<T: Trainer>(world: World<T>) -> Ending {
    let ending = world.run(Duration::from_secs(24 * 3600)).unwrap();
    assert!(ending.coordinator.state().end.as_ref().unwrap().completed);
    ending
}

#[test]
fn devices_of_lower_rank_train_their_components_and_the_order_changes_no_bit() {
    let mut config = everyone();
    config.training.nested_ranks = true;
    let values = |max_ranks: &[usize], seed| {
        let ending = simulate(config.clone(), max_ranks, seed);
        let updates = ending.coordinator.state().totals.updates_accepted;
        assert_eq!(updates, u64::from(DEVICES * config.rounds));
        ending.coordinator.state().adapter.values().to_vec()
    };
    let mixed = values(&[1, 2], 1);
    for seed in 2..6 {
        assert_eq!(values(&[1, 2], seed), mixed, "seed {seed}");
    }
    // Nobody trains what lies beyond the rank of all; equal ranks beyond the run's are the run's.
    let layout = Layout::new(&model().config, &config.lora).unwrap();
    let first = RunState::first(&config, Arc::new(layout.clone())).adapter;
    let low = values(&[1], 1);
    for tensor in layout.tensors() {
        let trained: Vec<bool> = (0..tensor.rank()).map(|component| component == 0).collect();
        for (place, trained) in tensor.range().zip(tensor.spread(&trained)) {
            let moved = low[place] != first.values()[place];
            assert_eq!(moved, trained, "{} at {place}", tensor.name);
        }
    }
    assert_eq!(values(&[2, 64], 1), values(&[2], 1));
    assert_ne!(mixed, values(&[2], 1));
}

#[test]
fn a_frozen_factor_leaves_no_residual() {
    for freeze in [Freeze::None, Freeze::A, Freeze::Alternate] {
        let mut config = everyone();
        config.training.freeze = freeze;
        config.aggregation.measure_residual = true;
        let ending = simulate(config, &[2], 1);
        for round in &ending.rounds {
            let residual = round.residual.unwrap();
            match freeze {
                Freeze::None => assert!(residual.relative > 1e-3, "{residual:?}"),
                // The sum is rounded to its grid.
                Freeze::A | Freeze::Alternate => {
                    assert!(residual.relative < 1e-6, "{freeze:?}: {residual:?}");
                }
            }
        }
    }
}

/// FedEx: what the mean of factors leaves out is folded into components that no device trains, and then nothing is
/// left out; the mean with a B that makes up for it leaves less out than without.
#[test]
fn what_the_mean_leaves_out_can_be_made_up_for() {
    let run = |change: fn(&mut RunConfig)| {
        let mut config = everyone();
        config.aggregation.measure_residual = true;
        change(&mut config);
        simulate(config, &[64], 1)
    };
    let largest = |ending: &Ending| {
        let residuals = ending.rounds.iter().map(|round| round.residual.unwrap().relative);
        residuals.fold(0.0, f64::max)
    };
    let mean = largest(&run(|_| ()));
    let corrected = largest(&run(|config| config.aggregation.least_squares = true));
    assert!(corrected < mean, "{corrected} of {mean}");
    let folded = run(|config| {
        config.lora.rank += 16;
        config.aggregation.fold_residual = 16;
    });
    assert!(largest(&folded) < 1e-5, "{} of {mean}", largest(&folded));
    let after = &folded.coordinator.state().adapter;
    let [_, b] = after.layout().pairs().next().unwrap();
    let last = after.values()[b.range()].iter().skip(b.rank() - 16).step_by(b.rank());
    assert!(last.map(|value| value.abs()).fold(0.0, f32::max) > 0.0);
}

/// Stacks lose less of the mean of products than nested ranks do, and no device is of another opinion on what is global.
#[test]
fn mixed_ranks_make_one_adapter_in_each_way() {
    let run = |mixed_ranks| {
        let mut config = everyone();
        config.training.nested_ranks = true;
        config.aggregation.measure_residual = true;
        config.aggregation.mixed_ranks = mixed_ranks;
        simulate(config, &[1, 2], 1)
    };
    let first = |ending: &Ending| ending.rounds[0].residual.unwrap().relative;
    let [nested, stacked, padded, hetlora] =
        [MixedRanks::Nested, MixedRanks::Stacked, MixedRanks::ZeroPadding, MixedRanks::Hetlora]
            .map(run);
    assert!(first(&stacked) < first(&nested), "{} of {}", first(&stacked), first(&nested));
    assert!(first(&padded) > first(&nested) && first(&hetlora) > first(&nested));
}

/// The n-th device, from 0, does n + 1 steps, each of which moves every value that trains towards a goal of its own.
struct Unequal;

impl Trainer for Unequal {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let number: u32 = task.client.as_str().rsplit('-').next().unwrap().parse().unwrap();
        let (num_steps, way) = (number + 1, if number == 5 { 1.0 } else { -1.0 });
        let step = 0.001 * way * num_steps as f32;
        let values = task.adapter.values().iter().map(|value| value + step).collect();
        Ok(TrainingOutcome { values, num_examples: 600, num_steps, tokens: 1, last_loss: 0.0 })
    }
}

/// FedNova: five devices pull one way in 1 to 5 steps, one the other way in 6. For the mean that is -9 of 15 steps; where
/// each step counts, five of six devices have their way, at the mean length of 3.5 steps.
#[test]
fn who_does_more_steps_does_not_count_for_more() {
    let moved = |normalize_steps| {
        let mut config = everyone();
        config.rounds = 1;
        config.compression = Compression::None;
        config.aggregation.normalize_steps = normalize_steps;
        let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
        let before = RunState::first(&config, layout).adapter.values()[0];
        let ending = simulate_with(config, Unequal);
        let state = ending.coordinator.state();
        assert_eq!(state.totals.steps, 21);
        f64::from(state.adapter.values()[0] - before)
    };
    let (plain, normalized) = (moved(false), moved(true));
    assert!((plain + 0.001 * 9.0 / 6.0).abs() < 1e-6, "{plain}");
    assert!((normalized + 0.001 * 3.5 * 4.0 / 6.0).abs() < 1e-4, "{normalized}");
}

/// SGD on h / 2 (x - o)² for each value x, ten steps at a rate of 0.1: h = 1 and o = 0 on even devices, h = 4 and o = 1 on odd
/// ones.
struct Bowls;

impl Trainer for Bowls {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let number: u32 = task.client.as_str().rsplit('-').next().unwrap().parse().unwrap();
        let (slope, goal) = if number.is_multiple_of(2) { (1.0, 0.0) } else { (4.0, 1.0) };
        let mut values = task.adapter.values().to_vec();
        for _ in 0..10 {
            for (place, value) in values.iter_mut().enumerate() {
                let correction = task.correction.as_ref().map_or(0.0, |of| of[place]);
                *value -= 0.1 * slope * (*value - goal) - correction / 10.0;
            }
        }
        Ok(TrainingOutcome { values, num_examples: 1, num_steps: 10, tokens: 1, last_loss: 0.0 })
    }
}

/// All losses together are least at 0.8. Devices that do many steps go most of the way to their own least, and the mean
/// of those is elsewhere; with control variates it is right. Drop-outs make it slower, not wrong.
#[test]
fn control_variates_lead_to_the_least_of_all_losses() {
    let end = |scaffold, drop_out| {
        let mut config = everyone();
        config.rounds = 60;
        config.cohort.quorum = 4;
        config.compression = Compression::None;
        config.aggregation.clip_norm = 1000.0;
        config.training.scaffold = scaffold;
        let behaviour = Behaviour { drop_out, ..Behaviour::default() };
        let ending = ending(world(config, (Bowls, behaviour), &[2], 3));
        let values = ending.coordinator.state().adapter.values().to_vec();
        let spread = values.iter().map(|value| (value - values[0]).abs()).fold(0.0, f32::max);
        assert!(spread < 1e-3, "{spread}");
        f64::from(values[0])
    };
    // (1 - 0.6^10) / (2 - 0.9^10 - 0.6^10).
    let mean = end(false, 0.0);
    assert!((mean - 0.604).abs() < 1e-3, "{mean}");
    let right = end(true, 0.0);
    assert!((right - 0.8).abs() < 1e-3, "{right}");
    let late = end(true, 0.05);
    assert!((late - 0.8).abs() < 0.05, "{late}");
}

/// FedSA: A moves and is everybody's, B moves and is each device's own, and the server's B stays as it began; small
/// uploads and downloads are of A alone.
#[test]
fn a_personal_factor_never_reaches_the_server() {
    for (compression, download) in [("none", "none"), ("sparse5%", "int8")] {
        let mut config = everyone();
        config.compression = compression.parse().unwrap();
        config.aggregation.download_compression = download.parse().unwrap();
        config.training.personal_b = true;
        let first =
            RunState::first(&config, Arc::new(Layout::new(&model().config, &config.lora).unwrap()));
        let mut world = world(config, (ToyTrainer, Behaviour::default()), &[2], 1);
        while world.next_round(Duration::from_secs(24 * 3600)).unwrap().is_some() {}
        let after = &world.coordinator().state().adapter;
        for [a, b] in after.layout().pairs() {
            assert_ne!(after.values()[a.range()], first.adapter.values()[a.range()]);
            assert!(after.values()[b.range()].iter().all(|value| *value == 0.0));
        }
        let own = |index| world.personalised(index, after);
        for index in 0..DEVICES as usize {
            for [a, b] in after.layout().pairs() {
                let of = own(index);
                assert_eq!(of.values()[a.range()], after.values()[a.range()]);
                assert!(of.values()[b.range()].iter().any(|value| *value != 0.0));
            }
        }
        assert_ne!(own(0).digest(), own(1).digest());
    }
}

/// Each device turns its factors by an angle of its own, which changes nothing of what they stand for.
struct Turned;

impl Trainer for Turned {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let number: f32 = task.client.as_str().rsplit('-').next().unwrap().parse().unwrap();
        let (sin, cos) = (0.2 * (number - 2.5)).sin_cos();
        let mut values = task.adapter.values().to_vec();
        for [a, b] in task.adapter.layout().pairs() {
            let inputs = a.shape[1];
            let (first, second) = values[a.range()].split_at_mut(inputs);
            for (x, y) in first.iter_mut().zip(second) {
                (*x, *y) = (cos * *x + sin * *y, cos * *y - sin * *x);
            }
            for row in values[b.range()].chunks_exact_mut(2) {
                // Something to turn.
                let [x, y] = [row[0] + 0.1, row[1] - 0.1];
                (row[0], row[1]) = (cos * x + sin * y, cos * y - sin * x);
            }
        }
        Ok(TrainingOutcome { values, num_examples: 1, num_steps: 1, tokens: 1, last_loss: 0.0 })
    }
}

#[test]
fn factors_that_are_turned_back_can_be_averaged() {
    let residual = |alignment| {
        let mut config = everyone();
        config.rounds = 1;
        config.compression = Compression::None;
        config.training.alignment = alignment;
        config.aggregation.measure_residual = true;
        simulate_with(config, Turned).rounds[0].residual.unwrap().relative
    };
    let [none, half, all] = [0.0, 0.5, 1.0].map(residual);
    assert!(none > 0.05 && half < 0.5 * none && all < 1e-3, "{none}, {half}, {all}");
}

/// FedSVD: B alone is sent, and A's rows are orthonormal after each version.
#[test]
fn where_factors_are_replaced_nobody_sends_a_and_it_moves() {
    let mut config = everyone();
    config.training.freeze = Freeze::A;
    let plain = simulate(config.clone(), &[2], 1);
    config.aggregation.refactor = true;
    let first = RunState::first(&config, plain.coordinator.layout().clone()).adapter;
    let ending = simulate(config, &[2], 1);
    let after = &ending.coordinator.state().adapter;
    for [a, _] in after.layout().pairs() {
        let (rows, before) = (&after.values()[a.range()], &first.values()[a.range()]);
        assert_ne!(rows, before);
        assert_eq!(&plain.coordinator.state().adapter.values()[a.range()], before);
        let row = |at: usize| rows.chunks_exact(a.shape[1]).nth(at).unwrap();
        for (x, y) in [(0, 0), (1, 1), (0, 1)] {
            let dot: f32 = row(x).iter().zip(row(y)).map(|(x, y)| x * y).sum();
            let want = if x == y { 1.0 } else { 0.0 };
            assert!((dot - want).abs() < 1e-5, "rows {x} and {y} of {}: {dot}", a.name);
        }
    }
}
