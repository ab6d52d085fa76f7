//! FLTrust (Cao et al. 2021, arXiv 2012.13995, algorithm 2): each update counts as far as it points where a trusted one
//! does, and is brought to the length of that one. Here the trusted update is that of a client that the operator runs on
//! data of its own, and is one of those that are summed.
//!
//! Lengths are those of products, and an update of a tiny product may have long factors: it is brought no further than to
//! where its factors are as long as the trusted ones.

use super::geometry::Distances;

/// The weight of each update, where the first point stands for no change: TS_i ‖g‖ / ‖x_i‖ / Σ TS with
/// TS_i = max(0, cos(x_i, g)), for the update g of index `root`, where ‖g‖ / ‖x_i‖ is not more than that of `factors`, the
/// lengths of the updates' factors. Zeros if g is no change.
#[must_use]
pub fn weights(distances: &Distances, root: usize, factors: &[f64]) -> Vec<f64> {
    let length = |of: usize| distances.squared(0, of + 1).sqrt();
    let cosine = |of: usize| {
        let inner = distances.squared(0, of + 1) + distances.squared(0, root + 1)
            - distances.squared(of + 1, root + 1);
        let lengths = length(of) * length(root);
        if lengths > 0.0 { 0.5 * inner / lengths } else { 0.0 }
    };
    let trust: Vec<f64> = (0..distances.points() - 1).map(|of| cosine(of).max(0.0)).collect();
    let sum: f64 = trust.iter().sum();
    let scaled = |(of, trust): (usize, &f64)| {
        let scale = (length(root) / length(of)).min(factors[root] / factors[of]);
        if *trust > 0.0 { trust / sum * scale } else { 0.0 }
    };
    trust.iter().enumerate().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{X, assert_near, average};

    /// Block `robust` of ../shared/vectors: `fltrust_cos`, `fltrust`, with the first row as `fltrust_g0`.
    #[test]
    fn follows_the_reference_values() {
        let points: Vec<[f64; 3]> = std::iter::once([0.0; 3]).chain(X).collect();
        let norm = |row: &[f64; 3]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let lengths: Vec<f64> = X.iter().map(norm).collect();
        let weights = weights(&Distances::of_vectors(&points), 0, &lengths);
        let cosines: [f64; 7] = [
            1.0,
            0.9835207930825527,
            0.9747065763874326,
            0.9985152181862601,
            0.993399267798783,
            0.30860669992418377,
            0.45374260648651504,
        ];
        let sum: f64 = cosines.iter().sum();
        let want: Vec<f64> =
            X.iter().zip(cosines).map(|(row, cos)| cos * norm(&X[0]) / norm(row) / sum).collect();
        assert_near(&weights, &want, 1e-9);
        let want = [0.8776482762618988, 1.9337269268802728, 2.6682289910887595];
        assert_near(&average(&weights, &X), &want, 1e-9);
    }

    #[test]
    fn what_points_the_other_way_or_nowhere_has_no_weight() {
        let points = [[0.0; 3], [1.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [0.0; 3], [0.0, 3.0, 0.0]];
        let distances = Distances::of_vectors(&points);
        let lengths = [1.0, 5.0, 0.0, 3.0];
        assert_eq!(weights(&distances, 0, &lengths), [1.0, 0.0, 0.0, 0.0]);
        // A root that changes nothing trusts nobody.
        assert_eq!(weights(&distances, 2, &lengths), [0.0; 4]);
    }

    #[test]
    fn long_factors_of_a_small_product_are_not_stretched() {
        let points = [[0.0; 3], [1.0, 0.0, 0.0], [0.01, 0.0, 0.0]];
        let distances = Distances::of_vectors(&points);
        for (factors, times) in [(0.01, 100.0), (0.5, 2.0), (4.0, 0.25)] {
            let want = [0.5, 0.5 * times];
            assert_near(&weights(&distances, 0, &[1.0, factors]), &want, 1e-9);
        }
    }
}
