//! The transformer, LoRA, training, evaluation and generation: the only crate that knows Burn.
//!
//! # Layout
//!
//! - [`checkpoint`]: a Hugging Face directory, checked before it is loaded
//! - [`device`]: who computes
//! - [`weights`]: names and shapes of all weights, and the one traversal of them
//! - [`transformer`], [`attention`]: the forward pass
//! - [`lora`]: an adapter's factors as tensors
//! - [`tokenizer`], [`data`], [`tokens`]: from texts to batches
//! - [`optimizer`], [`train`]: local training of an adapter
//! - [`bridge`]: that training behind the seam of `floret-device`
//! - [`mod@evaluate`], [`mod@generate`]: loss on held-out sequences, and text
//! - [`pretrain`], [`tokenizer_training`]: a small base model trained from nothing
//! - [`threads`], [`cpu`]: who computes, and where
//! - [`conformance`]: comparison with transformers and PEFT

pub mod attention;
pub mod bridge;
pub mod checkpoint;
pub mod conformance;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod generate;
pub mod lora;
mod loss;
pub mod optimizer;
pub mod pretrain;
mod rope;
mod shuffle;
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

pub use attention::KvCache;
pub use bridge::LocalTrainer;
pub use checkpoint::{Checkpoint, InvalidCheckpoint};
pub use data::{Example, LocalData};
pub use device::cpu;
pub use evaluate::{Evaluation, evaluate};
pub use generate::{GenerateError, Sampling, generate};
pub use lora::{Lora, LoraMismatch};
pub use threads::{NoThreads, Threads};
pub use tokenizer::{InvalidTokenizer, NotTokenizable, Tokenizer};
pub use tokens::{InvalidTokens, Sequence, Tokens};
pub use train::{Step, Trained, Training};
pub use transformer::Transformer;
