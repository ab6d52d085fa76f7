//! The device program's library: connection, private data, and the loop that drives a session.
//!
//! # Layout
//!
//! - [`config`]: what `client.toml` says
//! - [`data`]: the private examples on this device
//! - [`connection`]: the calls of the wire contract over mutual TLS
//! - [`transfer`]: adapters and updates on their way, which go on where they broke
//! - [`calls`], `dial`: what it tells of its calls, and another way to the server than a socket
//! - [`backoff`]: how long to wait before trying again
//! - `clock`: time that passes while the device sleeps
//! - [`training_thread`]: the one long-lived thread that trains
//! - [`driver`]: asks the session what to do, does it, brings the result back
//! - [`store`], [`history`]: what outlives a crash, and what left this device
//! - [`setup`]: from a configuration to a driver
//! - [`report`]: what the program tells its user

pub mod backoff;
pub mod calls;
mod clock;
pub mod config;
pub mod connection;
pub mod data;
mod dial;
pub mod driver;
pub mod history;
pub mod report;
pub mod setup;
pub mod store;
pub mod training_thread;
pub mod transfer;

pub use backoff::Backoff;
pub use calls::{Call, CallKind};
pub use config::ClientConfig;
pub use connection::{CallError, Connection, Credentials, Traffic};
pub use data::{PrivateData, read_examples};
pub use driver::{Device, DriverError, Event};
pub use store::DeviceStore;
pub use training_thread::TrainingThread;
pub use transfer::Download;
