//! A small base model trained from nothing: every weight, by AdamW.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, IndexingUpdateOp, Tensor, TensorData, activation};
use floret_core::model_config::InvalidModelConfig;
use floret_core::seed::{Purpose, uniform_f32};
use floret_core::{ModelConfig, Round, Seed};
use half::f16;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::checkpoint::{CONFIG, WEIGHTS};
use crate::device::cpu;
use crate::lora::{add, values};
use crate::loss;
use crate::optimizer::{AdamW, AdamWConfig, scale_and_clip};
use crate::shuffle::Epochs;
use crate::tokenizer_training::SPECIAL_IDS;
use crate::tokens::{Batch, InvalidTokens, Sequence, indices};
use crate::train::Step;
use crate::transformer::Transformer;
use crate::weights::{WeightSpec, Weights};

/// Shape of a base model to train: a Llama with a tied head and the special ids of
/// [`train_tokenizer`](crate::tokenizer_training::train_tokenizer).
#[derive(Debug, Clone, Copy)]
pub struct BaseShape {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Longest sequence.
    pub max_positions: usize,
}

impl BaseShape {
    /// Its `config.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let [bos, eos] = SPECIAL_IDS;
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "torch_dtype": "float16",
        });
        format!("{config:#}\n")
    }
}

/// How to train a base model.
#[derive(Debug, Clone)]
pub struct PretrainSettings {
    /// Optimizer steps.
    pub steps: u32,
    /// Sequences per step.
    pub batch_size: usize,
    /// Learning rate behind the warm-up.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Root of the first weights and of the order of sequences.
    pub seed: Seed,
}

/// Pretraining that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// A shape that is not possible.
    #[error("this shape of a model is not possible: {0}")]
    Shape(#[from] InvalidModelConfig),
    /// Nothing to train on.
    #[error("the texts give no sequence to train on")]
    NoData,
    /// Tokens that the model cannot take.
    #[error(transparent)]
    Tokens(#[from] InvalidTokens),
    /// The loss stopped being finite.
    #[error("training diverged at step {step}: use a lower learning rate")]
    Diverged {
        /// The optimizer step.
        step: u32,
    },
}

/// A base model in training.
#[derive(Debug)]
pub struct Pretraining<'a> {
    config: ModelConfig,
    json: String,
    settings: PretrainSettings,
    /// Each weight, and where its values lie in `values`.
    weights: Weights<(WeightSpec, Range<usize>)>,
    values: Vec<f32>,
    optimizer: AdamW,
    epochs: Epochs<'a, Sequence>,
    steps: u32,
}

impl<'a> Pretraining<'a> {
    /// A model of `shape` with seeded first weights.
    ///
    /// # Errors
    /// A shape that is not possible, or no sequence.
    pub fn new(
        shape: &BaseShape,
        settings: PretrainSettings,
        sequences: &'a [Sequence],
    ) -> Result<Self, PretrainError> {
        let json = shape.to_json();
        let config = ModelConfig::from_json(&json)?;
        let seed = |purpose| settings.seed.derive(purpose, Round(0), None);
        let mut stream = seed(Purpose::BaseInit).stream();
        let mut values = Vec::new();
        let weights = Weights::of(&config).map(|spec| {
            let start = values.len();
            values.extend(first_values(spec, &config, &mut stream));
            (spec.clone(), start..values.len())
        });
        let adam = AdamWConfig {
            learning_rate: settings.learning_rate,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: settings.weight_decay,
        };
        let epochs = Epochs::new(sequences, &seed(Purpose::Shuffle));
        Ok(Self {
            optimizer: AdamW::new(adam, values.len()),
            epochs: epochs.ok_or(PretrainError::NoData)?,
            config,
            json,
            settings,
            weights,
            values,
            steps: 0,
        })
    }

    /// Number of weights.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.values.len()
    }

    /// Does one optimizer step.
    ///
    /// # Errors
    /// Tokens that the model cannot take, or a loss that is not finite.
    pub fn step(&mut self) -> Result<Step, PretrainError> {
        let share = self.epochs.next_share(self.settings.batch_size);
        let batch = Batch::new(&self.config, &share)?;
        let (nll, mut gradient) = self.gradient(&batch);
        let norm = scale_and_clip(&mut gradient, 1.0 / batch.counted() as f64, 1.0);
        self.steps += 1;
        let PretrainSettings { steps, learning_rate, .. } = self.settings;
        self.optimizer.set_learning_rate(learning_rate * schedule(self.steps, steps));
        self.optimizer.step(&mut self.values, &gradient);
        let (number, loss) = (self.steps, nll / batch.counted() as f64);
        if loss.is_finite() && norm.is_finite() {
            return Ok(Step { number, loss });
        }
        Err(PretrainError::Diverged { step: number })
    }

    /// The model as it is now.
    #[must_use]
    pub fn model(&self) -> Transformer {
        Transformer::new(self.config.clone(), &self.tensors(&cpu()))
    }

    /// Writes `config.json` and `model.safetensors` (in f16) to the directory `dir`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let leaves = self.weights.leaves();
        let halves = |range: &Range<usize>| -> Vec<u8> {
            let values = self.values[range.clone()].iter();
            values.flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
        };
        let bytes: Vec<Vec<u8>> = leaves.iter().map(|(_, range)| halves(range)).collect();
        let views = leaves.iter().zip(&bytes).map(|((spec, _), bytes)| {
            Ok((spec.name.as_str(), TensorView::new(Dtype::F16, spec.shape.clone(), bytes)?))
        });
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        let file = views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, metadata))
            .map_err(io::Error::other)?;
        fs::write(dir.join(CONFIG), &self.json)?;
        fs::write(dir.join(WEIGHTS), file)
    }

    /// Sum of the loss over `batch`, and its gradient.
    fn gradient(&self, batch: &Batch) -> (f64, Vec<f32>) {
        let leaves = self.tensors(&cpu().autodiff()).map(|leaf| leaf.clone().require_grad());
        let model = Transformer::new(self.config.clone(), &leaves);
        let hidden = model.hidden(&batch.tokens, None);
        let rows = indices(&batch.rows, &hidden.device());
        let logits = model.logits(hidden.select(0, rows));
        let log_probs = activation::log_softmax(logits.clone().inner(), 1);
        let targets = indices(&batch.targets, &log_probs.device());
        let targets = targets.reshape([batch.targets.len(), 1]);
        let nll = loss::sum(log_probs.clone().gather(1, targets.clone()).neg());
        // The gradient by the logits: softmax minus one at the target.
        let minus_one = Tensor::full(targets.dims(), -1.0, &log_probs.device());
        let by_logits = log_probs.exp().scatter(1, targets, minus_one, IndexingUpdateOp::Add);
        let mut gradients = (logits * by_logits.autodiff()).sum().backward();
        let mut sum = vec![0.0; self.values.len()];
        for ((_, range), leaf) in self.weights.leaves().into_iter().zip(leaves.leaves()) {
            if let Some(gradient) = leaf.grad_remove(&mut gradients) {
                add(&mut sum[range.clone()], &values(gradient));
            }
        }
        (nll, sum)
    }

    fn tensors(&self, device: &Device) -> Weights<Tensor<2>> {
        self.weights.map(|(spec, range)| {
            let data = TensorData::new(self.values[range.clone()].to_vec(), spec.matrix_shape());
            Tensor::from_data(data, device)
        })
    }
}

/// Norms are ones. Matrices are uniform with standard deviation 1 / sqrt(in), smaller by
/// sqrt(2 layers) where they write to the residual stream (as GPT-2 does); the embedding, which is
/// also the head, has 0.02.
fn first_values(spec: &WeightSpec, config: &ModelConfig, stream: &mut ChaCha20Rng) -> Vec<f32> {
    let [_, columns] = match *spec.shape {
        [rows, columns] => [rows, columns],
        _ => return vec![1.0; spec.len()],
    };
    let writes = ["o_proj.weight", "down_proj.weight"].iter().any(|end| spec.name.ends_with(end));
    let deviation = match (spec.name.contains("embed_tokens"), writes) {
        (true, _) => 0.02,
        (_, true) => (columns as f32 * 2.0 * config.num_layers as f32).sqrt().recip(),
        _ => (columns as f32).sqrt().recip(),
    };
    let bound = 3f32.sqrt() * deviation;
    let mut draw = || (2.0 * uniform_f32(stream.next_u32()) - 1.0) * bound;
    (0..spec.len()).map(|_| draw()).collect()
}

/// Share of the learning rate at a step: linear warm-up over a twentieth of the steps, then a
/// cosine down to a twentieth.
fn schedule(step: u32, steps: u32) -> f64 {
    let warm_up = (f64::from(steps) / 20.0).max(1.0);
    let step = f64::from(step);
    if step < warm_up {
        return step / warm_up;
    }
    let done = (step - warm_up) / (f64::from(steps) - warm_up).max(1.0);
    0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

#[cfg(test)]
mod tests;
