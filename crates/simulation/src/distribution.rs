//! Numbers that differ from device to device, or from one time to the next.

use std::collections::BTreeSet;

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

/// A distribution over numbers that are not negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Distribution {
    /// Always this.
    Constant(f64),
    /// Uniform between two numbers.
    Uniform([f64; 2]),
    /// The logarithm is normal: `median` times exp(`sigma` z).
    LogNormal {
        /// Half of the draws are below.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
    /// Exponential with this mean.
    Exponential(f64),
}

impl Distribution {
    /// Whether every draw is a finite number and not negative.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let fine = |x: f64| x.is_finite() && x >= 0.0;
        match *self {
            Self::Constant(x) | Self::Exponential(x) => fine(x),
            Self::Uniform([least, most]) => fine(least) && fine(most) && least <= most,
            Self::LogNormal { median, sigma } => fine(median) && (0.0..=10.0).contains(&sigma),
        }
    }

    /// A draw. A constant takes nothing from the stream.
    #[must_use]
    pub fn draw(&self, stream: &mut impl Rng) -> f64 {
        match *self {
            Self::Constant(x) => x,
            Self::Uniform([least, most]) => least + (most - least) * uniform(stream),
            Self::LogNormal { median, sigma } => median * (sigma * normal(stream)).exp(),
            // 1 - u lies in (0, 1].
            Self::Exponential(mean) => -mean * (1.0 - uniform(stream)).ln(),
        }
    }
}

/// Uniform in [0, 1), with 53 bits.
#[must_use]
pub fn uniform(stream: &mut impl Rng) -> f64 {
    (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal (Box and Muller 1958).
#[must_use]
pub fn normal(stream: &mut impl Rng) -> f64 {
    let (radius, angle) = (1.0 - uniform(stream), uniform(stream));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// A whole number below `bound`, all of them alike but for a bias below bound / 2^64.
#[must_use]
pub fn below(bound: usize, stream: &mut impl Rng) -> usize {
    ((u128::from(stream.next_u64()) * bound as u128) >> 64) as usize
}

/// At most `most` of the indices below `size`, each as likely as any other (Floyd's sample without
/// replacement, Bentley and Floyd 1987). All of them take nothing from the stream.
#[must_use]
pub fn sample(size: usize, most: usize, stream: &mut impl Rng) -> BTreeSet<usize> {
    if size <= most {
        return (0..size).collect();
    }
    let mut chosen = BTreeSet::new();
    for last in size - most..size {
        let index = below(last + 1, stream);
        if !chosen.insert(index) {
            chosen.insert(last);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use floret_core::Seed;

    use super::*;

    /// Means of 100,000 draws beside the exact ones; a standard error is below 0.5% of each.
    #[test]
    fn draws_have_the_means_of_their_distributions() {
        let log_normal = Distribution::LogNormal { median: 2.0, sigma: 0.5 };
        for (distribution, mean) in [
            (Distribution::Constant(3.0), 3.0),
            (Distribution::Uniform([1.0, 4.0]), 2.5),
            // median x exp(sigma^2 / 2)
            (log_normal, 2.0 * 0.125f64.exp()),
            (Distribution::Exponential(0.7), 0.7),
        ] {
            let mut stream = Seed::from_number(5).stream();
            let draws: Vec<f64> = (0..100_000).map(|_| distribution.draw(&mut stream)).collect();
            let got = draws.iter().sum::<f64>() / 1e5;
            assert!((got / mean - 1.0).abs() < 0.02, "{distribution:?}: {got} and not {mean}");
            assert!(draws.iter().all(|x| x.is_finite() && *x >= 0.0));
        }
    }

    #[test]
    fn what_could_be_negative_or_endless_is_not_valid() {
        let bad = [
            Distribution::Constant(-1.0),
            Distribution::Exponential(f64::INFINITY),
            Distribution::Uniform([2.0, 1.0]),
            Distribution::LogNormal { median: 1.0, sigma: f64::NAN },
        ];
        assert!(bad.iter().all(|distribution| !distribution.is_valid()));
        assert!(Distribution::Uniform([0.0, 0.0]).is_valid());
    }

    #[test]
    fn whole_numbers_stay_below_their_bound_and_reach_each() {
        let mut stream = Seed::from_number(6).stream();
        let mut seen = [0; 7];
        (0..7000).for_each(|_| seen[below(7, &mut stream)] += 1);
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn samples_are_different_indices_and_fair() {
        let seen = |seed| sample(10, 3, &mut Seed::from_number(seed).stream());
        assert_eq!(sample(3, 5, &mut Seed::from_number(1).stream()), BTreeSet::from([0, 1, 2]));
        let mut times = [0; 10];
        for seed in 0..1000 {
            assert_eq!(seen(seed).len(), 3, "seed {seed}");
            seen(seed).into_iter().for_each(|index| times[index] += 1);
        }
        // Each is chosen 300 times on average, with deviation 14.5.
        assert!(times.iter().all(|count| (230..370).contains(count)), "{times:?}");
    }
}
