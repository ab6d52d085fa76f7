//! Shapes of models that benchmarks know by name; their weights are random.

use clap::ValueEnum;
use floret_core::ModelConfig;
use floret_core::model_config::InvalidModelConfig;
use serde_json::json;

/// A Llama with a tied head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// 0.26 million parameters, as karpathy's stories260K.
    #[value(name = "stories260K")]
    Stories260K,
    /// 15 million parameters, as karpathy's stories15M.
    #[value(name = "stories15M")]
    Stories15M,
    /// 30 million parameters.
    #[value(name = "slm30M")]
    Slm30M,
    /// 135 million parameters, as SmolLM2-135M.
    #[value(name = "smol135M")]
    Smol135M,
}

impl Shape {
    /// Its configuration.
    pub(crate) fn config(self) -> Result<ModelConfig, InvalidModelConfig> {
        let [hidden, intermediate, layers, heads, kv_heads, vocab] = match self {
            Self::Stories260K => [64, 172, 5, 8, 4, 512],
            Self::Stories15M => [288, 768, 6, 6, 6, 32_000],
            Self::Slm30M => [512, 1376, 8, 8, 8, 8192],
            Self::Smol135M => [576, 1536, 30, 9, 3, 49_152],
        };
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
        });
        ModelConfig::from_json(&config.to_string())
    }

    /// Tokens in a sequence unless told otherwise.
    pub(crate) fn sequence_length(self) -> u32 {
        if self == Self::Stories260K { 128 } else { 256 }
    }
}
