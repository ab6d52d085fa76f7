//! Reporting: the encoded update is sent until the server answers. No deadline ends that: the server
//! may have counted it already, and it alone knows.

use std::sync::Arc;

use floret_core::ClientUpdate;

use super::{Outcome, Record};

#[derive(Debug)]
pub(super) struct Reporting {
    pub(super) update: Arc<ClientUpdate>,
}

impl Reporting {
    pub(super) fn settled(&self, outcome: Outcome) -> Record {
        Record::Settled { round: self.update.round, outcome }
    }
}
