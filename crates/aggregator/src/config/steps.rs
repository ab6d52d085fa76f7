//! What goes together with normalised steps: weights of examples, in a sum of whole updates.

use floret_core::payload::Compression;

use super::{InvalidRun, RunConfig, setting};

impl RunConfig {
    pub(super) fn validate_steps(&self) -> Result<(), InvalidRun> {
        let aggregation = &self.aggregation;
        let accepted = if !aggregation.normalize_steps {
            return Ok(());
        } else if !self.mode.is_synchronous() {
            "false with run.mode = \"buffered\", where staleness makes the weights"
        } else if aggregation.needs_updates() {
            "false with combine, mixed_ranks, fold_residual, least_squares or measure_residual of [aggregation], whose \
             weights are those of examples or none"
        } else if self.training.nested_ranks {
            "false with training.nested_ranks, where components have weights of their own"
        } else if matches!(self.compression, Compression::Linear(_)) {
            "false with a linear run.compression, whose sum has no weights"
        } else {
            return Ok(());
        };
        setting("aggregation.normalize_steps", true, accepted)
    }
}
