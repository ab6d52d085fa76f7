//! What the server and a device keep: facts in one embedded database, large values as blobs in
//! files beside it, over a [`Disk`] that tests replace by one that fails.
//!
//! The schema belongs to whoever keeps something; here is only how bytes become durable.
//!
//! # Layout
//!
//! - [`disk`]: what a store needs of a disk
//! - [`folder`]: a folder of the operating system, held by one process or only read
//! - [`simulated`]: a disk in memory that fails, tears or loses unsynced data when it is told to
//! - [`database`]: redb over a disk's file
//! - [`blob`]: whole files, written once
//! - [`log`], [`lines`]: files that grow at their end, and such whose end a database holds too

pub mod blob;
pub mod database;
pub mod disk;
pub mod folder;
pub mod lines;
pub mod log;
pub mod simulated;

pub use database::open_database;
pub use disk::{Disk, DiskFile};
pub use folder::{Folder, Locked, ReadFolder};
pub use log::Log;
pub use simulated::{Fault, SimulatedDisk};
