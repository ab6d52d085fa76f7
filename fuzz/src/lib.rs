//! Fuzz targets for every decoder that takes outside bytes, and what runs them on stable Rust.
//!
//! An input is a pure function of (seed, target, number) and of the corpus, so that a failure is
//! repeated by its number. docs/fuzzing.md says how to run it, and how to add a target.
//!
//! # Layout
//!
//! - [`targets`]: one file for each decoder
//! - [`corpus`], [`mutate`]: where inputs come from
//! - [`check`]: one input under its limits
//! - [`campaign`]: many inputs on several threads, watched for hangs
//! - [`outlive`]: a run in a child process, to find the input that kills it
//! - [`minimise`], [`report`]: what is left of a failure, and what people see

pub mod campaign;
pub mod check;
pub mod corpus;
pub mod minimise;
pub mod mutate;
pub mod outlive;
pub mod report;
pub mod targets;

pub use targets::Target;
