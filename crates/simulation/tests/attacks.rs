//! Hostile clients in whole runs: what reaches the adapter is what each attack says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::combine::Robust;
use floret_aggregator::config::CohortConfig;
use floret_aggregator::{Coordinator, RunConfig, RunState};
use floret_core::payload::Compression;
use floret_core::{Layout, Seed};
use floret_device::{
    Control, Limits, Progress, Session, TrainError, Trainer, TrainingOutcome, TrainingTask,
};
use floret_simulation::{Attack, AttackKind, Behaviour, Hostile, World};
use support::model;

const DEVICES: u32 = 6;

/// The n-th device, from 1, moves every value that trains by n / 100.
struct Steady;

impl Trainer for Steady {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let number: f32 = task.client.as_str().rsplit('-').next().unwrap().parse().unwrap();
        let before = task.adapter.values();
        let mut values: Vec<f32> = before.iter().map(|x| x + 0.01 * number).collect();
        for places in task.scope.outside(task.adapter.layout()) {
            values[places.clone()].copy_from_slice(&before[places]);
        }
        Ok(TrainingOutcome { values, num_examples: 1, num_steps: 1, tokens: 1, last_loss: 0.0 })
    }
}

fn config() -> RunConfig {
    let size = DEVICES;
    let cohort =
        CohortConfig { size, over_selection: 1.0, quorum: size, min_population: 0, trusted: None };
    RunConfig { rounds: 1, compression: Compression::None, ..support::config(cohort) }
}

/// The sum of what all devices sent in the one round, where `hostile` attack, and its layout.
fn sent(
    config: RunConfig,
    max_rank: usize,
    hostile: &[u32],
    kind: AttackKind,
) -> (Vec<f64>, Arc<Layout>) {
    let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
    let first = RunState::first(&config, Arc::clone(&layout));
    let before = first.adapter.clone();
    let coordinator = Coordinator::new(config, Arc::clone(&layout), first).unwrap();
    let name = |number: u32| format!("device-{number}").parse().unwrap();
    let limits = Limits { max_rank, ..Limits::default() };
    let sessions = (1..=DEVICES).map(|number| Session::new(name(number), model(), limits.clone()));
    let attack = Attack { share: 0.3, kind };
    let members: BTreeSet<_> = hostile.iter().map(|number| name(*number)).collect();
    let seed = Seed::from_number(5);
    let trainer = Hostile::new(Steady, attack, members, DEVICES, &seed);
    let world = World::new(coordinator, sessions.collect(), trainer, Behaviour::default(), &seed);
    let ending = world.run(Duration::from_secs(3600)).unwrap();
    let state = ending.coordinator.state();
    assert_eq!(state.totals.updates_accepted, u64::from(DEVICES));
    let pairs = state.adapter.values().iter().zip(before.values());
    let sum = pairs.map(|(x, before)| f64::from(DEVICES) * (f64::from(*x) - f64::from(*before)));
    (sum.collect(), layout)
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn each_attack_adds_up_to_what_it_says() {
    // The honest four add 0.01 + 0.02 + 0.03 + 0.04; the others trained 0.05 and 0.06.
    let (_, layout) = sent(config(), 64, &[], AttackKind::LabelFlip {});
    let to_clip_norm = f64::from(config().aggregation.clip_norm) / (layout.len() as f64).sqrt();
    for (kind, hostile) in [
        (AttackKind::LabelFlip {}, 0.11),
        (AttackKind::SignFlip { scale: Some(3.0) }, -0.33),
        (AttackKind::SignFlip { scale: None }, -2.0 * to_clip_norm),
        (AttackKind::Scaling { factor: 8.0 }, 0.88),
        // A mean of 0.055 and a deviation of 0.005, twice.
        (AttackKind::LittleIsEnough { z: Some(3.0) }, 2.0 * (0.055 - 0.015)),
        // 2 of 6: z is Φ⁻¹(1/2) = 0.
        (AttackKind::LittleIsEnough { z: None }, 0.11),
    ] {
        let (sum, _) = sent(config(), 64, &[5, 6], kind);
        let want = 0.10 + hostile;
        assert!(sum.iter().all(|value| (value - want).abs() < 1e-4), "{kind:?}: {:?}", sum[0]);
    }
}

/// FLTrust: those who turn around have no weight, and the others go as far as the trusted client.
#[test]
fn who_disagrees_with_the_trusted_client_does_not_count() {
    let mut config = config();
    config.cohort.trusted = Some("device-3".parse().unwrap());
    config.aggregation.combine = Some(Robust::Fltrust {});
    let (sum, _) = sent(config, 64, &[5, 6], AttackKind::SignFlip { scale: Some(1.0) });
    let mean = sum.iter().sum::<f64>() / sum.len() as f64 / f64::from(DEVICES);
    assert!((mean - 0.03).abs() < 0.003, "{mean}");
    assert!(sum.iter().all(|value| *value > 0.0));
}

#[test]
fn noise_has_its_norm_and_stays_where_the_device_trains() {
    for (kind, want) in [
        (AttackKind::Noise { norm: Some(3.0) }, 3.0),
        (AttackKind::Noise { norm: None }, f64::from(config().aggregation.clip_norm)),
    ] {
        let (sum, _) = sent(config(), 64, &[6], kind);
        let noise: Vec<f64> = sum.iter().map(|value| value - 0.15).collect();
        assert!((norm(&noise) - want).abs() < 1e-3 * want, "{kind:?}: {}", norm(&noise));
        let mean = noise.iter().sum::<f64>() / noise.len() as f64;
        assert!(mean.abs() < 0.25 * want / (noise.len() as f64).sqrt(), "{kind:?}: {mean}");
    }
    let mut nested = config();
    nested.training.nested_ranks = true;
    let (sum, layout) = sent(nested, 1, &[6], AttackKind::Noise { norm: Some(3.0) });
    for tensor in layout.tensors() {
        let first: Vec<bool> = (0..tensor.rank()).map(|component| component == 0).collect();
        for (place, first) in tensor.range().zip(tensor.spread(&first)) {
            assert_eq!(sum[place] != 0.0, first, "{} at {place}", tensor.name);
        }
    }
}
