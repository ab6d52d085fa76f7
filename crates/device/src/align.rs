//! Alignment of a trained adapter's factors with those that it began with (FedRot-LoRA, 2026, arXiv 2602.23638, section 4).
//!
//! The factors of a product B A are known up to a rotation R, since (B R)(Rᵀ A) is the same. Clients whose factors turned
//! in training by different R have a mean of factors that is far from the mean of their products. Before it sends
//! anything, a client turns its own back towards what all began with, as far as a rotation can.

use floret_core::{Layout, Version};
use nalgebra::DMatrix;

/// The matrix of these rows and columns.
fn matrix(rows: usize, columns: usize, values: &[f32]) -> DMatrix<f64> {
    DMatrix::from_row_iterator(rows, columns, values.iter().map(|value| f64::from(*value)))
}

/// Turns each pair of factors in `after` towards those in `before`: by the rotation that brings A nearest
/// from even versions, B from odd ones (B is zero in the first), and of it the share `strength`, 0 to 1. What the
/// model computes does not change.
pub(crate) fn align(
    layout: &Layout,
    version: Version,
    strength: f32,
    before: &[f32],
    after: &mut [f32],
) {
    for [a, b] in layout.pairs() {
        let ([rank, inputs], outputs) = (a.shape, b.shape[0]);
        let of_a = |values: &[f32]| matrix(rank, inputs, &values[a.range()]);
        let of_b = |values: &[f32]| matrix(outputs, rank, &values[b.range()]);
        let overlap = match version.0.is_multiple_of(2) {
            true => product(&of_a(before), &of_a(after).transpose()),
            false => product(&of_b(before).transpose(), &of_b(after)),
        };
        let turn = part(&rotation(&overlap), f64::from(strength));
        let turned_a = product(&turn.transpose(), &of_a(after));
        let turned_b = product(&of_b(after), &turn);
        write(&mut after[a.range()], &turned_a);
        write(&mut after[b.range()], &turned_b);
    }
}

/// The rotation R with the largest tr(M R): with M = U S Vᵀ it is V diag(1 … 1, det(U Vᵀ)) Uᵀ.
fn rotation(overlap: &DMatrix<f64>) -> DMatrix<f64> {
    let svd = overlap.clone().svd(true, true);
    let (Some(u), Some(vt)) = (svd.u, svd.v_t) else { unreachable!("both were asked for") };
    let mut v = vt.transpose();
    let turns_over = product(&u, &vt).determinant() < 0.0;
    if turns_over && let Some(last) = v.ncols().checked_sub(1) {
        v.column_mut(last).neg_mut();
    }
    product(&v, &u.transpose())
}

/// A share of a rotation: the orthogonal part of (1 - λ) I + λ R.
fn part(rotation: &DMatrix<f64>, share: f64) -> DMatrix<f64> {
    let rank = rotation.nrows();
    let mixed = DMatrix::identity(rank, rank) * (1.0 - share) + rotation * share;
    let svd = mixed.svd(true, true);
    let (Some(u), Some(vt)) = (svd.u, svd.v_t) else { unreachable!("both were asked for") };
    product(&u, &vt)
}

/// x y, its sums in order.
fn product(x: &DMatrix<f64>, y: &DMatrix<f64>) -> DMatrix<f64> {
    DMatrix::from_fn(x.nrows(), y.ncols(), |row, column| {
        (0..x.ncols()).map(|inner| x[(row, inner)] * y[(inner, column)]).sum()
    })
}

/// Row by row.
fn write(places: &mut [f32], matrix: &DMatrix<f64>) {
    let rows = places.chunks_exact_mut(matrix.ncols());
    for (slots, row) in rows.zip(matrix.row_iter()) {
        slots.iter_mut().zip(row.iter()).for_each(|(slot, value)| *slot = *value as f32);
    }
}

#[cfg(test)]
mod tests {
    use floret_core::lora::TargetModule;
    use floret_core::seed::uniform_f32;
    use floret_core::{LoraConfig, ModelConfig, Seed};
    use proptest::prelude::*;
    use rand_chacha::rand_core::Rng;

    use super::*;

    /// One pair, A \[2, 4\] and B \[3, 2\].
    fn layout() -> Layout {
        let model = ModelConfig::from_json(
            r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 3, "vocab_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 2}"#,
        );
        let target_modules = vec![TargetModule::GateProj];
        let lora = LoraConfig { rank: 2, alpha: 2.0, use_rslora: false, target_modules };
        Layout::new(&model.unwrap(), &lora).unwrap()
    }

    fn distance(x: &[f32], y: &[f32]) -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt()
    }

    fn dense(values: &[f32]) -> DMatrix<f64> {
        product(&matrix(3, 2, &values[8..]), &matrix(2, 4, &values[..8]))
    }

    /// Block `lora_aggregation` of ../shared/vectors, `fedrot`: the second client's A, turned towards the mean A.
    #[test]
    fn follows_the_reference_values() {
        let mean = [-0.375, 0.875, 2.125, 0.25, 1.375, 0.125, 0.375, 0.75];
        let a = [0.0, 1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 2.0];
        let b = [2.0, 1.0, -1.0, 0.0, 0.0, 2.0];
        let overlap = product(&matrix(2, 4, &mean), &matrix(2, 4, &a).transpose());
        let want = [[2.75, 0.125], [-0.25, 2.875]];
        assert!((overlap.clone() - DMatrix::from_fn(2, 2, |row, at| want[row][at])).norm() < 1e-12);
        let want =
            [[0.997785157856609, -0.06651901052377387], [0.06651901052377397, 0.9977851578566089]];
        let turn = rotation(&overlap);
        assert!((turn - DMatrix::from_fn(2, 2, |row, at| want[row][at])).norm() < 1e-12);
        let before = [&mean[..], &[0.0; 6]].concat();
        let trained = [&a[..], &b].concat();
        let mut after = trained.clone();
        assert!((distance(&a, &mean) - 2.200852107707376).abs() < 1e-6);
        align(&layout(), Version(0), 1.0, &before, &mut after);
        assert!((distance(&after[..8], &mean) - 2.195171454857301).abs() < 1e-6);
        assert!((dense(&after) - dense(&trained)).norm() < 1e-6);
    }

    proptest! {
        /// Factors that only turned come back, from either factor; a share of the way is nearer than none; and the
        /// product stays.
        #[test]
        fn turned_factors_come_back(seed in 0u64..500, angle in -3.0f64..3.0, odd in 0u64..2) {
            let mut stream = Seed::from_number(seed).stream();
            let before: Vec<f32> =
                (0..14).map(|_| uniform_f32(stream.next_u32()) - 0.5).collect();
            let (sin, cos) = angle.sin_cos();
            let turn = DMatrix::from_row_slice(2, 2, &[cos, -sin, sin, cos]);
            let mut turned = before.clone();
            write(&mut turned[..8], &product(&turn.transpose(), &matrix(2, 4, &before[..8])));
            write(&mut turned[8..], &product(&matrix(3, 2, &before[8..]), &turn));
            let aligned = |strength| {
                let mut after = turned.clone();
                align(&layout(), Version(odd), strength, &before, &mut after);
                assert!((dense(&after) - dense(&before)).norm() < 1e-5);
                distance(&after, &before)
            };
            prop_assert!(aligned(1.0) < 1e-4);
            prop_assert!(aligned(0.5) <= aligned(0.0) + 1e-5);
            prop_assert!((aligned(0.0) - distance(&turned, &before)).abs() < 1e-5);
        }
    }

    /// Where B was zero, nothing says how B turned: whatever is done, the product stays.
    #[test]
    fn a_factor_that_was_zero_keeps_the_product() {
        let before: Vec<f32> =
            (0..14).map(|at| if at < 8 { 0.1 * at as f32 } else { 0.0 }).collect();
        let trained: Vec<f32> = (0..14).map(|at| 0.3 - 0.05 * at as f32).collect();
        let mut after = trained.clone();
        align(&layout(), Version(1), 0.5, &before, &mut after);
        assert!((dense(&after) - dense(&trained)).norm() < 1e-6, "{after:?}");
    }
}
