//! The phases of a run. Each file owns exactly its phase's data.
//!
//! ```text
//! selecting -> training -> selecting ...       (a round committed or abandoned)
//!         \________ended________/              (all rounds committed, or too many abandoned)
//! ```

pub(crate) mod selecting;
pub(crate) mod training;

use selecting::Selecting;
use training::Training;

use crate::state::RunEnd;

/// Where a run stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Clients are gathering.
    Selecting(Selecting),
    /// A cohort is at work.
    Training(Training),
    /// Nothing more will happen.
    Ended(RunEnd),
}
