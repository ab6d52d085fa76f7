use super::*;
use crate::seed::Seed;

fn model() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "vocab_size": 16,
            "num_hidden_layers": 11, "num_attention_heads": 2, "num_key_value_heads": 1}"#,
    )
    .unwrap()
}

fn lora() -> LoraConfig {
    LoraConfig {
        rank: 2,
        alpha: 4.0,
        use_rslora: true,
        target_modules: vec![TargetModule::QProj, TargetModule::VProj, TargetModule::DownProj],
    }
}

fn adapter() -> Adapter {
    Adapter::init(Arc::new(Layout::new(&model(), &lora()).unwrap()), &Seed::from_number(1))
}

#[test]
fn files_round_trip() {
    let files = to_peft(&adapter(), &lora(), "base");
    let (read_lora, read) = from_peft(&files.config, &files.weights, &model()).unwrap();
    assert_eq!((read_lora, read), (lora(), adapter()));
}

#[test]
fn layout_is_in_sorted_order_with_the_shapes_of_the_factors() {
    let adapter = adapter();
    let tensors = adapter.layout().tensors();
    assert!(tensors.is_sorted_by_key(|tensor| &tensor.name));
    assert_eq!(tensors.len(), 11 * 3 * 2);
    assert_eq!(tensors[0].name, "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight");
    assert_eq!((tensors[0].shape, tensors[1].shape), ([2, 12], [8, 2]));
    let b_is_zero = tensors
        .iter()
        .filter(|tensor| tensor.rank() == tensor.shape[1])
        .all(|tensor| adapter.values()[tensor.range()].iter().all(|value| *value == 0.0));
    assert!(b_is_zero);
    let bound = 1.0 / 12f32.sqrt();
    let a = &adapter.values()[tensors[0].range()];
    assert!(a.iter().all(|value| value.abs() <= bound && *value != 0.0), "{a:?}");
}

fn error(config: &str, weights: &[u8]) -> String {
    from_peft(config, weights, &model()).unwrap_err().to_string()
}

#[test]
fn settings_that_are_not_implemented_are_named() {
    let files = to_peft(&adapter(), &lora(), "base");
    for (from, to, word) in [
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
        ("\"fan_in_fan_out\": false", "\"use_dora\": true", "use_dora"),
        ("\"modules_to_save\": null", "\"modules_to_save\": [\"head\"]", "modules_to_save"),
        ("\"modules_to_save\": null", "\"rank_pattern\": {\"q_proj\": 4}", "rank_pattern"),
        ("\"modules_to_save\": null", "\"init_lora_weights\": \"pissa\"", "init_lora_weights"),
        ("\"LORA\"", "\"IA3\"", "peft_type"),
        ("\"q_proj\"", "\"c_attn\"", "target_modules"),
        ("\"r\": 2", "\"r\": 0", "rank"),
        ("\"r\": 2", "\"rank\": 0", "r is missing"),
    ] {
        let config = files.config.replace(from, to);
        assert_ne!(config, files.config, "{from}");
        let error = error(&config, &files.weights);
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn wrong_weights_name_the_tensor() {
    let files = to_peft(&adapter(), &lora(), "base");
    let fewer = files.config.replace("\"v_proj\"", "\"up_proj\"");
    assert!(error(&fewer, &files.weights).contains("v_proj"));
    let wider = files.config.replace("\"r\": 2", "\"r\": 3");
    assert!(error(&wider, &files.weights).contains("shape [2,"));
    let wide = files.config.replace("\"r\": 2", "\"r\": 1024");
    assert!(error(&wide, b"\x02\0\0\0\0\0\0\0{}").contains("is missing"));
    let cut = &files.weights[..files.weights.len() - 1];
    assert!(error(&files.config, cut).contains(WEIGHTS_FILE));
    let mut nan = files.weights.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(error(&files.config, &nan).contains("not finite"));
}
