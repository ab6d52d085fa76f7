//! Many devices and one aggregator in virtual time, in one process, without a network.
//!
//! The state machines are the ones that production runs; [`World`] stands in for the shells around
//! them, and nothing else.
//!
//! # Layout
//!
//! - [`world`]: the event loop
//! - [`behaviour`]: how devices differ from perfect ones, by seed

pub mod behaviour;
pub mod world;

pub use behaviour::Behaviour;
pub use world::{Ending, World, WorldError};
