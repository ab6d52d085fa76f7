//! What robust rules need, and whom they trust.

use super::{InvalidRun, RunConfig, setting};
use crate::combine::Robust;

impl RunConfig {
    /// Who is trusted matters to one rule, and that rule makes all weights.
    pub(super) fn validate_trusted(&self) -> Result<(), InvalidRun> {
        let Some(trusted) = &self.cohort.trusted else { return Ok(()) };
        let accepted = if self.aggregation.combine != Some(Robust::Fltrust {}) {
            "none without aggregation.combine = { rule = \"fltrust\" }"
        } else if self.aggregation.measure_residual {
            "none with aggregation.measure_residual, which goes by weights of examples"
        } else {
            return Ok(());
        };
        setting("cohort.trusted", trusted, accepted)
    }

    /// With the fewest updates that a round may close with, each rule must have enough.
    pub(super) fn validate_combine(&self, rule: Robust) -> Result<(), InvalidRun> {
        let quorum = u64::from(self.cohort.quorum);
        match rule {
            Robust::Median {} => {}
            Robust::TrimmedMean { trim } if 2 * u64::from(trim) >= quorum => {
                let accepted = format!("less than half of cohort.quorum = {quorum}");
                return setting("aggregation.combine.trim", trim, accepted);
            }
            Robust::Krum { byzantine } | Robust::MultiKrum { byzantine, .. }
                if 2 * u64::from(byzantine) + 3 > quorum =>
            {
                let accepted = format!("f with 2 f + 3 up to cohort.quorum = {quorum}");
                return setting("aggregation.combine.byzantine", byzantine, accepted);
            }
            Robust::MultiKrum { byzantine, keep }
                if keep == 0 || u64::from(keep) + u64::from(byzantine) > quorum =>
            {
                let most = quorum - u64::from(byzantine);
                let accepted = format!("1 to {most}, cohort.quorum without byzantine");
                return setting("aggregation.combine.keep", keep, accepted);
            }
            Robust::Dnc { byzantine } if 2 * u64::from(byzantine) >= quorum => {
                let accepted = format!("less than half of cohort.quorum = {quorum}");
                return setting("aggregation.combine.byzantine", byzantine, accepted);
            }
            Robust::Fltrust {} if self.cohort.trusted.is_none() => {
                let accepted = "another rule without cohort.trusted, the client whose update others are compared with";
                return setting("aggregation.combine.rule", "\"fltrust\"", accepted);
            }
            Robust::CenteredClipping { radius, .. } if !(radius.is_finite() && radius > 0.0) => {
                return setting("aggregation.combine.radius", radius, "a positive number");
            }
            Robust::GeometricMedian { iterations }
            | Robust::CenteredClipping { iterations, .. }
                if !(1..=Robust::ITERATIONS_MAX).contains(&iterations) =>
            {
                let accepted = format!("1 to {}", Robust::ITERATIONS_MAX);
                return setting("aggregation.combine.iterations", iterations, accepted);
            }
            Robust::TrimmedMean { .. }
            | Robust::Dnc { .. }
            | Robust::Fltrust {}
            | Robust::Krum { .. }
            | Robust::MultiKrum { .. }
            | Robust::GeometricMedian { .. }
            | Robust::CenteredClipping { .. } => {}
        }
        Ok(())
    }
}
