//! Error feedback: what an encoding leaves out is added to the next delta (Seide et al. 2014;
//! Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2).
//!
//! With u = delta + β^g e, the payload is C(u) and the next residual e is u - C(u). The residual of a
//! device that sat out is stale, so it decays with g, the versions that the adapter moved on without
//! it. It becomes the device's own when the update counts, and is forgotten when it does not.

use std::fmt;
use std::ops::Range;

use floret_core::payload::{Encoder, InvalidDelta};
use floret_core::{Digest, Layout, Payload, Plan, RunId, Version};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

/// What a device's updates of one run have left out so far.
#[derive(Clone, PartialEq)]
pub struct Residual {
    /// The run.
    pub run: RunId,
    /// Digest of the adapter's layout.
    pub layout: Digest,
    /// Version that the last update started from.
    pub version: Version,
    /// Which turn of the segments comes next.
    pub turn: u32,
    /// What was left out, in layout order.
    pub values: Vec<f32>,
}

/// What is left of a change stays on the device: sizes only.
impl fmt::Debug for Residual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Residual({} values)", self.values.len())
    }
}

impl Residual {
    /// Encodes `delta` plus what `before` has for this plan with `encoder`; and what that leaves out. What
    /// `before` has in the places of `held`, which may not change now, waits. Turns begin at a draw, so
    /// that devices spread over the segments.
    ///
    /// # Errors
    /// A delta that cannot be encoded.
    pub(crate) fn encode(
        encoder: Encoder<'_>,
        before: Option<&Self>,
        plan: &Plan,
        layout: &Layout,
        held: &[Range<usize>],
        mut delta: Vec<f32>,
        rng: &mut ChaCha20Rng,
    ) -> Result<(Payload, Self), InvalidDelta> {
        let turn = match before.filter(|before| before.is_of(plan, &delta)) {
            Some(before) => {
                before.add_to(&mut delta, plan);
                before.turn
            }
            None => rng.next_u32(),
        };
        let waiting: Vec<Vec<f32>> =
            held.iter().map(|places| delta[places.clone()].to_vec()).collect();
        held.iter().for_each(|places| delta[places.clone()].fill(0.0));
        let payload = encoder.with_feedback(turn).encode(&delta, rng)?;
        let decoded = payload.decode(layout);
        let decoded = decoded.unwrap_or_else(|error| unreachable!("encoded just now: {error}"));
        for (value, sent) in delta.iter_mut().zip(decoded) {
            *value = (*value - sent).clamp(f32::MIN, f32::MAX);
        }
        for (places, waiting) in held.iter().zip(waiting) {
            delta[places.clone()].copy_from_slice(&waiting);
        }
        let residual = Self {
            run: plan.run.clone(),
            layout: plan.layout_digest,
            version: plan.version,
            turn: turn.wrapping_add(1),
            values: delta,
        };
        Ok((payload, residual))
    }

    fn is_of(&self, plan: &Plan, delta: &[f32]) -> bool {
        self.run == plan.run
            && self.layout == plan.layout_digest
            && self.values.len() == delta.len()
    }

    fn add_to(&self, delta: &mut [f32], plan: &Plan) {
        let missed = plan.version.0.saturating_sub(self.version.0).saturating_sub(1);
        let decay = plan.error_feedback.powi(i32::try_from(missed).unwrap_or(i32::MAX));
        for (value, left) in delta.iter_mut().zip(&self.values) {
            // A sum may overflow; training that diverged must still be seen.
            if value.is_finite() {
                *value = (*value + decay * left).clamp(f32::MIN, f32::MAX);
            }
        }
    }
}
