//! What happened, counted over all devices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use floret_client::{CallError, CallKind};
use floret_core::{ClientId, Round};
use serde::Serialize;

use crate::statistics::quantile;

/// Messages of unexpected errors that are kept.
const SAMPLES: usize = 8;

/// Counts by name.
pub(super) type Counts = BTreeMap<String, u64>;

/// Everything that is counted while the devices run.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Milliseconds of answered calls on connections that were open already.
    pub(super) answered: BTreeMap<CallKind, Vec<f64>>,
    /// Milliseconds of answered calls that had to open a connection.
    pub(super) connecting: Vec<f64>,
    /// Rounds that somebody was assigned to.
    pub(super) rounds: BTreeMap<Round, RoundTimes>,
    /// Devices with a receipt.
    pub(super) reported: BTreeSet<ClientId>,
    /// Devices that heard of the end.
    pub(super) told: BTreeSet<ClientId>,
    /// What was done to devices, by kind.
    pub(super) mishaps: Counts,
    /// Errors that nothing explains.
    pub(super) errors: Counts,
    /// Errors that mishaps explain, or the end of the run.
    pub(super) explained: Counts,
    /// Messages of the first errors that nothing explains.
    pub(super) samples: Vec<String>,
}

/// When a round happened, as the devices saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTimes {
    pub(super) first_assignment: Instant,
    pub(super) last_receipt: Option<Instant>,
    pub(super) receipts: u32,
}

impl RoundTimes {
    /// Receipts a second, from the first assignment to the last receipt.
    pub(super) fn rate(&self) -> Option<f64> {
        let lasted = self.last_receipt?.duration_since(self.first_assignment).as_secs_f64();
        (lasted > 0.0).then(|| f64::from(self.receipts) / lasted)
    }
}

impl Tally {
    /// Everything so far.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answered(&self, kind: CallKind, lasted: Duration, connecting: bool) {
        let ms = lasted.as_secs_f64() * 1e3;
        let mut inner = self.lock();
        if connecting {
            inner.connecting.push(ms);
        } else {
            inner.answered.entry(kind).or_default().push(ms);
        }
    }

    /// Notes a device's assignment; whether it is the first of the run.
    pub(super) fn assigned(&self, round: Round) -> bool {
        let mut inner = self.lock();
        let first = inner.rounds.is_empty();
        let times =
            RoundTimes { first_assignment: Instant::now(), last_receipt: None, receipts: 0 };
        inner.rounds.entry(round).or_insert(times);
        first
    }

    pub(super) fn receipt(&self, client: &ClientId, round: Round) {
        let mut inner = self.lock();
        if let Some(times) = inner.rounds.get_mut(&round) {
            times.last_receipt = Some(Instant::now());
            times.receipts += 1;
        }
        inner.reported.insert(client.clone());
    }

    /// Notes that a device heard of the end; whether it is the first.
    pub(super) fn told(&self, client: &ClientId) -> bool {
        let mut inner = self.lock();
        let first = inner.told.is_empty();
        inner.told.insert(client.clone());
        first
    }

    pub(super) fn mishap(&self, kind: &str) {
        *self.lock().mishaps.entry(kind.to_owned()).or_default() += 1;
    }

    /// Notes an error; `excuse` is the mishap that explains it.
    pub(super) fn error(&self, what: &str, message: &str, excuse: Option<&str>) {
        let mut inner = self.lock();
        let over = !inner.told.is_empty();
        match excuse.or(over.then_some("end of the run")) {
            Some(excuse) => {
                *inner.explained.entry(format!("{excuse}: {what}")).or_default() += 1;
            }
            None => {
                *inner.errors.entry(what.to_owned()).or_default() += 1;
                if inner.samples.len() < SAMPLES {
                    inner.samples.push(format!("{what}: {message}"));
                }
            }
        }
    }
}

/// A failed call in a few words.
pub(super) fn describe(kind: CallKind, error: &CallError) -> String {
    let call = match kind {
        CallKind::CheckIn => "check-in",
        CallKind::FetchAdapter => "fetch",
        CallKind::Report => "report",
        CallKind::Standing => "standing",
        CallKind::Decline => "decline",
    };
    match error {
        CallError::Unavailable { after: Some(_), .. } => format!("{call} put off"),
        CallError::Unavailable { after: None, .. } => format!("{call} broken"),
        CallError::Refused { code, .. } => format!("{call} refused: {code}"),
        CallError::NotTrusted(_) => format!("{call} not trusted"),
        CallError::Contract(_) => format!("{call} breaks the contract"),
    }
}

/// A distribution of latencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Spread {
    /// The distribution of `values`; `None` if there are none.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (count, max) = (values.len(), *values.last()?);
        Some(Self { count, p50: quantile(&values, 0.5)?, p99: quantile(&values, 0.99)?, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!(spread, Spread { count: 200, p50: 100.0, p99: 198.0, max: 200.0 });
        let one = Spread::of(vec![3.0]).unwrap();
        assert_eq!((one.p50, one.p99), (3.0, 3.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn rounds_are_timed_from_the_first_assignment_to_the_last_receipt() {
        let begun = Instant::now();
        let mut times = RoundTimes { first_assignment: begun, last_receipt: None, receipts: 0 };
        assert_eq!(times.rate(), None);
        times.last_receipt = Some(begun + Duration::from_millis(500));
        times.receipts = 20;
        assert_eq!(times.rate(), Some(40.0));
    }

    #[test]
    fn errors_are_explained_by_mishaps_and_by_the_end() {
        let tally = Tally::default();
        tally.error("report broken", "reset", Some("cut"));
        tally.error("report broken", "reset", None);
        assert!(tally.told(&"a".parse().unwrap()) && !tally.told(&"b".parse().unwrap()));
        tally.error("fetch broken", "refused", None);
        let inner = tally.lock();
        let count = |name: &str| (name.to_owned(), 1);
        assert_eq!(inner.errors, Counts::from([count("report broken")]));
        let explained = [count("cut: report broken"), count("end of the run: fetch broken")];
        assert_eq!(inner.explained, Counts::from(explained));
        assert_eq!(inner.samples, ["report broken: reset"]);
    }
}
