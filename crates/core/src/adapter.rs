//! The adapter: LoRA factors of all target modules as one flat vector.

use std::fmt;
use std::sync::Arc;

use rand_chacha::rand_core::Rng;

use crate::id::Digest;
use crate::layout::{Factor, Layout};
use crate::seed::{Seed, uniform_f32};

/// An adapter: finite values in layout order, with their digest.
#[derive(Clone, PartialEq)]
pub struct Adapter {
    layout: Arc<Layout>,
    values: Arc<[f32]>,
    digest: Digest,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapter({} values, {:?})", self.values.len(), self.digest)
    }
}

/// Values that are not an adapter of the layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAdapter {
    /// Not as many values as the layout has.
    #[error("the adapter has {got} values where its layout has {want}")]
    Length {
        /// Values that the layout has.
        want: usize,
        /// Values that came.
        got: usize,
    },
    /// Bytes that are no whole number of f32 values.
    #[error("the adapter has {got} bytes where its layout has {want}")]
    Bytes {
        /// Bytes that the layout has.
        want: usize,
        /// Bytes that came.
        got: usize,
    },
    /// NaN or infinity.
    #[error("the adapter's tensor {tensor} holds a value that is not finite, at element {index}")]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Index within the tensor, row-major.
        index: usize,
    },
}

impl Adapter {
    /// An adapter of `layout` with these values.
    ///
    /// # Errors
    /// A wrong number of values, or one that is not finite.
    pub fn new(layout: Arc<Layout>, values: Vec<f32>) -> Result<Self, InvalidAdapter> {
        if values.len() != layout.len() {
            return Err(InvalidAdapter::Length { want: layout.len(), got: values.len() });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(not_finite(&layout, at));
        }
        let digest = digest_values(&values);
        Ok(Self { layout, values: values.into(), digest })
    }

    /// The first adapter of a run: A uniform in ±1/sqrt(in) (Kaiming with a = sqrt(5), as PEFT
    /// initialises it), B zero, so that it changes nothing. The same on every machine.
    #[must_use]
    pub fn init(layout: Arc<Layout>, seed: &Seed) -> Self {
        let mut stream = seed.stream();
        let mut values = vec![0.0; layout.len()];
        for tensor in layout.tensors().iter().filter(|tensor| tensor.factor == Factor::A) {
            let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
            for value in &mut values[tensor.range()] {
                *value = (2.0 * uniform_f32(stream.next_u32()) - 1.0) * bound;
            }
        }
        let digest = digest_values(&values);
        Self { layout, values: values.into(), digest }
    }

    /// An adapter from f32 little-endian bytes in layout order.
    ///
    /// # Errors
    /// A wrong number of bytes, or a value that is not finite.
    pub fn from_bytes(layout: Arc<Layout>, bytes: &[u8]) -> Result<Self, InvalidAdapter> {
        if bytes.len() != layout.bytes() {
            return Err(InvalidAdapter::Bytes { want: layout.bytes(), got: bytes.len() });
        }
        let (words, _) = bytes.as_chunks::<4>();
        Self::new(layout, words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// This adapter with `step` added, value by value in f32.
    ///
    /// # Errors
    /// A wrong number of values, or a sum that is not finite.
    pub fn plus(&self, step: &[f32]) -> Result<Self, InvalidAdapter> {
        if step.len() != self.values.len() {
            return Err(InvalidAdapter::Length { want: self.values.len(), got: step.len() });
        }
        let values = self.values.iter().zip(step).map(|(value, change)| value + change).collect();
        Self::new(Arc::clone(&self.layout), values)
    }

    /// The values as f32 little-endian bytes in layout order.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// Its layout.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Its values, in layout order.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Digest over the bytes of [`Adapter::to_bytes`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

fn digest_values(values: &[f32]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::with_capacity(4 * 4096);
    for chunk in values.chunks(4096) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&buffer);
    }
    Digest(*hasher.finalize().as_bytes())
}

fn not_finite(layout: &Layout, at: usize) -> InvalidAdapter {
    let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&at));
    InvalidAdapter::NotFinite {
        tensor: tensor.map(|tensor| tensor.name.clone()).unwrap_or_default(),
        index: at - tensor.map_or(0, |tensor| tensor.offset),
    }
}
