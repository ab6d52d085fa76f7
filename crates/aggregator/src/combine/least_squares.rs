//! The mean of factors with a B that makes up for it: of all B, the one whose product with the mean A is nearest to the
//! mean of products. With Ā = Σ p_k A_k it is B' = Σ p_k B_k (A_k Āᵀ)(Ā Āᵀ)⁻¹ (LoRA-FAIR, Bian et al. 2025, arXiv
//! 2411.14961, equation 8, in the Frobenius norm and without its penalty).

use floret_core::Layout;
use nalgebra::DMatrix;

use super::{Combine, plain_shares, sum};
use crate::clipped::ClippedDelta;
use crate::low_rank::product;

/// The rule.
#[derive(Debug, Clone, Copy)]
pub struct LeastSquares;

/// Singular values of Ā Āᵀ below this share of the largest count as none: there B' stays zero.
const TOLERANCE: f64 = 1e-12;

impl Combine for LeastSquares {
    fn combine(
        &self,
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        weights: &[u32],
    ) -> Vec<f32> {
        let shares = plain_shares(weights);
        let mut combined = sum(layout, deltas, &shares);
        for [a, b] in layout.pairs().filter(|_| !deltas.is_empty()) {
            let ([rank, inputs], outputs) = (a.shape, b.shape[0]);
            let a_of = |change: &dyn Fn(usize) -> f64| {
                DMatrix::from_fn(rank, inputs, |row, column| {
                    let place = a.offset + row * inputs + column;
                    f64::from(before[place]) + change(place)
                })
            };
            let mean_a = a_of(&|place| combined[place]);
            let turned = mean_a.transpose();
            // Σ p_k B_k (A_k Āᵀ), of outputs x rank.
            let mut target = DMatrix::<f64>::zeros(outputs, rank);
            for (delta, share) in deltas.iter().zip(&shares) {
                let change = |place: usize| f64::from(delta.values()[place]);
                let overlap = product(&a_of(&change), &turned);
                for (row, column) in places(outputs, rank) {
                    let of_b = (0..rank).map(|inner| {
                        let place = b.offset + row * rank + inner;
                        (f64::from(before[place]) + change(place)) * overlap[(inner, column)]
                    });
                    target[(row, column)] += share * of_b.sum::<f64>();
                }
            }
            let svd = product(&mean_a, &turned).svd(true, true);
            let least = svd.singular_values.max() * TOLERANCE;
            let inverse = svd.pseudo_inverse(least);
            let inverse =
                inverse.unwrap_or_else(|error| unreachable!("all parts are there: {error}"));
            for (row, column) in places(outputs, rank) {
                let place = b.offset + row * rank + column;
                let terms = (0..rank).map(|at| target[(row, at)] * inverse[(at, column)]);
                combined[place] = terms.sum::<f64>() - f64::from(before[place]);
            }
        }
        combined.into_iter().map(|value| value as f32).collect()
    }
}

fn places(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{assert_near, clipped, pair_layout, product, values};

    /// Block `lora_aggregation` of ../shared/vectors: `ls_corrected_B` and `ls_corrected_rel_err`, from zero and from
    /// elsewhere.
    #[test]
    fn follows_the_reference_values() {
        let layout = pair_layout();
        let ideal =
            [[-0.5, 0.75, 0.5, 0.125], [1.5, 0.25, 2.0, 0.875], [0.375, 0.625, 1.625, 2.125]];
        let want = [
            [0.3746506428172163, -0.2027669088876467],
            [0.6253493571827837, 1.2027669088876467],
            [0.704024594745668, 0.9158747903856903],
        ];
        for start in [0.0f32, 0.25] {
            let before = vec![start; layout.len()];
            let deltas = values::CLIENTS.map(|(a, b)| {
                let change = values::flat(a, b).into_iter().map(|value| value - start);
                clipped(&layout, 1e6, &change.collect::<Vec<_>>())
            });
            let delta = LeastSquares.combine(&layout, &before, &deltas, &[1, 3, 4]);
            let after: Vec<f64> = delta.iter().map(|delta| f64::from(start + delta)).collect();
            assert_near(&after[8..], want.as_flattened(), 1e-6);
            let product = product(&layout, &after);
            let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let ideal = ideal.as_flattened();
            let off: Vec<f64> = product.iter().zip(ideal).map(|(x, y)| x - y).collect();
            let relative = squares(&off) / squares(ideal);
            assert!((relative - 0.40607257542474356).abs() < 1e-6, "{relative}");
        }
    }

    #[test]
    fn nothing_and_a_factor_of_zeros_stay_finite() {
        let layout = pair_layout();
        let zero = vec![0.0; layout.len()];
        assert_eq!(LeastSquares.combine(&layout, &zero, &[], &[]), zero);
        let none = clipped(&layout, 1e6, &zero);
        assert_eq!(LeastSquares.combine(&layout, &zero, &[none], &[1]), zero);
    }
}
