//! Weighted mean of deltas in fixed-point integers (FedAvg, McMahan et al. 2017, arXiv 1602.05629,
//! algorithm 1).
//!
//! Each value is rounded to a grid of 2^-30 of the clip norm, multiplied by the update's integer
//! weight and added to an i64. Integer sums do not depend on the order of arrival, and memory does
//! not grow with the cohort.
//!
//! Each rank component is averaged over the clients that trained it (nested ranks, in the factor form of
//! raFLoRA, arXiv 2602.13486): with equal ranks that is the mean. For comparison there is zero-padding.

use floret_core::Layout;
use pulp::{Arch, NullaryFnOnce};

use crate::clipped::ClippedDelta;

/// Values of a delta lie within ±2^30 steps of the grid.
const GRID_BITS: u32 = 30;

/// The outermost step of the grid.
const LIMIT: f64 = (1u32 << GRID_BITS) as f64;

/// The nearest step of the grid, ties to even, for a value in steps. Added to 1.5 x 2^52, a number's
/// last bits are its integer part, rounded: so a loop of it becomes vector instructions anywhere.
#[inline(always)]
fn to_grid(steps: f64) -> i64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let shifted = steps.clamp(-LIMIT, LIMIT) + SHIFT;
    shifted.to_bits().cast_signed().wrapping_sub(SHIFT.to_bits().cast_signed())
}

/// Adds values, in steps of the grid and with their weight, to sums; compiled for each width of vectors.
struct Add<'a> {
    sums: &'a mut [i64],
    values: &'a [f32],
    steps_per_unit: f64,
    weight: u32,
}

impl NullaryFnOnce for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let weight = i64::from(self.weight);
        for (sum, value) in self.sums.iter_mut().zip(self.values) {
            let steps = to_grid(f64::from(*value) * self.steps_per_unit);
            // `fits` was checked when the configuration was read: nothing wraps.
            *sum = sum.wrapping_add(steps.wrapping_mul(weight));
        }
    }
}

/// A running weighted mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedMean {
    sums: Vec<i64>,
    weight: u64,
    /// Of those that trained a rank component, for each.
    weights: Vec<u64>,
}

impl WeightedMean {
    /// The mean of nothing, of deltas of `layout`.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { sums: vec![0; layout.len()], weight: 0, weights: vec![0; layout.rank()] }
    }

    /// Whether `cohort` updates of weight `max_weight` fit the accumulator.
    #[must_use]
    pub fn fits(cohort: u32, max_weight: u32) -> bool {
        let largest = (u128::from(cohort) * u128::from(max_weight)) << GRID_BITS;
        largest <= i64::MAX as u128
    }

    /// Adds a delta with its weight.
    pub fn add(&mut self, delta: &ClippedDelta, weight: u32) {
        debug_assert_eq!(delta.values().len(), self.sums.len());
        let steps_per_unit = LIMIT / f64::from(delta.clip_norm());
        let (sums, values) = (&mut self.sums[..], delta.values());
        Arch::new().dispatch(Add { sums, values, steps_per_unit, weight });
        self.weight += u64::from(weight);
        self.weights.iter_mut().take(delta.rank()).for_each(|sum| *sum += u64::from(weight));
    }

    /// The mean of what was added, each to the clip norm `clip_norm`, of each rank component over those
    /// that trained it; zeros of what nobody did.
    #[must_use]
    pub fn mean(&self, layout: &Layout, clip_norm: f32) -> Vec<f32> {
        let grid = f64::from(clip_norm) / f64::from(1u32 << GRID_BITS);
        let unit = |weight: &u64| if *weight == 0 { 0.0 } else { grid / *weight as f64 };
        let units: Vec<f64> = self.weights.iter().map(unit).collect();
        let mut mean = vec![0.0; self.sums.len()];
        for tensor in layout.tensors() {
            let sums = self.sums[tensor.range()].iter().zip(tensor.spread(&units));
            for (value, (sum, unit)) in mean[tensor.range()].iter_mut().zip(sums) {
                *value = (*sum as f64 * unit) as f32;
            }
        }
        mean
    }

    /// The mean of what was added, each to the clip norm `clip_norm`, to adapters that began with the values
    /// `before`, where a component counts as zero, and not as it was, for those that did not train it:
    /// zero-padding (HetLoRA, Cho et al. 2024, arXiv 2401.06432, section 3, without its weights). With
    /// weights W_c of those that trained component c, and W of all, its mean is (W_c x + Σ w Δ) / W, so
    /// that its delta is Σ w Δ / W - (1 - W_c / W) x.
    #[must_use]
    pub fn zero_padded(&self, layout: &Layout, clip_norm: f32, before: &[f32]) -> Vec<f32> {
        let mut delta = self.over(self.weight, clip_norm);
        let absent = |weight: &u64| 1.0 - *weight as f64 / self.weight.max(1) as f64;
        let absent: Vec<f64> = self.weights.iter().map(absent).collect();
        for tensor in layout.tensors() {
            let before = before[tensor.range()].iter().zip(tensor.spread(&absent));
            for (value, (x, absent)) in delta[tensor.range()].iter_mut().zip(before) {
                *value = (f64::from(*value) - absent * f64::from(*x)) as f32;
            }
        }
        delta
    }

    /// What was added, each to the clip norm `clip_norm`, divided by `divisor`; zeros if nothing was.
    #[must_use]
    pub fn over(&self, divisor: u64, clip_norm: f32) -> Vec<f32> {
        if self.weight == 0 {
            return vec![0.0; self.sums.len()];
        }
        let grid = f64::from(clip_norm) / f64::from(1u32 << GRID_BITS);
        let unit = grid / divisor as f64;
        self.sums.iter().map(|sum| (*sum as f64 * unit) as f32).collect()
    }

    /// Sum of the weights.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::combine::tests::{
        assert_near, clipped as delta, pair_layout, product, random_values, values,
    };
    use crate::coordinator::tests::{layout, payload};
    use crate::mode::{BufferedConfig, staleness_weight};

    fn clipped(value: impl Fn(usize) -> f32, clip_norm: f32) -> ClippedDelta {
        ClippedDelta::decode(&payload(value), &layout(), clip_norm).unwrap()
    }

    #[test]
    fn vectors_change_no_sum() {
        let values: Vec<f32> = (0..1003).map(|at| (at as f32 * 0.7).sin() * 1.3).collect();
        let [mut vectors, mut scalars] = [vec![-5i64; 1003], vec![-5i64; 1003]];
        let values = &values[..];
        for weight in [1, 7, u32::MAX] {
            let steps_per_unit = LIMIT / 1.2;
            Arch::new().dispatch(Add { sums: &mut vectors, values, steps_per_unit, weight });
            Add { sums: &mut scalars, values, steps_per_unit, weight }.call();
            assert_eq!(vectors, scalars);
        }
    }

    #[test]
    fn mean_weighs_by_examples() {
        let mut mean = WeightedMean::new(&layout());
        mean.add(&clipped(|_| 0.1, 100.0), 1);
        mean.add(&clipped(|_| 0.5, 100.0), 3);
        assert_eq!(mean.weight(), 4);
        assert!(mean.mean(&layout(), 100.0).iter().all(|value| (value - 0.4).abs() < 1e-6));
        let nothing = WeightedMean::new(&layout()).mean(&layout(), 1.0);
        assert_eq!(nothing, vec![0.0; layout().len()]);
    }

    /// FedBuff, algorithm 1: three updates that are 0, 3 and 8 versions behind, of a buffer of 3.
    #[test]
    fn a_buffer_is_divided_by_its_size_and_not_by_its_weights() {
        let mode = BufferedConfig { buffer: 3, ..BufferedConfig::default() };
        let mut sum = WeightedMean::new(&layout());
        for (value, staleness) in [(0.1, 0), (0.2, 3), (0.3, 8)] {
            sum.add(&clipped(|_| value, 100.0), staleness_weight(staleness));
        }
        let want = (0.1 + 0.2 / 2.0 + 0.3 / 3.0) / 3.0;
        let got = sum.over(mode.divisor(), 100.0);
        assert!(got.iter().all(|value| (value - want).abs() < 1e-6), "{got:?}");
        assert_eq!(sum.over(sum.weight(), 100.0), sum.mean(&layout(), 100.0));
    }

    /// Block `lora_aggregation` of ../shared/vectors, `hetero`: ranks 1, 2 and 2, weights 1/8, 3/8 and
    /// 1/2; `rankpart_A` and `rankpart_B`, and not what zero-padding gives.
    #[test]
    fn each_component_is_the_mean_of_those_that_trained_it() {
        let layout = pair_layout();
        let mut mean = WeightedMean::new(&layout);
        for (client, weight) in [(0, 1), (1, 3), (2, 4)] {
            let (mut a, mut b) = values::CLIENTS[client];
            if client == 0 {
                a[1].fill(0.0);
                b.iter_mut().for_each(|row| row[1] = 0.0);
            }
            let delta = delta(&layout, 64.0, &values::flat(a, b));
            assert_eq!(delta.rank(), if client == 0 { 1 } else { 2 });
            mean.add(&delta, weight);
        }
        let want_a = [
            [-0.375, 0.875, 2.125, 0.25],
            [1.5714285714285714, 0.0, 0.5714285714285714, 0.8571428571428571],
        ];
        let want_b = [
            [0.875, -0.14285714285714285],
            [0.125, 1.1428571428571428],
            [0.625, 0.8571428571428571],
        ];
        let want: Vec<f64> = [want_a.as_flattened(), want_b.as_flattened()].concat();
        for (got, want) in mean.mean(&layout, 64.0).iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} is not {want}");
        }
        assert_eq!(mean.weight(), 8);
    }

    /// Block `lora_aggregation` of ../shared/vectors, `hetero`: `zero_pad_product` is that of the factors
    /// after one step from zero. From elsewhere, the mean of padded factors is the same.
    #[test]
    fn zero_padding_is_the_mean_of_padded_factors() {
        let layout = pair_layout();
        let want = [
            [-0.5, 0.765625, 1.796875, 0.125],
            [1.328125, 0.109375, 0.765625, 0.78125],
            [0.796875, 0.546875, 1.703125, 0.71875],
        ];
        for seed in 0..5 {
            let scale = if seed == 0 { 0.0 } else { 1.0 };
            let before: Vec<f32> =
                random_values(&layout, seed).iter().map(|x| (scale * x) as f32).collect();
            let mut mean = WeightedMean::new(&layout);
            for (client, weight) in [(0, 1), (1, 3), (2, 4)] {
                let (a, b) = values::CLIENTS[client];
                let mut change: Vec<f32> =
                    values::flat(a, b).iter().zip(&before).map(|(x, before)| x - before).collect();
                for tensor in layout.tensors().iter().filter(|_| client == 0) {
                    let places = tensor.range().zip(tensor.spread(&[false, true]));
                    let second = places.filter(|(_, second)| *second);
                    second.for_each(|(place, _)| change[place] = 0.0);
                }
                mean.add(&delta(&layout, 64.0, &change), weight);
            }
            let step = mean.zero_padded(&layout, 64.0, &before);
            let after: Vec<f64> =
                step.iter().zip(&before).map(|(x, before)| f64::from(x + before)).collect();
            assert_near(&product(&layout, &after), want.as_flattened(), 1e-5);
        }
    }

    #[test]
    fn one_client_moves_the_mean_by_the_clip_norm_at_most() {
        let mut mean = WeightedMean::new(&layout());
        mean.add(&clipped(|_| 1e30, 0.5), 7);
        let norm =
            mean.mean(&layout(), 0.5).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((norm - 0.5).abs() < 1e-6, "{norm}");
    }

    #[test]
    fn steps_are_rounded_as_the_standard_library_does() {
        for steps in [0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 1e9, LIMIT, -LIMIT, 1e300, -1e300]
        {
            let want = f64::round_ties_even(steps.clamp(-LIMIT, LIMIT)) as i64;
            assert_eq!(to_grid(steps), want, "{steps}");
        }
    }

    #[test]
    fn the_accumulator_bound_is_exact() {
        assert!(WeightedMean::fits(1 << 16, (1 << 17) - 1));
        assert!(!WeightedMean::fits(1 << 16, 1 << 17));
        assert!(!WeightedMean::fits(u32::MAX, u32::MAX));
    }

    proptest! {
        #[test]
        fn order_of_arrival_does_not_change_a_bit(
            parts in prop::collection::vec((-1.0f32..1.0, 1u32..10_000), 1..8),
            rotation in 0usize..8,
        ) {
            let sum = |parts: &[(f32, u32)]| {
                let mut mean = WeightedMean::new(&layout());
                for (scale, weight) in parts {
                    mean.add(&clipped(|i| scale * (i as f32).sin(), 2.0), *weight);
                }
                mean
            };
            let mut rotated = parts.clone();
            rotated.rotate_left(rotation % parts.len());
            prop_assert_eq!(sum(&parts), sum(&rotated));
        }
    }
}
