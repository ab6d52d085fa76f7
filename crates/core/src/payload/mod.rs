//! Payloads: the encoded form of a delta, as it is sent and stored.
//!
//! A payload begins with four bytes, `F` `P`, format version 1 and the kind ([`Codec`]), and is then
//! read by the kind's own file. Decoders check every length against the [`Layout`] before they
//! allocate, refuse trailing bytes, and give finite values or none. Reports, stores and receipts
//! hold a digest of the whole payload; it needs no checksum of its own.
//!
//! - `encoder`: what chooses among them
//! - `dense`, `int8`: values as they are, or one byte each
//! - `bits`: few bits for each value, by a `rotation` and the `lloyd_max` quantiser, packed as `planes`
//! - `sparse`: few values, with positions in `rice` codes
//! - `linear`: `words` that can be added up as they are

mod bits;
mod compression;
mod dense;
mod encoder;
mod int8;
mod linear;
mod lloyd_max;
mod planes;
mod rice;
mod rotation;
mod rounding;
mod sparse;
mod words;

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;

pub use self::compression::{Bits, Codec, Compression, InvalidCompression, Linear, Sparse};
pub use self::encoder::{Encoder, InvalidDelta};
pub use self::linear::Shared;
use crate::id::Digest;
use crate::layout::Layout;
use encoder::Remainder;

const HEADER: usize = 4;
const MAGIC: [u8; 3] = [b'F', b'P', 1];

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

impl Payload {
    /// Encodes a delta of `layout` as an [`Encoder`] without further settings does.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode(
        compression: Compression,
        layout: &Layout,
        delta: &[f32],
        rng: &mut ChaCha20Rng,
    ) -> Result<Self, InvalidDelta> {
        Encoder::new(compression, layout).encode(delta, rng)
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
        match codec.ok_or(InvalidPayload::Header)? {
            Codec::None => dense::decode(layout, body),
            Codec::Int8 => int8::decode(layout, body),
            Codec::Bits => bits::decode(layout.len(), body),
            Codec::Sparse => sparse::decode(layout, body),
            Codec::Linear => linear::decode(layout.len(), body),
        }
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
