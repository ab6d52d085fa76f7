//! The server's side of a round, as a state machine without I/O.
//!
//! [`Coordinator::handle`] decides and changes nothing; the shell makes the records that it
//! returns durable, gives each to [`Coordinator::apply`] (the only place where state changes), and
//! then sends the reply. Time is an argument; [`Coordinator::poll_timeout`] tells when
//! [`Coordinator::handle_timeout`] has something to say.
//!
//! # Layout
//!
//! - [`config`], [`mode`], [`sections`]: what a run is, and which settings are refused; [`auto`]:
//!   settings that are chosen for the user
//! - [`coordinator`]: the state machine; [`phase`] holds one file for each phase
//! - [`message`]: what goes in and what comes out
//! - [`clipped`]: the only form in which a delta is ever summed
//! - [`combine`], [`server_optimizer`]: the two axes of a strategy; [`advance`]: what they lead to;
//!   [`mod@refactor`]: other factors of the same product
//! - [`state`], [`store`]: what outlives a round, and where it is kept
//! - [`steps`]: what leads from an adapter that a device holds to the current one
//! - [`ledger`]: what is on the record; [`concerns`]: what people should hear of

pub mod advance;
pub mod auto;
pub mod clipped;
pub mod combine;
pub mod concerns;
pub mod config;
pub mod coordinator;
pub mod ledger;
mod low_rank;
pub mod message;
pub mod mode;
pub mod phase;
pub mod refactor;
pub mod sections;
pub mod server_optimizer;
pub mod state;
pub mod steps;
pub mod store;

pub use clipped::{Admitted, ClippedDelta};
pub use config::{InvalidRun, RunConfig};
pub use coordinator::Coordinator;
pub use message::{Counted, Input, Record, Rejection, Reply, Report, RoundSummary, Step};
pub use server_optimizer::Moments;
pub use state::{Assignment, Assignments, RunEnd, RunState, Totals};
pub use steps::Steps;
pub use store::{MemoryStore, Store, UpdateSource};
