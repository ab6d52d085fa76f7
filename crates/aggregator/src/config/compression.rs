//! Which compressions a run can use.

use floret_core::payload::{Compression, Linear};
use floret_core::plan::TrainingConfig;

use super::{InvalidRun, RunConfig, setting};

impl RunConfig {
    /// A rotation spreads each change over all values, and a device's rank shows in what it changed.
    pub(super) fn validate_compression(&self) -> Result<(), InvalidRun> {
        let TrainingConfig { freeze, nested_ranks, .. } = self.training;
        let refuse = |name, compression: Compression, accepted| {
            setting(name, format!("\"{compression}\""), accepted)
        };
        let (up, down) = (self.compression, self.aggregation.download_compression);
        match (up, down) {
            (Compression::Bits(_) | Compression::Sparse(_), _) if nested_ranks => {
                let accepted = "\"none\" or \"int8\" with training.nested_ranks";
                refuse("run.compression", up, accepted)
            }
            (Compression::Bits(_), _) if !freeze.is_none() => {
                let accepted = "\"none\", \"int8\" or \"sparse…%\" with training.freeze";
                refuse("run.compression", up, accepted)
            }
            (_, Compression::Bits(_)) if !freeze.is_none() => {
                let accepted = "\"none\", \"int8\" or \"sparse…%\" with training.freeze";
                refuse("aggregation.download_compression", down, accepted)
            }
            (_, Compression::Linear(_)) => {
                let accepted = "any other: one step goes down, and nothing is added to it";
                refuse("aggregation.download_compression", down, accepted)
            }
            (Compression::Linear(linear), _) => self.validate_linear(linear),
            _ => Ok(()),
        }
    }

    /// All updates of a round are added up, and nothing else is done with them.
    fn validate_linear(&self, linear: Linear) -> Result<(), InvalidRun> {
        let TrainingConfig { freeze, nested_ranks, .. } = self.training;
        let summed = self.mode.is_synchronous() && !self.aggregation.needs_updates();
        let (name, value) = ("run.compression", format!("\"{}\"", self.compression));
        if !summed || nested_ranks || !freeze.is_none() {
            let accepted = "another with run.mode = \"buffered\", aggregation.combine, \
                            measure_residual, training.nested_ranks or training.freeze, which need \
                            more than the sum of all updates";
            return setting(name, value, accepted);
        }
        let summands = self.summands();
        if !linear.holds(summands) {
            let bits = summands.ilog2() + 1;
            let accepted = format!(
                "linear{bits} or more: a word holds the sum of the {summands} clients that \
                 cohort.size and over_selection choose"
            );
            return setting(name, value, accepted);
        }
        Ok(())
    }
}
