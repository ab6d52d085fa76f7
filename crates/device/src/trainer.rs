//! The seam between a round and whatever trains: Burn on a device, a stand-in in tests.

use std::fmt;
use std::sync::Arc;

use floret_core::{Adapter, ClientId, Plan, Scope};

/// One client's training in one round.
#[derive(Clone)]
pub struct TrainingTask {
    /// Whose data to train on.
    pub client: ClientId,
    /// What to do.
    pub plan: Plan,
    /// The adapter to start from.
    pub adapter: Adapter,
    /// What of it trains; the rest stays as it is.
    pub scope: Scope,
    /// What is added to its values over the whole of training, in equal parts behind each step, in layout order: see
    /// [`crate::control`]. Zero where nothing trains.
    pub correction: Option<Arc<[f32]>>,
}

/// A correction tells what the device changed before, which stays there.
impl fmt::Debug for TrainingTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, plan, adapter, scope, correction } = self;
        f.debug_struct("TrainingTask")
            .field("client", client)
            .field("plan", plan)
            .field("adapter", adapter)
            .field("scope", scope)
            .field("corrected", &correction.is_some())
            .finish()
    }
}

/// What training gave.
#[derive(Clone, PartialEq)]
pub struct TrainingOutcome {
    /// The adapter's values after training, in layout order.
    pub values: Vec<f32>,
    /// Training examples that the client holds; at least 1.
    pub num_examples: u32,
    /// Optimizer steps done.
    pub num_steps: u32,
    /// Tokens that carried loss, over all steps.
    pub tokens: u64,
    /// Mean loss per token of the last step, in nats. It stays on the device.
    pub last_loss: f64,
}

/// What training changed stays on the device: sizes only.
impl fmt::Debug for TrainingOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrainingOutcome({} values)", self.values.len())
    }
}

/// How far a task has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Index of the task within the call; 0 where there is one.
    pub task: usize,
    /// Optimizer steps done.
    pub step: u32,
    /// Optimizer steps in all.
    pub steps: u32,
    /// Mean loss per token of this step, in nats.
    pub loss: f64,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop soon, with [`TrainError::Cancelled`].
    Cancel,
}

/// Training that gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// The progress callback asked for it.
    #[error("training was cancelled")]
    Cancelled,
    /// The client has no example to train on.
    #[error("there is no training example on this device")]
    NoData,
    /// The loss or an adapter value stopped being finite.
    #[error("training diverged at step {step}: the loss is not finite")]
    Diverged {
        /// The optimizer step.
        step: u32,
    },
    /// The plan asks for what this model cannot do.
    #[error("{0}")]
    Unsupported(String),
}

/// Trains clients: a device passes one at a time, a simulation as many as there is use for.
///
/// Every task starts with a fresh client optimizer, and the result of a task does not depend on
/// the others in the call.
pub trait Trainer {
    /// Trains one task, reporting each step to `progress`, which can cancel.
    ///
    /// # Errors
    /// Training that gave nothing.
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError>;

    /// Trains each task, reporting each step to `progress`, which can cancel all that are left: a
    /// result for each, in their order.
    fn train_all(
        &mut self,
        tasks: &[TrainingTask],
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let mut train = |(index, task): (usize, &TrainingTask)| {
            self.train(task, &mut |step| progress(Progress { task: index, ..step }))
        };
        tasks.iter().enumerate().map(&mut train).collect()
    }

    /// Optimizer steps that `task` will do, known before it trains; the most that its plan permits where
    /// its client's data is not at hand.
    fn steps(&self, task: &TrainingTask) -> u32 {
        task.plan.training.max_steps
    }

    /// How many tasks like `task` [`Trainer::train_all`] has use for at once.
    fn at_once(&self, _task: &TrainingTask) -> usize {
        1
    }
}
