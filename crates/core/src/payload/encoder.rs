//! From a delta to a payload.

use rand_chacha::ChaCha20Rng;

use super::linear::{self, Shared};
use super::{Codec, Compression, MAGIC, Payload, bits, dense, int8, sparse};
use crate::layout::Layout;

/// What becomes of what an encoding leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remainder {
    /// It is lost: what is encoded should be right in expectation.
    Dropped,
    /// It is added to the next delta, of which the next segment is sent.
    FedBack {
        /// Deltas that were sent before.
        turn: u32,
    },
}

/// Encodes deltas of one layout.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    compression: Compression,
    layout: &'a Layout,
    remainder: Remainder,
    after: Option<&'a [f32]>,
    shared: Option<Shared>,
}

/// A delta that cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDelta {
    /// Not as many values as the layout has.
    #[error("the delta has {got} values where its layout has {want}")]
    Length {
        /// Values that the layout has.
        want: usize,
        /// Values that came.
        got: usize,
    },
    /// NaN or infinity: training diverged.
    #[error("the delta holds a value that is not finite: training diverged")]
    NotFinite,
    /// A linear payload of one client alone, or with a norm that is none.
    #[error("a linear payload takes what the clients of a round share: their number and norm")]
    NotShared,
}

impl<'a> Encoder<'a> {
    /// Encodes deltas whose error is lost: decoded, they are right in expectation, but for
    /// [`Compression::Sparse`].
    #[must_use]
    pub fn new(compression: Compression, layout: &'a Layout) -> Self {
        let remainder = Remainder::Dropped;
        Self { compression, layout, remainder, after: None, shared: None }
    }

    /// Encodes with little error, which the caller adds to its next delta: delta minus
    /// [`Payload::decode`]. `turn` counts deltas: segments take turns.
    #[must_use]
    pub fn with_feedback(self, turn: u32) -> Self {
        Self { remainder: Remainder::FedBack { turn }, ..self }
    }

    /// Tells the values that the adapter has after the delta: [`Compression::Sparse`] keeps what
    /// changes the product B A most, instead of what is largest.
    #[must_use]
    pub fn leading_to(self, after: &'a [f32]) -> Self {
        Self { after: Some(after), ..self }
    }

    /// Tells what all clients of the round share: [`Compression::Linear`] cannot do without.
    #[must_use]
    pub fn shared(self, shared: Shared) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// Encodes `delta`; `rng` decides rounding, rotation and segment. Never larger than f32 values plus
    /// a four-byte header.
    ///
    /// # Errors
    /// A wrong number of values, one that is not finite, or a linear payload without what is shared.
    pub fn encode(&self, delta: &[f32], rng: &mut ChaCha20Rng) -> Result<Payload, InvalidDelta> {
        let Self { compression, layout, remainder, after, shared } = *self;
        for values in [Some(delta), after].into_iter().flatten() {
            if values.len() != layout.len() {
                return Err(InvalidDelta::Length { want: layout.len(), got: values.len() });
            }
        }
        if !super::all_finite(delta) {
            return Err(InvalidDelta::NotFinite);
        }
        let start = |codec: Codec| [&MAGIC[..], &[codec as u8]].concat();
        let mut bytes = start(compression.codec());
        match compression {
            Compression::None => dense::encode(delta, &mut bytes),
            Compression::Int8 => int8::encode(layout, delta, rng, &mut bytes),
            Compression::Bits(bits) => bits::encode(bits, remainder, delta, rng, &mut bytes),
            Compression::Sparse(sparse) => sparse::encode(sparse, layout, delta, after, &mut bytes),
            Compression::Linear(linear) => {
                let usable = |shared: &Shared| shared.norm.is_finite() && shared.norm > 0.0;
                let shared = shared.filter(usable).ok_or(InvalidDelta::NotShared)?;
                linear::encode(linear, shared, remainder, delta, rng, &mut bytes);
            }
        }
        if bytes.len() > Payload::max_bytes(layout) {
            bytes = start(Codec::None);
            dense::encode(delta, &mut bytes);
        }
        Ok(Payload { bytes: bytes.into() })
    }
}
