//! What trains the clients: the device engine with the texts of whoever is at work, and a journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use floret_core::{ClientId, Round};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
use floret_model::LocalTrainer;

use super::journal::Journal;
use crate::people::People;

/// How a training went, beside its update.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trained {
    pub(super) tokens: u64,
    pub(super) last_loss: f64,
    /// L2 norm of what it changed, before an attack, clipping and encoding.
    pub(super) norm: f64,
}

/// Clients that train on flipped targets.
#[derive(Debug)]
pub(super) struct Flips {
    pub(super) clients: BTreeSet<ClientId>,
    /// Tokens that there are.
    pub(super) vocabulary: usize,
}

/// Trains clients one after another.
#[derive(Debug)]
pub(super) struct Team {
    people: Arc<People>,
    trainer: LocalTrainer,
    flips: Option<Flips>,
    pub(super) journal: Journal,
    /// Trainings that no closed round has counted yet.
    pub(super) trained: BTreeMap<(Round, ClientId), Trained>,
    /// When the first step was done that no journal had.
    pub(super) first_step: Option<Instant>,
    /// Trainings that no journal had.
    pub(super) computed: u64,
}

impl Team {
    pub(super) fn new(
        people: Arc<People>,
        trainer: LocalTrainer,
        flips: Option<Flips>,
        journal: Journal,
    ) -> Self {
        let trained = BTreeMap::new();
        Self { people, trainer, flips, journal, trained, first_step: None, computed: 0 }
    }

    fn train_one(&mut self, task: &TrainingTask) -> Result<Result<TrainingOutcome, TrainError>> {
        let TrainingTask { client, plan, adapter, .. } = task;
        let key = format!("train {} {client} {}", plan.round, adapter.digest());
        let Self { people, trainer, flips, journal, first_step, computed, .. } = self;
        let compute = || {
            let index = people.index(client).with_context(|| format!("nobody is {client}"))?;
            let data = people.data(index);
            let flips = flips.as_ref().filter(|flips| flips.clients.contains(client));
            let data = match flips {
                Some(flips) => data.with_flipped_targets(flips.vocabulary),
                None => data,
            };
            trainer.insert(client.clone(), data);
            let mut watch = |_: Progress| {
                first_step.get_or_insert_with(Instant::now);
                Control::Continue
            };
            let outcomes = trainer.train(std::slice::from_ref(task), &mut watch);
            trainer.remove(client);
            *computed += 1;
            let outcome = outcomes.map(|mut outcomes| outcomes.remove(0));
            encode(&outcome)
        };
        let bytes = journal.result(key.as_bytes(), compute)?;
        decode(&bytes).context("the journal holds a training that is none: remove it")
    }
}

impl Trainer for Team {
    fn train(
        &mut self,
        tasks: &[TrainingTask],
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Vec<TrainingOutcome>, TrainError> {
        let mut train = |task: &TrainingTask| {
            let failed = |error: anyhow::Error| TrainError::Unsupported(format!("{error:#}"));
            let outcome = self.train_one(task).map_err(failed)??;
            let TrainingOutcome { tokens, last_loss, .. } = outcome;
            let norm = distance(&outcome.values, task.adapter.values());
            let key = (task.plan.round, task.client.clone());
            self.trained.insert(key, Trained { tokens, last_loss, norm });
            Ok(outcome)
        };
        tasks.iter().map(&mut train).collect()
    }
}

fn distance(after: &[f32], before: &[f32]) -> f64 {
    let changes = after.iter().zip(before).map(|(after, before)| f64::from(after - before));
    changes.map(|change| change * change).sum::<f64>().sqrt()
}

fn encode(outcome: &Result<TrainingOutcome, TrainError>) -> Result<Vec<u8>> {
    Ok(match outcome {
        Ok(TrainingOutcome { values, num_examples, tokens, last_loss }) => {
            let mut bytes = vec![0];
            bytes.extend(num_examples.to_le_bytes());
            bytes.extend(tokens.to_le_bytes());
            bytes.extend(last_loss.to_le_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            bytes
        }
        Err(TrainError::NoData) => vec![1],
        Err(TrainError::Diverged { step }) => [&[2], &step.to_le_bytes()[..]].concat(),
        Err(error) => bail!("{error}"),
    })
}

fn decode(bytes: &[u8]) -> Option<Result<TrainingOutcome, TrainError>> {
    let (kind, rest) = bytes.split_first()?;
    match kind {
        0 => {
            let (num_examples, rest) = rest.split_first_chunk()?;
            let (tokens, rest) = rest.split_first_chunk()?;
            let (last_loss, rest) = rest.split_first_chunk()?;
            let (words, []) = rest.as_chunks() else { return None };
            Some(Ok(TrainingOutcome {
                values: words.iter().map(|word| f32::from_le_bytes(*word)).collect(),
                num_examples: u32::from_le_bytes(*num_examples),
                tokens: u64::from_le_bytes(*tokens),
                last_loss: f64::from_le_bytes(*last_loss),
            }))
        }
        1 => Some(Err(TrainError::NoData)),
        2 => {
            let step = u32::from_le_bytes(*rest.first_chunk()?);
            Some(Err(TrainError::Diverged { step }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_back_as_they_were() {
        let values = vec![0.1, -2.5e-7, f32::MAX];
        let (tokens, last_loss) = (12_345_678_901, 2.345_678_901_234_5);
        let trained = TrainingOutcome { values, num_examples: 77, tokens, last_loss };
        for outcome in
            [Ok(trained), Err(TrainError::NoData), Err(TrainError::Diverged { step: 4_000_000 })]
        {
            assert_eq!(decode(&encode(&outcome).unwrap()), Some(outcome));
        }
        assert!(encode(&Err(TrainError::Cancelled)).is_err());
        assert!([&b""[..], &[3], &[2, 0], &[0; 22]].iter().all(|bytes| decode(bytes).is_none()));
    }
}
