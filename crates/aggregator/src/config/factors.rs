//! What goes together with rules that look at factors as factors: mixed ranks, and what makes up for the mean of factors.

use floret_core::scope::Freeze;
use serde::{Deserialize, Serialize};

use super::{InvalidRun, RunConfig, setting};

/// How clients of mixed ranks make one adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixedRanks {
    /// Each rank component is the mean over those that trained it.
    #[default]
    Nested,
    /// A component counts as zero for those that did not train it: a baseline.
    ZeroPadding,
    /// [`crate::combine::hetlora`]: another.
    Hetlora,
    /// [`crate::combine::stacked`]: the mean of products instead of factors, cut to the run's rank.
    Stacked,
}

impl RunConfig {
    pub(super) fn validate_factors(&self) -> Result<(), InvalidRun> {
        self.validate_mixed_ranks()?;
        self.validate_refactor()?;
        self.validate_fold()?;
        self.validate_least_squares()?;
        self.validate_alignment()
    }

    fn validate_mixed_ranks(&self) -> Result<(), InvalidRun> {
        let aggregation = &self.aggregation;
        let makes_up = aggregation.fold_residual > 0 || aggregation.least_squares;
        let alone = self.mode.is_synchronous() && aggregation.combine.is_none() && !makes_up;
        if self.training.nested_ranks && !alone {
            let accepted = "false with run.mode = \"buffered\", or with combine, fold_residual or \
                            least_squares of [aggregation], which take every update as one of the full rank";
            return setting("training.nested_ranks", true, accepted);
        }
        let name = match aggregation.mixed_ranks {
            MixedRanks::Nested => return Ok(()),
            MixedRanks::ZeroPadding => "\"zero_padding\"",
            MixedRanks::Hetlora => "\"hetlora\"",
            MixedRanks::Stacked => "\"stacked\"",
        };
        if !self.training.nested_ranks {
            let accepted =
                "\"nested\" without training.nested_ranks: everyone trains all components";
            return setting("aggregation.mixed_ranks", name, accepted);
        }
        if aggregation.mixed_ranks != MixedRanks::Stacked {
            return Ok(());
        }
        if aggregation.server_optimizer.learning_rate != 1.0 {
            let accepted = "another with a server optimizer whose learning_rate is not 1: factors of two versions do not mix";
            return setting("aggregation.mixed_ranks", name, accepted);
        }
        match self.why_factors_cannot_change() {
            None if self.training.freeze.is_none() => Ok(()),
            None => setting("aggregation.mixed_ranks", name, "another with training.freeze"),
            Some(reason) => setting("aggregation.mixed_ranks", name, format!("another {reason}")),
        }
    }

    fn validate_refactor(&self) -> Result<(), InvalidRun> {
        if !self.aggregation.refactor {
            return Ok(());
        }
        if self.training.freeze != Freeze::A {
            let accepted = "false, or training.freeze = \"a\": B alone may train";
            return setting("aggregation.refactor", true, accepted);
        }
        if self.aggregation.fold_residual > 0 {
            let accepted = "false with fold_residual: where A is frozen there is nothing to fold";
            return setting("aggregation.refactor", true, accepted);
        }
        match self.why_factors_cannot_change() {
            None => Ok(()),
            Some(reason) => setting("aggregation.refactor", true, format!("false {reason}")),
        }
    }

    /// After a version's factors are replaced, nothing that was left for later has a meaning.
    fn why_factors_cannot_change(&self) -> Option<&'static str> {
        if !self.mode.is_synchronous() {
            Some("with run.mode = \"buffered\", whose updates began with other factors")
        } else if self.aggregation.server_optimizer.remembers() {
            Some(
                "with a momentum or an adaptive rule of the server optimizer, which remember earlier \
                 factors",
            )
        } else if self.feedback() > 0.0 {
            Some(
                "unless run.error_feedback = 0: what an update left out belongs to earlier factors",
            )
        } else if !self.aggregation.download_compression.is_none() {
            Some("unless aggregation.download_compression = \"none\": all of the adapter changes")
        } else {
            None
        }
    }

    /// What is folded belongs to the mean of factors, and to nothing that is made of it.
    fn validate_fold(&self) -> Result<(), InvalidRun> {
        let aggregation = &self.aggregation;
        let (folded, rank) = (aggregation.fold_residual, self.lora.rank);
        if folded == 0 {
            return Ok(());
        }
        let accepted = if folded >= rank {
            return setting(
                "aggregation.fold_residual",
                folded,
                format!("0 to {}: of lora.rank = {rank} components some must train", rank - 1),
            );
        } else if !self.training.freeze.is_none() {
            "0 with training.freeze: then the mean of factors leaves nothing out"
        } else if aggregation.combine.is_some() || aggregation.least_squares {
            "0 with combine or least_squares of [aggregation], which do not give the mean of factors"
        } else if !aggregation.server_optimizer.is_plain() {
            "0, or a server optimizer with learning_rate = 1 and without momentum and adaptive rule: others go \
             elsewhere than to the mean"
        } else if !aggregation.download_compression.is_none() {
            "0, or download_compression = \"none\": all that is folded changes in each round"
        } else {
            return Ok(());
        };
        setting("aggregation.fold_residual", folded, accepted)
    }

    fn validate_least_squares(&self) -> Result<(), InvalidRun> {
        let aggregation = &self.aggregation;
        if !aggregation.least_squares {
            return Ok(());
        }
        let accepted = if !self.training.freeze.is_none() {
            "false with training.freeze: then the mean of factors leaves nothing out"
        } else if aggregation.combine.is_some() {
            "false with aggregation.combine, which does not give the mean of factors"
        } else {
            return Ok(());
        };
        setting("aggregation.least_squares", true, accepted)
    }

    /// A rotation turns all that a device trains into one another.
    fn validate_alignment(&self) -> Result<(), InvalidRun> {
        let training = &self.training;
        let accepted = if training.alignment == 0.0 {
            return Ok(());
        } else if !training.freeze.is_none() {
            "0 with training.freeze: a factor that does not train cannot turn"
        } else if training.nested_ranks {
            "0 with training.nested_ranks: components stay what they are"
        } else if self.aggregation.fold_residual > 0 {
            "0 with aggregation.fold_residual, which makes up for what alignment avoids"
        } else {
            return Ok(());
        };
        setting("training.alignment", training.alignment, accepted)
    }
}
