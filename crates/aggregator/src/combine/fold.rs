//! FedEx-LoRA (Singhal et al. 2025, arXiv 2410.09432, section 3): the mean of factors, and beside it what that leaves out of
//! the mean of products, Σ p_k (B_k - B̄)(A_k - Ā), folded into what the model computes and nobody trains.
//!
//! The base on a device stays as it is: the last components of the adapter hold what was folded so far. A model
//! computes with them as with a base that they were added to, the digest of the adapter names them, and an export
//! carries them as extra rank. They are cut to their number, the strongest first: all that is folded has up to
//! cohort x rank components.

use floret_core::Layout;

use super::{Combine, plain_shares, sum};
use crate::clipped::ClippedDelta;
use crate::low_rank::{LowRank, column, row};

/// The rule: `components` of the adapter, the last, hold what is folded.
#[derive(Debug, Clone, Copy)]
pub struct Fold {
    /// Rank components that nobody trains.
    pub components: usize,
}

impl Combine for Fold {
    fn combine(
        &self,
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        weights: &[u32],
    ) -> Vec<f32> {
        let shares = plain_shares(weights);
        let mean = sum(layout, deltas, &shares);
        let mut combined: Vec<f32> = mean.iter().map(|value| *value as f32).collect();
        let mut after = vec![0.0; layout.len()];
        for pair @ [a, b] in layout.pairs().filter(|_| !deltas.is_empty()) {
            let rank = a.rank();
            let trained = rank.saturating_sub(self.components);
            let held = |place: usize| f64::from(before[place]);
            let mut folded = LowRank::default();
            for component in trained..rank {
                folded.push(column(b, component, held), row(a, component, held));
            }
            for (delta, share) in deltas.iter().zip(&shares) {
                let off = |place: usize| f64::from(delta.values()[place]) - mean[place];
                for component in 0..trained {
                    let weighed = column(b, component, |place| share * off(place));
                    folded.push(weighed, row(a, component, off));
                }
            }
            folded.strongest(self.components).write(pair, trained, &mut after);
            for tensor in pair {
                let of_held: Vec<bool> = (0..rank).map(|component| component >= trained).collect();
                let places = tensor.range().zip(tensor.spread(&of_held));
                for (place, _) in places.filter(|(_, of_held)| *of_held) {
                    combined[place] = after[place] - before[place];
                }
            }
        }
        combined
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use floret_core::lora::TargetModule;
    use floret_core::{LoraConfig, ModelConfig};
    use proptest::prelude::*;

    use super::*;
    use crate::combine::tests::{assert_near, clipped, random_values, values};

    /// A \[2 + held, 4\] and B \[3, 2 + held\].
    fn layout(held: usize) -> Arc<Layout> {
        let model = ModelConfig::from_json(
            r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 3, "vocab_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 2}"#,
        );
        let rank = 2 + held;
        let target_modules = vec![TargetModule::GateProj];
        let lora = LoraConfig { rank, alpha: 2.0, use_rslora: false, target_modules };
        Arc::new(Layout::new(&model.unwrap(), &lora).unwrap())
    }

    /// B A of components `from` to `to`.
    fn product(layout: &Layout, values: &[f64], from: usize, to: usize) -> Vec<f64> {
        let [a, b] = layout.pairs().next().unwrap();
        let value = |place: usize| values[place];
        let mut sum = vec![0.0; 12];
        for component in from..to {
            let (column, row) = (column(b, component, value), row(a, component, value));
            for (place, sum) in sum.iter_mut().enumerate() {
                *sum += column[place / 4] * row[place % 4];
            }
        }
        sum
    }

    /// The update of a client whose trained components become these factors.
    fn update(layout: &Layout, before: &[f32], [a, b]: [&[f32]; 2]) -> ClippedDelta {
        let rank = layout.rank();
        let mut after = before.to_vec();
        after[..8].copy_from_slice(a);
        for row in 0..3 {
            after[4 * rank + row * rank..][..2].copy_from_slice(&b[2 * row..][..2]);
        }
        let delta: Vec<f32> = after.iter().zip(before).map(|(x, y)| x - y).collect();
        clipped(layout, 1e6, &delta)
    }

    /// Block `lora_aggregation` of ../shared/vectors: `fedex_residual` is folded, entry by entry, and on top of what
    /// was folded before; then the model computes the mean of products exactly.
    #[test]
    fn what_the_mean_of_factors_leaves_out_is_folded() {
        let residual = [
            [0.0, 0.0, -1.3125, 0.0],
            [0.0, 0.0, 1.3125, 0.0],
            [-0.59375, -0.03125, -0.03125, 1.3125],
        ];
        let layout = layout(3);
        for seed in 0..5 {
            let mut before = vec![0.0f32; layout.len()];
            if seed > 0 {
                let random = random_values(&layout, seed);
                before = random.into_iter().map(|value| value as f32).collect();
            }
            let deltas = values::CLIENTS
                .map(|(a, b)| update(&layout, &before, [a.as_flattened(), b.as_flattened()]));
            let delta = Fold { components: 3 }.combine(&layout, &before, &deltas, &[1, 3, 4]);
            let after: Vec<f64> = before.iter().zip(delta).map(|(x, y)| f64::from(x + y)).collect();
            let before: Vec<f64> = before.into_iter().map(f64::from).collect();
            let earlier = product(&layout, &before, 2, 5);
            let residual = residual.as_flattened();
            let want: Vec<f64> = earlier.iter().zip(residual).map(|(x, y)| x + y).collect();
            assert_near(&product(&layout, &after, 2, 5), &want, 1e-6);
        }
    }

    proptest! {
        /// With fewer components than what is folded, the strongest are kept.
        #[test]
        fn fewer_components_keep_the_nearest(seed in 0u64..100) {
            let (base, wide, narrow) = (layout(0), layout(3), layout(1));
            let fold = |layout: &Layout, components| {
                let before = vec![0.0; layout.len()];
                let deltas: Vec<ClippedDelta> = (0..3).map(|client| {
                    let random = random_values(&base, 3 * seed + client);
                    let factors: Vec<f32> = random.into_iter().map(|value| value as f32).collect();
                    update(layout, &before, [&factors[..8], &factors[8..]])
                }).collect();
                let delta = Fold { components }.combine(layout, &before, &deltas, &[1, 1, 1]);
                let values: Vec<f64> = delta.into_iter().map(f64::from).collect();
                product(layout, &values, 2, layout.rank())
            };
            let (all, kept) = (fold(&wide, 3), fold(&narrow, 1));
            let matrix = |values: &[f64]| nalgebra::DMatrix::from_row_slice(3, 4, values);
            let strengths = matrix(&all).singular_values();
            let off = (matrix(&all) - matrix(&kept)).norm();
            let least = strengths.iter().skip(1).map(|x| x * x).sum::<f64>().sqrt();
            prop_assert!((off - least).abs() < 1e-5, "{off} is not {least}");
        }
    }

    #[test]
    fn equal_updates_fold_nothing() {
        let layout = layout(2);
        let before = vec![0.0; layout.len()];
        let (a, b) = values::CLIENTS[1];
        let delta = update(&layout, &before, [a.as_flattened(), b.as_flattened()]);
        let rule = Fold { components: 2 };
        let got = rule.combine(&layout, &before, &[delta.clone(), delta], &[2, 3]);
        let got: Vec<f64> = got.into_iter().map(f64::from).collect();
        assert_near(&product(&layout, &got, 2, 4), &[0.0; 12], 1e-6);
        assert_eq!(rule.combine(&layout, &before, &[], &[]), before);
    }
}
