//! What one run left in its folder, and how its loss fell.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::simulate::results::SUMMARY_FILE;
use crate::simulate::{ClientRow, RoundRow, Summary};

/// Part of the baseline's gain that the others are asked for.
pub(super) const TARGET_SHARE: f64 = 0.95;

/// One run of an experiment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) summary: Summary,
    pub(super) rounds: Vec<RoundRow>,
    pub(super) clients: Vec<ClientRow>,
    /// From the base model to the last adapter; empty if nobody has held-out texts.
    pub(super) curve: Vec<Point>,
}

/// An evaluation, and what was spent until then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Version of the adapter.
    pub(super) version: u64,
    /// Rounds, also those that were abandoned.
    pub(super) rounds: f64,
    pub(super) bytes_up: f64,
    pub(super) bytes_down: f64,
    /// Virtual seconds.
    pub(super) seconds: f64,
    /// Loss over all held-out tokens, in nats per token.
    pub(super) loss: f64,
}

impl Point {
    /// Bytes in both directions.
    pub(super) fn bytes(&self) -> f64 {
        self.bytes_up + self.bytes_down
    }
}

impl Outcome {
    /// Reads what a simulation wrote to `folder`. All numbers come from its files, so that they are the
    /// same when it was complete before.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(SUMMARY_FILE);
        let name = || path.display().to_string();
        let text = fs::read_to_string(&path).with_context(name)?;
        let summary: Summary = serde_json::from_str(&text).with_context(name)?;
        let rounds: Vec<RoundRow> = read_lines(&folder.join("rounds.jsonl"))?;
        let clients = read_lines(&folder.join("clients.jsonl"))?;
        let curve = curve(&summary, &rounds);
        Ok(Self { summary, rounds, clients, curve })
    }

    /// Loss without an adapter.
    pub(super) fn base_loss(&self) -> Option<f64> {
        self.summary.base.map(|spread| spread.pooled)
    }

    /// Loss with the last adapter.
    pub(super) fn final_loss(&self) -> Option<f64> {
        self.summary.federated.map(|spread| spread.pooled)
    }

    /// How much lower the loss is with the last adapter than without one.
    pub(super) fn gain(&self) -> Option<f64> {
        Some(self.base_loss()? - self.final_loss()?)
    }

    /// The loss that has [`TARGET_SHARE`] of the gain; none without a gain.
    pub(super) fn target(&self) -> Option<f64> {
        let gain = self.gain().filter(|gain| *gain > 0.0)?;
        Some(self.base_loss()? - TARGET_SHARE * gain)
    }
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let name = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(name)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(name)).collect()
}

fn curve(summary: &Summary, rounds: &[RoundRow]) -> Vec<Point> {
    let (Some(base), Some(last)) = (summary.base, summary.federated) else { return Vec::new() };
    let start = Point {
        version: 0,
        rounds: 0.0,
        bytes_up: 0.0,
        bytes_down: 0.0,
        seconds: 0.0,
        loss: base.pooled,
    };
    let point = |row: &RoundRow| {
        let is_last = row.committed && row.version == summary.version;
        Some(Point {
            version: row.version,
            rounds: f64::from(row.round),
            bytes_up: row.bytes_up as f64,
            bytes_down: row.bytes_down as f64,
            seconds: row.closed_s,
            loss: row.holdout_loss.or(is_last.then_some(last.pooled))?,
        })
    };
    std::iter::once(start).chain(rounds.iter().filter_map(point)).collect()
}

/// What was spent when the loss was first at most `target`, by linear interpolation between
/// evaluations; none if it never was.
pub(super) fn spent_until(
    curve: &[Point],
    target: f64,
    spent: impl Fn(&Point) -> f64,
) -> Option<f64> {
    if let Some(first) = curve.first().filter(|first| first.loss <= target) {
        return Some(spent(first));
    }
    let pair = curve.windows(2).find(|pair| pair[1].loss <= target)?;
    let share = (pair[0].loss - target) / (pair[0].loss - pair[1].loss);
    Some(spent(&pair[0]) + share * (spent(&pair[1]) - spent(&pair[0])))
}

#[cfg(test)]
pub(super) mod tests {
    use floret_core::Digest;

    use super::*;
    use crate::simulate::Spread;

    fn spread(pooled: f64) -> Spread {
        let (mean, p10, median, p90, worst_decile) = (pooled, pooled, pooled, pooled, pooled + 0.5);
        Spread { clients: 2, pooled, mean, p10, median, p90, worst_decile }
    }

    /// A run without abandoned rounds: the loss after each, or none where it was not evaluated, with
    /// so many bytes up and twice as many down in each.
    pub(in super::super) fn outcome(base: f64, losses: &[Option<f64>], bytes_up: u64) -> Outcome {
        let version = losses.len() as u64;
        let row = |(at, loss): (usize, &Option<f64>)| RoundRow {
            round: at as u32 + 1,
            committed: true,
            version: at as u64 + 1,
            opened_s: 60.0 * at as f64,
            closed_s: 60.0 * (at + 1) as f64,
            selected: 2,
            accepted: 2,
            refused: 0,
            declined: 0,
            dropped_out: 0,
            weight: 2,
            mean_staleness: Some(0.0),
            max_staleness: Some(0),
            residual: None,
            bytes_up: bytes_up * (at as u64 + 1),
            bytes_down: 2 * bytes_up * (at as u64 + 1),
            train_loss: None,
            holdout_loss: *loss,
            holdout_worst_decile: *loss,
            adapter: Digest([0; 32]),
            reason: String::new(),
        };
        let rounds: Vec<RoundRow> = losses.iter().enumerate().map(row).collect();
        let last = losses.last().copied().flatten().unwrap_or(base);
        let summary = Summary {
            run: "run".to_owned(),
            seed: 1,
            completed: true,
            message: String::new(),
            clients: 2,
            participants: 2,
            version,
            adapter: Digest([0; 32]),
            parameters: 1000,
            auto: None,
            hostile: 0,
            median_norm: None,
            virtual_s: 60.0 * version as f64,
            updates: 2 * version,
            drop_outs: 0,
            bytes_up: bytes_up * version,
            bytes_down: 2 * bytes_up * version,
            base: Some(spread(base)),
            federated: Some(spread(last)),
            personal: None,
            worse_than_base: 0,
            central: None,
        };
        let curve = curve(&summary, &rounds);
        Outcome { summary, rounds, clients: Vec::new(), curve }
    }

    #[test]
    fn the_curve_has_the_evaluations_and_the_end() {
        let mut run = outcome(3.0, &[None, Some(2.5), None, Some(2.0), None], 100);
        let points: Vec<(u64, f64, f64)> =
            run.curve.iter().map(|point| (point.version, point.bytes(), point.loss)).collect();
        assert_eq!(points, [(0, 0.0, 3.0), (2, 600.0, 2.5), (4, 1200.0, 2.0), (5, 1500.0, 3.0)]);
        run.summary.base = None;
        assert_eq!(curve(&run.summary, &run.rounds), []);
    }

    #[test]
    fn what_is_spent_until_a_loss_is_interpolated() {
        let run = outcome(3.0, &[None, Some(2.5), None, Some(2.1), Some(2.3), Some(2.0)], 100);
        let up = |target| spent_until(&run.curve, target, |point| point.bytes_up);
        // Half of the way from 3.0 to 2.5, over two rounds of 100 bytes.
        assert_eq!(up(2.75), Some(100.0));
        assert_eq!(up(2.5), Some(200.0));
        // Three quarters of the way from 200 bytes at 2.5 to 400 at 2.1: reached before it rose again.
        assert!((up(2.2).unwrap() - 350.0).abs() < 1e-9);
        assert!((up(2.0).unwrap() - 600.0).abs() < 1e-9);
        assert_eq!((up(1.99), up(3.0), up(4.0)), (None, Some(0.0), Some(0.0)));
        assert_eq!(spent_until(&[], 2.0, Point::bytes), None);
    }

    #[test]
    fn a_target_is_a_share_of_the_gain() {
        let target = outcome(3.0, &[Some(2.0)], 100).target().unwrap();
        assert!((target - 2.05).abs() < 1e-12, "{target}");
        assert_eq!(outcome(3.0, &[Some(3.1)], 100).target(), None);
    }
}
