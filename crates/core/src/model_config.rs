//! `config.json` of a Llama or Qwen2 checkpoint, as Hugging Face saves it.
//!
//! Every field that changes the result is honoured or refused. A field that this version does not
//! know is accepted only when it is off (null, false, zero, empty).

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::lora::TargetModule;

/// Shape and constants of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The head shares the embedding's weights.
    pub tie_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the output projection of attention.
    pub o_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Id that begins a text, if any.
    pub bos_token_id: Option<u32>,
}

/// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves rotated as in transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Llama 3's change of the long wavelengths, if any.
    pub scaling: Option<Llama3Scaling>,
}

/// Llama 3.1's frequency scaling: long wavelengths are divided by `factor`, short ones kept, and
/// those between are interpolated.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3Scaling {
    /// Divisor of the lowest frequencies.
    pub factor: f64,
    /// Wavelengths longer than original / this are divided.
    pub low_freq_factor: f64,
    /// Wavelengths shorter than original / this are kept.
    pub high_freq_factor: f64,
    /// Context length before scaling.
    pub original_max_positions: f64,
}

impl Rope {
    /// Angular frequency of each of the `head_dim / 2` pairs.
    #[must_use]
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64))
            .map(|frequency| match &self.scaling {
                None => frequency,
                Some(scaling) => scaling.apply(frequency),
            })
            .collect()
    }
}

impl Llama3Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let ratio = self.original_max_positions / wavelength;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let smooth = ((ratio - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// A `config.json` that Floret cannot honour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidModelConfig {
    /// Not JSON, a field missing, or of the wrong type.
    #[error("config.json: {0}")]
    Syntax(String),
    /// An architecture other than Llama and Qwen2.
    #[error(
        "config.json: architecture {0:?} is not supported: use a LlamaForCausalLM (SmolLM2 is one) \
         or Qwen2ForCausalLM checkpoint"
    )]
    Architecture(String),
    /// A field with a value that Floret does not implement.
    #[error("config.json: {field} = {value} is not supported: {hint}")]
    Unsupported {
        /// Name of the field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What would be accepted.
        hint: String,
    },
}

fn unsupported(field: &str, value: &Value, hint: impl Into<String>) -> InvalidModelConfig {
    let value = value.to_string();
    InvalidModelConfig::Unsupported { field: field.into(), value, hint: hint.into() }
}

/// Fields that do not change what a forward or backward pass computes.
const NEUTRAL: [&str; 31] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "begin_suppress_tokens",
    "bad_words_ids",
    "chunk_size_feed_forward",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "model_type",
    "num_return_sequences",
    "pad_token_id",
    "prefix",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "temperature",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
    "unsloth_fixed",
    "unsloth_version",
];

#[derive(Deserialize)]
struct Fields {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Llama,
    Qwen2,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// An unsupported architecture, a missing field, or a field that changes the result in a way
    /// that is not implemented; the error names the field.
    pub fn from_json(text: &str) -> Result<Self, InvalidModelConfig> {
        let syntax = |error: serde_json::Error| InvalidModelConfig::Syntax(error.to_string());
        let value: Value = serde_json::from_str(text).map_err(syntax)?;
        let family = family(&value)?;
        let fields: Fields = serde_json::from_value(value).map_err(syntax)?;
        refuse_other_fields(&fields.other)?;
        let config = Self::from_fields(family, &fields)?;
        config.validate()?;
        Ok(config)
    }

    fn from_fields(family: Family, fields: &Fields) -> Result<Self, InvalidModelConfig> {
        if let Some(act) = fields.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(unsupported("hidden_act", &act.into(), "use \"silu\""));
        }
        let heads = fields.num_attention_heads.max(1);
        let attention_bias = fields.attention_bias.unwrap_or(false);
        if family == Family::Qwen2 && attention_bias {
            let hint = "Qwen2 always has biases on q, k and v and none on o; remove the field";
            return Err(unsupported("attention_bias", &true.into(), hint));
        }
        Ok(Self {
            hidden_size: fields.hidden_size,
            intermediate_size: fields.intermediate_size,
            num_layers: fields.num_hidden_layers,
            num_heads: fields.num_attention_heads,
            num_kv_heads: fields.num_key_value_heads.unwrap_or(fields.num_attention_heads),
            head_dim: fields.head_dim.unwrap_or(fields.hidden_size / heads),
            vocab_size: fields.vocab_size,
            max_positions: fields.max_position_embeddings.unwrap_or(match family {
                Family::Llama => 2048,
                Family::Qwen2 => 32768,
            }),
            rms_norm_eps: fields.rms_norm_eps.unwrap_or(1e-6),
            rope: rope(fields)?,
            tie_embeddings: fields.tie_word_embeddings.unwrap_or(false),
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: attention_bias,
            mlp_bias: fields.mlp_bias.unwrap_or(false),
            eos_token_ids: match &fields.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(id)) => vec![*id],
                Some(OneOrMany::Many(ids)) => ids.clone(),
            },
            bos_token_id: fields.bos_token_id,
        })
    }

    fn validate(&self) -> Result<(), InvalidModelConfig> {
        const DIM_MAX: usize = 1 << 20;
        const LAYERS_MAX: usize = 1 << 12;
        const POSITIONS_MAX: usize = 1 << 24;
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_positions),
        ];
        for (field, size) in sizes {
            let limit = match field {
                "max_position_embeddings" => POSITIONS_MAX,
                "num_hidden_layers" => LAYERS_MAX,
                _ => DIM_MAX,
            };
            if !(1..=limit).contains(&size) {
                return Err(unsupported(field, &size.into(), format!("use 1 to {limit}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let hint = format!("it must divide num_attention_heads = {}", self.num_heads);
            return Err(unsupported("num_key_value_heads", &self.num_kv_heads.into(), hint));
        }
        if self.num_heads * self.head_dim > DIM_MAX {
            let (heads, limit) = (self.num_heads, DIM_MAX);
            let hint = format!("{heads} heads of this width are over {limit} together");
            return Err(unsupported("head_dim", &self.head_dim.into(), hint));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(unsupported("head_dim", &self.head_dim.into(), "it must be even"));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            let hint = "use a number between 0 and 1, such as 1e-5";
            return Err(unsupported("rms_norm_eps", &self.rms_norm_eps.into(), hint));
        }
        Ok(())
    }

    /// Rows and columns \[out, in\] of a linear map's weight in a checkpoint.
    #[must_use]
    pub fn linear_shape(&self, target: TargetModule) -> [usize; 2] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let queries = self.num_heads * self.head_dim;
        let keys = self.num_kv_heads * self.head_dim;
        match target {
            TargetModule::QProj => [queries, hidden],
            TargetModule::KProj | TargetModule::VProj => [keys, hidden],
            TargetModule::OProj => [hidden, queries],
            TargetModule::GateProj | TargetModule::UpProj => [inner, hidden],
            TargetModule::DownProj => [hidden, inner],
        }
    }

    /// Whether a linear map has a bias.
    #[must_use]
    pub fn has_bias(&self, target: TargetModule) -> bool {
        match target {
            TargetModule::QProj | TargetModule::KProj | TargetModule::VProj => self.qkv_bias,
            TargetModule::OProj => self.o_bias,
            TargetModule::GateProj | TargetModule::UpProj | TargetModule::DownProj => self.mlp_bias,
        }
    }
}

fn family(value: &Value) -> Result<Family, InvalidModelConfig> {
    let of = |name: &str| match name {
        "LlamaForCausalLM" | "llama" => Ok(Family::Llama),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Family::Qwen2),
        other => Err(InvalidModelConfig::Architecture(other.to_owned())),
    };
    let model_type = value.get("model_type").and_then(Value::as_str).map(of).transpose()?;
    let architecture = value.get("architectures").and_then(|names| names.get(0));
    let architecture = architecture.and_then(Value::as_str).map(of).transpose()?;
    match (model_type, architecture) {
        (Some(kind), Some(named)) if kind != named => {
            Err(unsupported("model_type", &value["model_type"], "it contradicts architectures"))
        }
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => Err(InvalidModelConfig::Architecture("(none named)".to_owned())),
    }
}

fn refuse_other_fields(other: &Map<String, Value>) -> Result<(), InvalidModelConfig> {
    for (field, value) in other {
        let accepted = match field.as_str() {
            "pretraining_tp" => value == 1,
            "layer_types" => is_all(value, "full_attention"),
            // Only read where use_sliding_window is on, which is refused like any unknown switch.
            "sliding_window" => {
                other.get("use_sliding_window").is_some_and(is_off) || is_off(value)
            }
            name => NEUTRAL.contains(&name) || is_off(value),
        };
        if !accepted {
            let hint = "Floret does not implement it, and it may change the model's output";
            return Err(unsupported(field, value, hint));
        }
    }
    Ok(())
}

fn is_all(value: &Value, text: &str) -> bool {
    value.is_null() || value.as_array().is_some_and(|all| all.iter().all(|one| one == text))
}

/// Whether a setting is switched off: null, false, zero or empty.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Joins both spellings: `rope_theta` beside `rope_scaling`, or everything in `rope_parameters`.
fn rope(fields: &Fields) -> Result<Rope, InvalidModelConfig> {
    let number = |map: &Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_f64).ok_or_else(|| {
            InvalidModelConfig::Syntax(format!("rope scaling lacks the number {key}"))
        })
    };
    let given = fields.rope_parameters.as_ref().or(fields.rope_scaling.as_ref());
    let named_theta = fields.rope_parameters.as_ref().and_then(|map| map.get("rope_theta"));
    let theta = named_theta.and_then(Value::as_f64).or(fields.rope_theta).unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 1.0) {
        return Err(unsupported("rope_theta", &theta.into(), "use a number above 1"));
    }
    let Some(map) = given else {
        return Ok(Rope { theta, scaling: None });
    };
    let kind = map.get("rope_type").or_else(|| map.get("type"));
    let known: &[&str] = match kind.and_then(Value::as_str).unwrap_or("default") {
        "default" => &[],
        "llama3" => {
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        }
        _ => {
            let kind = kind.unwrap_or(&Value::Null);
            return Err(unsupported("rope_type", kind, "use \"default\" or \"llama3\""));
        }
    };
    let partial_is_whole =
        |key: &str, value: &Value| key == "partial_rotary_factor" && value == 1.0;
    for (key, value) in map {
        let named = ["rope_type", "type", "rope_theta"].contains(&key.as_str());
        if !(named
            || known.contains(&key.as_str())
            || partial_is_whole(key, value)
            || is_off(value))
        {
            return Err(unsupported(&format!("rope {key}"), value, "Floret does not implement it"));
        }
    }
    if known.is_empty() {
        return Ok(Rope { theta, scaling: None });
    }
    let scaling = Llama3Scaling {
        factor: number(map, "factor")?,
        low_freq_factor: number(map, "low_freq_factor")?,
        high_freq_factor: number(map, "high_freq_factor")?,
        original_max_positions: number(map, "original_max_position_embeddings")?,
    };
    let in_order = 0.0 <= scaling.low_freq_factor
        && scaling.low_freq_factor < scaling.high_freq_factor
        && scaling.original_max_positions > 0.0;
    if !(scaling.factor >= 1.0 && in_order) {
        let hint = "factor must be at least 1, original_max_position_embeddings and \
                    low_freq_factor positive, and high_freq_factor above low_freq_factor";
        return Err(unsupported("rope_scaling", &Value::Object(map.clone()), hint));
    }
    Ok(Rope { theta, scaling: Some(scaling) })
}

#[cfg(test)]
mod tests;
