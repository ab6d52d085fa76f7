//! What goes together with a factor that stays on each device.

use super::{InvalidRun, MixedRanks, RunConfig, setting};
use crate::combine::Robust;

impl RunConfig {
    pub(super) fn validate_personal(&self) -> Result<(), InvalidRun> {
        let (training, aggregation) = (&self.training, &self.aggregation);
        if !training.personal_b {
            return Ok(());
        }
        let by_coordinate = matches!(
            aggregation.combine,
            None | Some(Robust::Median {} | Robust::TrimmedMean { .. })
        );
        let on_products = !by_coordinate
            || aggregation.measure_residual
            || aggregation.least_squares
            || aggregation.fold_residual > 0;
        let accepted = if !training.freeze.is_none() {
            "false with training.freeze: both factors train"
        } else if training.nested_ranks || aggregation.mixed_ranks != MixedRanks::Nested {
            "false with training.nested_ranks, whose components are averaged in both factors"
        } else if training.alignment > 0.0 {
            "false with training.alignment, which turns both factors"
        } else if on_products {
            "false with rules of [aggregation] that look at products, or measure_residual: the server has no B"
        } else {
            return Ok(());
        };
        setting("training.personal_b", true, accepted)
    }
}
