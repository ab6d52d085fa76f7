//! A trainer that needs no model, for runs in which the protocol is what is looked at.

use floret_core::seed::{Purpose, uniform_f32};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
use rand_chacha::rand_core::Rng;

/// A trainer whose outcome depends on the client, the round and the adapter, as training does, and
/// on nothing else.
#[derive(Debug, Clone, Copy)]
pub struct ToyTrainer;

impl Trainer for ToyTrainer {
    fn train(
        &mut self,
        task: &TrainingTask,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        Ok(train(task))
    }
}

fn train(task: &TrainingTask) -> TrainingOutcome {
    let plan = &task.plan;
    let mut stream = plan.seed.derive(Purpose::Shuffle, plan.round, Some(&task.client)).stream();
    let before = task.adapter.values();
    let mut values: Vec<f32> =
        before.iter().map(|x| 0.9 * x + 0.1 * uniform_f32(stream.next_u32())).collect();
    for places in task.scope.outside(task.adapter.layout()) {
        values[places.clone()].copy_from_slice(&before[places]);
    }
    let num_examples = 1 + stream.next_u32() % 20;
    TrainingOutcome {
        values,
        num_examples,
        num_steps: plan.training.max_steps,
        tokens: 1,
        last_loss: 0.0,
    }
}
