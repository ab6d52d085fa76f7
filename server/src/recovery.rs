//! From what a store holds to a coordinator that goes on.

use std::sync::Arc;

use floret_aggregator::{Coordinator, InvalidRun, RunConfig, RunState, Store as _};
use floret_core::{Layout, Time};

use crate::record_log;
use crate::store::{RunStore, StoreError};

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Settings of the run that cannot be used.
    #[error(transparent)]
    Run(#[from] InvalidRun),
    /// State that cannot be read or saved.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The run as the store has it, the open round included, or its first state; both agree. An open
/// round goes on, unless the settings are others than it began with.
///
/// # Errors
/// Settings that are refused, or a store that fails.
pub fn recover(
    run: RunConfig,
    layout: Arc<Layout>,
    mut store: RunStore,
    now: Time,
) -> Result<(Coordinator, RunStore), RecoveryError> {
    let saved = store.load()?;
    let state = saved.unwrap_or_else(|| RunState::first(&run, Arc::clone(&layout)));
    let mut coordinator = Coordinator::new(run, layout, state)?;
    store.replay(&mut |record| coordinator.apply(&record))?;
    let changed =
        store.settings_changed().then_some("the run's settings changed while it was open");
    let records = coordinator.resume(now, changed);
    for record in &records {
        record_log::log(record);
        coordinator.apply(record);
    }
    store.commit(&records, coordinator.state())?;
    store.adopt_settings(coordinator.state(), now)?;
    Ok((coordinator, store))
}
