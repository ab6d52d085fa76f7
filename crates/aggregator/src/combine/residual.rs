//! How far the mean of factors is from the mean of what they stand for: Σ p_k B_k A_k - B̄ Ā, which is
//! Σ p_k (B_k - B̄)(A_k - Ā) (FedEx-LoRA, Singhal et al. 2025, arXiv 2410.09432, section 3).

use floret_core::Layout;
use serde::{Deserialize, Serialize};

use super::geometry::Gram;
use crate::clipped::ClippedDelta;

/// Frobenius norms over all pairs of factors, without the scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    /// ‖Σ p_k B_k A_k - B̄ Ā‖.
    pub norm: f64,
    /// That as a share of ‖Σ p_k B_k A_k‖; 0 where that is 0.
    pub relative: f64,
}

impl Residual {
    /// Of adapters that began with the values `before` and changed by `deltas`, in ClientId order,
    /// each with its weight. Products are not formed: see [`Gram`].
    #[must_use]
    pub fn of(layout: &Layout, before: &[f32], deltas: &[ClippedDelta], weights: &[u32]) -> Self {
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let shares: Vec<f64> = weights.iter().map(|weight| f64::from(*weight) / total).collect();
        let mut mean = vec![0.0; layout.len()];
        for (delta, share) in deltas.iter().zip(&shares) {
            for (mean, value) in mean.iter_mut().zip(delta.values()) {
                *mean += share * f64::from(*value);
            }
        }
        // Points: each client's distance from the mean, and the mean adapter.
        let n = deltas.len();
        let gram = Gram::of_products(layout, n + 1, |point, i| match deltas.get(point) {
            Some(delta) => f64::from(delta.values()[i]) - mean[i],
            None => f64::from(before[i]) + mean[i],
        });
        let norm = |weights: &[f64]| gram.inner(weights, weights).max(0.0).sqrt();
        let with = |of_mean: f64| -> Vec<f64> { [&shares[..], &[of_mean]].concat() };
        let (residual, ideal) = (norm(&with(0.0)), norm(&with(1.0)));
        let relative = if ideal > 0.0 { residual / ideal } else { 0.0 };
        Self { norm: residual, relative }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{clipped, pair_layout, values};

    /// Block `lora_aggregation` of ../shared/vectors: three clients of weights 1/8, 3/8 and 1/2.
    #[test]
    fn follows_the_reference_values() {
        let layout = pair_layout();
        let zero = vec![0.0; layout.len()];
        let clients = values::CLIENTS.map(|(a, b)| clipped(&layout, 1e6, &values::flat(a, b)));
        let weights = [1, 3, 4];
        let residual = Residual::of(&layout, &zero, &clients, &weights);
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
        let again = Residual::of(&layout, &half, &rest, &weights);
        assert!((again.relative - residual.relative).abs() < 1e-12, "{again:?}");
    }

    #[test]
    fn equal_updates_leave_none_and_none_leave_none() {
        let layout = pair_layout();
        let (a, b) = values::CLIENTS[1];
        let delta = clipped(&layout, 1e6, &values::flat(a, b));
        let zero = vec![0.0; layout.len()];
        let same = Residual::of(&layout, &zero, &[delta.clone(), delta], &[2, 3]);
        assert!(same.relative < 1e-12, "{same:?}");
        let none = Residual::of(&layout, &zero, &[], &[]);
        assert_eq!(none, Residual { norm: 0.0, relative: 0.0 });
    }
}
