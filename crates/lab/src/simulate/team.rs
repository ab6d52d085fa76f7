//! What trains the clients: the device engine with the texts of whoever is at work, and a journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use floret_core::seed::Purpose;
use floret_core::{ClientId, Digest, Round, Seed};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
use floret_model::{LocalData, LocalTrainer};

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

/// Trains clients.
#[derive(Debug)]
pub(super) struct Team {
    people: Arc<People>,
    trainer: LocalTrainer,
    flips: Option<Flips>,
    /// The run's, from which plans have theirs.
    seed: Seed,
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
        seed: Seed,
        journal: Journal,
    ) -> Self {
        let trained = BTreeMap::new();
        Self { people, trainer, flips, seed, journal, trained, first_step: None, computed: 0 }
    }

    /// Trains those of `tasks` that the journal does not have, all at once.
    fn train_missing(
        &mut self,
        tasks: &[TrainingTask],
    ) -> Result<Vec<Result<TrainingOutcome, TrainError>>> {
        let (mut outcomes, mut missing) = (Vec::with_capacity(tasks.len()), Vec::new());
        for task in tasks {
            let old = self.journal.old_result(key(task).as_bytes())?;
            if old.is_none() {
                self.trainer.insert(task.client.clone(), self.data(&task.client)?);
                missing.push(task.clone());
            }
            let decoded = |bytes: Vec<u8>| {
                decode(&bytes).context("the journal holds a training that is none: remove it")
            };
            outcomes.push(old.map(decoded).transpose()?);
        }
        let first_step = &mut self.first_step;
        let mut watch = |_: Progress| {
            first_step.get_or_insert_with(Instant::now);
            Control::Continue
        };
        let trained = self.trainer.train_all(&missing, &mut watch);
        let places = outcomes.iter_mut().filter(|outcome| outcome.is_none());
        for (place, (task, outcome)) in places.zip(missing.iter().zip(trained)) {
            self.trainer.remove(&task.client);
            self.computed += 1;
            if let Some(bytes) = encode(&outcome) {
                self.journal.add(key(task).as_bytes(), &bytes)?;
            }
            *place = Some(outcome);
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    fn data(&self, client: &ClientId) -> Result<LocalData> {
        let index = self.people.index(client).with_context(|| format!("nobody is {client}"))?;
        let data = self.people.data(index);
        let flips = self.flips.as_ref().filter(|flips| flips.clients.contains(client));
        Ok(match flips {
            Some(flips) => data.with_flipped_targets(flips.vocabulary),
            None => data,
        })
    }
}

/// What the journal knows a training by: all that it depends on, beside the experiment.
fn key(task: &TrainingTask) -> String {
    let TrainingTask { client, plan, adapter, scope, correction } = task;
    let seed = Digest::of(&plan.seed.0);
    let bytes =
        |of: &Arc<[f32]>| of.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let corrected = correction.as_ref().map(|of| format!(" {}", Digest::of(&bytes(of))));
    let corrected = corrected.unwrap_or_default();
    format!("train {} {client} {} {seed} {scope:?}{corrected}", plan.round, adapter.digest())
}

impl Trainer for Team {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let mut outcomes = self.train_all(std::slice::from_ref(task), progress);
        outcomes.pop().unwrap_or_else(|| unreachable!("each task has its result"))
    }

    fn train_all(
        &mut self,
        tasks: &[TrainingTask],
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let outcomes = match self.train_missing(tasks) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let error = TrainError::Unsupported(format!("{error:#}"));
                return vec![Err(error); tasks.len()];
            }
        };
        for (task, outcome) in tasks.iter().zip(&outcomes) {
            // Colluders also train by a seed of their own, for nobody's update.
            let (plan, client) = (&task.plan, &task.client);
            let seed = self.seed.derive(Purpose::ClientRound, plan.round, Some(client));
            if let (Ok(TrainingOutcome { values, tokens, last_loss, .. }), true) =
                (outcome, plan.seed == seed)
            {
                let norm = distance(values, task.adapter.values());
                let key = (plan.round, client.clone());
                let trained = Trained { tokens: *tokens, last_loss: *last_loss, norm };
                self.trained.insert(key, trained);
            }
        }
        outcomes
    }

    /// What cannot be read is told when the task trains.
    fn steps(&self, task: &TrainingTask) -> u32 {
        let config = &task.plan.training;
        self.data(&task.client).map_or(config.max_steps, |data| data.steps(config))
    }

    fn at_once(&self, task: &TrainingTask) -> usize {
        self.trainer.at_once(task)
    }
}

fn distance(after: &[f32], before: &[f32]) -> f64 {
    let changes = after.iter().zip(before).map(|(after, before)| f64::from(after - before));
    changes.map(|change| change * change).sum::<f64>().sqrt()
}

/// The entry of a result; none of one that is of this machine, and not of the experiment.
fn encode(outcome: &Result<TrainingOutcome, TrainError>) -> Option<Vec<u8>> {
    Some(match outcome {
        Ok(TrainingOutcome { values, num_examples, num_steps, tokens, last_loss }) => {
            let mut bytes = vec![0];
            bytes.extend(num_examples.to_le_bytes());
            bytes.extend(num_steps.to_le_bytes());
            bytes.extend(tokens.to_le_bytes());
            bytes.extend(last_loss.to_le_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            bytes
        }
        Err(TrainError::NoData) => vec![1],
        Err(TrainError::Diverged { step }) => [&[2], &step.to_le_bytes()[..]].concat(),
        Err(TrainError::Cancelled | TrainError::Unsupported(_)) => return None,
    })
}

fn decode(bytes: &[u8]) -> Option<Result<TrainingOutcome, TrainError>> {
    let (kind, rest) = bytes.split_first()?;
    match kind {
        0 => {
            let (num_examples, rest) = rest.split_first_chunk()?;
            let (num_steps, rest) = rest.split_first_chunk()?;
            let (tokens, rest) = rest.split_first_chunk()?;
            let (last_loss, rest) = rest.split_first_chunk()?;
            let (words, []) = rest.as_chunks() else { return None };
            Some(Ok(TrainingOutcome {
                values: words.iter().map(|word| f32::from_le_bytes(*word)).collect(),
                num_examples: u32::from_le_bytes(*num_examples),
                num_steps: u32::from_le_bytes(*num_steps),
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
        let trained = TrainingOutcome { values, num_examples: 77, num_steps: 9, tokens, last_loss };
        for outcome in
            [Ok(trained), Err(TrainError::NoData), Err(TrainError::Diverged { step: 4_000_000 })]
        {
            assert_eq!(decode(&encode(&outcome).unwrap()), Some(outcome));
        }
        assert!(encode(&Err(TrainError::Cancelled)).is_none());
        assert!([&b""[..], &[3], &[2, 0], &[0; 22]].iter().all(|bytes| decode(bytes).is_none()));
    }
}
