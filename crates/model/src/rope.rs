//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the convention of
//! transformers: component i of a head turns with component i + width / 2.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use floret_core::model_config::Rope;

/// Cosines and sines of a range of positions, each of shape \[1, 1, length, head_dim\].
#[derive(Debug)]
pub(crate) struct Rotary {
    cos: Tensor<4>,
    /// Negative in the first half, so that a rotation is x cos + swapped(x) sin.
    sin: Tensor<4>,
}

impl Rotary {
    /// The rotation at `positions`; angles are computed in f64.
    pub(crate) fn new(
        rope: &Rope,
        head_dim: usize,
        positions: Range<usize>,
        device: &Device,
    ) -> Self {
        let shape = [1, 1, positions.len(), head_dim];
        let frequencies = rope.inverse_frequencies(head_dim);
        let mut cos = Vec::with_capacity(positions.len() * head_dim);
        let mut sin = Vec::with_capacity(positions.len() * head_dim);
        for position in positions {
            for sign in [-1.0, 1.0] {
                for frequency in &frequencies {
                    let angle = position as f64 * frequency;
                    cos.push(angle.cos() as f32);
                    sin.push((sign * angle.sin()) as f32);
                }
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Rotates `heads`, of shape \[batch, heads, length, head_dim\].
    pub(crate) fn rotate(&self, heads: Tensor<4>) -> Tensor<4> {
        let half = heads.dims()[3] / 2;
        let first = heads.clone().narrow(3, 0, half);
        let second = heads.clone().narrow(3, half, half);
        heads * self.cos.clone() + Tensor::cat(vec![second, first], 3) * self.sin.clone()
    }
}
