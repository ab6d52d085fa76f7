//! Fetching: a plan was accepted, its adapter is on the way.

use std::sync::Arc;

use floret_core::{Adapter, ClientId, Layout, Plan, Scope, Time};

use super::{Action, Fault, Record};
use crate::own::Own;
use crate::trainer::TrainingTask;

#[derive(Debug)]
pub(super) struct Fetching {
    pub(super) plan: Box<Plan>,
    pub(super) layout: Arc<Layout>,
    pub(super) scope: Scope,
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

    pub(super) fn fetched(
        &self,
        client: &ClientId,
        own: &Own,
        adapter: Adapter,
    ) -> Result<Record, Fault> {
        let (want, got) = (self.plan.adapter_digest, adapter.digest());
        if want != got {
            return Err(Fault::WrongAdapter { want, got });
        }
        let adapter = match self.plan.training.personal_b {
            true => own.personalised(&self.plan.run, adapter),
            false => adapter,
        };
        let correction = self.correction(own, &adapter);
        let (client, plan, scope) = (client.clone(), (*self.plan).clone(), self.scope);
        Ok(Record::Ready(Arc::new(TrainingTask { client, plan, adapter, scope, correction })))
    }

    fn correction(&self, own: &Own, adapter: &Adapter) -> Option<Arc<[f32]>> {
        let control = own.control.as_ref().filter(|_| self.plan.training.scaffold)?;
        let mut correction = control.correction(&self.plan, adapter)?;
        let held = self.scope.outside(&self.layout);
        held.into_iter().for_each(|places| correction[places].fill(0.0));
        Some(correction.into())
    }
}
