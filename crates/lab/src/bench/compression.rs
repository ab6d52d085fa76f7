//! `floret-lab bench compression`: how fast deltas are encoded, and decoded, clipped and added, by one
//! core, and how large they are.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use floret_aggregator::ClippedDelta;
use floret_aggregator::combine::WeightedMean;
use floret_core::lora::TargetModule;
use floret_core::payload::{Compression, Encoder, Shared};
use floret_core::seed::uniform_f32;
use floret_core::{Layout, LoraConfig, ModelConfig};
use rand_chacha::rand_core::Rng;
use serde_json::{Value, json};

use super::{seed, spread};

/// Norm of a delta here is about its root of length / 12: clipping has work to do.
const CLIP_NORM: f32 = 10.0;
/// Updates that words of linear payloads have room for.
const SUMMANDS: u32 = 20;
/// Blocks of the base model, and rank of the adapter.
const LAYERS: usize = 4;
const RANK: usize = 8;

/// Arguments of `floret-lab bench compression`.
#[derive(Debug, Args)]
pub(crate) struct CompressionArgs {
    /// Values of the adapter, about.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    parameters: u32,
    /// What to measure, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "none,int8,bits1,bits1/2,bits2,bits4,sparse5%,linear6/4"
    )]
    compressions: Vec<Compression>,
    /// Times that each is repeated.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeats: u32,
    /// Print nothing but the JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &CompressionArgs) -> Result<Value> {
    let layout = layout(args.parameters as usize)?;
    let mut stream = seed().stream();
    let delta: Vec<f32> = (0..layout.len()).map(|_| uniform_f32(stream.next_u32()) - 0.5).collect();
    let measured: Result<Vec<Value>> = args
        .compressions
        .iter()
        .map(|compression| measure(*compression, &layout, &delta, args.repeats))
        .collect();
    Ok(json!({
        "what": "compression",
        "parameters": layout.len(),
        "repeats": args.repeats,
        "threads": 1,
        "compressions": measured?,
    }))
}

fn measure(
    compression: Compression,
    layout: &Layout,
    delta: &[f32],
    repeats: u32,
) -> Result<Value> {
    let mut rng = seed().stream();
    let after: Vec<f32> = delta.iter().map(|value| 0.5 * value).collect();
    let mut sum = WeightedMean::new(layout);
    let (mut encode, mut add, mut bytes) = (Vec::new(), Vec::new(), 0);
    for turn in 0..=repeats {
        let begin = Instant::now();
        let shared = Shared { summands: SUMMANDS, norm: CLIP_NORM, turn, seed: 1 };
        let encoder = Encoder::new(compression, layout).leading_to(&after).shared(shared);
        let payload = encoder.with_feedback(turn).encode(delta, &mut rng)?;
        let encoded = begin.elapsed().as_secs_f64() * 1e3;
        let begin = Instant::now();
        sum.add(&ClippedDelta::decode(&payload, layout, CLIP_NORM)?, 1);
        let added = begin.elapsed().as_secs_f64() * 1e3;
        bytes = payload.bytes().len();
        // The first warms up.
        if turn > 0 {
            encode.push(encoded);
            add.push(added);
        }
    }
    ensure!(sum.weight() == u64::from(repeats) + 1, "an update was not added");
    let add = spread(add);
    Ok(json!({
        "compression": compression,
        "bytes": bytes,
        "times_smaller_than_f32": layout.bytes() as f64 / bytes as f64,
        "encode_ms": spread(encode),
        "decode_clip_add_ms": add,
        "updates_per_s": 1e3 / add["median"].as_f64().unwrap_or(f64::INFINITY),
    }))
}

/// An adapter of two maps in each block with about so many values.
fn layout(parameters: usize) -> Result<Layout> {
    // Each map of width w has two factors of RANK x w.
    let width = (parameters / (LAYERS * 2 * 2 * RANK)).max(2).next_multiple_of(2);
    let model = ModelConfig::from_json(
        &json!({
            "model_type": "llama", "hidden_size": width, "intermediate_size": width,
            "vocab_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 1,
        })
        .to_string(),
    )?;
    let target_modules = vec![TargetModule::QProj, TargetModule::VProj];
    let alpha = 2.0 * RANK as f32;
    Ok(Layout::new(&model, &LoraConfig { rank: RANK, alpha, use_rslora: false, target_modules })?)
}
