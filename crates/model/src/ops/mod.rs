//! The operations of the transformer, each in one piece with a backward pass of its own.
//!
//! On the CPU they are an extension of Burn's Flex backend ([`fused`]) over [`kernels`](crate::kernels);
//! on every other device they are compositions of Burn's own tensor operations ([`plain`]), which
//! Burn differentiates. Tests hold the two against each other.

mod flex;
pub(crate) mod fused;
mod gradients;
pub(crate) mod plain;
#[cfg(test)]
mod tests;

use std::ops::Range;

use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor};

pub(crate) use crate::kernels::attention::Shape as AttentionShape;
use crate::kernels::matmul::same_bits;
use crate::precision::Precision;
use fused::{FactorPairs, Fused, FusedCache, Maybe, Operand};

/// Frozen weights \[outputs, inputs\].
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// As they are.
    F32(Tensor<2>),
    /// Each row is `values`, in -127..=127, times that row's scale \[outputs, 1\].
    Int8 {
        /// 8-bit integers \[outputs, inputs\].
        values: Tensor<2, Int>,
        /// One scale for each row.
        scales: Tensor<2>,
    },
}

impl Matrix {
    /// Outputs and inputs.
    pub(crate) fn shape(&self) -> [usize; 2] {
        match self {
            Self::F32(weights) => weights.dims(),
            Self::Int8 { values, .. } => values.dims(),
        }
    }

    /// Where it lies.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::F32(weights) => weights.device(),
            Self::Int8 { scales, .. } => scales.device(),
        }
    }

    /// How it is held.
    pub(crate) fn precision(&self) -> Precision {
        match self {
            Self::F32(_) => Precision::F32,
            Self::Int8 { .. } => Precision::Int8,
        }
    }

    /// Whether a row of a product with it, forwards or backwards, has the same bits among `one` rows as
    /// among `all`; of other devices than the CPU nothing is known.
    pub(crate) fn same_bits(&self, [one, all]: [usize; 2]) -> bool {
        let eight_bits = self.precision() == Precision::Int8;
        let known = is_fused(&self.device());
        one == all || (known && same_bits([one, all], self.shape(), eight_bits))
    }

    /// W + scale B A on the outputs of each adapter, all of one client, as f32.
    pub(crate) fn merged(&self, adapters: Vec<Factors>) -> Self {
        let merged = adapters.into_iter().fold(self.widened(), |weights, adapter| {
            let Factors { a, b, outputs, scale } = adapter;
            let part = weights.clone().slice([outputs.clone()]);
            weights.slice_assign([outputs], part + b.matmul(a).mul_scalar(scale))
        });
        Self::F32(merged)
    }

    /// Rows of it, as f32 \[rows, inputs\].
    pub(crate) fn rows(&self, indices: Tensor<1, Int>) -> Tensor<2> {
        match self {
            Self::F32(weights) => weights.clone().select(0, indices),
            Self::Int8 { values, scales } => {
                let rows = values.clone().select(0, indices.clone()).float();
                rows * scales.clone().select(0, indices)
            }
        }
    }

    /// All of it as f32.
    fn widened(&self) -> Tensor<2> {
        match self {
            Self::F32(weights) => weights.clone(),
            Self::Int8 { values, scales } => values.clone().float() * scales.clone(),
        }
    }

    fn into_operand(self) -> Operand<Dispatch> {
        match self {
            Self::F32(weights) => Operand::F32(weights.into_dispatch()),
            Self::Int8 { values, scales } => {
                Operand::Int8 { values: values.into_dispatch(), scales: scales.into_dispatch() }
            }
        }
    }
}

/// What the loss asks of some rows. They are private data: it has no Debug form.
#[derive(Clone)]
pub(crate) struct Targets {
    /// Distinct rows of the hidden states.
    pub(crate) rows: Vec<u32>,
    /// The token that each should predict.
    pub(crate) ids: Vec<u32>,
}

/// An adapter on some outputs of a linear map: those get scale (x Aᵀ) Bᵀ on top.
///
/// It may be a stack of several clients' adapters, one below another. The rows of x are then theirs in
/// equal parts, in the same order, and each client's factors act on its own.
#[derive(Debug, Clone)]
pub(crate) struct Factors {
    /// A, of shape \[clients * rank, inputs\].
    pub(crate) a: Tensor<2>,
    /// B, of shape \[clients * outputs in the range, rank\].
    pub(crate) b: Tensor<2>,
    /// The outputs.
    pub(crate) outputs: Range<usize>,
    /// The scale.
    pub(crate) scale: f32,
}

/// A linear map with what is added to it.
#[derive(Debug, Clone)]
pub(crate) struct LinearMap {
    /// W, of shape \[outputs, inputs\].
    pub(crate) weight: Matrix,
    /// Bias, of shape \[1, outputs\].
    pub(crate) bias: Option<Tensor<2>>,
}

/// Whether tensors on `device` take the fused operations.
fn is_fused(device: &Device) -> bool {
    *device == Device::flex()
}

/// RMSNorm of each row of `x` \[rows, width\], times `scale` \[1, width\].
pub(crate) fn rms_norm(x: Tensor<2>, scale: Tensor<2>, epsilon: f32) -> Tensor<2> {
    if !is_fused(&x.device()) {
        return plain::rms_norm(x, scale, epsilon);
    }
    let (x, scale) = (x.into_dispatch(), scale.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_rms_norm(x, scale, epsilon))
}

/// x Wᵀ + bias + residual of `x` \[rows, inputs\], plus each adapter's part on its outputs.
pub(crate) fn linear(
    x: Tensor<2>,
    map: &LinearMap,
    adapters: Vec<Factors>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    if !is_fused(&x.device()) {
        return plain::linear(x, map, adapters, residual);
    }
    let train_weight = map.weight.device().is_autodiff();
    let mut factors = Vec::with_capacity(adapters.len());
    let mut placed = Vec::with_capacity(adapters.len());
    for Factors { a, b, outputs, scale } in adapters {
        factors.push([a.into_dispatch(), b.into_dispatch()]);
        placed.push((outputs, scale));
    }
    Tensor::from_dispatch(Dispatch::fused_linear(
        x.into_dispatch(),
        map.weight.clone().into_operand(),
        Maybe::new(map.bias.clone().map(Tensor::into_dispatch)),
        Maybe::new(residual.map(Tensor::into_dispatch)),
        FactorPairs::new(factors),
        placed,
        train_weight,
    ))
}

/// Rotates the query and key heads of `qkv` \[rows, width\] by the angles of `table`
/// \[positions, head_dim\], cosines then sines; row r takes the angles of row r % positions.
pub(crate) fn rope(qkv: Tensor<2>, table: Tensor<2>, shape: AttentionShape) -> Tensor<2> {
    if !is_fused(&qkv.device()) {
        return plain::rope(qkv, table, shape);
    }
    let (qkv, table) = (qkv.into_dispatch(), table.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_rope(qkv, table, shape))
}

/// Causal attention over each sequence of `qkv` \[sequences * length, width\].
pub(crate) fn attention(qkv: Tensor<2>, shape: AttentionShape) -> Tensor<2> {
    if !is_fused(&qkv.device()) {
        return plain::attention(qkv, shape);
    }
    Tensor::from_dispatch(Dispatch::fused_attention(qkv.into_dispatch(), shape))
}

/// Causal attention of the new tokens of one sequence, `qkv` \[length, width\], over themselves and
/// the `past` tokens whose keys and values `cache` holds, each \[capacity, kv_heads * head_dim\];
/// stores the new ones behind them.
pub(crate) fn cached_attention(
    qkv: Tensor<2>,
    cache: [Tensor<2>; 2],
    past: usize,
    shape: AttentionShape,
) -> (Tensor<2>, [Tensor<2>; 2]) {
    if !is_fused(&qkv.device()) {
        return plain::cached_attention(qkv, cache, past, shape);
    }
    let [keys, values] = cache.map(Tensor::into_dispatch);
    let (out, keys, values) =
        Dispatch::fused_cached_attention(qkv.into_dispatch(), keys, values, past, shape);
    (Tensor::from_dispatch(out), [keys, values].map(Tensor::from_dispatch))
}

/// silu(gate) up, given rows `gate | up` \[rows, 2 width\].
pub(crate) fn silu_gated(gate_up: Tensor<2>) -> Tensor<2> {
    if !is_fused(&gate_up.device()) {
        return plain::silu_gated(gate_up);
    }
    Tensor::from_dispatch(Dispatch::fused_silu_gated(gate_up.into_dispatch()))
}

/// -log softmax(x Wᵀ)\[target\] of some rows of `x` \[all rows, inputs\], of shape \[rows, 1\], where
/// at most `chunk` rows of logits are held at once. `targets` pairs distinct rows with their
/// targets. The head W is frozen.
pub(crate) fn nll(x: Tensor<2>, head: &Matrix, targets: Targets, chunk: usize) -> Tensor<2> {
    if !is_fused(&x.device()) {
        return plain::nll(x, head, &targets, chunk);
    }
    let head = head.clone().into_operand();
    Tensor::from_dispatch(Dispatch::fused_nll(x.into_dispatch(), head, targets, chunk))
}
