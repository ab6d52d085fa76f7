//! Deltas that may be summed: decoded, finite, and clipped by the server itself.

use std::fmt;
use std::sync::Arc;

use floret_core::payload::InvalidPayload;
use floret_core::{Layout, Payload};
use floret_privacy::clip::{Unclippable, clip_l2};

/// A delta of at most the run's clip norm. There is no other way to make one than from a payload.
#[derive(Clone, PartialEq)]
pub struct ClippedDelta {
    values: Arc<Vec<f32>>,
    clip_norm: f32,
    rank: usize,
}

/// What one device changed is nobody's business: sizes only.
impl fmt::Debug for ClippedDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClippedDelta({} values)", self.values.len())
    }
}

/// A payload that gives no delta.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidUpdate {
    /// It does not decode.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
    /// It cannot be clipped.
    #[error(transparent)]
    Clip(#[from] Unclippable),
}

/// An update that may count: its bytes as they came, and the delta that they stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    payload: Payload,
    delta: ClippedDelta,
}

impl Admitted {
    /// Decodes and clips a payload, and keeps it beside.
    ///
    /// # Errors
    /// A payload that is not one of this layout, or values that are not finite.
    pub fn new(payload: Payload, layout: &Layout, clip_norm: f32) -> Result<Self, InvalidUpdate> {
        let delta = ClippedDelta::decode(&payload, layout, clip_norm)?;
        Ok(Self { payload, delta })
    }

    /// Its bytes as they came.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// What is summed.
    #[must_use]
    pub fn delta(&self) -> &ClippedDelta {
        &self.delta
    }
}

impl ClippedDelta {
    /// Decodes a payload and clips it to the L2 norm `clip_norm`.
    ///
    /// # Errors
    /// A payload that is not one of this layout, or values that are not finite.
    pub fn decode(
        payload: &Payload,
        layout: &Layout,
        clip_norm: f32,
    ) -> Result<Self, InvalidUpdate> {
        let mut values = payload.decode(layout)?;
        clip_l2(&mut values, clip_norm)?;
        let rank = changed_rank(layout, &values);
        Ok(Self { values: Arc::new(values), clip_norm, rank })
    }

    /// Its values, in layout order.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Rank components that its client trained: up to the last that it changed.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Its L2 norm.
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
    }

    /// The norm that it was clipped to.
    #[must_use]
    pub fn clip_norm(&self) -> f32 {
        self.clip_norm
    }
}

/// Components up to the last that has a value other than 0 in any tensor. A delta of zeros alone is one
/// of all components: its client trained them and changed nothing.
fn changed_rank(layout: &Layout, values: &[f32]) -> usize {
    let mut changed = 0;
    for tensor in layout.tensors() {
        if changed == layout.rank() {
            break;
        }
        let moves = |any, value| any | (value != 0.0);
        let moved = tensor.fold(&values[tensor.range()], false, moves);
        let last = moved.iter().rposition(|moved| *moved);
        changed = changed.max(last.map_or(0, |last| last + 1));
    }
    if changed == 0 { layout.rank() } else { changed }
}
