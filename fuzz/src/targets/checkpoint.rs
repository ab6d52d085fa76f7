//! Weights of a base model: the first byte chooses a weight file of one of two models, or the index
//! of shards.

use floret_model::Checkpoint;
use floret_model::checkpoint::shard_index;
use floret_model::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};

use super::model_fixture::models;
use super::{Target, choice};

pub(super) const TARGET: Target =
    Target { name: "checkpoint", run, limit, seeds, share: 10, longest: 6000 };

fn run(data: &[u8]) -> bool {
    let (which, bytes) = choice(data, models().len() + 1);
    if let Some(model) = models().get(which) {
        return Checkpoint::check_bytes(model.clone(), bytes).is_ok();
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(shards) = shard_index(text) else { return false };
    assert!(shards.values().all(|name| !name.contains('/') && name != ".." && !name.is_empty()));
    true
}

/// JSON values and tensor headers, which are many times as large as their text, and the names of a
/// model's weights.
fn limit(data: &[u8]) -> usize {
    100 * data.len() + 64 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let weights = |which: u8, dtype: Dtype| {
        let specs = Weights::of(&models()[usize::from(which)]);
        let bytes = vec![0x3c; 4096];
        let views = specs.leaves().into_iter().map(|spec| {
            let size = spec.shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let view = TensorView::new(dtype, spec.shape.clone(), &bytes[..size]);
            (spec.name.clone(), view.unwrap_or_else(|error| unreachable!("{error}")))
        });
        let file = safetensors::serialize(views, None);
        [vec![which], file.unwrap_or_else(|error| unreachable!("{error}"))].concat()
    };
    let index =
        br#"{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    vec![
        ("llama-f16", weights(0, Dtype::F16)),
        ("llama-f32", weights(0, Dtype::F32)),
        ("qwen2-bf16", weights(1, Dtype::BF16)),
        ("wrong-type", weights(1, Dtype::I8)),
        ("index", [&[2], &index[..]].concat()),
    ]
}
