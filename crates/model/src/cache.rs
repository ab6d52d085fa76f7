//! Keys and values of the tokens seen so far, for generation.

use burn::tensor::Tensor;

use crate::ops::{self, AttentionShape};

/// Tokens that a cache first has room for; it doubles when it is full.
const FIRST_CAPACITY: usize = 64;

/// Keys and values of one sequence, for each layer; starts empty.
#[derive(Debug, Default)]
pub struct KvCache {
    length: usize,
    /// Each \[capacity, kv_heads * head_dim\]; taken out while its layer computes, so that nobody
    /// else holds it and it is written in place.
    layers: Vec<Option<[Tensor<2>; 2]>>,
}

impl KvCache {
    /// Number of tokens seen so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The tokens that every layer has now seen count.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Attention of new tokens over themselves and those seen; stores their keys and values.
    pub(crate) fn attention(
        &mut self,
        layer: usize,
        qkv: Tensor<2>,
        shape: AttentionShape,
    ) -> Tensor<2> {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        let needed = self.length + shape.length;
        let cached = match self.layers[layer].take() {
            Some(cached) if cached[0].dims()[0] >= needed => cached,
            full => {
                let capacity = needed.next_power_of_two().max(FIRST_CAPACITY);
                let size = [capacity, shape.kv_heads * shape.head_dim];
                let empty = || Tensor::zeros(size, &qkv.device());
                let mut old = full.map(|cached| cached.map(|old| old.narrow(0, 0, self.length)));
                let grown =
                    |old: Tensor<2>| empty().slice_assign([0..self.length, 0..size[1]], old);
                old.take().map_or_else(|| [empty(), empty()], |old| old.map(grown))
            }
        };
        let (out, cached) = ops::cached_attention(qkv, cached, self.length, shape);
        self.layers[layer] = Some(cached);
        out
    }
}
