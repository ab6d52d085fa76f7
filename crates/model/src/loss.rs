//! Negative log-likelihood of the counted tokens, under a frozen head.

use burn::tensor::Tensor;

use crate::ops::{self, Targets};
use crate::tokens::Batch;
use crate::transformer::Transformer;

/// The negative log-likelihood of each counted token of `batch`, in nats, of shape \[counted, 1\],
/// given the hidden states of all its tokens \[batch * length, hidden\]. About `logits` of them are
/// held at once.
pub(crate) fn nll(
    model: &Transformer,
    hidden: Tensor<2>,
    batch: &Batch,
    logits: usize,
) -> Tensor<2> {
    let targets = Targets { rows: batch.rows.clone(), ids: batch.targets.clone() };
    ops::nll(hidden, model.head(), targets, chunk(model, logits))
}

/// Rows whose logits are held at once, where about `logits` of them should be.
pub(crate) fn chunk(model: &Transformer, logits: usize) -> usize {
    (logits / model.config().vocab_size).max(8)
}

/// Sum of losses \[counted, 1\].
pub(crate) fn sum(losses: Tensor<2>) -> f64 {
    crate::lora::values(losses).into_iter().map(f64::from).sum()
}
