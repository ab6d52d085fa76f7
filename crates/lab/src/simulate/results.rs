//! The files of a simulation: each table as JSON lines and as CSV, and a summary. Only
//! [`WALL_FILE`] tells of the machine; the others are the same bytes whenever they are made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use floret_aggregator::RoundSummary;
use floret_aggregator::auto::Choice;
use floret_core::{ClientId, Digest, Round};
use serde::{Deserialize, Serialize};

use super::judge::Spread;
use super::team::Trained;

/// The experiment as resolved.
pub(super) const EXPERIMENT_FILE: &str = "experiment.toml";
/// What came out of it; it is written last.
pub(crate) const SUMMARY_FILE: &str = "summary.json";
/// What it took on this machine.
pub(super) const WALL_FILE: &str = "wall.json";
/// Folder of the last adapter, as PEFT saves it.
pub(super) const ADAPTER_DIR: &str = "adapter";

/// A row of `rounds`. Times are virtual, in seconds since the beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRow {
    /// Its number.
    pub round: u32,
    /// Whether it gave a new adapter.
    pub committed: bool,
    /// Version of the adapter after it.
    pub version: u64,
    /// When it opened.
    pub opened_s: f64,
    /// When it closed.
    pub closed_s: f64,
    /// Clients chosen, or assigned, in it.
    pub selected: usize,
    /// Updates that count.
    pub accepted: usize,
    /// Updates that were refused.
    pub refused: usize,
    /// Assignments that were declined.
    pub declined: usize,
    /// Assignments that were never answered.
    pub dropped_out: usize,
    /// Sum of the weights of the updates that count.
    pub weight: u64,
    /// Mean staleness of the updates that count.
    pub mean_staleness: Option<f64>,
    /// Largest staleness of an update that counts.
    pub max_staleness: Option<u64>,
    /// How far the mean of factors is from that of their products, as a share of the latter, if it was
    /// measured.
    pub residual: Option<f64>,
    /// Bytes of the payloads that devices sent since the beginning, also in vain.
    pub bytes_up: u64,
    /// Bytes of the adapters, or of steps to them, that devices fetched since the beginning.
    pub bytes_down: u64,
    /// Mean loss of the last training step of the updates that count, in nats per token.
    pub train_loss: Option<f64>,
    /// Loss over all held-out tokens of the evaluated clients, in rounds with an evaluation.
    pub holdout_loss: Option<f64>,
    /// Mean of it over the tenth of those clients that fare worst.
    pub holdout_worst_decile: Option<f64>,
    /// Digest of the adapter after it.
    pub adapter: Digest,
    /// Why it was committed or abandoned.
    pub reason: String,
}

/// A row of `updates`: one client's work in one round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct UpdateRow {
    /// The round in which it counted or came to nothing.
    pub round: u32,
    /// The client.
    pub client: ClientId,
    /// Whether it is hostile.
    pub hostile: bool,
    /// `accepted`, `refused`, `declined` or `dropped_out`.
    pub outcome: &'static str,
    /// The round that it was assigned in.
    pub assigned: Option<u32>,
    /// Versions since the one that it started from.
    pub staleness: Option<u64>,
    /// Training examples.
    pub examples: Option<u32>,
    /// Weight in the sum.
    pub weight: Option<u32>,
    /// Bytes of the payload.
    pub bytes: Option<u64>,
    /// Bytes of adapters that went down to the client since its update before.
    pub downloaded: Option<u64>,
    /// Tokens trained on.
    pub tokens: Option<u64>,
    /// Loss of the last training step, in nats per token.
    pub train_loss: Option<f64>,
    /// L2 norm of what training changed, before an attack, clipping and encoding.
    pub norm: Option<f64>,
    /// Why it was refused or declined.
    pub reason: Option<String>,
}

/// A row of `clients`: those that took part or were evaluated. Losses are on its own held-out texts,
/// in nats per token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientRow {
    /// The client.
    pub client: ClientId,
    /// The source of its texts, if it has one alone.
    pub source: Option<String>,
    /// Whether it is hostile.
    #[serde(default)]
    pub hostile: bool,
    /// Rank that it permits, if devices differ.
    pub max_rank: Option<usize>,
    /// Texts that it trains on.
    pub examples: usize,
    /// Its updates that count.
    pub updates: u64,
    /// Its assignments that were never answered.
    pub drop_outs: u64,
    /// Bytes of its payloads that count.
    pub bytes_up: u64,
    /// Bytes of adapters that went down to it for updates that count.
    pub bytes_down: u64,
    /// Tokens of held-out text; none if it was not evaluated.
    pub holdout_tokens: Option<u64>,
    /// Loss of the base model.
    pub base_loss: Option<f64>,
    /// Loss with the last adapter.
    pub adapter_loss: Option<f64>,
    /// Loss with that adapter after its own further steps.
    pub personal_loss: Option<f64>,
}

/// What came out of a simulation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The run.
    pub run: String,
    /// Its seed.
    pub seed: u64,
    /// Whether every round was committed.
    pub completed: bool,
    /// How it ended, in words.
    pub message: String,
    /// How many clients there are.
    pub clients: usize,
    /// How many of them are hostile.
    #[serde(default)]
    pub hostile: usize,
    /// How many different clients took part.
    pub participants: usize,
    /// Version of the last adapter.
    pub version: u64,
    /// Digest of the last adapter.
    pub adapter: Digest,
    /// Values of an adapter.
    pub parameters: usize,
    /// What `run.compression = "auto"` chose; none where the experiment says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<Choice>,
    /// Virtual time to the close of the last round.
    pub virtual_s: f64,
    /// Updates that count.
    pub updates: u64,
    /// Assignments that were never answered.
    pub drop_outs: u64,
    /// Bytes of the payloads that devices sent until the last round closed, also in vain.
    pub bytes_up: u64,
    /// Bytes of the adapters, or of steps to them, that devices fetched until then.
    pub bytes_down: u64,
    /// Median L2 norm of what training changed, over the honest updates that count.
    pub median_norm: Option<f64>,
    /// Losses of the base model on each evaluated client's held-out texts.
    pub base: Option<Spread>,
    /// The same with the last adapter.
    pub federated: Option<Spread>,
    /// The same after each client's own further steps.
    pub personal: Option<Spread>,
    /// Evaluated clients for whom the adapter is worse than the base model.
    pub worse_than_base: usize,
    /// Training in one place, if it was asked for.
    pub central: Option<Central>,
}

/// Training on all texts in one place, over as many examples as the run's updates saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Central {
    /// Optimizer steps.
    pub steps: u64,
    /// Each learning rate with its loss over all held-out tokens.
    pub losses: Vec<(f32, f64)>,
    /// The lowest of those losses.
    pub best: f64,
    /// Loss of the run's adapter, divided by that.
    pub federated_over_central: f64,
}

/// What a simulation took on this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Wall {
    pub(super) seconds: f64,
    pub(super) seconds_to_first_step: Option<f64>,
    /// Trainings that were computed, and not taken from the journal of a run that was broken off.
    pub(super) trainings: u64,
    pub(super) trainings_per_s: f64,
    pub(super) threads: usize,
    pub(super) peak_rss_mib: Option<f64>,
}

/// A table, as JSON lines and as CSV.
pub(super) struct Table {
    lines: BufWriter<File>,
    rows: csv::Writer<File>,
}

impl Table {
    /// Begins the table `name` in `folder`.
    pub(super) fn create(folder: &Path, name: &str) -> Result<Self> {
        let create = |kind: &str| {
            let path = folder.join(format!("{name}.{kind}"));
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))
        };
        let lines = BufWriter::new(create("jsonl")?);
        Ok(Self { lines, rows: csv::Writer::from_writer(create("csv")?) })
    }

    pub(super) fn push(&mut self, row: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.lines, row)?;
        self.lines.write_all(b"\n")?;
        Ok(self.rows.serialize(row)?)
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.lines.flush()?;
        Ok(self.rows.flush()?)
    }
}

/// Writes `value` to `path` as JSON, whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    let partial = path.with_extension("partial");
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Each client's work in a round that closed, in the order of clients within each outcome.
pub(super) fn updates(
    summary: &RoundSummary,
    trained: &mut BTreeMap<(Round, ClientId), Trained>,
) -> Vec<UpdateRow> {
    let round = summary.round.0;
    let nothing = |client: &ClientId, outcome, reason| UpdateRow {
        round,
        client: client.clone(),
        hostile: false,
        outcome,
        assigned: None,
        staleness: None,
        examples: None,
        weight: None,
        bytes: None,
        downloaded: None,
        tokens: None,
        train_loss: None,
        norm: None,
        reason,
    };
    let mut rows = Vec::new();
    for counted in &summary.accepted {
        let receipt = &counted.receipt;
        let trained = trained.remove(&(receipt.round, counted.client.clone()));
        rows.push(UpdateRow {
            assigned: Some(receipt.round.0),
            staleness: Some(counted.staleness),
            examples: Some(receipt.num_examples),
            weight: Some(receipt.weight),
            bytes: Some(receipt.payload_bytes),
            downloaded: Some(receipt.downloaded_bytes),
            tokens: trained.map(|of| of.tokens),
            train_loss: trained.map(|of| of.last_loss),
            norm: trained.map(|of| of.norm),
            ..nothing(&counted.client, "accepted", None)
        });
    }
    for (outcome, clients) in [("refused", &summary.refused), ("declined", &summary.declined)] {
        let row =
            |(client, reason): &(ClientId, String)| nothing(client, outcome, Some(reason.clone()));
        rows.extend(clients.iter().map(row));
    }
    rows.extend(summary.dropped_out.iter().map(|client| nothing(client, "dropped_out", None)));
    rows
}
