//! Negative log-likelihood of the counted tokens, and its gradient in closed form.
//!
//! The head is frozen while an adapter is trained, so nothing over the vocabulary is ever part of
//! an autodiff graph: logits live for one chunk of rows.

use burn::tensor::{IndexingUpdateOp, Tensor, activation};

use crate::lora::values;
use crate::tokens::Batch;
use crate::transformer::{Transformer, indices};

/// Logits computed at once, at most: 16 MiB.
const CHUNK: usize = 1 << 22;

/// The hidden states \[counted, hidden\] that predict a counted token of `batch`, out of all of
/// them \[batch * length, hidden\].
pub(crate) fn counted_rows(hidden: Tensor<2>, batch: &Batch) -> Tensor<2> {
    let device = hidden.device();
    hidden.select(0, indices(&batch.rows, &device))
}

/// Sum of the negative log-likelihoods of `batch` in nats, given its `rows` \[counted, hidden\]
/// without autodiff.
pub(crate) fn nll(model: &Transformer, rows: &Tensor<2>, batch: &Batch) -> f64 {
    chunks(model, batch).map(|chunk| logits_nll(chunk.logits(model, rows), chunk.targets).0).sum()
}

/// [`nll`], and its gradient by `rows`.
pub(crate) fn nll_and_gradient(
    model: &Transformer,
    rows: &Tensor<2>,
    batch: &Batch,
) -> (f64, Tensor<2>) {
    let head = model.head();
    let (sums, gradients): (Vec<f64>, Vec<Tensor<2>>) = chunks(model, batch)
        .map(|chunk| {
            let (sum, log_probs) = logits_nll(chunk.logits(model, rows), chunk.targets);
            (sum, logits_gradient(log_probs, chunk.targets).matmul(head.clone()))
        })
        .unzip();
    (sums.into_iter().sum(), Tensor::cat(gradients, 0))
}

/// Sum of -log softmax(logits)\[target\] over the rows, and the log-probabilities.
pub(crate) fn logits_nll(logits: Tensor<2>, targets: &[u32]) -> (f64, Tensor<2>) {
    let log_probs = activation::log_softmax(logits, 1);
    let column = indices(targets, &log_probs.device()).reshape([targets.len(), 1]);
    let picked = values(log_probs.clone().gather(1, column));
    (-picked.into_iter().map(f64::from).sum::<f64>(), log_probs)
}

/// The gradient of [`logits_nll`] by the logits: softmax minus one at the target.
pub(crate) fn logits_gradient(log_probs: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    let device = log_probs.device();
    let column = indices(targets, &device).reshape([targets.len(), 1]);
    let minus_one = Tensor::full([targets.len(), 1], -1.0, &device);
    log_probs.exp().scatter(1, column, minus_one, IndexingUpdateOp::Add)
}

struct Chunk<'a> {
    start: usize,
    targets: &'a [u32],
}

impl Chunk<'_> {
    fn logits(&self, model: &Transformer, rows: &Tensor<2>) -> Tensor<2> {
        model.logits(rows.clone().narrow(0, self.start, self.targets.len()))
    }
}

fn chunks<'a>(model: &Transformer, batch: &'a Batch) -> impl Iterator<Item = Chunk<'a>> {
    let size = (CHUNK / model.config().vocab_size).max(32);
    let targets = batch.targets.chunks(size).enumerate();
    targets.map(move |(at, targets)| Chunk { start: at * size, targets })
}
