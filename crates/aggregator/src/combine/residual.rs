//! How far an aggregate is from the mean of what its clients' factors stand for, Σ p_k B_k A_k (FedEx-LoRA, Singhal et al. 2025,
//! arXiv 2410.09432, section 3). Of the mean of factors that is Σ p_k (B_k - B̄)(A_k - Ā).

use floret_core::Layout;
use floret_core::layout::Factor;
use serde::{Deserialize, Serialize};

use super::geometry::Gram;
use super::shares;
use crate::clipped::ClippedDelta;

/// Frobenius norms over all pairs of factors, without the scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    /// ‖Σ p_k B_k A_k - B A‖ for the aggregate's B and A.
    pub norm: f64,
    /// That as a share of ‖Σ p_k B_k A_k‖; 0 where that is 0.
    pub relative: f64,
}

impl Residual {
    /// Of adapters that began with the values `before` and changed by `deltas`, in ClientId order, each with
    /// its weight, and of what they were combined to: the change `combined`. A client has a share in the rank
    /// components that it trained; what nobody trained stays. Products are not formed: see [`Gram`].
    #[must_use]
    pub fn of(
        layout: &Layout,
        before: &[f32],
        (deltas, weights): (&[ClippedDelta], &[u32]),
        combined: &[f32],
    ) -> Self {
        let shares = shares(layout.rank(), deltas, weights);
        let n = deltas.len();
        let places = Places::of(layout);
        let mut mean: Vec<f64> = before.iter().map(|value| f64::from(*value)).collect();
        for (delta, shares) in deltas.iter().zip(&shares) {
            for (place, value) in delta.values().iter().enumerate() {
                mean[place] += shares[places.component[place]] * f64::from(*value);
            }
        }
        let after = |place: usize| f64::from(before[place]) + f64::from(combined[place]);
        let off = |place: usize| after(place) - mean[place];
        // Points whose products are small where the distance is, so that nothing cancels: each client's distance from
        // the mean M; then M; and what leads from M to the aggregate N, (B_N - B_M) A_N + B_M (A_N - A_M).
        let gram = Gram::of_products(layout, n + 3, |point, place| {
            let is_b = places.factor[place] == Factor::B;
            match deltas.get(point) {
                Some(delta) => {
                    let from_mean =
                        f64::from(before[place]) + f64::from(delta.values()[place]) - mean[place];
                    let share = shares[point][places.component[place]];
                    if is_b { share * from_mean } else { from_mean }
                }
                None if point == n => mean[place],
                None if (point == n + 1) == is_b => off(place),
                None if is_b => mean[place],
                None => after(place),
            }
        });
        let norm = |of_mean: f64, of_steps: f64| {
            let weights = [&vec![1.0; n][..], &[of_mean, of_steps, of_steps]].concat();
            gram.inner(&weights, &weights).max(0.0).sqrt()
        };
        let (residual, ideal) = (norm(0.0, -1.0), norm(1.0, 0.0));
        let relative = if ideal > 0.0 { residual / ideal } else { 0.0 };
        Self { norm: residual, relative }
    }
}

/// What each place of the flat vector is.
struct Places {
    factor: Vec<Factor>,
    component: Vec<usize>,
}

impl Places {
    fn of(layout: &Layout) -> Self {
        let components: Vec<usize> = (0..layout.rank()).collect();
        let tensors = layout.tensors();
        Self {
            factor: tensors.iter().flat_map(|of| vec![of.factor; of.range().len()]).collect(),
            component: tensors.iter().flat_map(|of| of.spread(&components)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::stacked::Stacked;
    use crate::combine::tests::{clipped, mixed_clients, pair_layout, values};
    use crate::combine::{Combine, plain_shares, sum};

    /// Block `lora_aggregation` of ../shared/vectors: three clients of weights 1/8, 3/8 and 1/2.
    #[test]
    fn follows_the_reference_values() {
        let layout = pair_layout();
        let zero = vec![0.0; layout.len()];
        let clients = values::CLIENTS.map(|(a, b)| clipped(&layout, 1e6, &values::flat(a, b)));
        let weights = [1, 3, 4];
        let mean_of = |deltas: &[ClippedDelta]| -> Vec<f32> {
            sum(&layout, deltas, &plain_shares(&weights))
                .into_iter()
                .map(|value| value as f32)
                .collect()
        };
        let residual = Residual::of(&layout, &zero, (&clients, &weights), &mean_of(&clients));
        let (ideal, relative) = (3.9804208320226646, 0.5903877474234135);
        assert!((residual.relative - relative).abs() < 1e-12, "{residual:?}");
        assert!((residual.norm - relative * ideal).abs() < 1e-12, "{residual:?}");
        // `fedex_residual`, entry by entry.
        let want = [
            [0.0, 0.0, -1.3125, 0.0],
            [0.0, 0.0, 1.3125, 0.0],
            [-0.59375, -0.03125, -0.03125, 1.3125],
        ];
        let norm = want.as_flattened().iter().map(|x: &f64| x * x).sum::<f64>().sqrt();
        assert!((residual.norm - norm).abs() < 1e-12, "{residual:?}");
        // The same factors, where half of them was there before.
        let half: Vec<f32> = clients[0].values().iter().map(|x| x / 2.0).collect();
        let rest = clients.map(|delta| {
            let rest = delta.values().iter().zip(&half).map(|(x, half)| x - half);
            clipped(&layout, 1e6, &rest.collect::<Vec<_>>())
        });
        let again = Residual::of(&layout, &half, (&rest, &weights), &mean_of(&rest));
        assert!((again.relative - residual.relative).abs() < 1e-12, "{again:?}");
    }

    #[test]
    fn equal_updates_leave_none_and_none_leave_none() {
        let layout = pair_layout();
        let (a, b) = values::CLIENTS[1];
        let delta = clipped(&layout, 1e6, &values::flat(a, b));
        let zero = vec![0.0; layout.len()];
        let combined = delta.values().to_vec();
        let same = Residual::of(&layout, &zero, (&[delta.clone(), delta], &[2, 3]), &combined);
        assert!(same.relative < 1e-12, "{same:?}");
        let none = Residual::of(&layout, &zero, (&[], &[]), &zero);
        assert_eq!(none, Residual { norm: 0.0, relative: 0.0 });
    }

    /// Of other rules it is what they leave: stacks cut to rank 2 lose the third singular value
    /// (`rank2_trunc_err`), and what is not changed loses all. Mixed ranks count as each component's mean.
    #[test]
    fn it_is_what_a_rule_leaves() {
        let layout = pair_layout();
        let zero = vec![0.0; layout.len()];
        let weights = [1, 3, 4];
        let clients = values::CLIENTS.map(|(a, b)| clipped(&layout, 1e6, &values::flat(a, b)));
        let stacked = Stacked.combine(&layout, &zero, &clients, &weights);
        let left = Residual::of(&layout, &zero, (&clients, &weights), &stacked);
        assert!((left.norm - 0.786_055_190_145_034_7).abs() < 1e-6, "{left:?}");
        let all = Residual::of(&layout, &zero, (&clients, &weights), &zero);
        assert!((all.relative - 1.0).abs() < 1e-12, "{all:?}");
        let mixed = mixed_clients(&layout);
        let stacked = Stacked.combine(&layout, &zero, &mixed, &weights);
        let left = Residual::of(&layout, &zero, (&mixed, &weights), &stacked);
        // The third singular value of `rankpart_dense_sum`.
        let dense = [
            [-0.5892857142857142, 0.75, 0.4285714285714286, 0.2321428571428571],
            [1.7857142857142856, 0.125, 2.267857142857143, 0.875],
            [0.4821428571428571, 0.5, 1.75, 2.3392857142857144],
        ];
        let matrix = nalgebra::DMatrix::<f64>::from_row_slice(3, 4, dense.as_flattened());
        assert!((left.norm - matrix.singular_values()[2]).abs() < 1e-6, "{left:?}");
    }
}
