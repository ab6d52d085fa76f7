//! The weights of a transformer, as a tree over any kind of leaf.
//!
//! [`Weights::of`] is the only place that knows the names in a checkpoint. Pretraining and saving go
//! through it by [`Weights::map`]; loading stacks maps that share their input, in
//! [`Transformer::build`](crate::transformer::Transformer::build).

use std::collections::BTreeMap;

use floret_core::ModelConfig;
use floret_core::lora::TargetModule;

/// Name and shape of a weight in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name, such as `model.norm.weight`.
    pub name: String,
    /// Shape: \[out, in\] of a matrix, \[n\] of a norm or bias.
    pub shape: Vec<usize>,
}

impl WeightSpec {
    fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values; no weight of a valid model is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape with two dimensions: a vector is a matrix of one row.
    #[must_use]
    pub fn matrix_shape(&self) -> [usize; 2] {
        match *self.shape {
            [rows, columns] => [rows, columns],
            _ => [1, self.len()],
        }
    }
}

/// A linear map y = x Wᵀ + b.
#[derive(Debug, Clone)]
pub struct Linear<T> {
    /// W, of shape \[out, in\].
    pub weight: T,
    /// b, of shape \[out\].
    pub bias: Option<T>,
}

/// One block: attention, then a feed-forward layer, each behind a norm.
#[derive(Debug, Clone)]
pub struct Block<T> {
    /// Scale of the norm before attention.
    pub attention_norm: T,
    /// Scale of the norm before the feed-forward layer.
    pub feed_forward_norm: T,
    /// All seven linear maps.
    pub linears: BTreeMap<TargetModule, Linear<T>>,
}

/// All weights of a transformer.
#[derive(Debug, Clone)]
pub struct Weights<T> {
    /// Token embedding, of shape \[vocab, hidden\].
    pub embedding: T,
    /// The blocks, in order.
    pub blocks: Vec<Block<T>>,
    /// Scale of the norm after the last block.
    pub norm: T,
    /// Head, of shape \[vocab, hidden\]; none when it is tied to the embedding.
    pub head: Option<T>,
}

impl Weights<WeightSpec> {
    /// Names and shapes of the weights of a model, as Hugging Face saves them.
    #[must_use]
    pub fn of(config: &ModelConfig) -> Self {
        let (hidden, table) = (config.hidden_size, [config.vocab_size, config.hidden_size]);
        let block = |layer: usize| {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}");
            let linear = |target: TargetModule| {
                let (shape, path) = (config.linear_shape(target), target.path());
                let bias = || WeightSpec::new(name(&format!("{path}.bias")), [shape[0]]);
                Linear {
                    weight: WeightSpec::new(name(&format!("{path}.weight")), shape),
                    bias: config.has_bias(target).then(bias),
                }
            };
            let after = "post_attention_layernorm.weight";
            Block {
                attention_norm: WeightSpec::new(name("input_layernorm.weight"), [hidden]),
                feed_forward_norm: WeightSpec::new(name(after), [hidden]),
                linears: TargetModule::ALL.map(|target| (target, linear(target))).into(),
            }
        };
        Self {
            embedding: WeightSpec::new("model.embed_tokens.weight", table),
            blocks: (0..config.num_layers).map(block).collect(),
            norm: WeightSpec::new("model.norm.weight", [hidden]),
            head: (!config.tie_embeddings).then(|| WeightSpec::new(HEAD, table)),
        }
    }
}

/// Name of the head in a checkpoint.
pub(crate) const HEAD: &str = "lm_head.weight";

impl<T> Weights<T> {
    /// The same tree with each leaf turned into another, always in the same order.
    pub fn map<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> Weights<U> {
        Weights {
            embedding: f(&self.embedding),
            blocks: self.blocks.iter().map(|block| block.map(&mut f)).collect(),
            norm: f(&self.norm),
            head: self.head.as_ref().map(f),
        }
    }

    /// Every leaf, in the order of [`Weights::map`].
    #[must_use]
    pub fn leaves(&self) -> Vec<&T> {
        let mut leaves = Vec::new();
        self.map(|leaf| leaves.push(leaf));
        leaves
    }
}

impl<T> Block<T> {
    fn map<'a, U>(&'a self, f: &mut impl FnMut(&'a T) -> U) -> Block<U> {
        let linears = self.linears.iter().map(|(target, linear)| {
            let weight = f(&linear.weight);
            (*target, Linear { weight, bias: linear.bias.as_ref().map(&mut *f) })
        });
        let linears = linears.collect();
        Block {
            attention_norm: f(&self.attention_norm),
            feed_forward_norm: f(&self.feed_forward_norm),
            linears,
        }
    }
}
