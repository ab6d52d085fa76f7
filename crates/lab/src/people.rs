//! Clients and their texts: indices into one corpus, given out when they are asked for.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Result, ensure};
use floret_core::seed::Purpose;
use floret_core::{ClientId, Round, Seed};
use floret_device::{Limits, LocalModel, Session};
use floret_model::{Document, LocalData};
use floret_simulation::distribution::{Distribution, below, normal, uniform};
use floret_simulation::{Nature, Population};
use rand_chacha::ChaCha20Rng;

use crate::corpus::Corpus;
use crate::experiment::{Experiment, PartitionName};

/// Every client that there is.
#[derive(Debug)]
pub struct People {
    corpus: Corpus,
    holdout: f64,
    shares: Shares,
    /// Ranks that devices permit, by turns; none for any.
    ranks: Vec<usize>,
    /// Digits of the largest index.
    digits: usize,
}

/// Which texts a client holds.
#[derive(Debug)]
enum Shares {
    /// Those of a source.
    BySource(Vec<usize>),
    /// An even part of all, in this order.
    Dealt { order: Vec<usize>, clients: usize },
    /// Drawn from the texts of all sources, with replacement.
    Drawn { clients: usize, examples: Distribution, alpha: Option<f64>, seed: Seed, pools: Pools },
}

/// Texts to draw from, by source.
#[derive(Debug)]
struct Pools {
    train: Vec<Vec<usize>>,
    holdout: Vec<Vec<usize>>,
}

impl People {
    /// The clients of `experiment` over the texts of `corpus`.
    ///
    /// # Errors
    /// More clients than the partition gives.
    pub fn new(experiment: &Experiment, corpus: Corpus) -> Result<Self> {
        let section = &experiment.population;
        let (clients, holdout) = (section.clients, experiment.data.holdout);
        let seed = experiment.seed().derive(Purpose::Partition, Round(0), None);
        let shares = match (section.partition, section.examples) {
            (PartitionName::Key, _) => Shares::BySource(largest(&corpus, clients)?),
            (PartitionName::Iid, None) => {
                let texts = corpus.documents.len();
                ensure!(
                    clients <= texts,
                    "population.clients is {clients}, and there are {texts} texts to deal out: \
                     use fewer, or population.examples to draw with replacement"
                );
                Shares::Dealt { order: shuffled(texts, &seed), clients }
            }
            (partition, examples) => Shares::Drawn {
                clients,
                examples: examples.unwrap_or(Distribution::Constant(1.0)),
                alpha: (partition == PartitionName::Dirichlet).then_some(section.alpha),
                seed,
                pools: Pools::new(&corpus, holdout),
            },
        };
        let mut people = Self { corpus, holdout, shares, ranks: section.ranks.clone(), digits: 0 };
        people.digits = people.len().to_string().len();
        Ok(people)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.shares {
            Shares::BySource(sources) => sources.len(),
            Shares::Dealt { clients, .. } | Shares::Drawn { clients, .. } => *clients,
        }
    }

    /// Whether there is nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name of the client `index`: its number from 1, and its source if it has one alone.
    #[must_use]
    pub fn client(&self, index: usize) -> ClientId {
        let mut name = format!("{:0width$}", index + 1, width = self.digits);
        match &self.shares {
            Shares::BySource(sources) => {
                let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
                let source = &self.corpus.sources[sources[index]];
                let slug: String = source.chars().map(letter).take(40).collect();
                let _ = write!(name, "-{}", slug.to_lowercase());
            }
            _ => name.insert_str(0, "client-"),
        }
        let name = name.trim_end_matches('-');
        name.parse().unwrap_or_else(|_| unreachable!("{name} has letters, digits and '-' alone"))
    }

    /// Index of the client of this name.
    #[must_use]
    pub fn index(&self, client: &ClientId) -> Option<usize> {
        let number = client.as_str().split('-').find_map(|part| part.parse::<usize>().ok());
        number?.checked_sub(1).filter(|index| *index < self.len())
    }

    /// The source of the client `index`, if it has one alone.
    #[must_use]
    pub fn source(&self, index: usize) -> Option<&str> {
        match &self.shares {
            Shares::BySource(sources) => Some(&self.corpus.sources[sources[index]]),
            _ => None,
        }
    }

    /// The largest rank that the device of the client `index` permits, if devices differ.
    #[must_use]
    pub fn max_rank(&self, index: usize) -> Option<usize> {
        self.ranks.get(index % self.ranks.len().max(1)).copied()
    }

    /// The clients that the experiment makes hostile.
    #[must_use]
    pub fn hostile(&self, experiment: &Experiment) -> BTreeSet<ClientId> {
        let drawn = experiment.attack.map(|of| of.hostile(self.len(), &experiment.seed()));
        drawn.into_iter().flatten().map(|index| self.client(index)).collect()
    }

    /// The texts of the client `index`.
    #[must_use]
    pub fn data(&self, index: usize) -> LocalData {
        let (train, holdout) = self.texts(index);
        LocalData::of(self.documents(&train), self.documents(&holdout))
    }

    /// The documents that the client `index` trains on.
    #[must_use]
    pub fn train_documents(&self, index: usize) -> Vec<Document> {
        self.documents(&self.texts(index).0)
    }

    fn documents(&self, texts: &[usize]) -> Vec<Document> {
        texts.iter().map(|&text| self.corpus.documents[text].clone()).collect()
    }

    fn texts(&self, index: usize) -> (Vec<usize>, Vec<usize>) {
        let split = |texts: &[usize]| {
            let (train, holdout) = floret_model::data::split(texts, self.holdout);
            (train.to_vec(), holdout.to_vec())
        };
        match &self.shares {
            Shares::BySource(sources) => split(&self.corpus.texts[sources[index]]),
            Shares::Dealt { order, clients } => {
                let cut = |index: usize| index * order.len() / clients;
                split(&order[cut(index)..cut(index + 1)])
            }
            Shares::Drawn { examples, alpha, seed, pools, .. } => {
                let client = self.client(index);
                let mut stream = seed.derive(Purpose::Partition, Round(0), Some(&client)).stream();
                let count = (examples.draw(&mut stream).round() as usize).clamp(1, 1_000_000);
                let held_out = (count as f64 * self.holdout).ceil() as usize;
                let weights = pools.weights(*alpha, &mut stream);
                let train = draw(&pools.train, &weights, count, &mut stream);
                (train, draw(&pools.holdout, &weights, held_out, &mut stream))
            }
        }
    }
}

/// The `clients` sources with most tokens, or all.
fn largest(corpus: &Corpus, clients: usize) -> Result<Vec<usize>> {
    let all = corpus.sources.len();
    ensure!(
        clients <= all,
        "population.clients is {clients}, and the texts have {all} sources: use at most that"
    );
    let mut sources: Vec<usize> = (0..all).collect();
    sources.sort_by_key(|&source| (std::cmp::Reverse(corpus.tokens(source)), source));
    sources.truncate(if clients == 0 { all } else { clients });
    Ok(sources)
}

/// Fisher and Yates.
fn shuffled(count: usize, seed: &Seed) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut stream = seed.stream();
    for last in (1..count).rev() {
        order.swap(last, below(last + 1, &mut stream));
    }
    order
}

impl Pools {
    fn new(corpus: &Corpus, holdout: f64) -> Self {
        let split = |texts: &Vec<usize>| {
            let (train, holdout) = floret_model::data::split(texts, holdout);
            (train.to_vec(), holdout.to_vec())
        };
        let (train, holdout) = corpus.texts.iter().map(split).unzip();
        Self { train, holdout }
    }

    /// Shares of the sources in a client's mixture: those of the corpus p, or a draw from Dir(alpha p)
    /// (Hsu et al. 2019, arXiv 1909.06335, section 3.1).
    fn weights(&self, alpha: Option<f64>, stream: &mut ChaCha20Rng) -> Vec<f64> {
        let total: usize = self.train.iter().map(Vec::len).sum();
        let prior = self.train.iter().map(|texts| texts.len() as f64 / total as f64);
        let Some(alpha) = alpha else { return prior.collect() };
        let logs: Vec<f64> = prior.map(|p| log_gamma_draw(alpha * p, stream)).collect();
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        logs.iter().map(|log| (log - most).exp()).collect()
    }
}

/// Logarithm of a draw from the gamma distribution of this shape and scale 1 (Marsaglia and Tsang
/// 2000, with their boost by U^(1/shape), which would underflow for small shapes).
fn log_gamma_draw(shape: f64, stream: &mut ChaCha20Rng) -> f64 {
    let boost = (1.0 - uniform(stream)).ln() / shape.max(1e-12);
    let d = shape + 1.0 - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(stream);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - uniform(stream)).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln() + boost;
        }
    }
}

/// `count` texts: the source by weight, the text within it evenly.
fn draw(
    pools: &[Vec<usize>],
    weights: &[f64],
    count: usize,
    stream: &mut ChaCha20Rng,
) -> Vec<usize> {
    let some = pools.iter().zip(weights).filter(|(pool, _)| !pool.is_empty());
    let mut sum = 0.0;
    let add = |(pool, weight)| {
        sum += weight;
        (sum, pool)
    };
    let ends: Vec<(f64, &Vec<usize>)> = some.map(add).collect();
    let text = |_| {
        let at = uniform(stream) * sum;
        let (_, pool) = ends[ends.partition_point(|(end, _)| *end <= at).min(ends.len() - 1)];
        pool[below(pool.len(), stream)]
    };
    if sum > 0.0 { (0..count).map(text).collect() } else { Vec::new() }
}

/// The clients as a world's population.
#[derive(Debug)]
pub struct Roster {
    /// Who they are.
    pub people: Arc<People>,
    /// The base model that all of them hold.
    pub model: LocalModel,
    /// What devices are like, by turns; none if they are drawn.
    pub trace: Vec<Nature>,
}

impl Population for Roster {
    fn size(&self) -> usize {
        self.people.len()
    }

    fn client(&self, index: usize) -> ClientId {
        self.people.client(index)
    }

    fn session(&self, index: usize) -> Session {
        let limits = Limits::default();
        let max_rank = self.people.max_rank(index).unwrap_or(limits.max_rank);
        let limits = Limits { max_rank, ..limits };
        Session::new(self.people.client(index), self.model.clone(), limits)
    }

    fn nature(&self, index: usize) -> Option<Nature> {
        self.trace.get(index % self.trace.len().max(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E[ln G] of Gamma(k) is digamma(k): digamma(1) = -0.5772 (Euler), digamma(0.1) = -10.4238.
    #[test]
    fn gamma_draws_have_the_mean_logarithm() {
        let mut stream = Seed::from_number(4).stream();
        for (shape, want) in [(1.0, -0.577_216), (0.1, -10.423_755), (5.0, 1.506_118)] {
            let sum: f64 = (0..50_000).map(|_| log_gamma_draw(shape, &mut stream)).sum();
            let (mean, error) = (sum / 5e4, 0.05 / f64::from(shape as f32).sqrt() * 2.0);
            assert!((mean - want).abs() < error, "shape {shape}: {mean} and not {want}");
        }
    }

    #[test]
    fn a_low_alpha_gives_one_source_and_a_high_one_the_mixture_of_the_corpus() {
        let pools = Pools {
            train: vec![(0..100).collect(), (100..200).collect(), (200..400).collect()],
            holdout: vec![Vec::new(); 3],
        };
        let shares = |alpha: f64, seed: u64| {
            let mut stream = Seed::from_number(seed).stream();
            let weights = pools.weights(Some(alpha), &mut stream);
            let texts = draw(&pools.train, &weights, 1000, &mut stream);
            let of = |from: usize, to: usize| {
                texts.iter().filter(|text| (from..to).contains(*text)).count()
            };
            [of(0, 100), of(100, 200), of(200, 400)]
        };
        for seed in 0..20 {
            let alone = shares(0.001, seed);
            assert!(alone.iter().any(|count| *count > 990), "seed {seed}: {alone:?}");
            let [a, b, c] = shares(1e6, seed);
            assert!((200..300).contains(&a) && (200..300).contains(&b), "seed {seed}");
            assert!((430..570).contains(&c), "seed {seed}");
        }
        assert!(draw(&pools.holdout, &[1.0; 3], 5, &mut Seed::from_number(1).stream()).is_empty());
    }
}
