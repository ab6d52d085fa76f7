//! FedNova (Wang et al. 2020, arXiv 2007.07481, equation 9): clients that did more steps do not count for more. With p_k the
//! share of a client's examples and τ_k its steps, the combined delta is τ Σ p_k Δ_k / τ_k, with τ = Σ p_k τ_k.
//!
//! An update's integer weight is 64 n_k M / τ_k, rounded, for its examples n_k and the most steps M of a plan. The sum of what
//! is weighed so streams as any other; what is left is one factor.
//!
//! Steps are a device's claim, as examples are: one that claims 1 of τ steps counts τ times. This is for devices that can be
//! trusted with it.

use floret_core::Receipt;

/// What an update's receipt, or its entry in the ledger, says of its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Training examples, as the device said.
    pub examples: u32,
    /// Optimizer steps, as the device said.
    pub steps: u32,
    /// The weight that it got.
    pub weight: u32,
}

impl Share {
    /// That of an update that counts.
    #[must_use]
    pub fn of(receipt: &Receipt) -> Self {
        let Receipt { num_examples, num_steps, weight, .. } = *receipt;
        Self { examples: num_examples, steps: num_steps, weight }
    }
}

/// Makes weights fine enough to tell unequal steps apart: they are right to 1 in 128 for one example and any steps.
const FINENESS: u32 = 64;

/// A device's claim, brought within the plan's steps; all of them where nothing is said.
fn within(steps: u32, max_steps: u32) -> u32 {
    if steps == 0 { max_steps.max(1) } else { steps.min(max_steps.max(1)) }
}

/// The largest weight of an update with so many examples, if a weight can be so large.
#[must_use]
pub fn largest_weight(examples: u32, max_steps: u32) -> Option<u32> {
    examples.checked_mul(max_steps)?.checked_mul(FINENESS)
}

/// The weight of an update with so many examples and steps, of a plan of at most `max_steps`; at least 1.
#[must_use]
pub fn weight(examples: u32, steps: u32, max_steps: u32) -> u32 {
    let scaled = u128::from(examples) * u128::from(max_steps) * u128::from(FINENESS);
    let steps = u128::from(within(steps, max_steps));
    u32::try_from((scaled + steps / 2) / steps).unwrap_or(u32::MAX).max(1)
}

/// Scales `mean`, in which each update has its [`weight`], to τ Σ p_k Δ_k / τ_k. Not more than `max_examples` of an update
/// count.
pub fn normalize(
    mean: &mut [f32],
    (max_steps, max_examples): (u32, u32),
    counted: impl Iterator<Item = Share>,
) {
    let (mut weights, mut weighed_steps, mut examples, mut steps) = (0.0, 0.0, 0.0, 0.0);
    for share in counted {
        let of = f64::from(share.examples.min(max_examples));
        let of_share = f64::from(within(share.steps, max_steps));
        weights += f64::from(share.weight);
        // 64 n_k M, but for rounding, which equal steps so do without.
        weighed_steps += f64::from(share.weight) * of_share;
        examples += of;
        steps += of * of_share;
    }
    if examples > 0.0 && weighed_steps > 0.0 {
        let factor = weights / weighed_steps * (steps / examples);
        mean.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
    }
}

#[cfg(test)]
mod tests {
    use floret_core::Layout;
    use proptest::prelude::*;

    use super::*;
    use crate::combine::WeightedMean;
    use crate::combine::tests::{clipped, pair_layout};

    const LIMITS: (u32, u32) = (10, 10_000);

    /// What clients of these examples, steps and values make together.
    fn combined(layout: &Layout, clients: &[(u32, u32, f32)]) -> Vec<f32> {
        let mut sum = WeightedMean::new(layout);
        let mut counted = Vec::new();
        for (examples, steps, value) in clients {
            let weight = weight(*examples, *steps, LIMITS.0);
            sum.add(&clipped(layout, 64.0, &vec![*value; layout.len()]), weight);
            counted.push(Share { examples: *examples, steps: *steps, weight });
        }
        let mut mean = sum.mean(layout, 64.0);
        normalize(&mut mean, LIMITS, counted.into_iter());
        mean
    }

    /// Block `server_optimizers` of ../shared/vectors, `fednova`: p of 0.2, 0.3 and 0.5, τ of 1, 2 and 5.
    #[test]
    fn follows_the_reference_values() {
        let layout = pair_layout();
        let got = combined(&layout, &[(20, 1, 1.0), (30, 2, 4.0), (50, 5, 10.0)]);
        assert!(got.iter().all(|value| (f64::from(*value) - 5.94).abs() < 1e-6), "{got:?}");
        assert!(combined(&layout, &[]).iter().all(|value| *value == 0.0));
    }

    proptest! {
        #[test]
        fn equal_steps_are_the_weighted_mean(
            clients in prop::collection::vec((1u32..500, -5.0f32..5.0), 1..6),
            steps in 1u32..=10,
        ) {
            let layout = pair_layout();
            let unequal: Vec<_> = clients.iter().map(|(n, value)| (*n, steps, *value)).collect();
            let total: f64 = clients.iter().map(|(n, _)| f64::from(*n)).sum();
            let want: f64 =
                clients.iter().map(|(n, value)| f64::from(*n) * f64::from(*value)).sum::<f64>() / total;
            // A weight is off by half of at least 64.
            for value in combined(&layout, &unequal) {
                prop_assert!((f64::from(value) - want).abs() < 5.0 / 64.0, "{value} is not {want}");
            }
        }
    }

    #[test]
    fn a_claim_of_no_steps_or_no_end_is_one_of_all_steps() {
        assert_eq!(weight(3, 1, 10), 64 * 30);
        assert_eq!(weight(3, 0, 10), 64 * 3);
        assert_eq!(weight(3, u32::MAX, 10), 64 * 3);
        assert_eq!(largest_weight(3, 10), Some(64 * 30));
        assert_eq!(largest_weight(u32::MAX, 2), None);
        assert_eq!(weight(u32::MAX, 1, u32::MAX), u32::MAX);
    }
}
