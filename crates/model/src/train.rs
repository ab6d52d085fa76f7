//! Local training: AdamW on the LoRA factors of one client, over its own sequences.

use std::sync::Arc;

use floret_core::plan::TrainingConfig;
use floret_core::{Adapter, Layout, LoraConfig, Seed};
use floret_device::TrainError;

use crate::lora::{self, Lora};
use crate::loss;
use crate::optimizer::{AdamW, AdamWConfig, scale_and_clip};
use crate::shuffle::Epochs;
use crate::tokens::{Batch, InvalidTokens, Sequence};
use crate::transformer::Transformer;

/// One optimizer step that was done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Its number, counted from 1.
    pub number: u32,
    /// Mean loss per token before it, in nats.
    pub loss: f64,
}

/// What training gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The adapter's values, in layout order.
    pub values: Vec<f32>,
    /// Tokens that carried loss, over all steps.
    pub tokens: u64,
    /// Mean loss per token of the last step, in nats.
    pub last_loss: f64,
}

/// An adapter in training on one client's sequences. It goes over them again, each time in a new
/// order, as often as steps are asked for. Its result depends on what it was made from and the
/// number of steps, not on threads.
#[derive(Debug)]
pub struct Training<'a> {
    model: &'a Transformer,
    config: &'a TrainingConfig,
    layout: Arc<Layout>,
    scale: f32,
    optimizer: AdamW,
    epochs: Epochs<'a, Sequence>,
    steps: u32,
    trained: Trained,
}

impl<'a> Training<'a> {
    /// Training that starts from `adapter`, with a fresh optimizer.
    ///
    /// # Errors
    /// No sequence, or an adapter that the model cannot take.
    pub fn new(
        model: &'a Transformer,
        (settings, adapter): (&LoraConfig, &Adapter),
        sequences: &'a [Sequence],
        config: &'a TrainingConfig,
        shuffle: &Seed,
    ) -> Result<Self, TrainError> {
        lora::check(adapter.layout(), model.config(), settings)
            .map_err(|error| TrainError::Unsupported(error.to_string()))?;
        let values = adapter.values().to_vec();
        Ok(Self {
            model,
            config,
            layout: Arc::clone(adapter.layout()),
            scale: settings.scale(),
            optimizer: AdamW::new(AdamWConfig::from(config), values.len()),
            epochs: Epochs::new(sequences, shuffle).ok_or(TrainError::NoData)?,
            steps: 0,
            trained: Trained { values, tokens: 0, last_loss: 0.0 },
        })
    }

    /// Does one optimizer step over the next `batch_size * accumulation` sequences, or what the
    /// epoch has left.
    ///
    /// # Errors
    /// Tokens that the model cannot take, or a loss or value that is not finite.
    pub fn step(&mut self) -> Result<Step, TrainError> {
        let batch_size = self.config.batch_size as usize;
        let share = self.epochs.next_share(batch_size * self.config.accumulation as usize);
        let values = &mut self.trained.values;
        let lora = Lora::trainable(&self.layout, values, self.scale, &self.model.device());
        let Summed { nll, counted, mut gradient } = gradient(self.model, &lora, &share, batch_size)
            .map_err(|error| TrainError::Unsupported(error.to_string()))?;
        let max_norm = self.config.max_grad_norm.into();
        let norm = scale_and_clip(&mut gradient, 1.0 / counted as f64, max_norm);
        self.optimizer.step(values, &gradient);
        self.steps += 1;
        let (number, loss) = (self.steps, nll / counted as f64);
        if !(loss.is_finite() && norm.is_finite() && values.iter().all(|v| v.is_finite())) {
            return Err(TrainError::Diverged { step: number });
        }
        self.trained.tokens += counted;
        self.trained.last_loss = loss;
        Ok(Step { number, loss })
    }

    /// What the steps so far gave.
    #[must_use]
    pub fn finish(self) -> Trained {
        self.trained
    }
}

/// Sums over the tokens of one optimizer step.
pub(crate) struct Summed {
    pub(crate) nll: f64,
    pub(crate) counted: u64,
    /// Gradient of `nll`, in layout order.
    pub(crate) gradient: Vec<f32>,
}

/// Loss and gradient of `lora` over `share`, in micro-batches of `batch_size`.
pub(crate) fn gradient(
    model: &Transformer,
    lora: &Lora,
    share: &[&Sequence],
    batch_size: usize,
) -> Result<Summed, InvalidTokens> {
    let mut sum = Summed { nll: 0.0, counted: 0, gradient: vec![0.0; lora.len()] };
    for sequences in share.chunks(batch_size) {
        let batch = Batch::new(model.config(), sequences)?;
        let rows = loss::counted_rows(model.hidden(&batch.tokens, Some(lora), None), &batch);
        let (nll, by_rows) = loss::nll_and_gradient(model, &rows.clone().inner(), &batch);
        // The gradient of <rows, by_rows> with by_rows held fixed is that of the loss.
        let mut gradients = (rows * by_rows.autodiff()).sum().backward();
        lora.add_gradients(&mut gradients, &mut sum.gradient);
        sum.nll += nll;
        sum.counted += batch.counted();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
