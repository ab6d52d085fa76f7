//! Reporting: the encoded update is sent until the server answers. No deadline ends that: the server
//! may have counted it already, and it alone knows.

use super::{Outcome, Record};
use crate::pipeline::Pending;

#[derive(Debug)]
pub(super) struct Reporting {
    pub(super) pending: Pending,
}

impl Reporting {
    pub(super) fn settled(&self, outcome: Outcome) -> Record {
        Record::Settled { round: self.pending.update.round, outcome }
    }
}
