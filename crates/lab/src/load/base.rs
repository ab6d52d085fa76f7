//! A base model that nobody computes with: its shape decides the adapter, and its files are hashed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use floret_core::base::BaseDigests;
use floret_core::{Digest, Layout, LoraConfig, ModelConfig};
use floret_device::LocalModel;
use floret_model::checkpoint::{CONFIG, TOKENIZER, WEIGHTS};
use serde_json::json;

/// Blocks: with A and B of q and v each, 120 tensors.
const LAYERS: usize = 30;
/// Bytes of the two files that are only hashed.
const DUMMY: &[u8] = b"{}";

/// The made-up base model.
#[derive(Debug)]
pub(super) struct Base {
    config: String,
    /// What a plan is compared with.
    pub(super) local: LocalModel,
    /// Values of its adapter.
    pub(super) parameters: usize,
}

impl Base {
    /// A base model whose adapter of the default settings has about `wanted` values.
    pub(super) fn with_parameters(wanted: u32) -> Result<Self> {
        let lora = LoraConfig::default();
        // A layer has four factors: two of rank x hidden, two of head x rank.
        let per_unit = 2 * LAYERS * lora.rank;
        let sum = ((wanted as usize + per_unit / 2) / per_unit).max(4);
        let head = sum / 4 * 2;
        let config = json!({
            "model_type": "llama",
            "hidden_size": sum - head,
            "intermediate_size": 8,
            "vocab_size": 16,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 1,
            "head_dim": head,
        });
        let config = config.to_string();
        let model = ModelConfig::from_json(&config).context("the made-up model is refused")?;
        let parameters = Layout::new(&model, &lora)?.len();
        let dummy = Digest::of(DUMMY);
        let digests = BaseDigests::new(Digest::of(config.as_bytes()), vec![dummy], dummy);
        Ok(Self { config, local: LocalModel { config: model, digests }, parameters })
    }

    /// Writes its files into the new folder `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let hint = || format!("cannot write the base model to {}", dir.display());
        fs::create_dir_all(dir).with_context(hint)?;
        for (name, bytes) in
            [(CONFIG, self.config.as_bytes()), (WEIGHTS, DUMMY), (TOKENIZER, DUMMY)]
        {
            fs::write(dir.join(name), bytes).with_context(hint)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_about_the_wanted_size() {
        for wanted in [2_000u32, 16_384, 262_144, 1_000_003] {
            let base = Base::with_parameters(wanted).unwrap();
            let off = base.parameters.abs_diff(wanted as usize);
            assert!(off <= 240, "{wanted}: {}", base.parameters);
            let layout = Layout::new(&base.local.config, &LoraConfig::default()).unwrap();
            assert_eq!(layout.tensors().len(), 120);
        }
    }
}
