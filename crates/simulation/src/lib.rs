//! Many devices and one aggregator in virtual time, in one process, without a network.
//!
//! The state machines are the ones that production runs; [`World`] stands in for the shells around
//! them, and nothing else.
//!
//! # Layout
//!
//! - [`world`]: the event loop; [`server`] and [`device`]: who lives in it, and goes down and up again
//! - [`toy`]: a trainer that needs no model
//! - [`behaviour`]: how devices differ from perfect ones, by seed

pub mod behaviour;
pub mod device;
pub mod server;
pub mod toy;
pub mod world;

pub use behaviour::Behaviour;
pub use device::DeviceStore;
pub use server::Restart;
pub use toy::ToyTrainer;
pub use world::{Ending, World, WorldError};
