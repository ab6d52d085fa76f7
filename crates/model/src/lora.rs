//! LoRA factors as tensors (Hu et al. 2021, arXiv 2106.09685, section 4.1).
//!
//! The product stays factorised, y = x Wᵀ + scale (x Aᵀ) Bᵀ, so the frozen W needs no gradient and
//! training forms no dense update.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use floret_core::lora::{InvalidLora, TargetModule};
use floret_core::{Adapter, Layout, LoraConfig, ModelConfig};

use crate::ops::Factors;
use crate::train::Summed;

/// An adapter on a device: A \[rank, in\] and B \[out, rank\] as in PEFT; in training those of one client
/// or of several, one below another (see `ops::Factors`).
#[derive(Debug, Clone)]
pub struct Lora {
    layout: Arc<Layout>,
    scale: f32,
    /// In the order of the layout.
    factors: Vec<Tensor<2>>,
    /// Where A and B of a target lie in `factors`.
    pairs: BTreeMap<(usize, TargetModule), [usize; 2]>,
}

/// An adapter that does not belong to a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoraMismatch {
    /// Settings out of range.
    #[error(transparent)]
    Settings(#[from] InvalidLora),
    /// Other tensors than the model and the settings need.
    #[error(
        "the adapter's layout {got} is not the {want} that this base model and these LoRA settings \
         give: use the base model and the rank and target_modules that it was made for"
    )]
    Layout {
        /// Short digest of the layout that the model needs.
        want: String,
        /// Short digest of the adapter's.
        got: String,
    },
}

impl Lora {
    /// `adapter` for computing without gradients.
    ///
    /// # Errors
    /// An adapter that was not made for `model` and `settings`.
    pub fn frozen(
        adapter: &Adapter,
        model: &ModelConfig,
        settings: &LoraConfig,
        device: &Device,
    ) -> Result<Self, LoraMismatch> {
        check(adapter.layout(), model, settings)?;
        let device = device.clone().without_autodiff();
        Ok(Self::new(adapter.layout(), &[adapter.values()], settings.scale(), &device))
    }

    /// The `values` of each client in the order of `layout`, as fresh leaves whose gradients are wanted.
    pub(crate) fn trainable(
        layout: &Arc<Layout>,
        values: &[&[f32]],
        scale: f32,
        device: &Device,
    ) -> Self {
        let mut lora = Self::new(layout, values, scale, &device.clone().autodiff());
        lora.factors = lora.factors.into_iter().map(Tensor::require_grad).collect();
        lora
    }

    fn new(layout: &Arc<Layout>, values: &[&[f32]], scale: f32, device: &Device) -> Self {
        let mut pairs = BTreeMap::new();
        for (at, tensor) in layout.tensors().iter().enumerate() {
            let pair = pairs.entry((tensor.layer, tensor.target)).or_insert([0; 2]);
            pair[tensor.factor as usize] = at;
        }
        let factors = layout.tensors().iter().map(|tensor| {
            let [rows, columns] = tensor.shape;
            let all = values.iter().flat_map(|values| &values[tensor.range()]);
            let all: Vec<f32> = all.copied().collect();
            Tensor::from_data(TensorData::new(all, [values.len() * rows, columns]), device)
        });
        Self { layout: Arc::clone(layout), scale, factors: factors.collect(), pairs }
    }

    /// The factors of those of `targets` that are adapted, whose outputs follow one another.
    pub(crate) fn factors(
        &self,
        config: &ModelConfig,
        layer: usize,
        targets: &[TargetModule],
    ) -> Vec<Factors> {
        let mut start = 0;
        let mut found = Vec::new();
        for &target in targets {
            let outputs = start..start + config.linear_shape(target)[0];
            start = outputs.end;
            if let Some(at) = self.pairs.get(&(layer, target)) {
                let [a, b] = at.map(|at| self.factors[at].clone());
                found.push(Factors { a, b, outputs, scale: self.scale });
            }
        }
        found
    }

    /// The same factors without gradients.
    pub(crate) fn without_gradients(&self) -> Self {
        let factors = self.factors.iter().map(|factor| factor.clone().inner()).collect();
        Self { factors, ..self.clone() }
    }

    /// Number of values of each client.
    pub(crate) fn len(&self) -> usize {
        self.layout.len()
    }

    /// Adds the gradients of all factors to the sum of each client, in the order of the layout.
    pub(crate) fn add_gradients(&self, gradients: &mut Gradients, sums: &mut [Summed]) {
        for (spec, factor) in self.layout.tensors().iter().zip(&self.factors) {
            if let Some(gradient) = factor.grad_remove(gradients) {
                let (gradient, places) = (values(gradient), spec.range());
                for (sum, part) in sums.iter_mut().zip(gradient.chunks_exact(places.len())) {
                    add(&mut sum.gradient[places.clone()], part);
                }
            }
        }
    }
}

/// Whether an adapter of `layout` was made for `model` and `settings`.
pub(crate) fn check(
    layout: &Layout,
    model: &ModelConfig,
    settings: &LoraConfig,
) -> Result<(), LoraMismatch> {
    let want = Layout::new(model, settings)?;
    if layout.digest() == want.digest() {
        return Ok(());
    }
    let [want, got] = [want.digest().short(), layout.digest().short()];
    Err(LoraMismatch::Layout { want, got })
}

/// The values of a tensor, row-major.
///
/// # Panics
/// Never: every float tensor of this crate is f32.
pub(crate) fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap_or_else(|_| unreachable!("float tensors hold f32"))
}

/// Adds `values` to `sum`, one by one.
pub(crate) fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests;
