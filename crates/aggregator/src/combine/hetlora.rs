//! HetLoRA (Cho et al. 2024, arXiv 2401.06432, section 3.2): the mean of factors that are padded with zeros to the
//! highest rank, where a client weighs as much as the norm of its product. A baseline to compare nested ranks with.

use floret_core::Layout;

use super::Combine;
use super::geometry::Gram;
use crate::clipped::ClippedDelta;

/// The rule.
#[derive(Debug, Clone, Copy)]
pub struct Hetlora;

/// The values of a client's adapter: zero in components that it did not train.
fn padded(layout: &Layout, before: &[f32], delta: &ClippedDelta) -> Vec<f64> {
    let mut after: Vec<f64> =
        before.iter().zip(delta.values()).map(|(x, y)| f64::from(*x) + f64::from(*y)).collect();
    let own: Vec<bool> = (0..layout.rank()).map(|component| component < delta.rank()).collect();
    for tensor in layout.tensors() {
        let values = after[tensor.range()].iter_mut().zip(tensor.spread(&own));
        values.filter(|(_, own)| !own).for_each(|(value, _)| *value = 0.0);
    }
    after
}

/// ‖B A‖ over all pairs.
fn norm(layout: &Layout, values: &[f64]) -> f64 {
    Gram::of_products(layout, 1, |_, place| values[place]).inner(&[1.0], &[1.0]).max(0.0).sqrt()
}

impl Combine for Hetlora {
    /// Clients of products that are all zero weigh the same. Numbers of examples do not weigh.
    fn combine(
        &self,
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        _: &[u32],
    ) -> Vec<f32> {
        if deltas.is_empty() {
            return vec![0.0; layout.len()];
        }
        let clients: Vec<Vec<f64>> =
            deltas.iter().map(|delta| padded(layout, before, delta)).collect();
        let norms: Vec<f64> = clients.iter().map(|values| norm(layout, values)).collect();
        let sum: f64 = norms.iter().sum();
        let equal = 1.0 / norms.len() as f64;
        let mut after = vec![0.0f64; layout.len()];
        for (values, norm) in clients.iter().zip(norms) {
            let weight = if sum > 0.0 { norm / sum } else { equal };
            after.iter_mut().zip(values).for_each(|(after, value)| *after += weight * value);
        }
        after
            .iter()
            .zip(before)
            .map(|(after, before)| (after - f64::from(*before)) as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{assert_near, mixed_clients, pair_layout};

    /// Block `lora_aggregation` of ../shared/vectors, `hetero`: `hetlora_norms`, and the mean of padded factors
    /// with `hetlora_weights`.
    #[test]
    fn follows_the_reference_values() {
        let layout = pair_layout();
        let zero = vec![0.0; layout.len()];
        let clients = mixed_clients(&layout);
        let of = |delta: &ClippedDelta| norm(&layout, &padded(&layout, &zero, delta));
        let norms = [3.4641016151377544, 5.656854249492381, 7.280109889280518];
        assert_near(&clients.iter().map(of).collect::<Vec<_>>(), &norms, 1e-9);
        let weights = [0.2112119826305664, 0.34490772333764746, 0.4438802940317861];
        let mean = |at: usize| {
            let of = clients.iter().zip(weights);
            of.map(|(delta, weight)| weight * f64::from(delta.values()[at])).sum::<f64>()
        };
        let want: Vec<f64> = (0..layout.len()).map(mean).collect();
        let got = Hetlora.combine(&layout, &zero, &clients, &[7, 1, 1]);
        assert_near(&got.into_iter().map(f64::from).collect::<Vec<_>>(), &want, 1e-6);
    }

    #[test]
    fn what_a_client_did_not_train_counts_as_zero() {
        let layout = pair_layout();
        let before = vec![0.5; layout.len()];
        let mut change = vec![0.0; layout.len()];
        change[0] = 0.25;
        let delta = crate::combine::tests::clipped(&layout, 1e6, &change);
        assert_eq!(delta.rank(), 1);
        let got = Hetlora.combine(&layout, &before, &[delta], &[1]);
        assert_eq!(got[..8], [0.25, 0.0, 0.0, 0.0, -0.5, -0.5, -0.5, -0.5]);
        assert_eq!(got[8..], [0.0, -0.5].repeat(3));
    }
}
