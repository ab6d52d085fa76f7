//! Small random models, adapters and data for tests.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use floret_core::lora::TargetModule;
use floret_core::model_config::Rope;
use floret_core::seed::uniform_f32;
use floret_core::{Adapter, Layout, LoraConfig, ModelConfig, Seed};
use rand_chacha::rand_core::Rng;

use crate::device::cpu;
use crate::precision::Precision;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_training::train_tokenizer;
use crate::tokens::Sequence;
use crate::transformer::Transformer;

pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 4,
        vocab_size: 40,
        max_positions: 64,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: None },
        tie_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        eos_token_ids: vec![1],
        bos_token_id: Some(0),
    }
}

pub(crate) fn settings(rank: usize, target_modules: &[TargetModule]) -> LoraConfig {
    let target_modules = target_modules.to_vec();
    LoraConfig { rank, alpha: 2.0 * rank as f32, use_rslora: false, target_modules }
}

/// Uniform in ±`bound`.
pub(crate) fn random(len: usize, bound: f32, seed: u64) -> Vec<f32> {
    let mut stream = Seed::from_number(seed).stream();
    (0..len).map(|_| (2.0 * uniform_f32(stream.next_u32()) - 1.0) * bound).collect()
}

pub(crate) fn model(config: &ModelConfig, seed: u64, device: &Device) -> Transformer {
    model_with(config, seed, Precision::F32, device)
}

pub(crate) fn model_with(
    config: &ModelConfig,
    seed: u64,
    precision: Precision,
    device: &Device,
) -> Transformer {
    let mut seed = seed * 1000;
    let model = Transformer::build(config.clone(), precision, device, &mut |spec| {
        seed += 1;
        let [rows, columns] = spec.matrix_shape();
        let mut values = random(rows * columns, 2.0 / (columns as f32).sqrt(), seed);
        if spec.name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok::<_, Infallible>(values)
    });
    match model {
        Ok(model) => model,
    }
}

pub(crate) fn plain_model(config: &ModelConfig, seed: u64) -> Transformer {
    model(config, seed, &cpu())
}

/// An adapter whose A and B are both random.
pub(crate) fn adapter(config: &ModelConfig, settings: &LoraConfig, seed: u64) -> Adapter {
    let layout = Arc::new(Layout::new(config, settings).unwrap());
    let values = random(layout.len(), 0.3, seed);
    Adapter::new(layout, values).unwrap()
}

/// `count` sequences of different lengths up to `length`, most of whose tokens count.
pub(crate) fn sequences(
    config: &ModelConfig,
    count: usize,
    length: usize,
    seed: u64,
) -> Vec<Sequence> {
    let mut stream = Seed::from_number(seed).stream();
    let mut token = || {
        let id = stream.next_u32() % config.vocab_size as u32;
        (id, !stream.next_u32().is_multiple_of(4))
    };
    let sequence = |index: usize| {
        let length = length - index % 3;
        let tokens = (0..length).map(|_| token());
        Sequence::new(tokens.collect::<Vec<_>>().into_iter().chain([(0, true)])).unwrap()
    };
    (0..count).map(sequence).collect()
}

/// A tokenizer trained on some English, in `dir`, with 300 tokens.
pub(crate) fn tokenizer(dir: &Path, config: &ModelConfig) -> Tokenizer {
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, train_tokenizer(&texts(), 300).unwrap()).unwrap();
    Tokenizer::open(&path, config).unwrap()
}

pub(crate) fn texts() -> Vec<String> {
    let lines = [
        "The rain came over the hill in the evening, and the river began to rise.",
        "In the morning the old man went down to the river to look for his boat.",
        "There was no boat, but there was a small dog on a stone in the river.",
        "He called the dog, and the dog looked at him and did not come.",
    ];
    lines.iter().map(|&line| line.to_owned()).collect()
}
