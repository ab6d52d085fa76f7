//! Comparison with transformers and PEFT on a fixture: a base model, an adapter, and what the
//! reference computed from them.
//!
//! A fixture is a directory with `base/`, `adapter/`, `adapter_trained/` (Hugging Face and PEFT
//! directories) and `reference.safetensors`: `input_ids`, `labels` (-100: ignored),
//! `attention_mask`, `logits_base`, `logits_adapter`, `grad.NAME` of every LoRA tensor,
//! `train_losses` before each AdamW step, `greedy_prompt` and `greedy_tokens`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::device::cpu;
use floret_core::model_config::InvalidModelConfig;
use floret_core::peft::{self, InvalidPeft};
use floret_core::plan::TrainingConfig;
use floret_core::{Adapter, LoraConfig, Seed};
use floret_device::TrainError;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, InvalidCheckpoint};
use crate::generate::greedy_with_margins;
use crate::lora::{Lora, LoraMismatch, values};
use crate::memory::StepPlan;
use crate::precision::Precision;
use crate::tokens::{InvalidTokens, Sequence, Tokens};
use crate::train::{Training, gradient};
use crate::transformer::Transformer;

mod reference;

use reference::Reference;

/// Largest differences from the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differences {
    /// Absolute, over the logits of the base model where `attention_mask` is 1.
    pub logits_base: f64,
    /// Absolute, over the logits with the adapter where `attention_mask` is 1.
    pub logits_adapter: f64,
    /// The largest of max |difference| / max |reference| over the gradients of all LoRA tensors.
    pub gradients: f64,
    /// Absolute, over the losses before each AdamW step.
    pub train_losses: f64,
    /// Greedy tokens that differ although the two best logits are not within 1e-4.
    pub greedy_tokens: usize,
}

impl Differences {
    /// What is accepted.
    pub const TOLERANCES: Self = Self {
        logits_base: 1e-4,
        logits_adapter: 1e-4,
        gradients: 1e-3,
        train_losses: 1e-3,
        greedy_tokens: 0,
    };

    /// Each kind of difference: its name, the difference, and what is accepted.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, f64, f64); 5] {
        let accepted = &Self::TOLERANCES;
        let counts = [self.greedy_tokens, accepted.greedy_tokens].map(|count| count as f64);
        [
            ("logits_base", self.logits_base, accepted.logits_base),
            ("logits_adapter", self.logits_adapter, accepted.logits_adapter),
            ("gradients", self.gradients, accepted.gradients),
            ("train_losses", self.train_losses, accepted.train_losses),
            ("greedy_tokens", counts[0], counts[1]),
        ]
    }

    /// Whether every difference is accepted (NaN is not).
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.rows().iter().all(|(_, difference, accepted)| difference <= accepted)
    }
}

/// A fixture that cannot be compared with.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFixture {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Its base model.
    #[error(transparent)]
    Checkpoint(#[from] InvalidCheckpoint),
    /// Its base model's shape.
    #[error(transparent)]
    Config(#[from] InvalidModelConfig),
    /// Its adapter.
    #[error("{path}: {source}")]
    Peft {
        /// The adapter's directory.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidPeft,
    },
    /// Its reference values.
    #[error("{path}: {problem}")]
    Reference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Its adapter belongs to another model.
    #[error(transparent)]
    Lora(#[from] LoraMismatch),
    /// Its token ids.
    #[error("reference.safetensors: {0}")]
    Tokens(#[from] InvalidTokens),
    /// Training on it.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// A fixture, loaded.
#[derive(Debug)]
pub struct Fixture {
    base_dir: PathBuf,
    model: Transformer,
    settings: LoraConfig,
    adapter: Adapter,
    reference: Reference,
}

impl Fixture {
    /// Loads the fixture in `dir` onto the CPU.
    ///
    /// # Errors
    /// A file that is missing or does not fit the others; it is named.
    pub fn open(dir: &Path) -> Result<Self, InvalidFixture> {
        let base_dir = dir.join("base");
        let checkpoint = Checkpoint::open(&base_dir)?;
        let (settings, adapter) = open_adapter(&dir.join("adapter"), &checkpoint)?;
        let reference = Reference::open(&dir.join("reference.safetensors"))?;
        let model = checkpoint.load(Precision::F32, &cpu())?;
        Ok(Self { base_dir, model, settings, adapter, reference })
    }

    /// Computes all that the reference holds and compares.
    ///
    /// # Errors
    /// Values in the reference that the model cannot take.
    pub fn compare(&self) -> Result<Differences, InvalidFixture> {
        let lora = self.lora(&self.adapter)?;
        Ok(Differences {
            logits_base: self.logits_difference("logits_base", None)?,
            logits_adapter: self.logits_difference("logits_adapter", Some(&lora))?,
            gradients: self.gradient_difference()?,
            train_losses: self.train()?.0,
            greedy_tokens: self.greedy_difference()?,
        })
    }

    /// Trains the adapter as the reference did and writes it to `dir` as PEFT would, with Floret's
    /// own logits of it as `logits_adapter` in `logits.safetensors`.
    ///
    /// # Errors
    /// A file that cannot be written, or what [`Fixture::compare`] refuses.
    pub fn export(&self, dir: &Path) -> Result<(), InvalidFixture> {
        let (_, trained) = self.train()?;
        let lora = self.lora(&trained)?;
        let tokens = Tokens::new(self.model.config(), &self.reference.rows())?;
        let logits = values(self.model.logits(self.model.hidden(&tokens, Some(&lora))));
        let [batch, length] = tokens.shape();
        let shape = vec![batch, length, self.model.config().vocab_size];
        let bytes = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>();
        let ids = tokens.ids().iter().flat_map(|&id| i64::from(id).to_le_bytes());
        let ids = ids.collect::<Vec<u8>>();
        let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes);
        let path = dir.join("logits.safetensors");
        let file = view(Dtype::F32, shape, &bytes)
            .and_then(|logits| Ok([logits, view(Dtype::I64, vec![batch, length], &ids)?]))
            .and_then(|views| {
                safetensors::serialize(["logits_adapter", "input_ids"].into_iter().zip(views), None)
            })
            .map_err(|error| reference::wrong(&path, error.to_string()))?;
        let files = peft::to_peft(&trained, &self.settings, &self.base_dir.to_string_lossy());
        fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        write(&path, &file)?;
        write(&dir.join(peft::CONFIG_FILE), files.config.as_bytes())?;
        write(&dir.join(peft::WEIGHTS_FILE), &files.weights)
    }

    fn lora(&self, adapter: &Adapter) -> Result<Lora, LoraMismatch> {
        Lora::frozen(adapter, self.model.config(), &self.settings, &self.model.device())
    }

    fn logits_difference(&self, name: &str, lora: Option<&Lora>) -> Result<f64, InvalidFixture> {
        let vocab = self.model.config().vocab_size;
        let tokens = Tokens::new(self.model.config(), &self.reference.rows())?;
        let logits = values(self.model.logits(self.model.hidden(&tokens, lora)));
        let want = self.reference.floats(name, logits.len())?;
        let rows = logits.chunks(vocab).zip(want.chunks(vocab)).zip(self.reference.mask());
        let counted = rows.filter(|(_, counts)| *counts).map(|(rows, _)| rows);
        Ok(counted.map(|(got, want)| max_difference(got, want)).fold(0.0, worse))
    }

    fn gradient_difference(&self) -> Result<f64, InvalidFixture> {
        let sequences = self.reference.sequences()?;
        let share: Vec<&Sequence> = sequences.iter().collect();
        let (layout, scale) = (self.adapter.layout(), self.settings.scale());
        let lora = Lora::trainable(layout, &[self.adapter.values()], scale, &self.model.device());
        let sum = gradient(&self.model, &lora, &share, &StepPlan::fastest(share.len()))?;
        let mut worst = 0.0;
        for spec in layout.tensors() {
            let got: Vec<f32> =
                sum.gradient[spec.range()].iter().map(|value| value / sum.counted as f32).collect();
            let want = self.reference.floats(&format!("grad.{}", spec.name), got.len())?;
            let largest = want.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
            let difference = max_difference(&got, &want);
            // A fresh adapter's B is zero, and then so is every gradient of its A.
            let share = if largest == 0.0 { difference } else { difference / f64::from(largest) };
            worst = worse(worst, share);
        }
        Ok(worst)
    }

    /// The largest difference of a loss before a step, and the adapter behind the last.
    fn train(&self) -> Result<(f64, Adapter), InvalidFixture> {
        let sequences = self.reference.sequences()?;
        let want = self.reference.all_floats("train_losses")?;
        let config = TrainingConfig {
            max_steps: want.len() as u32,
            batch_size: sequences.len() as u32,
            learning_rate: 1e-2,
            weight_decay: 0.01,
            max_grad_norm: 0.0,
            ..TrainingConfig::default()
        };
        let (start, seed) = ((&self.settings, &self.adapter), Seed::from_number(0));
        let mut training = Training::new(&self.model, start, &sequences, &config, &seed)?;
        let mut worst = 0.0;
        for want in want {
            worst = worse(worst, (training.step()?.loss - f64::from(want)).abs());
        }
        let layout = self.adapter.layout().clone();
        let adapter = Adapter::new(layout, training.finish().values)
            .map_err(|error| TrainError::Unsupported(error.to_string()))?;
        Ok((worst, adapter))
    }

    fn greedy_difference(&self) -> Result<usize, InvalidFixture> {
        let prompt = self.reference.ids("greedy_prompt")?;
        let want = self.reference.ids("greedy_tokens")?;
        let got = greedy_with_margins(&self.model, None, &prompt, want.len())?;
        // Behind a tie, the two texts may go different ways.
        let tie = got.iter().position(|(_, margin)| *margin < 1e-4).unwrap_or(want.len());
        let got = |at| got.get(at).map(|(id, _)| id);
        Ok((0..tie).filter(|at| got(*at) != want.get(*at)).count())
    }
}

fn open_adapter(dir: &Path, base: &Checkpoint) -> Result<(LoraConfig, Adapter), InvalidFixture> {
    let (config, weights) = (dir.join(peft::CONFIG_FILE), dir.join(peft::WEIGHTS_FILE));
    let text = fs::read_to_string(&config).map_err(|source| io(&config, source))?;
    let bytes = fs::read(&weights).map_err(|source| io(&weights, source))?;
    peft::from_peft(&text, &bytes, base.config())
        .map_err(|source| InvalidFixture::Peft { path: dir.to_owned(), source })
}

fn io(path: &Path, source: std::io::Error) -> InvalidFixture {
    InvalidFixture::Io { path: path.to_owned(), source }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), InvalidFixture> {
    fs::write(path, bytes).map_err(|source| io(path, source))
}

fn max_difference(got: &[f32], want: &[f32]) -> f64 {
    let pairs = got.iter().zip(want);
    pairs.map(|(&x, &y)| (f64::from(x) - f64::from(y)).abs()).fold(0.0, worse)
}

/// The larger of two differences, and NaN when either is.
fn worse(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) }
}
