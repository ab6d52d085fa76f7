use super::*;
use serde_json::json;

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "torch_dtype": "float32", "rope_theta": 10000.0, "tie_word_embeddings": true,
        "pretraining_tp": 1, "use_cache": true, "eos_token_id": [2, 3]
    })
}

fn with(field: &str, value: Value) -> Result<ModelConfig, InvalidModelConfig> {
    let mut config = llama();
    config[field] = value;
    ModelConfig::from_json(&config.to_string())
}

#[test]
fn both_spellings_of_rope_agree() {
    let old = with("rope_theta", json!(50000.0)).unwrap();
    let mut config = llama();
    config.as_object_mut().unwrap().remove("rope_theta");
    config["rope_parameters"] = json!({"rope_theta": 50000.0, "rope_type": "default"});
    config["dtype"] = json!("bfloat16");
    let new = ModelConfig::from_json(&config.to_string()).unwrap();
    assert_eq!(old, new);
    assert_eq!(old.rope.theta, 50000.0);
    assert_eq!(old.eos_token_ids, [2, 3]);
    assert_eq!(old.head_dim, 8);
}

#[test]
fn llama3_scaling_keeps_short_and_divides_long_wavelengths() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let mut config = llama();
    config["rope_scaling"] = scaling;
    config["rope_theta"] = json!(500000.0);
    config["head_dim"] = json!(64);
    let config = ModelConfig::from_json(&config.to_string()).unwrap();
    let plain = Rope { theta: 500000.0, scaling: None }.inverse_frequencies(64);
    let scaled = config.rope.inverse_frequencies(64);
    assert_eq!(scaled[0], plain[0]);
    assert!((scaled[31] - plain[31] / 8.0).abs() < 1e-18);
    assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0));
}

#[test]
fn fields_that_change_the_result_are_refused_by_name() {
    let refused = [
        ("hidden_act", json!("gelu")),
        ("pretraining_tp", json!(2)),
        ("attention_dropout", json!(0.1)),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("quantization_config", json!({"bits": 4})),
        ("logit_scale", json!(0.5)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("hidden_size", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
    ];
    for (field, value) in refused {
        let error = with(field, value).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    let yarn = with("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})).unwrap_err();
    assert!(yarn.to_string().contains("yarn"), "{yarn}");
}

#[test]
fn fields_that_are_off_or_neutral_are_accepted() {
    for (field, value) in [
        ("attention_dropout", json!(0.0)),
        ("use_sliding_window", json!(false)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("rope_interleaved", json!(false)),
        ("some_new_switch", json!(null)),
        ("initializer_range", json!(0.02)),
    ] {
        with(field, value).unwrap();
    }
}

#[test]
fn other_architectures_and_broken_files_say_so() {
    let error = with("architectures", json!(["GPT2LMHeadModel"])).unwrap_err().to_string();
    assert!(error.contains("GPT2LMHeadModel"), "{error}");
    let error = with("model_type", json!("qwen2")).unwrap_err().to_string();
    assert!(error.contains("contradicts"), "{error}");
    let error = ModelConfig::from_json("{\"model_type\": \"llama\"}").unwrap_err().to_string();
    assert!(error.contains("hidden_size"), "{error}");
    assert!(ModelConfig::from_json("{").is_err());
    assert!(ModelConfig::from_json("[]").is_err());
}

#[test]
fn qwen2_has_biases_on_q_k_v_only() {
    let mut config = llama();
    config["architectures"] = json!(["Qwen2ForCausalLM"]);
    config["model_type"] = json!("qwen2");
    config["sliding_window"] = json!(4096);
    config["use_sliding_window"] = json!(false);
    let config = ModelConfig::from_json(&config.to_string()).unwrap();
    assert!(config.has_bias(TargetModule::QProj) && config.has_bias(TargetModule::VProj));
    assert!(!config.has_bias(TargetModule::OProj) && !config.has_bias(TargetModule::UpProj));
}

#[test]
fn sizes_are_bounded_alone_and_multiplied() {
    for (field, value) in [("hidden_size", 1 << 21), ("num_hidden_layers", 5000), ("head_dim", 0)] {
        let error = with(field, json!(value)).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("use 1 to"), "{error}");
    }
    // 8 heads of 2^20 would make rows of a size that overflows a layout.
    let error = with("head_dim", json!(1 << 20)).unwrap_err().to_string();
    assert!(error.contains("8 heads of this width"), "{error}");
}

#[test]
fn llama3_scaling_gives_finite_frequencies_or_is_refused() {
    for (low, high, positions) in
        [(-1.79e308, 1.79e308, 1.79e308), (1.0, 4.0, -8192.0), (4.0, 4.0, 1.0)]
    {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": positions});
        let error = with("rope_scaling", scaling).unwrap_err().to_string();
        assert!(error.contains("high_freq_factor above"), "{error}");
    }
}
