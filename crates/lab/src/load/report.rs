//! What a load test found.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use floret_client::CallKind;
use floret_core::payload::Compression;
use serde::Serialize;
use serde_json::Value;

use super::Args;
use super::fleet::Fleet;
use super::stage::retry_window_s;
use super::tally::{Counts, Inner, Spread};
use crate::statistics::quantile;
use crate::usage::Usage;

/// The figures. Times of calls are in milliseconds, as the devices see them.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    seed: u64,
    devices: u32,
    cohort: u32,
    /// Values of the adapter.
    parameters: usize,
    compression: Compression,
    download_compression: Compression,
    /// When a device without work comes back, in seconds: a round waits for it.
    retry_window_s: [f64; 2],
    /// The server committed every round and said so.
    completed: bool,
    rounds: u32,
    rounds_committed: u64,
    updates_accepted: u64,
    updates_refused: u64,
    every_device_reported: bool,
    devices_reported: usize,
    devices_told_the_end: usize,
    /// From the first assignment to the last receipt.
    wall_s: f64,
    updates_per_s: f64,
    median_round_updates_per_s: Option<f64>,
    check_in_ms: Option<Spread>,
    fetch_ms: Option<Spread>,
    report_ms: Option<Spread>,
    /// Calls that had to open a connection first.
    connecting_ms: Option<Spread>,
    /// From start-up to the end of the last round.
    server_cpu_s: f64,
    server_cpu_s_before_first_round: f64,
    server_cpu_ms_per_update: f64,
    server_rss_mib_at_start: f64,
    server_rss_mib_before_first_round: f64,
    server_peak_rss_mib: f64,
    client_cpu_s: f64,
    /// On the wire, TLS and all calls included.
    bytes_up_per_update: f64,
    bytes_down_per_update: f64,
    peak_connections: usize,
    connections_opened: u64,
    mishaps: Counts,
    errors: Counts,
    error_samples: Vec<String>,
    errors_explained: Counts,
    synced_write_mib_per_s: f64,
}

/// What is known besides the fleet's counts.
pub(super) struct Ending {
    /// The server ended as it does when every round is committed.
    pub(super) completed: bool,
    /// What the server counted.
    pub(super) totals: Value,
    /// The last that was seen of its process.
    pub(super) server: Usage,
    pub(super) synced_write_mib_per_s: f64,
}

impl Report {
    pub(super) fn new(args: &Args, parameters: usize, fleet: &Fleet, ending: Ending) -> Self {
        let inner = fleet.tally.lock();
        let total = |key: &str| ending.totals[key].as_u64().unwrap_or(0);
        let accepted = total("updates_accepted");
        let per_update = |amount: f64| if accepted > 0 { amount / accepted as f64 } else { 0.0 };
        let (wall_s, receipts) = whole_run(&inner);
        let spread = |kind| inner.answered.get(&kind).cloned().and_then(Spread::of);
        let moments = &fleet.moments;
        let (first, end) = (moments.at_first_assignment(), moments.at_end());
        let (start, (up, down)) = (moments.start, fleet.meter.bytes());
        let server_cpu_s = end.server.cpu_s - start.server.cpu_s;
        Self {
            seed: args.seed,
            devices: args.devices,
            cohort: args.cohort(),
            parameters,
            compression: args.compression,
            download_compression: args.download_compression,
            retry_window_s: retry_window_s(args.devices),
            completed: ending.completed,
            rounds: args.rounds,
            rounds_committed: total("rounds_committed"),
            updates_accepted: accepted,
            updates_refused: total("updates_refused"),
            every_device_reported: inner.reported.len() == args.devices as usize,
            devices_reported: inner.reported.len(),
            devices_told_the_end: inner.told.len(),
            wall_s,
            updates_per_s: if wall_s > 0.0 { receipts / wall_s } else { 0.0 },
            median_round_updates_per_s: median_rate(&inner),
            check_in_ms: spread(CallKind::CheckIn),
            fetch_ms: spread(CallKind::FetchAdapter),
            report_ms: spread(CallKind::Report),
            connecting_ms: Spread::of(inner.connecting.clone()),
            server_cpu_s,
            server_cpu_s_before_first_round: first.server.cpu_s - start.server.cpu_s,
            server_cpu_ms_per_update: 1e3 * per_update(server_cpu_s),
            server_rss_mib_at_start: start.server.rss_mib,
            server_rss_mib_before_first_round: first.server.rss_mib,
            server_peak_rss_mib: end.server.peak_mib.max(ending.server.peak_mib),
            client_cpu_s: end.client.cpu_s - start.client.cpu_s,
            bytes_up_per_update: per_update(up as f64),
            bytes_down_per_update: per_update(down as f64),
            peak_connections: fleet.meter.peak(),
            connections_opened: fleet.meter.opened(),
            mishaps: inner.mishaps.clone(),
            errors: inner.errors.clone(),
            error_samples: inner.samples.clone(),
            errors_explained: inner.explained.clone(),
            synced_write_mib_per_s: ending.synced_write_mib_per_s,
        }
    }

    /// The report as text: a line for each figure, or one JSON object.
    pub(super) fn text(&self, json: bool) -> Result<String> {
        if json {
            return Ok(serde_json::to_string(self)?);
        }
        let figures: BTreeMap<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        let lines = figures.iter().map(|(name, value)| match value {
            Value::Number(number) if number.is_f64() => {
                format!("{name:>34}  {:.3}", number.as_f64().unwrap_or_default())
            }
            value => format!("{name:>34}  {value}"),
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Fails unless the run completed and mishaps explain every error.
    pub(super) fn verdict(&self) -> Result<()> {
        if !self.completed {
            bail!(
                "the run did not complete: {} of {} rounds are committed; see server.log with --dir",
                self.rounds_committed,
                self.rounds
            );
        }
        if !self.errors.is_empty() {
            bail!("errors that no mishap explains: {:?} {:?}", self.errors, self.error_samples);
        }
        Ok(())
    }
}

/// Seconds from the first assignment to the last receipt, and receipts.
fn whole_run(inner: &Inner) -> (f64, f64) {
    let begun = inner.rounds.values().map(|round| round.first_assignment).min();
    let ended = inner.rounds.values().filter_map(|round| round.last_receipt).max();
    let receipts: u32 = inner.rounds.values().map(|round| round.receipts).sum();
    match (begun, ended) {
        (Some(begun), Some(ended)) => {
            (ended.saturating_duration_since(begun).as_secs_f64(), f64::from(receipts))
        }
        _ => (0.0, 0.0),
    }
}

fn median_rate(inner: &Inner) -> Option<f64> {
    let mut rates: Vec<f64> = inner.rounds.values().filter_map(|round| round.rate()).collect();
    rates.sort_by(f64::total_cmp);
    quantile(&rates, 0.5)
}
