//! Divide and conquer (Shejwalkar and Houmansadr 2021, NDSS, algorithm 2): hostile updates that pull together make the
//! direction in which updates differ most. Those that stand out along it are left out. Distances are exact here, so
//! that no coordinates are drawn.

use nalgebra::DMatrix;

use super::geometry::Distances;
use super::lowest;

/// The squared projection of each point, from the mean of all, on the direction in which they differ most.
#[must_use]
pub fn scores(distances: &Distances) -> Vec<f64> {
    let centered = distances.centered();
    let points = centered.len();
    // With X the centred points in rows, X = U S Vᵀ and X Xᵀ = U S² Uᵀ: the projections are columns of U S.
    let eigen = DMatrix::from_fn(points, points, |i, j| centered[i][j]).symmetric_eigen();
    let Some(top) =
        (0..points).max_by(|i, j| eigen.eigenvalues[*i].total_cmp(&eigen.eigenvalues[*j]))
    else {
        return Vec::new();
    };
    let strength = eigen.eigenvalues[top].max(0.0);
    eigen.eigenvectors.column(top).iter().map(|part| strength * part * part).collect()
}

/// The same weight for all points but the `byzantine` with the highest scores, the last of equal ones; 0 for those.
#[must_use]
pub fn weights(distances: &Distances, byzantine: usize) -> Vec<f64> {
    let scores = scores(distances);
    lowest(&scores, scores.len().saturating_sub(byzantine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{X, assert_near, average};

    /// Block `robust` of ../shared/vectors: `dnc_scores`, `dnc_keep`, `dnc`.
    #[test]
    fn follows_the_reference_values() {
        let distances = Distances::of_vectors(&X);
        let want = [
            0.17400806725544388,
            1.212048668046177,
            0.1342812507894065,
            0.3208064845275252,
            0.05848830411677565,
            272.87798510782903,
            341.469366650939,
        ];
        assert_near(&scores(&distances), &want, 1e-9);
        let weights = weights(&distances, 2);
        assert_eq!(weights, [0.2, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0]);
        assert_near(&average(&weights, &X), &[0.98, 2.0, 2.94], 1e-9);
    }

    #[test]
    fn somebody_is_always_left() {
        let alone = Distances::of_vectors(&X[..1]);
        assert_eq!(weights(&alone, 5), [1.0]);
        let same = Distances::of_vectors(&[X[0]; 4]);
        assert_eq!(weights(&same, 2), [0.5, 0.5, 0.0, 0.0]);
    }
}
