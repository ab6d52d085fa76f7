//! The decoder-only transformer of Llama, SmolLM2 and Qwen2.
//!
//! Hidden states have shape \[batch * length, hidden\] throughout, so that every product is one
//! matrix product. Rows padded on the right need no mask: no earlier position sees them.

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use floret_core::ModelConfig;
use floret_core::lora::TargetModule;

use crate::attention::{Attention, KvCache};
use crate::lora::Lora;
use crate::tokens::Tokens;
use crate::weights::Weights;

/// A transformer: its shape and its weights, which all have two dimensions (a vector is one row).
#[derive(Debug, Clone)]
pub struct Transformer {
    config: ModelConfig,
    weights: Weights<Tensor<2>>,
}

impl Transformer {
    /// A transformer of these weights; each has the shape that [`Weights::of`] gives for `config`.
    #[must_use]
    pub fn new(config: ModelConfig, weights: Weights<Tensor<2>>) -> Self {
        Self { config, weights }
    }

    /// Its shape and constants.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its weights.
    #[must_use]
    pub fn weights(&self) -> &Weights<Tensor<2>> {
        &self.weights
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.weights.embedding.device()
    }

    /// Hidden states behind the last norm, of shape \[batch * length, hidden\].
    ///
    /// With a `cache`, `tokens` follow those that it holds, and it holds them afterwards.
    ///
    /// # Panics
    /// A cache that holds another number of rows than `tokens` has.
    #[must_use]
    pub fn hidden(
        &self,
        tokens: &Tokens,
        lora: Option<&Lora>,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let device = self.device();
        let past = cache.as_ref().map_or(0, |cache| cache.length());
        let attention = Attention::new(&self.config, tokens.shape(), past, &device);
        let mut x = self.weights.embedding.clone().select(0, indices(tokens.ids(), &device));
        for layer in 0..self.weights.blocks.len() {
            x = self.block(layer, x, lora, &attention, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.advance(tokens.shape()[1]);
        }
        self.norm(x, &self.weights.norm)
    }

    /// Logits of `hidden` \[rows, hidden\], of shape \[rows, vocab\].
    #[must_use]
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.head().transpose())
    }

    /// The head, of shape \[vocab, hidden\]: the embedding when they are tied.
    pub(crate) fn head(&self) -> Tensor<2> {
        self.weights.head.as_ref().unwrap_or(&self.weights.embedding).clone()
    }

    fn block(
        &self,
        layer: usize,
        x: Tensor<2>,
        lora: Option<&Lora>,
        attention: &Attention<'_>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        use TargetModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let block = &self.weights.blocks[layer];
        let linear = |target, x| self.linear(layer, target, x, lora);

        let normed = self.norm(x.clone(), &block.attention_norm);
        let heads = [QProj, KProj, VProj].map(|target| linear(target, normed.clone()));
        let x = x + linear(OProj, attention.forward(heads, layer, cache));

        let normed = self.norm(x.clone(), &block.feed_forward_norm);
        let gate = activation::silu(linear(GateProj, normed.clone()));
        x + linear(DownProj, gate * linear(UpProj, normed))
    }

    /// y = x Wᵀ + b, plus the adapter's part.
    fn linear(
        &self,
        layer: usize,
        target: TargetModule,
        x: Tensor<2>,
        lora: Option<&Lora>,
    ) -> Tensor<2> {
        let linear = &self.weights.blocks[layer].linears[&target];
        let mut y = x.clone().matmul(linear.weight.clone().transpose());
        if let Some(bias) = &linear.bias {
            y = y + bias.clone();
        }
        match lora.and_then(|lora| lora.forward(layer, target, x)) {
            Some(part) => y + part,
            None => y,
        }
    }

    /// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) of each row.
    fn norm(&self, x: Tensor<2>, scale: &Tensor<2>) -> Tensor<2> {
        let mean = x.clone().square().mean_dim(1);
        let root = mean.add_scalar(self.config.rms_norm_eps).sqrt().recip();
        x * root * scale.clone()
    }
}

/// Token ids or row numbers as a tensor.
pub(crate) fn indices(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}
