//! Evaluation of each client on its own held-out texts: an adapter that is better on average can be
//! worse for some.

use std::sync::Arc;

use anyhow::Result;
use floret_client::setup::Base;
use floret_core::plan::TrainingConfig;
use floret_core::seed::Purpose;
use floret_core::{Adapter, LoraConfig, Round, Seed, Version};
use floret_model::{Document, Evaluation, LocalData, Lora, Sequence, Threads, Training, evaluate};
use floret_simulation::distribution::sample;
use serde::{Deserialize, Serialize};

use crate::experiment::Experiment;
use crate::people::People;
use crate::statistics::quantile;

/// Sequences that are evaluated at once.
const BATCH: usize = 8;

/// Evaluates the same clients each time.
#[derive(Debug)]
pub(super) struct Judge {
    base: Base,
    people: Arc<People>,
    threads: Threads,
    lora: LoraConfig,
    training: TrainingConfig,
    seed: Seed,
    /// Indices of the clients that are evaluated, ascending.
    pub(super) chosen: Vec<usize>,
}

impl Judge {
    pub(super) fn new(
        experiment: &Experiment,
        base: Base,
        people: Arc<People>,
        threads: usize,
    ) -> Result<Self> {
        let seed = experiment.seed().derive(Purpose::Evaluation, Round(0), None);
        let rounds = experiment.run.rounds;
        let chosen = sample(people.len(), experiment.evaluation.clients, &mut seed.stream());
        Ok(Self {
            chosen: chosen.into_iter().collect(),
            base,
            people,
            threads: Threads::new(threads)?,
            lora: experiment.lora.clone(),
            // Steps of one's own go on at the rate with which the run ended.
            training: experiment.training.from_version(Version(rounds.into()), rounds),
            seed,
        })
    }

    fn length(&self) -> usize {
        self.training.sequence_length as usize
    }

    /// Loss of each chosen client with its adapter, or without one.
    pub(super) fn losses(&self, adapters: Option<&[Adapter]>) -> Result<Vec<Evaluation>> {
        let evaluate = |(at, index): (usize, &usize)| {
            let holdout = self.people.data(*index).holdout(self.length());
            self.loss(adapters.map(|adapters| &adapters[at]), &holdout)
        };
        self.chosen.iter().enumerate().map(evaluate).collect()
    }

    /// Loss of each chosen client with an adapter that it trained further on its own texts.
    pub(super) fn personal_losses(
        &self,
        adapters: &[Adapter],
        steps: u32,
    ) -> Result<Vec<Evaluation>> {
        let evaluate = |(adapter, index): (&Adapter, &usize)| {
            let data = self.people.data(*index);
            let client = self.people.client(*index);
            let shuffle = self.seed.derive(Purpose::Shuffle, Round(0), Some(&client));
            let sequences = data.train(self.length());
            let own = self.train(adapter, &sequences, &self.training, (steps, &shuffle))?;
            self.loss(Some(&own), &data.holdout(self.length()))
        };
        adapters.iter().zip(&self.chosen).map(evaluate).collect()
    }

    /// Loss over all chosen clients after training the first adapter on all their texts in one place.
    pub(super) fn central_loss(
        &self,
        first: &Adapter,
        learning_rate: f32,
        steps: u32,
    ) -> Result<Evaluation> {
        let train = |index: &usize| self.people.train_documents(*index);
        let documents: Vec<Document> = self.chosen.iter().flat_map(train).collect();
        let sequences = LocalData::of(documents, Vec::new()).train(self.length());
        let training = TrainingConfig { learning_rate, ..self.training.clone() };
        let shuffle = self.seed.derive(Purpose::Shuffle, Round(0), None);
        let adapter = self.train(first, &sequences, &training, (steps, &shuffle))?;
        Ok(pooled(&self.losses(Some(&vec![adapter; self.chosen.len()]))?))
    }

    fn train(
        &self,
        start: &Adapter,
        sequences: &[Sequence],
        config: &TrainingConfig,
        (steps, shuffle): (u32, &Seed),
    ) -> Result<Adapter> {
        let (model, lora) = (&self.base.model, (&self.lora, start));
        let mut training = Training::new(model, lora, sequences, config, shuffle)?;
        for _ in 0..steps {
            self.threads.run(|| training.step())?;
        }
        Ok(Adapter::new(Arc::clone(start.layout()), training.finish().values)?)
    }

    fn loss(&self, adapter: Option<&Adapter>, sequences: &[Sequence]) -> Result<Evaluation> {
        let model = &self.base.model;
        let frozen = |adapter| Lora::frozen(adapter, model.config(), &self.lora, &model.device());
        let lora = adapter.map(frozen).transpose()?;
        Ok(self.threads.run(|| evaluate(model, lora.as_ref(), sequences, BATCH))?)
    }
}

/// Summed loss over summed tokens.
pub(super) fn pooled(evaluations: &[Evaluation]) -> Evaluation {
    let mut pool = Evaluation::default();
    evaluations.iter().for_each(|one| pool += *one);
    pool
}

/// How the losses of clients are spread, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Clients with held-out texts.
    pub clients: usize,
    /// Over all their tokens alike.
    pub pooled: f64,
    /// Over clients alike.
    pub mean: f64,
    /// Of ten clients, one is better.
    pub p10: f64,
    /// Half of the clients are better.
    pub median: f64,
    /// Of ten clients, nine are better.
    pub p90: f64,
    /// Mean of the tenth of the clients that fare worst.
    pub worst_decile: f64,
}

impl Spread {
    /// The spread over clients; none if nobody has held-out texts.
    pub(super) fn of(evaluations: &[Evaluation]) -> Option<Self> {
        let mut losses: Vec<f64> = evaluations.iter().filter_map(Evaluation::loss).collect();
        losses.sort_by(f64::total_cmp);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let worst = losses.len() - losses.len().div_ceil(10);
        Some(Self {
            clients: losses.len(),
            pooled: pooled(evaluations).loss()?,
            mean: mean(&losses),
            p10: quantile(&losses, 0.1)?,
            median: quantile(&losses, 0.5)?,
            p90: quantile(&losses, 0.9)?,
            worst_decile: mean(&losses[worst..]),
        })
    }
}

/// Evaluations as bytes.
pub(super) fn encode(evaluations: &[Evaluation]) -> Vec<u8> {
    let bytes = |one: &Evaluation| [one.nll.to_le_bytes(), one.tokens.to_le_bytes()].concat();
    evaluations.iter().flat_map(bytes).collect()
}

/// Evaluations that [`encode`] made bytes of.
pub(super) fn decode(bytes: &[u8]) -> Vec<Evaluation> {
    let (entries, _) = bytes.as_chunks::<16>();
    let evaluation = |entry: &[u8; 16]| {
        let half = |from: usize| entry[from..].first_chunk().copied().unwrap_or_default();
        Evaluation { nll: f64::from_le_bytes(half(0)), tokens: u64::from_le_bytes(half(8)) }
    };
    entries.iter().map(evaluation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluations(losses: &[f64]) -> Vec<Evaluation> {
        losses.iter().map(|loss| Evaluation { nll: 10.0 * loss, tokens: 10 }).collect()
    }

    #[test]
    fn the_spread_shows_those_that_fare_worst() {
        let mut all = evaluations(&(1..=20).map(f64::from).collect::<Vec<_>>());
        // One without held-out texts has no say.
        all.push(Evaluation::default());
        let spread = Spread::of(&all).unwrap();
        let want = Spread {
            clients: 20,
            pooled: 10.5,
            mean: 10.5,
            p10: 2.0,
            median: 10.0,
            p90: 18.0,
            worst_decile: 19.5,
        };
        assert_eq!(spread, want);
        assert_eq!(Spread::of(&[Evaluation::default()]), None);
        assert_eq!(Spread::of(&[]), None);
        // Clients with more tokens count more in the pool, and not in the mean.
        let uneven = [Evaluation { nll: 30.0, tokens: 30 }, Evaluation { nll: 30.0, tokens: 10 }];
        let spread = Spread::of(&uneven).unwrap();
        assert_eq!((spread.pooled, spread.mean), (1.5, 2.0));
        assert_eq!(decode(&encode(&all)), all);
    }
}
