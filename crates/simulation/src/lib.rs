//! Many devices and one aggregator in virtual time, in one process, without a network.
//!
//! The state machines are the ones that production runs; [`World`] stands in for the shells around
//! them, and nothing else.
//!
//! # Layout
//!
//! - [`world`]: the event loop
//! - [`toy`]: a trainer that needs no model
//! - [`behaviour`]: how devices differ from perfect ones, by seed

pub mod behaviour;
pub mod toy;
pub mod world;

pub use behaviour::Behaviour;
pub use toy::ToyTrainer;
pub use world::{Ending, World, WorldError};
