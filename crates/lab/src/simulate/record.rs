//! From what happened in rounds to rows and a summary.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use floret_aggregator::{RoundSummary, RunState};
use floret_core::{Adapter, Digest, Time};
use floret_model::Evaluation;
use floret_simulation::Traffic;

use super::Stage;
use super::judge::{Spread, decode, encode, pooled};
use super::results::{Central, ClientRow, RoundRow, Summary, Table, UpdateRow, updates};
use crate::experiment::Experiment;
use crate::statistics::median;

/// Writes each round, and remembers what the summary needs.
pub(super) struct Recorder {
    experiment: Experiment,
    rounds: Table,
    updates: Table,
    /// What clients did, by index.
    parts: BTreeMap<usize, Part>,
    /// Bytes that were moved until the last round closed.
    traffic: Traffic,
    /// Of what honest updates that count changed.
    norms: Vec<f64>,
    closed: Time,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    updates: u64,
    drop_outs: u64,
    bytes_up: u64,
    bytes_down: u64,
}

impl Recorder {
    pub(super) fn new(experiment: &Experiment, out: &Path) -> Result<Self> {
        Ok(Self {
            experiment: experiment.clone(),
            rounds: Table::create(out, "rounds")?,
            updates: Table::create(out, "updates")?,
            parts: BTreeMap::new(),
            traffic: Traffic::default(),
            norms: Vec::new(),
            closed: Time::default(),
        })
    }

    /// A round closed.
    pub(super) fn round(&mut self, summary: &RoundSummary, stage: &mut Stage) -> Result<RoundRow> {
        let mut rows = updates(summary, &mut stage.team().trained);
        for row in &mut rows {
            row.hostile = stage.world.trainer().is_hostile(&row.client);
        }
        if self.experiment.run.mode.with(self.experiment.buffered).is_synchronous() {
            // What did not count until now never will.
            stage.team().trained.clear();
        }
        for row in &rows {
            self.updates.push(row)?;
            self.count(row, stage)?;
        }
        let adapter = stage.adapter();
        self.traffic = stage.world.traffic();
        self.closed = summary.closed_at;
        let version = stage.world.coordinator().state().version.0;
        let every = u64::from(self.experiment.evaluation.every);
        let spread = match summary.committed && every > 0 && version.is_multiple_of(every) {
            true => Spread::of(&evaluate(stage, Some(&adapter))?),
            false => None,
        };
        let row = RoundRow {
            round: summary.round.0,
            committed: summary.committed,
            version,
            opened_s: seconds(summary.opened_at),
            closed_s: seconds(summary.closed_at),
            selected: summary.selected.len(),
            accepted: summary.accepted.len(),
            refused: summary.refused.len(),
            declined: summary.declined.len(),
            dropped_out: summary.dropped_out.len(),
            weight: summary.weight,
            mean_staleness: mean(rows.iter().filter_map(|row| row.staleness).map(|s| s as f64)),
            max_staleness: rows.iter().filter_map(|row| row.staleness).max(),
            residual: summary.residual.map(|residual| residual.relative),
            bytes_up: self.traffic.up,
            bytes_down: self.traffic.down,
            train_loss: mean(rows.iter().filter_map(|row| row.train_loss)),
            holdout_loss: spread.map(|spread| spread.pooled),
            holdout_worst_decile: spread.map(|spread| spread.worst_decile),
            adapter: adapter.digest(),
            reason: summary.reason.clone(),
        };
        self.rounds.push(&row)?;
        self.rounds.flush()?;
        self.updates.flush()?;
        Ok(row)
    }

    fn count(&mut self, row: &UpdateRow, stage: &Stage) -> Result<()> {
        let index = stage.people.index(&row.client);
        let index = index.with_context(|| format!("nobody is {}", row.client))?;
        let part = self.parts.entry(index).or_default();
        part.updates += u64::from(row.outcome == "accepted");
        part.drop_outs += u64::from(row.outcome == "dropped_out");
        self.norms.extend(row.norm.filter(|_| !row.hostile));
        part.bytes_up += row.bytes.unwrap_or(0);
        part.bytes_down += row.downloaded.unwrap_or(0);
        Ok(())
    }

    /// The run is over.
    pub(super) fn finish(mut self, stage: &mut Stage) -> Result<(Summary, Vec<ClientRow>)> {
        let adapter = stage.adapter();
        let base = evaluate(stage, None)?;
        let federated = evaluate(stage, Some(&adapter))?;
        let steps = self.experiment.evaluation.personal_steps;
        let personal = (steps > 0).then(|| personal(stage, &adapter, steps)).transpose()?;
        let spread = Spread::of(&federated);
        let worse = |(base, adapter): (&Evaluation, &Evaluation)| adapter.loss() > base.loss();
        let central = match spread {
            Some(spread) => self.central(stage, spread.pooled)?,
            None => None,
        };
        let clients = self.clients(stage, [&base, &federated], personal.as_deref());
        let state = stage.world.coordinator().state();
        let end = state.end.clone().context("the run did not end")?;
        let summary = Summary {
            run: self.experiment.run.name.to_string(),
            seed: self.experiment.run.seed,
            completed: end.completed,
            message: end.message,
            clients: stage.people.len(),
            hostile: stage.hostile,
            participants: self.parts.len(),
            version: state.version.0,
            adapter: adapter.digest(),
            parameters: adapter.layout().len(),
            auto: stage.choice.clone(),
            virtual_s: seconds(self.closed),
            updates: state.totals.updates_accepted,
            drop_outs: state.totals.drop_outs,
            bytes_up: self.traffic.up,
            bytes_down: self.traffic.down,
            median_norm: median(&mut self.norms),
            base: Spread::of(&base),
            federated: spread,
            personal: personal.as_deref().and_then(Spread::of),
            worse_than_base: base.iter().zip(&federated).filter(|pair| worse(*pair)).count(),
            central,
        };
        Ok((summary, clients))
    }

    fn clients(
        &self,
        stage: &mut Stage,
        [base, federated]: [&[Evaluation]; 2],
        personal: Option<&[Evaluation]>,
    ) -> Vec<ClientRow> {
        let place: BTreeMap<usize, usize> =
            stage.judge.chosen.iter().enumerate().map(|(place, index)| (*index, place)).collect();
        let mut indices: Vec<usize> = self.parts.keys().chain(place.keys()).copied().collect();
        indices.sort_unstable();
        indices.dedup();
        let row = |index: usize| {
            let place = place.get(&index);
            let part = self.parts.get(&index).copied().unwrap_or_default();
            let loss = |of: &[Evaluation]| place.and_then(|place| of[*place].loss());
            let client = stage.people.client(index);
            ClientRow {
                hostile: stage.world.trainer().is_hostile(&client),
                max_rank: stage.people.max_rank(index),
                client,
                source: stage.people.source(index).map(str::to_owned),
                examples: stage.people.data(index).num_examples(),
                updates: part.updates,
                drop_outs: part.drop_outs,
                bytes_up: part.bytes_up,
                bytes_down: part.bytes_down,
                holdout_tokens: place.map(|place| base[*place].tokens),
                base_loss: loss(base),
                adapter_loss: loss(federated),
                personal_loss: personal.and_then(loss),
            }
        };
        indices.into_iter().map(row).collect()
    }

    fn central(&self, stage: &mut Stage, federated: f64) -> Result<Option<Central>> {
        let steps = stage.world.coordinator().state().totals.steps;
        let mut losses = Vec::new();
        for &rate in &self.experiment.evaluation.central_learning_rates {
            let Stage { world, judge, .. } = &mut *stage;
            let config = world.coordinator().config();
            let layout = world.coordinator().layout();
            let first = RunState::first(config, layout.clone()).adapter;
            let count = u32::try_from(steps).context("too many steps for one place")?;
            let compute = || Ok(encode(&[judge.central_loss(&first, rate, count)?]));
            let key = format!("central {rate} {steps}");
            let bytes = world.trainer().inner().journal.result(key.as_bytes(), compute)?;
            let loss = pooled(&decode(&bytes)).loss().unwrap_or(f64::NAN);
            losses.push((rate, loss));
        }
        let best = losses.iter().map(|(_, loss)| *loss).min_by(f64::total_cmp);
        Ok(best.map(|best| Central {
            steps,
            losses,
            best,
            federated_over_central: federated / best,
        }))
    }
}

/// `adapter` as each client has it that is evaluated, and what their losses depend on.
fn held_by(stage: &Stage, adapter: &Adapter) -> (Vec<Adapter>, Digest) {
    let of = |index: &usize| stage.world.personalised(*index, adapter);
    let adapters: Vec<Adapter> = stage.judge.chosen.iter().map(of).collect();
    let same = adapters.iter().all(|of| of.digest() == adapter.digest());
    let digests = || adapters.iter().flat_map(|of| of.digest().0).collect::<Vec<u8>>();
    let digest = if same { adapter.digest() } else { Digest::of(&digests()) };
    (adapters, digest)
}

/// Losses with `adapter` or without, by way of the journal.
fn evaluate(stage: &mut Stage, adapter: Option<&Adapter>) -> Result<Vec<Evaluation>> {
    let held = adapter.map(|adapter| held_by(stage, adapter));
    let Stage { world, judge, .. } = stage;
    let digest = held.as_ref().map(|(_, digest)| digest.to_string());
    let key = format!("evaluate {}", digest.unwrap_or_else(|| "base".to_owned()));
    let adapters = held.as_ref().map(|(adapters, _)| &adapters[..]);
    let compute = || Ok(encode(&judge.losses(adapters)?));
    Ok(decode(&world.trainer().inner().journal.result(key.as_bytes(), compute)?))
}

fn personal(stage: &mut Stage, adapter: &Adapter, steps: u32) -> Result<Vec<Evaluation>> {
    let (adapters, digest) = held_by(stage, adapter);
    let Stage { world, judge, .. } = stage;
    let key = format!("personal {digest} {steps}");
    let compute = || Ok(encode(&judge.personal_losses(&adapters, steps)?));
    Ok(decode(&world.trainer().inner().journal.result(key.as_bytes(), compute)?))
}

fn seconds(time: Time) -> f64 {
    time.0 as f64 / 1e3
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}
