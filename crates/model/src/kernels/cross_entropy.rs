//! The frozen head with cross-entropy: logits live for one chunk of rows.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::matmul::{Weights, linear, linear_backward};
use super::pool;
use super::simd::{exp_and_sum, max, vectorized};

/// Writes -log softmax(x Wᵀ)\[target\] of each row of `x` \[rows, inputs\] to `nll`, and, if
/// wanted, its gradient (softmax - onehot) W to `dx`.
///
/// W is \[vocab, inputs\]; at most `chunk` rows of logits are held at once.
pub(crate) fn nll(
    nll: &mut [f32],
    mut dx: Option<&mut [f32]>,
    x: &[f32],
    (weights, shape): (Weights<'_>, [usize; 2]),
    targets: &[u32],
    chunk: usize,
) {
    let [vocab, inputs] = shape;
    let mut logits = pool::take(chunk.min(targets.len()) * vocab);
    for (index, targets) in targets.chunks(chunk).enumerate() {
        let rows = index * chunk..index * chunk + targets.len();
        let values = rows.start * inputs..rows.end * inputs;
        let logits = &mut logits[..targets.len() * vocab];
        linear(logits, &x[values.clone()], weights, shape, false);
        let pieces = logits.par_chunks_mut(vocab).zip(targets).zip(&mut nll[rows]);
        let gradient = dx.is_some();
        pieces.for_each(|((logits, &target), nll)| {
            *nll = vectorized(Row { logits, target: target as usize, gradient });
        });
        if let Some(dx) = dx.as_deref_mut() {
            linear_backward(&mut dx[values], logits, weights, shape, false);
        }
    }
    pool::keep(logits);
}

/// The negative log-likelihood of `target`; turns the logits into their gradient if wanted.
struct Row<'a> {
    logits: &'a mut [f32],
    target: usize,
    gradient: bool,
}

impl NullaryFnOnce for Row<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let Self { logits, target, gradient } = self;
        let largest = max(logits);
        let at_target = logits[target];
        let total = exp_and_sum(logits, largest);
        if gradient {
            let inverse = total.recip();
            logits.iter_mut().for_each(|value| *value *= inverse);
            logits[target] -= 1.0;
        }
        total.ln() + (largest - at_target)
    }
}
