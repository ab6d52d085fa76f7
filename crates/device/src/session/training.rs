//! Training: the adapter is being fine-tuned on local data.

use std::sync::Arc;

use floret_core::Time;

use super::Record;
use crate::pipeline::encode_update;
use crate::residual::Residual;
use crate::trainer::{TrainError, TrainingOutcome, TrainingTask};

#[derive(Debug)]
pub(super) struct Training {
    pub(super) task: Arc<TrainingTask>,
    pub(super) deadline: Time,
}

impl Training {
    pub(super) fn trained(
        &self,
        outcome: Result<TrainingOutcome, TrainError>,
        residual: Option<&Residual>,
    ) -> Record {
        match outcome.and_then(|outcome| encode_update(&self.task, &outcome, residual)) {
            Ok(pending) => Record::Encoded(pending),
            Err(error) => {
                Record::Declined { round: self.task.plan.round, reason: error.to_string() }
            }
        }
    }
}
