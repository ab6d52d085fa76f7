//! A trainer that costs next to nothing, so that the load is the protocol's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use floret_core::seed::{Purpose, uniform_f32};
use floret_core::{ClientId, ClientUpdate, Round, Seed};
use floret_device::pipeline::encode_update;
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
use rand_chacha::rand_core::Rng;

use super::mishap::{Fault, Mishaps};

/// Updates that their devices will send once more.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<HashMap<ClientId, ClientUpdate>>>);

impl Kept {
    fn put(&self, client: &ClientId, update: ClientUpdate) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(client.clone(), update);
    }

    /// What is kept for `client` from `round`.
    pub(super) fn take(&self, client: &ClientId, round: Round) -> Option<ClientUpdate> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(client).filter(|update| update.round == round)
    }
}

/// Adds noise that was drawn once, turned by the plan's seed.
#[derive(Debug)]
pub(super) struct NoiseTrainer {
    /// As many values as the adapter has.
    noise: Vec<f32>,
    mishaps: Mishaps,
    kept: Kept,
}

impl NoiseTrainer {
    pub(super) fn new(values: usize, seed: &Seed, mishaps: Mishaps, kept: Kept) -> Self {
        let mut rng = seed.derive(Purpose::Shuffle, Round(0), None).stream();
        let noise = (0..values).map(|_| 0.02 * (uniform_f32(rng.next_u32()) - 0.5)).collect();
        Self { noise, mishaps, kept }
    }

    fn outcome(&self, task: &TrainingTask) -> TrainingOutcome {
        let word = u32::from_le_bytes([0, 1, 2, 3].map(|at| task.plan.seed.0[at]));
        let (end, start) = self.noise.split_at(word as usize % self.noise.len().max(1));
        let values = task.adapter.values().iter().zip(start.iter().chain(end));
        TrainingOutcome {
            values: values.map(|(value, noise)| value + noise).collect(),
            num_examples: 1 + word % 20,
            num_steps: task.plan.training.max_steps,
            tokens: 1,
            last_loss: 0.0,
        }
    }
}

impl Trainer for NoiseTrainer {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let outcome = self.outcome(task);
        let fate = self.mishaps.fate(task.plan.round, &task.client);
        if fate.fault == Some(Fault::Repeat) {
            let pending = encode_update(task, &outcome, None)?;
            self.kept.put(&task.client, Arc::unwrap_or_clone(pending.update));
        }
        Ok(outcome)
    }
}
