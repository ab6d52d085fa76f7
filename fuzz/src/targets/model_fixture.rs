//! Shapes of small base models and adapters that the targets share.

use std::sync::OnceLock;

use floret_core::lora::TargetModule;
use floret_core::{Layout, LoraConfig, ModelConfig};

/// A Llama with a tied head, and a Qwen2 with biases and two blocks.
pub(super) const CONFIGS: [&str; 2] = [
    r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "vocab_size": 16,
"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true}"#,
    r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 4, "intermediate_size": 6,
"vocab_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}"#,
];

/// The models of [`CONFIGS`].
pub(super) fn models() -> &'static [ModelConfig; 2] {
    static MODELS: OnceLock<[ModelConfig; 2]> = OnceLock::new();
    MODELS.get_or_init(|| {
        CONFIGS.map(|text| {
            ModelConfig::from_json(text).unwrap_or_else(|error| unreachable!("{error}"))
        })
    })
}

/// Adapter settings of the given rank.
pub(super) fn lora(rank: usize, target_modules: &[TargetModule]) -> LoraConfig {
    let target_modules = target_modules.to_vec();
    LoraConfig { rank, alpha: 4.0, use_rslora: false, target_modules }
}

/// Layouts of one tensor pair, and of all of them in two blocks.
pub(super) fn layouts() -> &'static [Layout; 2] {
    static LAYOUTS: OnceLock<[Layout; 2]> = OnceLock::new();
    LAYOUTS.get_or_init(|| {
        let [one, two] = models();
        let make = |model, lora: &LoraConfig| {
            Layout::new(model, lora).unwrap_or_else(|error| unreachable!("{error}"))
        };
        [make(one, &lora(1, &[TargetModule::QProj])), make(two, &lora(3, &TargetModule::ALL))]
    })
}
