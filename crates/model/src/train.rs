//! Local training: AdamW on the LoRA factors of one client, over its own sequences.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use floret_core::plan::TrainingConfig;
use floret_core::{Adapter, Layout, LoraConfig, Scope, Seed};
use floret_device::TrainError;

use crate::kernels::pool;
use crate::lora::{self, Lora};
use crate::loss;
use crate::memory::StepPlan;
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
    plan: StepPlan,
    /// Places of the flat vector that stay as they are.
    outside: Vec<Range<usize>>,
    layout: Arc<Layout>,
    /// The values that it starts from.
    start: &'a [f32],
    /// What is added to the values behind each step: in layout order, and with this factor.
    correction: (&'a [f32], f32),
    scale: f32,
    optimizer: AdamW,
    epochs: Epochs<'a, Sequence>,
    steps: u32,
    trained: Trained,
    _buffers: pool::Lease,
}

impl<'a> Training<'a> {
    /// Training that starts from `adapter`, with a fresh optimizer.
    ///
    /// # Errors
    /// No sequence, or an adapter that the model cannot take.
    pub fn new(
        model: &'a Transformer,
        (settings, adapter): (&LoraConfig, &'a Adapter),
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
            plan: StepPlan::fastest(config.batch_size as usize),
            outside: Vec::new(),
            layout: Arc::clone(adapter.layout()),
            start: adapter.values(),
            correction: (&[], 0.0),
            scale: settings.scale(),
            optimizer: AdamW::new(AdamWConfig::from(config), values.len()),
            epochs: Epochs::new(sequences, shuffle).ok_or(TrainError::NoData)?,
            steps: 0,
            trained: Trained { values, tokens: 0, last_loss: 0.0 },
            _buffers: pool::Lease::new(),
        })
    }

    /// The same training with its steps done as `plan` says.
    #[must_use]
    pub fn with_plan(mut self, plan: StepPlan) -> Self {
        self.plan = plan;
        self
    }

    /// The same training of `scope` alone.
    #[must_use]
    pub fn with_scope(mut self, scope: &Scope) -> Self {
        self.outside = scope.outside(&self.layout);
        self
    }

    /// The same training, where `correction`, in layout order, is added over `steps` steps in equal parts.
    #[must_use]
    pub fn corrected_by(mut self, correction: &'a [f32], steps: u32) -> Self {
        self.correction = (correction, 1.0 / steps.max(1) as f32);
        self
    }

    /// Does one optimizer step over the next `batch_size * accumulation` sequences, or what the
    /// epoch has left.
    ///
    /// # Errors
    /// Tokens that the model cannot take, or a loss or value that is not finite.
    pub fn step(&mut self) -> Result<Step, TrainError> {
        step_together(&mut [self]).pop().unwrap_or_else(|| unreachable!("a result for each"))
    }

    /// The micro-batches of the next step.
    fn next_batches(&mut self) -> Result<Vec<Batch>, TrainError> {
        let batch_size = self.config.batch_size as usize;
        let share = self.epochs.next_share(batch_size * self.config.accumulation as usize);
        batches(self.model, &share, &self.plan)
            .map_err(|error| TrainError::Unsupported(error.to_string()))
    }

    /// Does the step whose batches have these sums.
    fn apply(&mut self, sums: Summed) -> Result<Step, TrainError> {
        let Summed { nll, counted, mut gradient } = sums;
        let values = &mut self.trained.values;
        pull_back(&mut gradient, values, self.start, self.config.proximal * counted as f32);
        // What stays takes no part in the gradient's norm, and does not decay.
        self.outside.iter().for_each(|places| gradient[places.clone()].fill(0.0));
        let max_norm = self.config.max_grad_norm.into();
        let norm = scale_and_clip(&mut gradient, 1.0 / counted as f64, max_norm);
        pool::trim();
        self.optimizer.step(values, &gradient);
        let (correction, share) = self.correction;
        values.iter_mut().zip(correction).for_each(|(value, of)| *value += share * of);
        for places in &self.outside {
            values[places.clone()].copy_from_slice(&self.start[places.clone()]);
        }
        self.steps += 1;
        let (number, loss) = (self.steps, nll / counted as f64);
        if !(loss.is_finite() && norm.is_finite() && values.iter().all(|v| v.is_finite())) {
            return Err(TrainError::Diverged { step: number });
        }
        self.trained.tokens += counted;
        self.trained.last_loss = loss;
        Ok(Step { number, loss })
    }

    /// Steps done so far.
    pub(crate) fn steps(&self) -> u32 {
        self.steps
    }

    /// What the steps so far gave.
    #[must_use]
    pub fn finish(self) -> Trained {
        self.trained
    }
}

/// Adds the gradient of `strength` / 2 ‖values - start‖².
fn pull_back(gradient: &mut [f32], values: &[f32], start: &[f32], strength: f32) {
    if strength > 0.0 {
        for ((gradient, value), start) in gradient.iter_mut().zip(values).zip(start) {
            *gradient += strength * (value - start);
        }
    }
}

/// Does one optimizer step of each of `trainings`: a result for each, in their order. They have one
/// model, layout of adapters, scale and way of doing a step. Those whose batches have the same shape go
/// through the base model as one batch, unless that changed a bit: each ends as if it were alone.
pub(crate) fn step_together(trainings: &mut [&mut Training<'_>]) -> Vec<Result<Step, TrainError>> {
    let (mut results, mut ready) = (BTreeMap::new(), Vec::new());
    for (index, training) in trainings.iter_mut().enumerate() {
        match training.next_batches() {
            Ok(batches) => ready.push((index, batches)),
            Err(error) => {
                results.insert(index, Err(error));
            }
        }
    }
    let Some(first) = trainings.first() else { return Vec::new() };
    let (model, layout, scale, plan) =
        (first.model, Arc::clone(&first.layout), first.scale, first.plan);
    for (members, batches) in stacks(model, ready, &plan) {
        let values: Vec<&[f32]> =
            members.iter().map(|&index| &trainings[index].trained.values[..]).collect();
        let lora = Lora::trainable(&layout, &values, scale, &model.device());
        let sums = gradients(model, &lora, &batches, &plan);
        for (index, sums) in members.into_iter().zip(sums) {
            results.insert(index, trainings[index].apply(sums));
        }
    }
    results.into_values().collect()
}

/// Clients by their indices, and the micro-batches of each.
type Stack = (Vec<usize>, Vec<Vec<Batch>>);

/// Who goes through the model together.
fn stacks(model: &Transformer, clients: Vec<(usize, Vec<Batch>)>, plan: &StepPlan) -> Vec<Stack> {
    let mut by_shape: BTreeMap<Vec<[usize; 2]>, Stack> = BTreeMap::new();
    for (index, batches) in clients {
        let shapes = batches.iter().map(|batch| batch.tokens.shape()).collect();
        let (members, all) = by_shape.entry(shapes).or_default();
        members.push(index);
        all.push(batches);
    }
    let alone = |(members, batches): Stack| -> Vec<Stack> {
        members.into_iter().zip(batches).map(|(one, own)| (vec![one], vec![own])).collect()
    };
    let split =
        |stack: Stack| if same_bits(model, &stack.1, plan) { vec![stack] } else { alone(stack) };
    by_shape.into_values().flat_map(split).collect()
}

/// Whether clients with these micro-batches, of the same shapes, get the same bits together as alone.
fn same_bits(model: &Transformer, clients: &[Vec<Batch>], plan: &StepPlan) -> bool {
    let Some(first) = clients.first().filter(|_| clients.len() > 1) else { return true };
    (0..first.len()).all(|at| {
        let [sequences, length] = first[at].tokens.shape();
        let rows = sequences * length;
        let counted = || clients.iter().map(|batches| batches[at].targets.len());
        let all: usize = counted().sum();
        // What holds of the fewest rows and of all holds of any number between.
        let fewest = counted().min().unwrap_or(all);
        all <= loss::chunk(model, plan.logits)
            && model.same_bits([rows, rows * clients.len()], [fewest, all])
    })
}

/// Sums over the tokens of one optimizer step.
pub(crate) struct Summed {
    pub(crate) nll: f64,
    pub(crate) counted: u64,
    /// Gradient of `nll`, in layout order.
    pub(crate) gradient: Vec<f32>,
}

/// Loss and gradient of `lora`, of one client, over `share`, done as `plan` says.
pub(crate) fn gradient(
    model: &Transformer,
    lora: &Lora,
    share: &[&Sequence],
    plan: &StepPlan,
) -> Result<Summed, InvalidTokens> {
    let batches = batches(model, share, plan)?;
    let sums = gradients(model, lora, &[batches], plan).pop();
    Ok(sums.unwrap_or_else(|| unreachable!("one for each client")))
}

/// The micro-batches of `share`.
fn batches(
    model: &Transformer,
    share: &[&Sequence],
    plan: &StepPlan,
) -> Result<Vec<Batch>, InvalidTokens> {
    let parts = share.chunks(plan.micro_batch.max(1));
    parts.map(|sequences| Batch::new(model.config(), sequences)).collect()
}

/// Loss and gradient of each client of `lora` over its micro-batches, whose shapes are those of the
/// others', done as `plan` says.
fn gradients(
    model: &Transformer,
    lora: &Lora,
    clients: &[Vec<Batch>],
    plan: &StepPlan,
) -> Vec<Summed> {
    let none = |_| Summed { nll: 0.0, counted: 0, gradient: vec![0.0; lora.len()] };
    let mut sums: Vec<Summed> = clients.iter().map(none).collect();
    for at in 0..clients.first().map_or(0, Vec::len) {
        let parts: Vec<&Batch> = clients.iter().map(|batches| &batches[at]).collect();
        let batch = Batch::stacked(&parts);
        let losses = if plan.recompute {
            recomputed(model, lora, &batch, plan, &mut sums)
        } else {
            let hidden = model.hidden(&batch.tokens, Some(lora));
            let tracked = loss::nll(model, hidden, &batch, plan.logits);
            let losses = tracked.clone().inner();
            lora.add_gradients(&mut tracked.sum().backward(), &mut sums);
            losses
        };
        let mut losses = lora::values(losses).into_iter().map(f64::from);
        for (sum, part) in sums.iter_mut().zip(parts) {
            sum.nll += losses.by_ref().take(part.targets.len()).sum::<f64>();
            sum.counted += part.counted();
        }
    }
    sums
}

/// The losses of `batch`, and its gradients added to `sums`, where blocks keep only their input and are
/// computed again, one after another from the last, to take the gradient through them.
fn recomputed(
    model: &Transformer,
    lora: &Lora,
    batch: &Batch,
    plan: &StepPlan,
    sums: &mut [Summed],
) -> Tensor<2> {
    let frozen = lora.without_gradients();
    let context = model.context(batch.tokens.shape()[1], 0);
    let mut x = model.embed(&batch.tokens);
    let mut inputs = Vec::with_capacity(model.num_layers());
    for layer in 0..model.num_layers() {
        inputs.push(x.clone());
        x = model.block(layer, x, Some(&frozen), &context);
    }
    let last = x.autodiff().require_grad();
    let tracked = loss::nll(model, model.last_norm(last.clone()), batch, plan.logits);
    let losses = tracked.clone().inner();
    let mut by_output = last.grad_remove(&mut tracked.sum().backward());
    for (layer, input) in inputs.into_iter().enumerate().rev() {
        let Some(gradient) = by_output.take() else { break };
        // Nothing below the lowest block needs a gradient.
        let input = input.autodiff();
        let input = if layer > 0 { input.require_grad() } else { input };
        let output = model.block(layer, input.clone(), Some(lora), &context);
        // The gradient of <output, gradient> with gradient held fixed is that of the loss.
        let mut gradients = (output * gradient.autodiff()).sum().backward();
        lora.add_gradients(&mut gradients, sums);
        by_output = input.grad_remove(&mut gradients);
    }
    losses
}

#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "wgpu"))]
mod wgpu_tests;
