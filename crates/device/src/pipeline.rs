//! From a trained adapter to an encoded update.

use floret_core::seed::Purpose;
use floret_core::{ClientUpdate, Payload};

use crate::trainer::{TrainError, TrainingOutcome, TrainingTask};

/// Encodes what training changed: delta = after - before, rounded by draws from the plan's seed.
///
/// # Errors
/// An outcome of the wrong length, without examples, with values that are not finite, or with changes
/// outside the task's scope.
pub fn encode_update(
    task: &TrainingTask,
    outcome: &TrainingOutcome,
) -> Result<ClientUpdate, TrainError> {
    if outcome.num_examples == 0 {
        return Err(TrainError::NoData);
    }
    let (before, after) = (task.adapter.values(), &outcome.values);
    if before.len() != after.len() {
        let (want, got) = (before.len(), after.len());
        let problem = format!("training gave {got} values where the adapter has {want}");
        return Err(TrainError::Unsupported(problem));
    }
    let delta: Vec<f32> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    if !task.scope.holds(task.adapter.layout(), &delta) {
        let problem = "training changed values that the plan leaves as they are".to_owned();
        return Err(TrainError::Unsupported(problem));
    }
    let plan = &task.plan;
    let mut rng = plan.seed.derive(Purpose::Rounding, plan.round, Some(&task.client)).stream();
    let payload = Payload::encode(plan.compression, task.adapter.layout(), &delta, &mut rng)
        .map_err(|error| TrainError::Unsupported(error.to_string()))?;
    let run = plan.run.clone();
    Ok(ClientUpdate { run, round: plan.round, num_examples: outcome.num_examples, payload })
}
