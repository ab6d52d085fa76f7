//! The geometric median, by the smoothed Weiszfeld algorithm (RFA: Pillutla et al. 2022, arXiv
//! 1912.13445, algorithm 2).

use super::geometry::Distances;

/// ν: distances below it count as this much, so that a step may end on a point.
const SMOOTHING: f64 = 1e-6;

/// The weight of each point, with sum 1, after `iterations` steps from the mean:
/// w_i ∝ 1 / max(ν, ‖x_i - z‖) with z = Σ w_i x_i.
#[must_use]
pub fn weights(distances: &Distances, iterations: u32) -> Vec<f64> {
    let n = distances.points();
    let mut weights = vec![1.0 / n as f64; n];
    for _ in 0..iterations {
        let squares = distances.squared_to(&weights);
        for (weight, square) in weights.iter_mut().zip(squares) {
            *weight = 1.0 / square.sqrt().max(SMOOTHING);
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{X, assert_near, average};

    /// Block `robust` of ../shared/vectors: `rfa_smoothed_weiszfeld_from_mean_nu1e6`, and
    /// `geometric_median`, which lies on a point.
    #[test]
    fn follows_the_reference_values() {
        let distances = Distances::of_vectors(&X);
        let after = |iterations| average(&weights(&distances, iterations), &X);
        let steps = [
            [1.1011468896316903, 2.1100844815818243, 3.155009877757159],
            [1.0582944496251925, 2.0246447942822545, 3.0688181534371135],
            [1.0291857646077207, 2.009381950793221, 3.0263278334388133],
            [1.0126892696847445, 2.0053109158677787, 3.0092464483036436],
        ];
        for (step, want) in (1..).zip(steps) {
            assert_near(&after(step), &want, 1e-9);
        }
        assert_near(&after(200), &[1.0, 2.0, 3.0], 1e-6);
    }
}
