//! A base model's `config.json`, and what follows from it: shapes, frequencies, layouts.

use floret_core::lora::TargetModule;
use floret_core::{Layout, LoraConfig, ModelConfig};

use super::Target;
use super::model_fixture::{CONFIGS, lora};

pub(super) const TARGET: Target =
    Target { name: "model-config", run, limit, seeds, share: 10, longest: 1500 };

/// A layout is made for models of at most this many blocks, to bound the time of an input.
const LAYERS: usize = 8;

fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(config) = ModelConfig::from_json(text) else { return false };
    assert!(config.num_heads.is_multiple_of(config.num_kv_heads));
    let frequencies = config.rope.inverse_frequencies(config.head_dim.min(256));
    assert!(frequencies.iter().all(|frequency| frequency.is_finite()), "{:?}", config.rope);
    let largest = lora(LoraConfig::RANK_MAX, &TargetModule::ALL);
    let layers = config.num_layers;
    let small = ModelConfig { num_layers: layers.min(LAYERS), ..config };
    let layout = Layout::new(&small, &largest).unwrap_or_else(|error| panic!("{error}"));
    // The layout of all blocks must not overflow either.
    assert!(layout.bytes().checked_mul(layers).is_some_and(|bytes| isize::try_from(bytes).is_ok()));
    true
}

/// JSON values, which are many times as large as their text, and the layout of a few blocks.
fn limit(data: &[u8]) -> usize {
    250 * data.len() + 96 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let llama3 = r#"{"architectures":["LlamaForCausalLM"],"attention_bias":true,"bos_token_id":1,
"eos_token_id":[2,3],"head_dim":8,"hidden_act":"silu","hidden_size":24,"intermediate_size":40,
"max_position_embeddings":64,"mlp_bias":true,"num_attention_heads":4,"num_hidden_layers":2,
"num_key_value_heads":2,"pretraining_tp":1,"rms_norm_eps":1e-05,"rope_scaling":{"factor":4.0,
"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":16,
"rope_type":"llama3"},"rope_theta":10000.0,"vocab_size":96,"use_cache":true}"#;
    let qwen = r#"{"model_type":"qwen2","hidden_size":16,"intermediate_size":24,"vocab_size":32,
"num_hidden_layers":2,"num_attention_heads":4,"use_sliding_window":false,"sliding_window":4096,
"max_window_layers":2,"layer_types":["full_attention","full_attention"],"tie_word_embeddings":true,
"rope_parameters":{"rope_theta":1e6,"rope_type":"default","partial_rotary_factor":1.0}}"#;
    let [one, two] = CONFIGS.map(|text| text.as_bytes().to_vec());
    let refused = br#"{"model_type":"llama","use_qk_norm":true}"#.to_vec();
    vec![
        ("llama", one),
        ("qwen2", two),
        ("llama3", llama3.as_bytes().to_vec()),
        ("qwen2-window", qwen.as_bytes().to_vec()),
        ("unknown-field", refused),
    ]
}
