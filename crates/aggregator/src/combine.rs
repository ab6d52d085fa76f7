//! Combine rules: many deltas into one, the first axis of a strategy.
//!
//! The weighted mean is linear: it streams into integers, in memory that does not grow with the
//! cohort. The others are buffered: they look at all updates of a round at once, in ClientId order,
//! when it closes: [`Combine`]. [`Robust`] are those that settings can name; a program can bring one of its own
//! ([`crate::Coordinator::with_rule`]). Robust rules that go by coordinates look at the factors' values one by one; those that go
//! by distances look at what factors stand for, their product, and give each update a weight, by which
//! factors are averaged.
//!
//! - [`weighted_mean`]; [`trimmed_mean`], also the median
//! - [`normalized`]: the mean of clients that do unequal numbers of steps
//! - [`krum`], [`geometric_median`], [`centered_clipping`], [`dnc`], [`fltrust`], on [`geometry`]
//! - [`stacked`], [`hetlora`]: mixed ranks otherwise than by nested ranks
//! - [`fold`], [`least_squares`]: what the mean of factors leaves out of the mean of products, made up for
//! - [`residual`]: how far an aggregate is from the mean of products

pub mod centered_clipping;
pub mod dnc;
pub mod fltrust;
pub mod fold;
pub mod geometric_median;
pub mod geometry;
pub mod hetlora;
pub mod krum;
pub mod least_squares;
pub mod normalized;
pub mod residual;
pub mod stacked;
pub mod trimmed_mean;
pub mod weighted_mean;

use std::fmt;

use floret_core::Layout;
use serde::{Deserialize, Serialize};

use crate::clipped::ClippedDelta;
use geometry::Distances;
pub use weighted_mean::WeightedMean;

/// A rule that looks at all updates of a round at once.
pub trait Combine: fmt::Debug + Send + Sync {
    /// Combines `deltas`, in ClientId order and each with its weight, of adapters of `layout` that began
    /// with the values `before`: one value for each, in layout order. The same inputs give the same bits.
    fn combine(
        &self,
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        weights: &[u32],
    ) -> Vec<f32>;
}

/// A rule that a few hostile updates do not move far. Each update has the same say: the number of
/// examples behind it is a claim.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum Robust {
    /// The median of each value.
    Median {},
    /// The mean of each value without the largest and the smallest.
    TrimmedMean {
        /// Values dropped at each end.
        trim: u32,
    },
    /// The update that is nearest to its neighbours.
    Krum {
        /// Updates that may be hostile.
        byzantine: u32,
    },
    /// The mean of those that are nearest to their neighbours.
    MultiKrum {
        /// Updates that may be hostile.
        byzantine: u32,
        /// Updates that are kept.
        keep: u32,
    },
    /// The point with the least sum of distances to all.
    GeometricMedian {
        /// Steps of Weiszfeld's algorithm.
        #[serde(default = "Robust::default_weiszfeld_steps")]
        iterations: u32,
    },
    /// The mean without those that stand out along the direction in which updates differ most.
    Dnc {
        /// Updates that may be hostile: as many are left out.
        byzantine: u32,
    },
    /// What agrees with the update of the trusted client, at its length: `cohort.trusted`.
    Fltrust {},
    /// A walk from no change towards the updates, each of which pulls by `radius` at most.
    CenteredClipping {
        /// The farthest that an update pulls in a step, as a distance of products.
        radius: f64,
        /// Steps.
        #[serde(default = "Robust::default_clipping_steps")]
        iterations: u32,
    },
}

impl Robust {
    /// Most steps of a rule that goes by steps.
    pub const ITERATIONS_MAX: u32 = 1_000;

    fn default_weiszfeld_steps() -> u32 {
        8
    }

    fn default_clipping_steps() -> u32 {
        3
    }
}

impl Combine for Robust {
    /// Each delta has the same say, whatever its weight, but for FLTrust, whose root is the one with a weight; zeros
    /// if there are none. Sums are in f64 and in a fixed order.
    fn combine(
        &self,
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        of_operator: &[u32],
    ) -> Vec<f32> {
        if deltas.is_empty() {
            return vec![0.0; layout.len()];
        }
        let distances = || Distances::of_updates(layout, before, deltas);
        let from_no_change = || Distances::of_no_change_and_updates(layout, before, deltas);
        let weights = match *self {
            Self::Median {} => return by_coordinate(deltas, trimmed_mean::median),
            Self::TrimmedMean { trim } => {
                let trim = trim as usize;
                return by_coordinate(deltas, |values| trimmed_mean::trimmed_mean(values, trim));
            }
            Self::Krum { byzantine } => krum::weights(&distances(), byzantine as usize, 1),
            Self::MultiKrum { byzantine, keep } => {
                krum::weights(&distances(), byzantine as usize, keep as usize)
            }
            Self::GeometricMedian { iterations } => {
                geometric_median::weights(&distances(), iterations)
            }
            Self::Dnc { byzantine } => dnc::weights(&distances(), byzantine as usize),
            Self::Fltrust {} => {
                let root = of_operator.iter().position(|weight| *weight > 0);
                let lengths: Vec<f64> = deltas.iter().map(ClippedDelta::norm).collect();
                let weights = |root| fltrust::weights(&from_no_change(), root, &lengths);
                root.map_or_else(Vec::new, weights)
            }
            Self::CenteredClipping { radius, iterations } => {
                centered_clipping::weights(&from_no_change(), radius, iterations)
            }
        };
        sum(layout, deltas, &weights).into_iter().map(|value| value as f32).collect()
    }
}

/// The share of each client in each of `rank` components, among those that trained it: with equal ranks, its share of the
/// weights.
fn shares(rank: usize, deltas: &[ClippedDelta], weights: &[u32]) -> Vec<Vec<f64>> {
    let mut totals = vec![0.0; rank];
    for (delta, weight) in deltas.iter().zip(weights) {
        totals.iter_mut().take(delta.rank()).for_each(|total| *total += f64::from(*weight));
    }
    let of_client = |(delta, weight): (&ClippedDelta, &u32)| -> Vec<f64> {
        let share = |(component, total): (usize, &f64)| {
            if component < delta.rank() { f64::from(*weight) / total } else { 0.0 }
        };
        totals.iter().enumerate().map(share).collect()
    };
    deltas.iter().zip(weights).map(of_client).collect()
}

/// The share of each client in the sum of weights.
fn plain_shares(weights: &[u32]) -> Vec<f64> {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    weights.iter().map(|weight| f64::from(*weight) / total).collect()
}

/// Σ s_k Δ_k, in f64 and in order; zeros of nothing.
fn sum(layout: &Layout, deltas: &[ClippedDelta], shares: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; layout.len()];
    for (delta, share) in deltas.iter().zip(shares).filter(|(_, share)| **share != 0.0) {
        for (sum, value) in sum.iter_mut().zip(delta.values()) {
            *sum += share * f64::from(*value);
        }
    }
    sum
}

/// The same weight for the `keep` points with the lowest scores, the first of equal ones; 0 for the others. One is
/// always kept.
fn lowest(scores: &[f64], keep: usize) -> Vec<f64> {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|x, y| scores[*x].total_cmp(&scores[*y]));
    ranked.truncate(keep.max(1));
    let mut weights = vec![0.0; scores.len()];
    ranked.iter().for_each(|point| weights[*point] = 1.0 / ranked.len() as f64);
    weights
}

/// What `rule` makes of each coordinate's values, which it may put in another order.
fn by_coordinate(deltas: &[ClippedDelta], rule: impl Fn(&mut [f64]) -> f64) -> Vec<f32> {
    let deltas: Vec<&[f32]> = deltas.iter().map(ClippedDelta::values).collect();
    let mut column = vec![0.0; deltas.len()];
    let coordinate = |at: usize| {
        column.iter_mut().zip(&deltas).for_each(|(value, delta)| *value = delta[at].into());
        rule(&mut column) as f32
    };
    (0..deltas[0].len()).map(coordinate).collect()
}

#[cfg(test)]
pub(crate) mod tests;
