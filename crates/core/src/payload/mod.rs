//! Payloads: the encoded form of a delta, as it is sent and stored.
//!
//! A payload begins with four bytes, `F` `P`, format version 1 and the kind ([`Codec`]), and is then
//! read by the kind's own file. Decoders check every length against the [`Layout`] before they
//! allocate, and refuse trailing bytes and values that are not finite. Reports, stores and receipts
//! hold a digest of the whole payload; it needs no checksum of its own.
//!
//! - `dense`, `int8`: values as they are, or one byte each
//! - `bits`: few bits for each value, by a `rotation` and the `lloyd_max` quantiser, packed as `planes`
//! - `sparse`: few values, with positions in `rice` codes

mod bits;
mod compression;
mod dense;
mod int8;
mod lloyd_max;
mod planes;
mod rice;
mod rotation;
mod sparse;

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;

pub use self::compression::{Bits, Codec, Compression, InvalidCompression, Sparse};
use crate::id::Digest;
use crate::layout::Layout;

const HEADER: usize = 4;
const MAGIC: [u8; 3] = [b'F', b'P', 1];

/// What becomes of what an encoding leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remainder {
    /// It is lost: what is encoded should be right in expectation.
    Dropped,
    /// It is added to the next delta, of which the next segment is sent.
    FedBack {
        /// Deltas that were sent before.
        turn: u32,
    },
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
    /// Encodes a delta of `layout` whose error is lost; `rng` decides rounding, rotation and segment.
    /// Decoded, it is the delta in expectation, but for [`Compression::Sparse`]. Never larger than f32
    /// values plus a four-byte header.
    ///
    /// # Errors
    /// A wrong number of values, or one that is not finite.
    pub fn encode(
        compression: Compression,
        layout: &Layout,
        delta: &[f32],
        rng: &mut ChaCha20Rng,
    ) -> Result<Self, InvalidDelta> {
        Self::encode_as(compression, Remainder::Dropped, layout, delta, rng)
    }

    /// Encodes a delta of `layout` with little error, which the caller adds to its next delta: delta
    /// minus [`Payload::decode`]. Segments take turns. Never larger than f32 values plus a four-byte
    /// header.
    ///
    /// # Errors
    /// A wrong number of values, or one that is not finite.
    pub fn encode_with_feedback(
        compression: Compression,
        layout: &Layout,
        delta: &[f32],
        turn: u32,
        rng: &mut ChaCha20Rng,
    ) -> Result<Self, InvalidDelta> {
        Self::encode_as(compression, Remainder::FedBack { turn }, layout, delta, rng)
    }

    fn encode_as(
        compression: Compression,
        remainder: Remainder,
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
        let start = |codec: Codec| [&MAGIC[..], &[codec as u8]].concat();
        let mut bytes = start(compression.codec());
        match compression {
            Compression::None => dense::encode(delta, &mut bytes),
            Compression::Int8 => int8::encode(layout, delta, rng, &mut bytes),
            Compression::Bits(bits) => bits::encode(bits, remainder, delta, rng, &mut bytes),
            Compression::Sparse(sparse) => sparse::encode(sparse, layout, delta, &mut bytes),
        }
        if bytes.len() > Self::max_bytes(layout) {
            bytes = start(Codec::None);
            dense::encode(delta, &mut bytes);
        }
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
        let codec = Codec::ALL.into_iter().find(|codec| *codec as u8 == header[3]);
        let delta = match codec.ok_or(InvalidPayload::Header)? {
            Codec::None => dense::decode(layout, body)?,
            Codec::Int8 => int8::decode(layout, body)?,
            Codec::Bits => bits::decode(layout.len(), body)?,
            Codec::Sparse => sparse::decode(layout, body)?,
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
