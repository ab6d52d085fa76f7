//! The decoder-only transformer of Llama, SmolLM2 and Qwen2.
//!
//! Hidden states have shape \[batch * length, hidden\] throughout, so that every product is one
//! matrix product. Rows padded on the right need no mask: no earlier position sees them. Maps that
//! share their input (queries, keys and values; gate and up) are one map with their rows stacked.

use std::convert::Infallible;

use burn::tensor::{Device, Int, Tensor, TensorData};
use floret_core::ModelConfig;
use floret_core::lora::TargetModule;

use crate::cache::KvCache;
use crate::lora::Lora;
use crate::ops::{self, AttentionShape, LinearMap, Matrix};
use crate::precision::{Precision, Quantized};
use crate::rope::angles;
use crate::tokens::{Tokens, indices};
use crate::weights::{WeightSpec, Weights};

use TargetModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};

/// A transformer: its shape and its weights.
#[derive(Debug, Clone)]
pub struct Transformer {
    config: ModelConfig,
    /// Token embedding \[vocab, hidden\].
    embedding: Matrix,
    layers: Vec<Layer>,
    /// Scale of the norm after the last block \[1, hidden\].
    norm: Tensor<2>,
    /// Head \[vocab, hidden\]; none when it is tied to the embedding.
    head: Option<Matrix>,
}

/// One block: attention, then a feed-forward layer, each behind a norm.
#[derive(Debug, Clone)]
struct Layer {
    attention_norm: Tensor<2>,
    queries_keys_values: LinearMap,
    output: LinearMap,
    feed_forward_norm: Tensor<2>,
    gate_up: LinearMap,
    down: LinearMap,
}

/// The maps whose rows are stacked, by what they read.
const QUERIES_KEYS_VALUES: &[TargetModule] = &[QProj, KProj, VProj];
const OUTPUT: &[TargetModule] = &[OProj];
const GATE_UP: &[TargetModule] = &[GateProj, UpProj];
const DOWN: &[TargetModule] = &[DownProj];

/// What all blocks of one forward pass share.
#[derive(Debug)]
pub(crate) struct Context {
    angles: Tensor<2>,
    shape: AttentionShape,
}

impl Transformer {
    /// A transformer of these weights, all of two dimensions (a vector is one row) and of the
    /// shapes that [`Weights::of`] gives for `config`. Weights whose gradient is wanted may lie on
    /// an autodiff device.
    #[must_use]
    pub fn new(config: ModelConfig, weights: &Weights<Tensor<2>>) -> Self {
        let joined = |parts: &[&Tensor<2>], dim| match parts {
            [one] => (*one).clone(),
            _ => Tensor::cat(parts.iter().map(|&part| part.clone()).collect(), dim),
        };
        let matrix = &mut |parts: &[&_]| Ok::<_, Infallible>(Matrix::F32(joined(parts, 0)));
        match Self::assemble(config, weights, matrix, &mut |parts| Ok(joined(parts, 1))) {
            Ok(model) => model,
        }
    }

    /// A transformer on `device` whose weights are read one after another, row-major, so that none
    /// is held twice.
    ///
    /// # Errors
    /// The first that `read` gives.
    pub fn build<E>(
        config: ModelConfig,
        precision: Precision,
        device: &Device,
        read: &mut dyn FnMut(&WeightSpec) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let specs = Weights::of(&config);
        let read = std::cell::RefCell::new(read);
        let read = |spec: &WeightSpec| (read.borrow_mut())(spec);
        let tensor = |values, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), device)
        };
        let joined = |parts: &[&WeightSpec]| {
            let mut all = read(parts[0])?;
            for spec in &parts[1..] {
                all.append(&mut read(spec)?);
            }
            Ok(all)
        };
        let mut matrix = |parts: &[&WeightSpec]| {
            let shape = [parts.iter().map(|spec| spec.shape[0]).sum(), parts[0].shape[1]];
            if precision == Precision::F32 {
                return Ok(Matrix::F32(tensor(joined(parts)?, shape)));
            }
            let mut quantized = Quantized::default();
            for spec in parts {
                quantized.append(&read(spec)?, shape[1]);
            }
            Ok(quantized.into_matrix(shape[1], device))
        };
        let mut vector = |parts: &[&WeightSpec]| {
            let values = joined(parts)?;
            let shape = [1, values.len()];
            Ok(tensor(values, shape))
        };
        Self::assemble(config, &specs, &mut matrix, &mut vector)
    }

    /// Stacks the rows of maps that share their input with `matrix`, their biases with `vector`.
    fn assemble<T, E>(
        config: ModelConfig,
        weights: &Weights<T>,
        matrix: &mut dyn FnMut(&[&T]) -> Result<Matrix, E>,
        vector: &mut dyn FnMut(&[&T]) -> Result<Tensor<2>, E>,
    ) -> Result<Self, E> {
        let embedding = matrix(&[&weights.embedding])?;
        let mut layers = Vec::with_capacity(weights.blocks.len());
        for block in &weights.blocks {
            let mut map = |targets: &[TargetModule]| {
                let linears: Vec<_> = targets.iter().map(|target| &block.linears[target]).collect();
                let parts: Vec<&T> = linears.iter().map(|linear| &linear.weight).collect();
                let biases: Vec<&T> =
                    linears.iter().filter_map(|linear| linear.bias.as_ref()).collect();
                let weight = matrix(&parts)?;
                let bias = (!biases.is_empty()).then(|| vector(&biases)).transpose()?;
                Ok(LinearMap { weight, bias })
            };
            let queries_keys_values = map(QUERIES_KEYS_VALUES)?;
            let (output, gate_up, down) = (map(OUTPUT)?, map(GATE_UP)?, map(DOWN)?);
            layers.push(Layer {
                attention_norm: vector(&[&block.attention_norm])?,
                queries_keys_values,
                output,
                feed_forward_norm: vector(&[&block.feed_forward_norm])?,
                gate_up,
                down,
            });
        }
        let norm = vector(&[&weights.norm])?;
        let head = weights.head.as_ref().map(|head| matrix(&[head])).transpose()?;
        Ok(Self { config, embedding, layers, norm, head })
    }

    /// Its shape and constants.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// How its matrices are held.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.embedding.precision()
    }

    /// The model with W + scale B A in place of each adapted W, as f32. It computes what the base
    /// and the adapter compute together, without the adapter's own products.
    #[must_use]
    pub fn merged(&self, lora: &Lora) -> Self {
        let mut merged = self.clone();
        for (number, layer) in merged.layers.iter_mut().enumerate() {
            for (map, targets) in [
                (&mut layer.queries_keys_values, QUERIES_KEYS_VALUES),
                (&mut layer.output, OUTPUT),
                (&mut layer.gate_up, GATE_UP),
                (&mut layer.down, DOWN),
            ] {
                let factors = lora.factors(&self.config, number, targets);
                if !factors.is_empty() {
                    map.weight = map.weight.merged(factors);
                }
            }
        }
        merged
    }

    /// Hidden states of `tokens` behind the last norm, of shape \[batch * length, hidden\].
    #[must_use]
    pub fn hidden(&self, tokens: &Tokens, lora: Option<&Lora>) -> Tensor<2> {
        let context = self.context(tokens.shape()[1], 0);
        let mut x = self.embed(tokens);
        for layer in 0..self.layers.len() {
            x = self.block(layer, x, lora, &context);
        }
        self.last_norm(x)
    }

    /// Hidden states behind the last norm, of shape \[length, hidden\], of the one row of `tokens`,
    /// which follow those that `cache` holds; it holds them afterwards.
    ///
    /// # Panics
    /// More rows of tokens than one.
    #[must_use]
    pub fn extend(&self, tokens: &Tokens, lora: Option<&Lora>, cache: &mut KvCache) -> Tensor<2> {
        let [rows, length] = tokens.shape();
        assert_eq!(rows, 1, "a cache holds one sequence");
        let context = self.context(length, cache.length());
        let mut x = self.embed(tokens);
        for layer in 0..self.layers.len() {
            x = self.block_with(layer, x, lora, &context, |qkv| {
                cache.attention(layer, qkv, context.shape)
            });
        }
        cache.advance(length);
        self.last_norm(x)
    }

    /// Logits of `hidden` \[rows, hidden\], of shape \[rows, vocab\].
    #[must_use]
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let head = LinearMap { weight: self.head().clone(), bias: None };
        ops::linear(hidden, &head, Vec::new(), None)
    }

    /// The head \[vocab, hidden\]: the embedding when they are tied.
    pub(crate) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Whether a row of hidden states, and its loss, have the same bits among `rows[0]` rows, of which
    /// the loss counts `counted[0]`, as among `rows[1]`, of which it counts `counted[1]`.
    pub(crate) fn same_bits(&self, rows: [usize; 2], counted: [usize; 2]) -> bool {
        let mut maps = self.layers.iter().flat_map(|layer| {
            [&layer.queries_keys_values, &layer.output, &layer.gate_up, &layer.down]
        });
        maps.all(|map| map.weight.same_bits(rows)) && self.head().same_bits(counted)
    }

    /// Number of blocks.
    pub(crate) fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// What the blocks need to know of sequences of `length` tokens that follow `past` tokens.
    pub(crate) fn context(&self, length: usize, past: usize) -> Context {
        let &ModelConfig { num_heads, num_kv_heads, head_dim, .. } = &self.config;
        let shape = AttentionShape { length, heads: num_heads, kv_heads: num_kv_heads, head_dim };
        let angles = angles(&self.config.rope, head_dim, past..past + length);
        let table = TensorData::new(angles, [length, head_dim]);
        Context { angles: Tensor::from_data(table, &self.device().without_autodiff()), shape }
    }

    /// Embeddings of `tokens`, of shape \[batch * length, hidden\].
    pub(crate) fn embed(&self, tokens: &Tokens) -> Tensor<2> {
        let ids: Tensor<1, Int> = indices(tokens.ids(), &self.device());
        self.embedding.rows(ids)
    }

    /// Block `layer` of `x` \[batch * length, hidden\].
    pub(crate) fn block(
        &self,
        layer: usize,
        x: Tensor<2>,
        lora: Option<&Lora>,
        context: &Context,
    ) -> Tensor<2> {
        self.block_with(layer, x, lora, context, |qkv| ops::attention(qkv, context.shape))
    }

    /// The norm behind the last block.
    pub(crate) fn last_norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.normed(x, &self.norm)
    }

    /// A block with `attend` for its attention: queries, keys and values in, mixed values out.
    fn block_with(
        &self,
        number: usize,
        x: Tensor<2>,
        lora: Option<&Lora>,
        context: &Context,
        attend: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let layer = &self.layers[number];
        let factors = |targets| {
            lora.map_or_else(Vec::new, |lora| lora.factors(&self.config, number, targets))
        };
        let normed = self.normed(x.clone(), &layer.attention_norm);
        let qkv =
            ops::linear(normed, &layer.queries_keys_values, factors(QUERIES_KEYS_VALUES), None);
        let mixed = attend(ops::rope(qkv, context.angles.clone(), context.shape));
        let x = ops::linear(mixed, &layer.output, factors(OUTPUT), Some(x));

        let normed = self.normed(x.clone(), &layer.feed_forward_norm);
        let gate_up = ops::linear(normed, &layer.gate_up, factors(GATE_UP), None);
        ops::linear(ops::silu_gated(gate_up), &layer.down, factors(DOWN), Some(x))
    }

    fn normed(&self, x: Tensor<2>, scale: &Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, scale.clone(), self.config.rms_norm_eps as f32)
    }
}
