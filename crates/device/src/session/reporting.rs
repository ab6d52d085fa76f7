//! Reporting: the encoded update is sent until the server answers.

use std::sync::Arc;

use floret_core::{ClientUpdate, Time};

use super::{Outcome, Record};

#[derive(Debug)]
pub(super) struct Reporting {
    pub(super) update: Arc<ClientUpdate>,
    pub(super) deadline: Time,
}

impl Reporting {
    pub(super) fn settled(&self, outcome: Outcome) -> Record {
        Record::Settled { round: self.update.round, outcome }
    }
}
