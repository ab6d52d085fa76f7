//! Many devices and one aggregator in virtual time, in one process, without a network.
//!
//! The state machines are the ones that production runs; [`World`] stands in for the shells around
//! them, and nothing else.
//!
//! # Layout
//!
//! - [`world`]: the event loop; [`server`] and [`device`]: who lives in it, and goes down and up again
//! - [`crowd`]: which devices are there, out of a population of any size
//! - [`toy`]: a trainer that needs no model; [`attack`]: hostile clients of any trainer
//! - [`behaviour`], [`distribution`]: how devices differ from perfect ones, by seed

pub mod attack;
pub mod behaviour;
pub mod crowd;
pub mod device;
pub mod distribution;
pub mod server;
pub mod toy;
pub mod world;

pub use attack::{Attack, AttackKind, Hostile};
pub use behaviour::{Behaviour, Nature};
pub use crowd::Population;
pub use device::DeviceStore;
pub use distribution::Distribution;
pub use server::Restart;
pub use toy::ToyTrainer;
pub use world::{Ending, Traffic, World, WorldError};
