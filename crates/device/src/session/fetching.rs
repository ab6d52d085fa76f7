//! Fetching: a plan was accepted, its adapter is on the way.

use std::sync::Arc;

use floret_core::{Adapter, ClientId, Layout, Plan, Time};

use super::{Action, Fault, Record};
use crate::trainer::TrainingTask;

#[derive(Debug)]
pub(super) struct Fetching {
    pub(super) plan: Box<Plan>,
    pub(super) layout: Arc<Layout>,
    pub(super) deadline: Time,
}

impl Fetching {
    pub(super) fn action(&self) -> Action {
        Action::Fetch {
            version: self.plan.version,
            digest: self.plan.adapter_digest,
            layout: Arc::clone(&self.layout),
        }
    }

    pub(super) fn fetched(&self, client: &ClientId, adapter: Adapter) -> Result<Record, Fault> {
        let (want, got) = (self.plan.adapter_digest, adapter.digest());
        if want != got {
            return Err(Fault::WrongAdapter { want, got });
        }
        let plan = (*self.plan).clone();
        Ok(Record::Ready(Arc::new(TrainingTask { client: client.clone(), plan, adapter })))
    }
}
