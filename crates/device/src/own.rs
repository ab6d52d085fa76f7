//! What a device keeps of its own between the rounds of a run.

use std::fmt;
use std::sync::Arc;

use floret_core::layout::Factor;
use floret_core::{Adapter, Digest, Layout, Plan, RunId};

use crate::control::Control;
use crate::residual::Residual;

/// All of it; what follows from an update becomes the device's own when that counts, and is forgotten when not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Own {
    /// What updates left out.
    pub residual: Option<Arc<Residual>>,
    /// The factor that stays here.
    pub personal: Option<Arc<Personal>>,
    /// What SCAFFOLD remembers.
    pub control: Option<Arc<Control>>,
}

impl Own {
    /// The same after an update from which `next` follows.
    #[must_use]
    pub fn then(self, next: &Self) -> Self {
        Self {
            residual: next.residual.clone().or(self.residual),
            personal: next.personal.clone().or(self.personal),
            control: next.control.clone().or(self.control),
        }
    }

    /// `adapter` with the factor that stays on this device, if it has one of `run`.
    #[must_use]
    pub fn personalised(&self, run: &RunId, adapter: Adapter) -> Adapter {
        let of_run = |personal: &&Arc<Personal>| {
            personal.run == *run && personal.layout == adapter.layout().digest()
        };
        match self.personal.as_ref().filter(of_run) {
            Some(personal) => personal.merged(&adapter).unwrap_or(adapter),
            None => adapter,
        }
    }
}

/// B of a run in which B stays with each device.
#[derive(Clone, PartialEq)]
pub struct Personal {
    /// The run.
    pub run: RunId,
    /// Digest of the adapter's layout.
    pub layout: Digest,
    /// Values of all B, in layout order.
    pub values: Vec<f32>,
}

/// What a device has learnt stays there: sizes only.
impl fmt::Debug for Personal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Personal({} values)", self.values.len())
    }
}

fn places_of_b(layout: &Layout) -> impl Iterator<Item = usize> {
    layout.tensors().iter().filter(|tensor| tensor.factor == Factor::B).flat_map(|of| of.range())
}

impl Personal {
    /// That of a device whose adapter has these values after training for `plan`.
    pub(crate) fn of(plan: &Plan, layout: &Layout, after: &[f32]) -> Self {
        let values = places_of_b(layout).map(|place| after[place]).collect();
        Self { run: plan.run.clone(), layout: plan.layout_digest, values }
    }

    /// `adapter` with this B; none if it is of another shape, or holds what is no number.
    fn merged(&self, adapter: &Adapter) -> Option<Adapter> {
        let layout = adapter.layout();
        let mut values = adapter.values().to_vec();
        if places_of_b(layout).count() != self.values.len() {
            return None;
        }
        for (place, value) in places_of_b(layout).zip(&self.values) {
            values[place] = *value;
        }
        Adapter::new(Arc::clone(layout), values).ok()
    }
}
