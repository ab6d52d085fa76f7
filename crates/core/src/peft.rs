//! Adapters as PEFT saves them, as bytes: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeSet;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use crate::adapter::{Adapter, InvalidAdapter};
use crate::layout::Layout;
use crate::lora::{InvalidLora, LoraConfig, TargetModule};
use crate::model_config::{ModelConfig, is_off};
use crate::tensor_bytes::to_f32;

/// Name of the settings file in a PEFT directory.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the weights file in a PEFT directory.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Contents of a PEFT adapter directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftFiles {
    /// `adapter_config.json`.
    pub config: String,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

/// A PEFT adapter that Floret cannot use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidPeft {
    /// Not JSON, or a field missing or of the wrong type.
    #[error("{CONFIG_FILE}: {0}")]
    Syntax(String),
    /// A setting that is not implemented.
    #[error("{CONFIG_FILE}: {field} = {value} is not supported: {hint}")]
    Unsupported {
        /// Name of the setting.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What would be accepted.
        hint: &'static str,
    },
    /// A LoRA setting out of range.
    #[error("{CONFIG_FILE}: {0}")]
    Lora(#[from] InvalidLora),
    /// Not a safetensors file.
    #[error("{WEIGHTS_FILE}: {0}")]
    Weights(String),
    /// A tensor that is missing, unexpected, or of a wrong shape or type.
    #[error("{WEIGHTS_FILE}: tensor {name} {problem}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Values that are not finite.
    #[error("{WEIGHTS_FILE}: {0}")]
    Values(#[from] InvalidAdapter),
}

/// The PEFT files of `adapter`; `base` is recorded as the name or path of the base model.
///
/// # Panics
/// Never: the layout's tensors are well-formed by construction.
#[must_use]
pub fn to_peft(adapter: &Adapter, lora: &LoraConfig, base: &str) -> PeftFiles {
    let targets: Vec<&str> = lora.target_modules.iter().map(|target| target.name()).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.use_rslora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "modules_to_save": null,
    });
    let bytes = adapter.to_bytes();
    let views = adapter.layout().tensors().iter().map(|tensor| {
        let range = tensor.range();
        let bytes = &bytes[range.start * size_of::<f32>()..range.end * size_of::<f32>()];
        let view = TensorView::new(Dtype::F32, tensor.shape.to_vec(), bytes);
        (
            tensor.name.as_str(),
            view.unwrap_or_else(|_| unreachable!("a range has its shape's size")),
        )
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let weights = safetensors::serialize(views, metadata);
    let weights = weights.unwrap_or_else(|_| unreachable!("views of one layout do not overlap"));
    PeftFiles { config: format!("{config:#}\n"), weights }
}

/// The settings and adapter of PEFT files, for a base model of shape `model`.
///
/// # Errors
/// A setting that is not implemented, a missing or unexpected tensor, a wrong shape or type, or a
/// value that is not finite; each is named.
pub fn from_peft(
    config: &str,
    weights: &[u8],
    model: &ModelConfig,
) -> Result<(LoraConfig, Adapter), InvalidPeft> {
    let lora = lora_config(config)?;
    let layout = Arc::new(Layout::new(model, &lora)?);
    let file = SafeTensors::deserialize(weights)
        .map_err(|error| InvalidPeft::Weights(error.to_string()))?;
    let known: BTreeSet<&str> = layout.tensors().iter().map(|spec| spec.name.as_str()).collect();
    if let Some(name) = file.names().into_iter().find(|name| !known.contains(name)) {
        let problem = "does not belong to the model and settings of this adapter".to_owned();
        return Err(InvalidPeft::Tensor { name: name.to_owned(), problem });
    }
    // What the settings announce is allocated only when the tensors are there.
    let mut views = Vec::with_capacity(layout.tensors().len());
    for spec in layout.tensors() {
        let wrong = |problem| InvalidPeft::Tensor { name: spec.name.clone(), problem };
        let view = file.tensor(&spec.name).map_err(|_| wrong("is missing".to_owned()))?;
        if view.shape() != spec.shape {
            let (got, want) = (view.shape(), spec.shape);
            return Err(wrong(format!("has shape {got:?} where {want:?} is needed")));
        }
        views.push(view);
    }
    let mut values = Vec::with_capacity(layout.len());
    for (spec, view) in layout.tensors().iter().zip(views) {
        let dtype = view.dtype();
        let tensor = to_f32(dtype, view.data()).ok_or_else(|| InvalidPeft::Tensor {
            name: spec.name.clone(),
            problem: format!("has type {dtype:?}: use f32, f16 or bf16"),
        })?;
        values.extend(tensor);
    }
    Ok((lora, Adapter::new(layout, values)?))
}

/// Settings without effect on a saved LoRA adapter's output.
const NEUTRAL: [&str; 12] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    // Where a class would come from; only read with megatron_config, which is refused.
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "task_type",
];

fn lora_config(text: &str) -> Result<LoraConfig, InvalidPeft> {
    let syntax = |error: serde_json::Error| InvalidPeft::Syntax(error.to_string());
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(syntax)?;
    let unsupported = |field: &str, hint| {
        let value = fields.get(field).unwrap_or(&Value::Null).to_string();
        Err(InvalidPeft::Unsupported { field: field.to_owned(), value, hint })
    };
    if fields.get("peft_type").is_none_or(|kind| kind != "LORA") {
        return unsupported("peft_type", "use \"LORA\"");
    }
    for (field, value) in &fields {
        match field.as_str() {
            "lora_alpha" | "use_rslora" | "target_modules" => {}
            "bias" if value == "none" => {}
            // Others, such as PiSSA, also change the base model that the adapter belongs to.
            "init_lora_weights" if value.is_boolean() || value == "gaussian" => {}
            name if NEUTRAL.contains(&name) || is_off(value) => {}
            _ => return unsupported(field, "Floret does not implement it: save without it"),
        }
    }
    let missing = |field: &str| InvalidPeft::Syntax(format!("{field} is missing or no number"));
    let rank = fields.get("r").and_then(Value::as_u64).and_then(|rank| rank.try_into().ok());
    let alpha = fields.get("lora_alpha").and_then(Value::as_f64);
    let mut target_modules = Vec::new();
    let names = fields.get("target_modules").and_then(Value::as_array);
    for name in names.map(Vec::as_slice).unwrap_or_default() {
        match name.as_str().and_then(TargetModule::from_name) {
            Some(target) => target_modules.push(target),
            None => return unsupported("target_modules", "name q_proj .. down_proj, as a list"),
        }
    }
    target_modules.sort_unstable();
    let lora = LoraConfig {
        rank: rank.ok_or_else(|| missing("r"))?,
        alpha: alpha.ok_or_else(|| missing("lora_alpha"))? as f32,
        use_rslora: fields.get("use_rslora") == Some(&Value::Bool(true)),
        target_modules,
    };
    lora.validate()?;
    Ok(lora)
}

#[cfg(test)]
mod tests;
