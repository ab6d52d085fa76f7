//! The transformer, LoRA, training, evaluation and generation: the only crate that knows Burn.
//!
//! # Layout
//!
//! - [`checkpoint`]: a Hugging Face directory, checked before it is loaded
//! - [`weights`]: names and shapes of all weights
//! - [`transformer`], [`cache`]: the forward pass
//! - [`precision`]: how the base model's matrices are held
//! - `ops`, `kernels`: its operations, each with a backward pass of its own, and what computes them
//!   on the CPU
//! - [`lora`]: an adapter's factors as tensors
//! - [`tokenizer`], [`data`], [`tokens`]: from texts to batches
//! - [`optimizer`], [`train`]: local training of an adapter, or of several together
//! - [`memory`]: what a training step needs, and which way of doing it fits a budget
//! - [`bridge`], `side_by_side`: that training behind the seam of `floret-device`, of one client or of
//!   several at once, on threads of their own or as one batch
//! - [`mod@evaluate`], [`mod@generate`]: loss on held-out sequences, and text
//! - [`pretrain`], [`tokenizer_training`]: a small base model trained from nothing
//! - [`threads`], [`device`]: who computes, and where
//! - [`conformance`]: comparison with transformers and PEFT

pub mod bridge;
pub mod cache;
pub mod checkpoint;
pub mod conformance;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod generate;
mod kernels;
pub mod lora;
mod loss;
pub mod memory;
mod ops;
pub mod optimizer;
pub mod precision;
pub mod pretrain;
mod rope;
mod shuffle;
mod side_by_side;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod tokenizer;
pub mod tokenizer_training;
pub mod tokens;
pub mod train;
pub mod transformer;
mod weight_file;
pub mod weights;

pub use bridge::{LocalTrainer, TrainerOptions};
pub use cache::KvCache;
pub use checkpoint::{Checkpoint, InvalidCheckpoint};
pub use data::{Document, Example, LocalData};
pub use device::{DeviceChoice, Gpu, NoDevice, UnknownDevice, cpu};
pub use evaluate::{Evaluation, evaluate};
pub use generate::{Continuation, GenerateError, Sampling, generate};
pub use kernels::matmul::{product_kernel, product_rate};
pub use lora::{Lora, LoraMismatch};
pub use memory::{DoesNotFit, StepPlan, Workload};
pub use precision::{Precision, UnknownPrecision};
pub use threads::{NoThreads, Threads};
pub use tokenizer::{InvalidTokenizer, NotTokenizable, Tokenizer};
pub use tokens::{InvalidTokens, Sequence, Tokens};
pub use train::{Step, Trained, Training};
pub use transformer::Transformer;
