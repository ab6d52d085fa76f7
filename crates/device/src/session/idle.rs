//! Idle: between rounds, waiting for the next check-in.

use floret_core::{Plan, Time};

use super::{Action, Record};
use crate::limits::{Limits, LocalModel, check_plan};

#[derive(Debug, Default)]
pub(super) struct Idle {
    /// No check-in before this time.
    pub(super) until: Time,
}

impl Idle {
    pub(super) fn action(&self, now: Time) -> Action {
        let rest = now.until(self.until);
        if rest.is_zero() { Action::CheckIn } else { Action::Wait(rest) }
    }
}

pub(super) fn assigned(now: Time, plan: Box<Plan>, model: &LocalModel, limits: &Limits) -> Record {
    match check_plan(&plan, model, limits) {
        Ok((layout, scope)) => {
            let deadline = now.after(plan.report_within);
            Record::Accepted { plan, layout, scope, deadline }
        }
        Err(refusal) => Record::Declined { round: plan.round, reason: refusal.to_string() },
    }
}
