//! Other factors of the same product: B A = U S Vᵀ becomes B ← U S and A ← Vᵀ, whose rows are
//! orthonormal (FedSVD, 2025, arXiv 2505.12805, algorithm 1).
//!
//! Where A stays as it is and B trains, this moves A without anybody sending it: towards the directions
//! that the clients' updates have used, the strongest first. What the model computes does not change.

use floret_core::Layout;

use crate::low_rank::{LowRank, column, row};

/// Puts in the place of each pair of factors in `values`, in layout order, those of its singular value
/// decomposition. In f64, and in a fixed order; the largest value of each row of A is positive.
///
/// A rank above the smaller side of a matrix leaves components of zeros.
pub fn refactor(layout: &Layout, values: &mut [f32]) {
    for pair @ [a, b] in layout.pairs() {
        let value = |at: usize| f64::from(values[at]);
        let mut product = LowRank::default();
        for component in 0..a.rank() {
            product.push(column(b, component, value), row(a, component, value));
        }
        values[a.range()].fill(0.0);
        values[b.range()].fill(0.0);
        product.strongest(a.rank()).write(pair, 0, values);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::combine::tests::{
        assert_near, pair_layout, product as dense, random_values, values,
    };

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|value| f64::from(*value)).collect()
    }

    /// Norms of the columns of B, A \[2, 4\] and B \[3, 2\] after one another.
    fn strengths(values: &[f32]) -> Vec<f64> {
        let column = |at| {
            wide(&values[8..]).into_iter().skip(at).step_by(2).map(|x| x * x).sum::<f64>().sqrt()
        };
        vec![column(0), column(1)]
    }

    /// Block `lora_aggregation` of ../shared/vectors, `fedsvd`: the mean of B with weights 1/8, 3/8 and
    /// 1/2, and the first client's A.
    #[test]
    fn strengths_are_the_singular_values_of_the_vectors() {
        let mut b = [0.0f32; 6];
        for ((_, of_client), weight) in values::CLIENTS.iter().zip([0.125, 0.375, 0.5]) {
            b.iter_mut().zip(of_client.as_flattened()).for_each(|(sum, x)| *sum += weight * x);
        }
        let mut factors = [values::CLIENTS[0].0.as_flattened(), &b].concat();
        refactor(&pair_layout(), &mut factors);
        let want = [2.471_642_488_453_409, 1.644_227_298_542_339_5];
        assert_near(&strengths(&factors), &want, 1e-6);
    }

    #[test]
    fn factors_of_nothing_stay_nothing_and_a_becomes_orthonormal() {
        let layout = pair_layout();
        let mut factors = vec![0.0; layout.len()];
        factors[..8].copy_from_slice(values::CLIENTS[0].0.as_flattened());
        refactor(&layout, &mut factors);
        assert_near(&strengths(&factors), &[0.0, 0.0], 1e-12);
        assert_orthonormal(&factors);
    }

    fn assert_orthonormal(factors: &[f32]) {
        let rows = wide(&factors[..8]);
        let dot = |x: usize, y: usize| (0..4).map(|at| rows[4 * x + at] * rows[4 * y + at]).sum();
        let dots: [f64; 3] = [dot(0, 0), dot(1, 1), dot(0, 1)];
        assert_near(&dots, &[1.0, 1.0, 0.0], 1e-6);
    }

    proptest! {
        #[test]
        fn the_product_stays_and_the_same_product_has_the_same_factors(seed in 0u64..1000) {
            let layout = pair_layout();
            let before: Vec<f32> =
                random_values(&layout, seed).into_iter().map(|value| value as f32).collect();
            let mut after = before.clone();
            refactor(&layout, &mut after);
            assert_near(&dense(&layout, &wide(&after)), &dense(&layout, &wide(&before)), 1e-6);
            assert_orthonormal(&after);
            let [first, second] = strengths(&after)[..] else { unreachable!() };
            prop_assert!(first >= second);
            // Once more, nothing moves, if the two strengths can be told apart.
            let mut again = after.clone();
            refactor(&layout, &mut again);
            prop_assume!(first > 1.05 * second && second > 1e-3);
            assert_near(&wide(&again), &wide(&after), 1e-4);
        }
    }
}
