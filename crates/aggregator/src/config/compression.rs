//! Which compressions a run can use.

use floret_core::payload::{Compression, Linear};
use floret_core::plan::TrainingConfig;

use super::{InvalidRun, RunConfig, setting};

const OF_PARTS: &str = "\"none\", \"int8\" or \"sparse…%\" with training.freeze, training.personal_b or \
                        aggregation.fold_residual, under which a part of the adapter stays as it is";

impl RunConfig {
    /// A rotation spreads each change over all values, and a device's rank shows in what it changed.
    pub(super) fn validate_compression(&self) -> Result<(), InvalidRun> {
        let nested_ranks = self.training.nested_ranks;
        let partial = self.changes_a_part();
        let refuse = |name, compression: Compression, accepted| {
            setting(name, format!("\"{compression}\""), accepted)
        };
        let (up, down) = (self.compression, self.aggregation.download_compression);
        match (up, down) {
            (Compression::Bits(_) | Compression::Sparse(_), _) if nested_ranks => {
                let accepted = "\"none\" or \"int8\" with training.nested_ranks";
                refuse("run.compression", up, accepted)
            }
            (Compression::Bits(_), _) if partial => refuse("run.compression", up, OF_PARTS),
            (_, Compression::Bits(_)) if partial => {
                refuse("aggregation.download_compression", down, OF_PARTS)
            }
            (_, Compression::Linear(_)) => {
                let accepted = "any other: one step goes down, and nothing is added to it";
                refuse("aggregation.download_compression", down, accepted)
            }
            (Compression::Linear(linear), _) => self.validate_linear(linear),
            _ => Ok(()),
        }
    }

    /// Whether updates leave a part of the adapter as it is.
    fn changes_a_part(&self) -> bool {
        let TrainingConfig { freeze, personal_b, .. } = self.training;
        !freeze.is_none() || personal_b || self.aggregation.fold_residual > 0
    }

    /// All updates of a round are added up, and nothing else is done with them.
    fn validate_linear(&self, linear: Linear) -> Result<(), InvalidRun> {
        let nested_ranks = self.training.nested_ranks;
        let summed = self.mode.is_synchronous() && !self.aggregation.needs_updates();
        let (name, value) = ("run.compression", format!("\"{}\"", self.compression));
        if !summed || nested_ranks || self.changes_a_part() {
            let accepted = "another with run.mode = \"buffered\", a rule of [aggregation] or measure_residual, \
                            training.nested_ranks, training.freeze or training.personal_b, which need \
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
