//! From a trained adapter to an encoded update.

use std::borrow::Cow;
use std::sync::Arc;

use floret_core::payload::Encoder;
use floret_core::seed::Purpose;
use floret_core::{ClientUpdate, Scope};

use crate::align::align;
use crate::control::Control;
use crate::own::{Own, Personal};
use crate::residual::Residual;
use crate::trainer::{TrainError, TrainingOutcome, TrainingTask};

/// An update that the server has not answered yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// The update; these very bytes are sent until the server answers.
    pub update: Arc<ClientUpdate>,
    /// What the device keeps of its own once it counts.
    pub next: Own,
}

/// Encodes what training changed: delta = after - before, and with error feedback what `residual` has. If the plan
/// asks for it, factors are turned towards those before first, and a factor that stays here has no delta. Rounding,
/// rotation and the first segment are drawn from the plan's seed.
///
/// # Errors
/// An outcome of the wrong length, without examples, with values that are not finite, or with changes
/// outside the task's scope.
pub fn encode_update(
    task: &TrainingTask,
    outcome: &TrainingOutcome,
    residual: Option<&Residual>,
) -> Result<Pending, TrainError> {
    if outcome.num_examples == 0 {
        return Err(TrainError::NoData);
    }
    let (before, after) = (task.adapter.values(), &outcome.values);
    if before.len() != after.len() {
        let (want, got) = (before.len(), after.len());
        let problem = format!("training gave {got} values where the adapter has {want}");
        return Err(TrainError::Unsupported(problem));
    }
    let (plan, layout) = (&task.plan, task.adapter.layout());
    let control = plan
        .training
        .scaffold
        .then(|| Arc::new(Control::of(plan, before, after, task.correction.as_deref())));
    let mut after = Cow::from(after);
    if plan.training.alignment > 0.0 && after.iter().all(|value| value.is_finite()) {
        align(layout, plan.version, plan.training.alignment, before, after.to_mut());
    }
    let mut delta: Vec<f32> =
        after.iter().zip(before).map(|(after, before)| after - before).collect();
    if !task.scope.holds(layout, &delta) {
        let problem = "training changed values that the plan leaves as they are".to_owned();
        return Err(TrainError::Unsupported(problem));
    }
    let sent = Scope { frozen: plan.training.unsent(plan.version), ..task.scope };
    let held = sent.outside(layout);
    let personal = plan.training.personal_b.then(|| Arc::new(Personal::of(plan, layout, &after)));
    // Training that diverged must still be seen.
    if personal.is_some() && delta.iter().all(|value| value.is_finite()) {
        held.iter().for_each(|places| delta[places.clone()].fill(0.0));
    }
    let mut rng = plan.seed.derive(Purpose::Rounding, plan.round, Some(&task.client)).stream();
    let encoder = Encoder::new(plan.compression, layout).leading_to(&after).shared(plan.shared());
    let encoded = if plan.error_feedback > 0.0 {
        Residual::encode(encoder, residual, plan, layout, &held, delta, &mut rng)
            .map(|(payload, residual)| (payload, Some(Arc::new(residual))))
    } else {
        encoder.encode(&delta, &mut rng).map(|payload| (payload, None))
    };
    let (payload, residual) =
        encoded.map_err(|error| TrainError::Unsupported(error.to_string()))?;
    let (run, round) = (plan.run.clone(), plan.round);
    let TrainingOutcome { num_examples, num_steps, .. } = *outcome;
    let update = Arc::new(ClientUpdate { run, round, num_examples, num_steps, payload });
    Ok(Pending { update, next: Own { residual, personal, control } })
}
