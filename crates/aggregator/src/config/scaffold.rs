//! What goes together with control variates, which devices take from the steps of the adapter.

use floret_core::scope::Freeze;

use super::{InvalidRun, RunConfig, setting};

impl RunConfig {
    pub(super) fn validate_scaffold(&self) -> Result<(), InvalidRun> {
        let (training, aggregation) = (&self.training, &self.aggregation);
        let plain = aggregation.server_optimizer.is_plain();
        let accepted = if !training.scaffold {
            return Ok(());
        } else if !self.mode.is_synchronous() {
            "false with run.mode = \"buffered\", where devices begin with different versions"
        } else if aggregation.rule().is_some() || aggregation.refactor || !plain {
            "false with another rule of [aggregation] than the weighted mean, or a server optimizer with a learning rate \
             other than 1, momentum or an adaptive rule: devices take the adapter's step for the mean of their changes"
        } else if training.freeze == Freeze::Alternate || training.nested_ranks {
            "false with training.freeze = \"alternate\" or nested_ranks, where not all changes can be compared"
        } else if training.personal_b || training.alignment > 0.0 {
            "false with training.personal_b or alignment, where what a device sends is not what it changed"
        } else if training.max_epochs > 0 {
            "false with training.max_epochs: changes of unequal numbers of steps cannot be compared"
        } else if training.final_learning_rate != 0.0 {
            "false with training.final_learning_rate: changes of unequal rates cannot be compared"
        } else {
            return Ok(());
        };
        setting("training.scaffold", true, accepted)
    }
}
