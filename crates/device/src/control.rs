//! Control variates: SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II).
//!
//! A step of SGD there is y ← y - η (g - c_k + c). In units of what K steps change, with Δ_k = -K η c_k the change of the
//! client's last round by its own gradients alone, and Δ = -K η c the mean of all clients' changes, it is
//! y ← y - η g + (Δ - Δ_k) / K. Where the server's step is the plain mean, Δ is what the adapter changed by from the version
//! that the client's last round began with: each device knows it, and no control variate is sent. The correction is
//! of the change, and so goes with any client optimizer.

use std::fmt;

use floret_core::{Adapter, Digest, Plan, RunId, Version};

/// What a device remembers of its last round that counts.
#[derive(Clone, PartialEq)]
pub struct Control {
    /// The run.
    pub run: RunId,
    /// Digest of the adapter's layout.
    pub layout: Digest,
    /// The version that the round began with.
    pub version: Version,
    /// The values of that version's adapter, in layout order.
    pub start: Vec<f32>,
    /// Δ_k: what the device's own gradients changed, in layout order.
    pub change: Vec<f32>,
}

/// What a device has learnt stays there: sizes only.
impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({} values)", self.change.len())
    }
}

impl Control {
    /// What is to be remembered of a round that changed `before` to `after`, `correction` of it not by gradients.
    pub(crate) fn of(
        plan: &Plan,
        before: &[f32],
        after: &[f32],
        correction: Option<&[f32]>,
    ) -> Self {
        let mut change: Vec<f32> = after.iter().zip(before).map(|(x, y)| x - y).collect();
        for (change, correction) in change.iter_mut().zip(correction.unwrap_or_default()) {
            *change -= correction;
        }
        let (run, layout, version) = (plan.run.clone(), plan.layout_digest, plan.version);
        Self { run, layout, version, start: before.to_vec(), change }
    }

    /// Δ - Δ_k for training that starts from `adapter`: in layout order, over a whole round. Δ is the mean over versions,
    /// if the device sat some out. None if this is of another run or layout, of no version before, or of values that are
    /// no numbers.
    pub(crate) fn correction(&self, plan: &Plan, adapter: &Adapter) -> Option<Vec<f32>> {
        let versions =
            plan.version.0.checked_sub(self.version.0).filter(|versions| *versions > 0)?;
        let len = adapter.values().len();
        let fits = self.run == plan.run
            && self.layout == plan.layout_digest
            && [self.start.len(), self.change.len()] == [len, len];
        if !fits {
            return None;
        }
        let share = 1.0 / versions as f32;
        let now = adapter.values().iter().zip(&self.start);
        let correction = now.zip(&self.change).map(|((x, x0), own)| (x - x0) * share - own);
        let correction: Vec<f32> = correction.collect();
        correction.iter().all(|value| value.is_finite()).then_some(correction)
    }
}
