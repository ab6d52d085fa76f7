//! Exact aggregation of mixed ranks: the mean of products instead of factors, each rank component over the
//! clients that trained it (raFLoRA, 2026, arXiv 2602.13486), as a compact singular value decomposition of stacks
//! (FLoRIST, 2025, arXiv 2506.09199, section 3).
//!
//! ΔW = Σ_c Σ_k p_kc b_kc a_kc, where b_kc and a_kc are component c of client k's factors and p_kc is its
//! share in those that trained c. The new factors are B = U S and A = Vᵀ of its strongest components: what devices
//! of a low rank train is the strongest part.

use floret_core::Layout;

use super::{Combine, shares};
use crate::clipped::ClippedDelta;
use crate::low_rank::{LowRank, column, row};

/// The rule.
#[derive(Debug, Clone, Copy)]
pub struct Stacked;

impl Combine for Stacked {
    /// Leads from `before` to the factors of the mean product, cut to the layout's rank. What nobody trained
    /// takes part as it was. Components beyond those of the decomposition keep their row of A, so that they can train.
    fn combine(
        &self,
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        weights: &[u32],
    ) -> Vec<f32> {
        if deltas.is_empty() {
            return vec![0.0; layout.len()];
        }
        let shares = shares(layout.rank(), deltas, weights);
        let mut after = before.to_vec();
        for pair @ [a, b] in layout.pairs() {
            let mut sum = LowRank::default();
            let trained = deltas.iter().map(ClippedDelta::rank).max().unwrap_or_default();
            for component in trained..layout.rank() {
                let value = |at: usize| f64::from(before[at]);
                sum.push(column(b, component, value), row(a, component, value));
            }
            for (delta, shares) in deltas.iter().zip(&shares) {
                let value = |at: usize| f64::from(before[at]) + f64::from(delta.values()[at]);
                for (component, share) in shares.iter().enumerate().take(delta.rank()) {
                    let weighed = column(b, component, |at| share * value(at));
                    sum.push(weighed, row(a, component, value));
                }
            }
            after[b.range()].fill(0.0);
            sum.strongest(layout.rank()).write(pair, 0, &mut after);
        }
        after.iter().zip(before).map(|(after, before)| after - before).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::combine::tests::{
        assert_near, clipped, mixed_clients, pair_layout, product, random_values, values,
    };

    fn after(layout: &Layout, deltas: &[ClippedDelta]) -> Vec<f64> {
        let zero = vec![0.0; layout.len()];
        let delta = Stacked.combine(layout, &zero, deltas, &[1, 3, 4]);
        delta.into_iter().map(f64::from).collect()
    }

    fn distance(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
    }

    /// Block `lora_aggregation` of ../shared/vectors: `ideal`, cut to rank 2 and to rank 1 (`rank2_trunc_err`,
    /// `rank1_trunc_err`), and whole where the layout has room for it.
    #[test]
    fn equal_ranks_give_the_mean_product_cut_to_the_rank() {
        let ideal =
            [[-0.5, 0.75, 0.5, 0.125], [1.5, 0.25, 2.0, 0.875], [0.375, 0.625, 1.625, 2.125]];
        let layout = pair_layout();
        let deltas = values::CLIENTS.map(|(a, b)| clipped(&layout, 1e6, &values::flat(a, b)));
        let factors = after(&layout, &deltas);
        let off = distance(&product(&layout, &factors), ideal.as_flattened());
        assert!((off - 0.786_055_190_145_034_7).abs() < 1e-6, "{off}");
        let mut first = factors.clone();
        first[4..8].fill(0.0);
        let off = distance(&product(&layout, &first), ideal.as_flattened());
        assert!((off - 1.572_747_359_116_635).abs() < 1e-6, "{off}");
    }

    /// Block `lora_aggregation` of ../shared/vectors, `hetero`: the nearest of rank 2 to `rankpart_dense_sum`.
    #[test]
    fn mixed_ranks_give_each_component_over_those_that_trained_it() {
        let dense = [
            [-0.5892857142857142, 0.75, 0.4285714285714286, 0.2321428571428571],
            [1.7857142857142856, 0.125, 2.267857142857143, 0.875],
            [0.4821428571428571, 0.5, 1.75, 2.3392857142857144],
        ];
        let layout = pair_layout();
        let got = product(&layout, &after(&layout, &mixed_clients(&layout)));
        let matrix = nalgebra::DMatrix::from_row_slice(3, 4, dense.as_flattened());
        let svd = matrix.svd(true, true);
        let (u, vt) = (svd.u.unwrap(), svd.v_t.unwrap());
        let entry = |row: usize, at: usize| {
            (0..2).map(|of| u[(row, of)] * svd.singular_values[of] * vt[(of, at)]).sum::<f64>()
        };
        let want: Vec<f64> = (0..12).map(|place| entry(place / 4, place % 4)).collect();
        assert_near(&got, &want, 1e-6);
        // What is lost is the third singular value.
        let off = distance(&got, dense.as_flattened());
        assert!((off - svd.singular_values[2]).abs() < 1e-6, "{off}");
    }

    proptest! {
        /// The mean of equal products has their rank: nothing is lost.
        #[test]
        fn what_fits_the_rank_is_exact(seed in 0u64..200) {
            let layout = pair_layout();
            let values: Vec<f32> =
                random_values(&layout, seed).into_iter().map(|value| value as f32).collect();
            let same = clipped(&layout, 1e6, &values);
            let got = after(&layout, &[same.clone(), same.clone(), same]);
            let wide: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
            assert_near(&product(&layout, &got), &product(&layout, &wide), 1e-6);
        }
    }

    #[test]
    fn a_component_that_nobody_trained_stays() {
        let layout = pair_layout();
        let (a, b) = values::CLIENTS[0];
        let before = values::flat(a, b);
        // One client, of rank 1.
        let mut change = vec![0.0; layout.len()];
        change[8] = 0.5;
        let delta = Stacked.combine(&layout, &before, &[clipped(&layout, 1e6, &change)], &[1]);
        let sum = |x: &[f32], y: &[f32]| -> Vec<f64> {
            x.iter().zip(y).map(|(x, y)| f64::from(x + y)).collect()
        };
        let (got, want) = (sum(&before, &delta), sum(&before, &change));
        assert_near(&product(&layout, &got), &product(&layout, &want), 1e-5);
    }
}
