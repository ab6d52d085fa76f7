//! The two files of a PEFT adapter: `adapter_config.json`, a zero byte, and
//! `adapter_model.safetensors`.

use floret_core::lora::TargetModule;
use floret_core::peft::{from_peft, to_peft};
use floret_core::{Adapter, Layout, LoraConfig, ModelConfig, Seed};

use super::Target;
use super::model_fixture::{lora, models};

pub(super) const TARGET: Target =
    Target { name: "peft", run, limit, seeds, share: 10, longest: 2000 };

/// Wide enough that a large rank is seen in the memory that it takes.
fn model() -> ModelConfig {
    ModelConfig { hidden_size: 48, ..models()[0].clone() }
}

fn run(data: &[u8]) -> bool {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (config, weights) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Ok(config) = std::str::from_utf8(config) else { return false };
    let model = &model();
    let Ok((lora, adapter)) = from_peft(config, weights, model) else { return false };
    let files = to_peft(&adapter, &lora, "base");
    let again = from_peft(&files.config, &files.weights, model);
    let Ok((same, again)) = again else { panic!("what was written cannot be read") };
    assert_eq!(again.digest(), adapter.digest());
    assert_eq!((same.rank, same.use_rslora), (lora.rank, lora.use_rslora));
    true
}

/// JSON values and tensor headers, which are many times as large as their text. What the settings
/// alone announce (a rank of 1024) must not be allocated.
fn limit(data: &[u8]) -> usize {
    60 * data.len() + 16 * 1024
}

fn join(config: &str, weights: &[u8]) -> Vec<u8> {
    [config.as_bytes(), &[0], weights].concat()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let files = |lora: &LoraConfig| {
        let layout = Layout::new(&model(), lora).unwrap_or_else(|e| unreachable!("{e}"));
        to_peft(&Adapter::init(layout.into(), &Seed::from_number(1)), lora, "base")
    };
    let one = files(&lora(1, &[TargetModule::QProj]));
    let two = files(&lora(2, &[TargetModule::VProj, TargetModule::DownProj]));
    let short = r#"{"peft_type":"LORA","r":1,"lora_alpha":4,"target_modules":["q_proj"],"bias":"none","init_lora_weights":true,"lora_dropout":0.1,"rank_pattern":{},"modules_to_save":null}"#;
    vec![
        ("one", join(&one.config, &one.weights)),
        ("two", join(&two.config, &two.weights)),
        ("short", join(short, &one.weights)),
        ("no-weights", join(short, b"")),
        ("no-tensors", join(short, b"\x02\0\0\0\0\0\0\0{}")),
    ]
}
