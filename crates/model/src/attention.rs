//! Causal attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245), and its cache.

use burn::tensor::{Device, Tensor, TensorData, activation};
use floret_core::ModelConfig;

use crate::rope::Rotary;

/// Keys and values of the tokens seen so far, for each layer; starts empty.
#[derive(Debug, Default)]
pub struct KvCache {
    length: usize,
    layers: Vec<[Tensor<4>; 2]>,
}

impl KvCache {
    /// Number of tokens seen so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Appends keys and values of shape \[batch, kv_heads, new, head_dim\]; returns all so far.
    fn extend(&mut self, layer: usize, new: [Tensor<4>; 2]) -> [Tensor<4>; 2] {
        let Some(past) = self.layers.get_mut(layer) else {
            self.layers.push(new.clone());
            return new;
        };
        let [keys, values] = new;
        let all = [
            Tensor::cat(vec![past[0].clone(), keys], 2),
            Tensor::cat(vec![past[1].clone(), values], 2),
        ];
        past.clone_from(&all);
        all
    }
}

/// What all layers of one forward pass share.
#[derive(Debug)]
pub(crate) struct Attention<'a> {
    config: &'a ModelConfig,
    batch: usize,
    length: usize,
    rotary: Rotary,
    mask: Option<Tensor<4>>,
}

impl<'a> Attention<'a> {
    /// For `batch` rows of `length` tokens that follow `past` tokens.
    pub(crate) fn new(
        config: &'a ModelConfig,
        [batch, length]: [usize; 2],
        past: usize,
        device: &Device,
    ) -> Self {
        let rotary = Rotary::new(&config.rope, config.head_dim, past..past + length, device);
        let groups = config.num_heads / config.num_kv_heads;
        Self { config, batch, length, rotary, mask: causal_mask(groups, length, past, device) }
    }

    /// Attention of `queries` \[batch * length, heads * head_dim\] over `keys` and `values`
    /// \[batch * length, kv_heads * head_dim\] and what `cache` holds of this layer; of the shape
    /// of `queries`.
    pub(crate) fn forward(
        &self,
        [queries, keys, values]: [Tensor<2>; 3],
        layer: usize,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let &ModelConfig { num_heads, num_kv_heads, head_dim, .. } = self.config;
        let queries = self.rotary.rotate(self.split(queries, num_heads));
        let keys = self.rotary.rotate(self.split(keys, num_kv_heads));
        let values = self.split(values, num_kv_heads);
        let [keys, values] = match cache {
            Some(cache) => cache.extend(layer, [keys, values]),
            None => [keys, values],
        };
        // Query heads that share a key head lie next to each other: their rows are stacked.
        let rows = num_heads / num_kv_heads * self.length;
        let scale = (head_dim as f64).sqrt().recip();
        let queries = queries.reshape([self.batch, num_kv_heads, rows, head_dim]).mul_scalar(scale);
        let mut scores = queries.matmul(keys.swap_dims(2, 3));
        if let Some(mask) = &self.mask {
            scores = scores + mask.clone();
        }
        let mixed = activation::softmax(scores, 3).matmul(values);
        mixed
            .reshape([self.batch, num_heads, self.length, head_dim])
            .swap_dims(1, 2)
            .reshape([self.batch * self.length, num_heads * head_dim])
    }

    /// \[batch * length, heads * head_dim\] as \[batch, heads, length, head_dim\].
    fn split(&self, tensor: Tensor<2>, heads: usize) -> Tensor<4> {
        let shape = [self.batch, self.length, heads, self.config.head_dim];
        tensor.reshape(shape).swap_dims(1, 2)
    }
}

/// Zero where a query may look and minus infinity where it may not, of shape
/// \[1, 1, groups * length, past + length\]; none when a single token may look everywhere.
fn causal_mask(groups: usize, length: usize, past: usize, device: &Device) -> Option<Tensor<4>> {
    if length == 1 {
        return None;
    }
    let row = |query: usize| {
        (0..past + length).map(move |key| if key > past + query { f32::NEG_INFINITY } else { 0.0 })
    };
    let values: Vec<f32> = (0..groups).flat_map(|_| (0..length).flat_map(row)).collect();
    let shape = [1, 1, groups * length, past + length];
    Some(Tensor::from_data(TensorData::new(values, shape), device))
}
