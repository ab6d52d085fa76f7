//! Krum and multi-Krum (Blanchard et al. 2017, arXiv 1703.02757, sections 4 and 5): updates are ranked
//! by how near they are to their nearest neighbours.

use super::geometry::Distances;
use super::lowest;

/// For each point, the sum of squared distances to its n - f - 2 nearest others; `byzantine` is f.
#[must_use]
pub fn scores(distances: &Distances, byzantine: usize) -> Vec<f64> {
    let n = distances.points();
    let neighbours = n.saturating_sub(byzantine + 2);
    let score = |point| {
        let others = (0..n).filter(|other| *other != point);
        let mut squares: Vec<f64> = others.map(|other| distances.squared(point, other)).collect();
        squares.sort_unstable_by(f64::total_cmp);
        squares.iter().take(neighbours).sum()
    };
    (0..n).map(score).collect()
}

/// The same weight for the `keep` points with the lowest scores, the first of equal ones; 0 for the
/// others.
#[must_use]
pub fn weights(distances: &Distances, byzantine: usize, keep: usize) -> Vec<f64> {
    lowest(&scores(distances, byzantine), keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{X, assert_near, average};

    /// Block `robust` of ../shared/vectors: `krum_f2_scores`, `krum_pick`, `multikrum_m3_idx` and
    /// `multikrum_m3`.
    #[test]
    fn follow_the_reference_values() {
        let distances = Distances::of_vectors(&X);
        let want = [1.82, 3.22, 3.6, 3.24, 3.98, 789.32, 1080.48];
        assert_near(&scores(&distances, 2), &want, 1e-9);
        assert_eq!(weights(&distances, 2, 1), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let three = weights(&distances, 2, 3);
        let kept: Vec<usize> = (0..7).filter(|point| three[*point] > 0.0).collect();
        assert_eq!(kept, [0, 1, 3]);
        let want = [1.2333333333333334, 1.9, 3.3333333333333335];
        assert_near(&average(&three, &X), &want, 1e-9);
    }
}
