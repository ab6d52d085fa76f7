//! What goes down to devices, in bytes: the steps behind the adapter that each holds, or the whole
//! one, as a server with the same steps would send it.

use std::collections::BTreeMap;

use floret_aggregator::{Record, Steps};
use floret_core::Digest;

/// What went down so far.
#[derive(Debug, Default)]
pub(crate) struct Downloads {
    steps: Steps,
    /// The adapter that each device fetched last, by index.
    held: BTreeMap<usize, Digest>,
    /// What went down to each device since its last update that counts.
    unsettled: BTreeMap<usize, u64>,
    total: u64,
}

impl Downloads {
    /// The adapter, of `whole` bytes, moves on.
    pub(crate) fn note(&mut self, record: &Record, whole: usize) {
        let Record::RoundCommitted { summary, after } = record else { return };
        match &after.step {
            Some(step) => self.steps.push(summary.adapter_before, step, whole),
            None => self.steps = Steps::default(),
        }
    }

    /// The device `index` fetches the adapter with digest `current`, of `whole` bytes: how many go down.
    pub(crate) fn fetch(&mut self, index: usize, current: Digest, whole: usize) -> usize {
        let bytes = match self.held.insert(index, current) {
            Some(held) if held == current => 0,
            Some(held) => self.steps.since(held).map_or(whole, |(_, bytes)| bytes.len()),
            None => whole,
        };
        *self.unsettled.entry(index).or_default() += bytes as u64;
        self.total += bytes as u64;
        bytes
    }

    /// What went down to the device `index` since its last update that counts.
    pub(crate) fn to(&self, index: usize) -> u64 {
        self.unsettled.get(&index).copied().unwrap_or_default()
    }

    /// The update of the device `index` counts.
    pub(crate) fn settled(&mut self, index: usize) {
        self.unsettled.remove(&index);
    }

    /// What went down to all devices.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}
