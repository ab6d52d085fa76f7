//! Payloads: the encoded form of a delta, as it is sent and stored.
//!
//! A payload begins with four bytes, `F` `P`, format version 1 and the kind, and is then read by
//! the kind's own file. Decoders check every length against the [`Layout`] before they allocate,
//! and refuse trailing bytes and values that are not finite.

mod dense;
mod int8;

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::layout::Layout;

const HEADER: usize = 4;
const MAGIC: [u8; 3] = [b'F', b'P', 1];

/// How a delta is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// f32 values as they are.
    None,
    /// Int8 with stochastic rounding, one scale per rank component, then zstd.
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dense = 0,
    Int8 = 1,
}

/// An encoded delta. Clones share its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    bytes: Bytes,
}

/// Bytes that are not a payload of the layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPayload {
    /// Not the header of a payload that this version reads.
    #[error("the payload does not begin with a header that this version reads")]
    Header,
    /// A length that the layout does not permit.
    #[error("the payload's {part} has {got} bytes where the layout needs {want}")]
    Length {
        /// Which part.
        part: &'static str,
        /// Bytes needed.
        want: usize,
        /// Bytes found.
        got: usize,
    },
    /// A part that cannot be decompressed.
    #[error("the payload's {0} is damaged")]
    Damaged(&'static str),
    /// NaN or infinity.
    #[error("the payload holds a value that is not finite")]
    NotFinite,
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
}

impl Payload {
    /// Encodes a delta of `layout`; `rng` decides the rounding. Never larger than f32 values plus
    /// a four-byte header.
    ///
    /// # Errors
    /// A wrong number of values, or one that is not finite.
    pub fn encode(
        compression: Compression,
        layout: &Layout,
        delta: &[f32],
        rng: &mut ChaCha20Rng,
    ) -> Result<Self, InvalidDelta> {
        if delta.len() != layout.len() {
            return Err(InvalidDelta::Length { want: layout.len(), got: delta.len() });
        }
        if !all_finite(delta) {
            return Err(InvalidDelta::NotFinite);
        }
        let start = |kind: Kind| [&MAGIC[..], &[kind as u8]].concat();
        if compression == Compression::Int8 {
            let mut bytes = start(Kind::Int8);
            int8::encode(layout, delta, rng, &mut bytes);
            if bytes.len() <= Self::max_bytes(layout) {
                return Ok(Self { bytes: bytes.into() });
            }
        }
        let mut bytes = start(Kind::Dense);
        dense::encode(delta, &mut bytes);
        Ok(Self { bytes: bytes.into() })
    }

    /// A payload from bytes that came from outside. Only [`Payload::decode`] checks them.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into() }
    }

    /// The delta, in layout order.
    ///
    /// # Errors
    /// Bytes that are not a payload of this layout; nothing larger than the layout is allocated.
    pub fn decode(&self, layout: &Layout) -> Result<Vec<f32>, InvalidPayload> {
        let (header, body) = self.bytes.split_at_checked(HEADER).ok_or(InvalidPayload::Header)?;
        if header[..3] != MAGIC {
            return Err(InvalidPayload::Header);
        }
        let delta = match header[3] {
            kind if kind == Kind::Dense as u8 => dense::decode(layout, body)?,
            kind if kind == Kind::Int8 as u8 => int8::decode(layout, body)?,
            _ => return Err(InvalidPayload::Header),
        };
        if all_finite(&delta) { Ok(delta) } else { Err(InvalidPayload::NotFinite) }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its bytes, shared.
    #[must_use]
    pub fn shared(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The largest payload of a layout: what a server need accept.
    #[must_use]
    pub fn max_bytes(layout: &Layout) -> usize {
        HEADER + layout.bytes()
    }
}

/// Whether no value is NaN or infinite. It looks at all of them: that becomes vector instructions,
/// and stopping at the first does not.
fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let broken = |value: &f32| u32::from(value.to_bits() & EXPONENT == EXPONENT);
    values.iter().fold(0, |any, value| any | broken(value)) == 0
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests;
