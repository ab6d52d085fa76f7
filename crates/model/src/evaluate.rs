//! Loss on sequences that are not trained on, without any autodiff graph.

use std::ops::AddAssign;

use crate::kernels::pool;
use crate::lora::Lora;
use crate::loss;
use crate::memory::StepPlan;
use crate::tokens::{Batch, InvalidTokens, Sequence};
use crate::transformer::Transformer;

/// Summed loss, so that evaluations can be added.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Evaluation {
    /// Sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// Tokens that it sums over.
    pub tokens: u64,
}

impl Evaluation {
    /// Mean loss per token in nats; none without a token.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nll / self.tokens as f64)
    }

    /// exp of [`Evaluation::loss`].
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        self.loss().map(f64::exp)
    }
}

impl AddAssign for Evaluation {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
    }
}

/// Loss of `model`, with `lora` if given, on `sequences`, `batch_size` of them at once.
///
/// # Errors
/// Tokens that the model cannot take.
pub fn evaluate(
    model: &Transformer,
    lora: Option<&Lora>,
    sequences: &[Sequence],
    batch_size: usize,
) -> Result<Evaluation, InvalidTokens> {
    let _buffers = pool::Lease::new();
    let mut evaluation = Evaluation::default();
    for sequences in sequences.chunks(batch_size.max(1)) {
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        let batch = Batch::new(model.config(), &sequences)?;
        let hidden = model.hidden(&batch.tokens, lora);
        let losses = loss::nll(model, hidden, &batch, StepPlan::fastest(batch_size).logits);
        evaluation += Evaluation { nll: loss::sum(losses), tokens: batch.counted() };
    }
    Ok(evaluation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, plain_model, sequences};

    #[test]
    fn neither_batches_nor_padding_change_the_loss() {
        let config = config();
        let model = plain_model(&config, 1);
        let sequences = sequences(&config, 7, 12, 2);
        let whole = evaluate(&model, None, &sequences, 7).unwrap();
        let mut sum = Evaluation::default();
        for sequence in sequences.chunks(1) {
            sum += evaluate(&model, None, sequence, 1).unwrap();
        }
        assert_eq!(whole.tokens, sum.tokens);
        assert!((whole.nll - sum.nll).abs() < 1e-3, "{whole:?} {sum:?}");
        assert_eq!(evaluate(&model, None, &[], 8).unwrap().loss(), None);
    }
}
