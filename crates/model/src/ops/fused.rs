//! The fused operations as an extension of Burn's backends.

use std::ops::Range;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};

use super::{AttentionShape, Targets};

/// Frozen weights as a backend holds them; see [`Matrix`](super::Matrix).
#[derive(ExtensionType)]
pub(crate) enum Operand<B: Backend> {
    /// As they are.
    F32(FloatTensor<B>),
    /// Rows of 8-bit integers, each times its scale.
    Int8 {
        /// The integers.
        values: IntTensor<B>,
        /// The scales.
        scales: FloatTensor<B>,
    },
}

/// A tensor that may be missing.
#[derive(ExtensionType)]
pub(crate) enum Maybe<B: Backend> {
    /// It is missing.
    None,
    /// It is there.
    Some(FloatTensor<B>),
}

/// A and B of up to three adapters, each of one client or of a stack of them: as many as maps share
/// one input.
#[derive(ExtensionType)]
pub(crate) enum FactorPairs<B: Backend> {
    /// No adapter.
    None,
    /// One.
    One(FloatTensor<B>, FloatTensor<B>),
    /// Two.
    Two(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    /// Three.
    Three(
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
    ),
}

impl<B: Backend> Maybe<B> {
    pub(super) fn new(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }

    pub(super) fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

impl<B: Backend> FactorPairs<B> {
    /// # Panics
    /// More than three pairs.
    pub(super) fn new(pairs: Vec<[FloatTensor<B>; 2]>) -> Self {
        let mut pairs = pairs.into_iter();
        let found = [pairs.next(), pairs.next(), pairs.next()];
        assert!(pairs.next().is_none(), "at most three maps share an input");
        match found {
            [None, ..] => Self::None,
            [Some([a, b]), None, _] => Self::One(a, b),
            [Some([a, b]), Some([c, d]), None] => Self::Two(a, b, c, d),
            [Some([a, b]), Some([c, d]), Some([e, f])] => Self::Three(a, b, c, d, e, f),
        }
    }

    /// A and B of each, one after another.
    pub(super) fn into_vec(self) -> Vec<FloatTensor<B>> {
        match self {
            Self::None => vec![],
            Self::One(a, b) => vec![a, b],
            Self::Two(a, b, c, d) => vec![a, b, c, d],
            Self::Three(a, b, c, d, e, f) => vec![a, b, c, d, e, f],
        }
    }
}

/// Outputs that an adapter adds to, and its scale.
pub(crate) type Placed = (Range<usize>, f32);

/// Operations with a backward pass of their own; the functions of [`ops`](super) of the same names
/// say what each computes.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Fused: Backend {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    fn fused_linear(
        x: FloatTensor<Self>,
        #[extension_type] weight: Operand<Self>,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] residual: Maybe<Self>,
        #[extension_type] factors: FactorPairs<Self>,
        placed: Vec<Placed>,
        train_weight: bool,
    ) -> FloatTensor<Self>;

    fn fused_rope(
        qkv: FloatTensor<Self>,
        table: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;

    fn fused_attention(qkv: FloatTensor<Self>, shape: AttentionShape) -> FloatTensor<Self>;

    fn fused_silu_gated(gate_up: FloatTensor<Self>) -> FloatTensor<Self>;

    fn fused_nll(
        x: FloatTensor<Self>,
        #[extension_type] head: Operand<Self>,
        targets: Targets,
        chunk: usize,
    ) -> FloatTensor<Self>;
}

/// What generation needs, which is never differentiated.
#[backend_extension(Flex)]
pub(crate) trait FusedCache: Backend {
    fn fused_cached_attention(
        qkv: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        past: usize,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
