//! What goes together with other factors for each version.

use floret_core::scope::Freeze;

use super::{InvalidRun, RunConfig, setting};

impl RunConfig {
    /// After a version's factors are replaced, nothing that was left for later has a meaning.
    pub(super) fn validate_refactor(&self) -> Result<(), InvalidRun> {
        let aggregation = &self.aggregation;
        if !aggregation.refactor {
            return Ok(());
        }
        let optimizer = aggregation.server_optimizer;
        let remembers = optimizer.momentum > 0.0 || optimizer.adaptive.is_some();
        let accepted = if self.training.freeze != Freeze::A {
            "false, or training.freeze = \"a\": B alone may train"
        } else if !self.mode.is_synchronous() {
            "false with run.mode = \"buffered\", whose updates began with other factors"
        } else if remembers {
            "false with a momentum or an adaptive rule of the server optimizer, which remember earlier \
             factors"
        } else if self.feedback() > 0.0 {
            "false, or run.error_feedback = 0: what an update left out belongs to earlier factors"
        } else if !aggregation.download_compression.is_none() {
            "false, or aggregation.download_compression = \"none\": all of the adapter changes"
        } else {
            return Ok(());
        };
        setting("aggregation.refactor", true, accepted)
    }
}
