//! A device's side of a round, as a state machine without I/O.
//!
//! The shell asks [`Session::next_action`] what to do, does it, and brings the result back as an
//! [`Input`]. [`Session::handle`] decides and changes nothing; the shell keeps the records that it
//! returns and gives each to [`Session::apply`], the only place where state changes.
//!
//! # Layout
//!
//! - [`trainer`]: the seam to whatever trains
//! - [`limits`]: what a device is willing to do, and which plans it declines
//! - [`pipeline`], [`residual`]: from a trained adapter to an encoded update, and what that leaves out;
//!   `align`: factors turned towards those of everybody else
//! - [`own`]: what a device keeps of its own between rounds: its residual, a factor that stays there, [`control`] variates
//! - [`session`]: the state machine, one file for each phase
//! - [`store`]: where what must outlive a crash is kept

mod align;
pub mod control;
pub mod limits;
pub mod own;
pub mod pipeline;
pub mod residual;
pub mod session;
pub mod store;
pub mod trainer;

pub use control::Control as ControlVariate;
pub use limits::{Limits, LocalModel, Refusal};
pub use own::{Own, Personal};
pub use pipeline::Pending;
pub use residual::Residual;
pub use session::{Action, Fault, Input, Record, Session};
pub use store::{Kept, NoStore, Store};
pub use trainer::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
