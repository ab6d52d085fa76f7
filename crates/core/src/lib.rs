//! Floret's vocabulary: the types that every other crate speaks, and the pure rules on them.
//!
//! Nothing here does I/O, reads a clock or asks the operating system for randomness.
//!
//! # Layout
//!
//! - [`id`], [`time`]: names and digests, time as a value
//! - [`seed`]: reproducible draws
//! - [`model_config`], [`lora`], [`layout`]: what an adapter of a base model looks like
//! - [`adapter`], [`peft`]: the adapter itself, and its PEFT files as bytes
//! - [`base`]: digests of a base model's files
//! - [`plan`], [`scope`]: what a device is asked to do, and what part of an adapter it trains
//! - [`payload`], [`update`]: what a device sends back
//! - [`signature`], [`chain`], [`hex`]: what a server states, lines that hold together, bytes as text
//! - [`config_file`], [`json`]: TOML files whose unknown keys are refused, plain data as JSON

pub mod adapter;
pub mod base;
pub mod chain;
pub mod config_file;
pub mod hex;
pub mod id;
pub mod json;
pub mod layout;
pub mod lora;
pub mod model_config;
pub mod payload;
pub mod peft;
pub mod plan;
pub mod scope;
pub mod seed;
pub mod signature;
pub mod tensor_bytes;
pub mod time;
pub mod update;

pub use adapter::Adapter;
pub use id::{ClientId, Digest, Round, RunId, Version};
pub use layout::Layout;
pub use lora::LoraConfig;
pub use model_config::ModelConfig;
pub use payload::Payload;
pub use plan::Plan;
pub use scope::Scope;
pub use seed::Seed;
pub use signature::{PublicKey, Signature, SigningKey};
pub use time::Time;
pub use update::{ClientUpdate, Receipt, SignedReceipt};
