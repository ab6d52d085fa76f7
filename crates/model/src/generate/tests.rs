use std::path::Path;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::device::cpu;
use crate::testing::{config, plain_model, tokenizer};

fn config_of_300() -> ModelConfig {
    ModelConfig { vocab_size: 300, eos_token_ids: vec![], ..config() }
}

fn sampling(max_tokens: usize, temperature: f32, seed: u64) -> Sampling {
    Sampling { max_tokens, temperature, seed: Seed::from_number(seed) }
}

#[test]
fn the_cache_changes_nothing() {
    let config = config();
    let model = plain_model(&config, 1);
    let cached = greedy_with_margins(&model, None, &[3, 5, 7], 20).unwrap();
    let mut text = vec![3, 5, 7];
    for (id, margin) in cached {
        let tokens = Tokens::new(&config, &[&text]).unwrap();
        let last = model.hidden(&tokens, None, None).narrow(0, text.len() - 1, 1);
        let logits = values(model.logits(last));
        assert!(margin < 1e-3 || most_likely(&logits) == id);
        text.push(id);
    }
}

#[test]
fn pieces_add_up_and_draws_are_seeded() {
    let (config, dir) = (config_of_300(), tempfile::tempdir().unwrap());
    let (model, tokenizer) = (plain_model(&config, 2), tokenizer(dir.path(), &config));
    let run = |sampling: &Sampling| {
        let mut pieces = String::new();
        let mut on_text = |piece: &str| pieces.push_str(piece);
        let all = generate(&model, None, &tokenizer, "The river", sampling, &mut on_text).unwrap();
        assert_eq!(pieces, all);
        all
    };
    let drawn = run(&sampling(40, 1.0, 1));
    assert_eq!(drawn, run(&sampling(40, 1.0, 1)));
    assert_ne!(drawn, run(&sampling(40, 1.0, 2)));
    assert_eq!(run(&sampling(40, 0.0, 1)), run(&sampling(40, 0.0, 2)));
    assert_eq!(run(&sampling(0, 0.0, 1)), "");
    // It ends where the model's positions end.
    run(&sampling(10_000, 0.0, 1));
}

#[test]
fn characters_are_never_cut() {
    let (config, dir) = (config_of_300(), tempfile::tempdir().unwrap());
    let tokenizer = tokenizer(dir.path(), &config);
    let prompt = tokenizer.encode_beginning("The river").unwrap();
    let text = " 🦀 rose: é, ü and 川.";
    let mut stream = TextStream::new(&tokenizer, &prompt);
    let ids = tokenizer.encode_continuation(text).unwrap();
    assert!(ids.len() > text.chars().count(), "no character is split over tokens");
    let pieces = ids.iter().filter_map(|&id| stream.push(id).unwrap());
    assert_eq!(pieces.collect::<String>(), text);
}

#[test]
fn what_cannot_be_continued_is_told() {
    let (config, dir) = (config_of_300(), tempfile::tempdir().unwrap());
    let (model, tokenizer) = (plain_model(&config, 2), tokenizer(dir.path(), &config));
    let error = |prompt: &str, temperature| {
        let sampling = sampling(1, temperature, 1);
        let result = generate(&model, None, &tokenizer, prompt, &sampling, &mut |_| {});
        result.unwrap_err().to_string()
    };
    let long = error(&"word ".repeat(100), 0.0);
    assert!(long.contains("prompt") && long.contains("max_position_embeddings = 64"), "{long}");
    assert!(!long.contains("word"), "{long}");
    assert!(error("The", -1.0).contains("temperature"));
    assert!(error("The", f32::NAN).contains("temperature"));
}

#[test]
fn stories_are_told_as_by_the_original() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260K");
    let Ok(golden) = std::fs::read_to_string(dir.join("golden.json")) else {
        eprintln!("skipped: there is no ../shared/models beside this repository");
        return;
    };
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let numbers = |key: &str| -> Vec<f64> {
        let list = golden[key].as_array().unwrap();
        list.iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let tokenizer = Tokenizer::open(&dir.join("tokenizer.json"), checkpoint.config()).unwrap();
    let model = checkpoint.load(&cpu()).unwrap();
    let prompt = golden["prompt"].as_str().unwrap();
    let ids = tokenizer.encode_beginning(prompt).unwrap();
    assert_eq!(ids, numbers("prompt_ids").iter().map(|id| *id as u32).collect::<Vec<_>>());
    let first = Continuation::new(&model, None, &ids).unwrap();
    for (got, want) in first.logits.iter().zip(numbers("last_logits")) {
        assert!((f64::from(*got) - want).abs() < 1e-3, "{got} {want}");
    }
    for case in golden["encode_cases"].as_array().unwrap() {
        let want: Vec<u32> = serde_json::from_value(case[1].clone()).unwrap();
        assert_eq!(tokenizer.encode_beginning(case[0].as_str().unwrap()).unwrap(), want);
    }
    let want = numbers("greedy_ids_from_bos");
    let got = greedy_with_margins(&model, None, &[1], want.len() - 1).unwrap();
    let got: Vec<u32> = got.into_iter().map(|(id, _)| id).collect();
    assert_eq!(got, want[1..].iter().map(|id| *id as u32).collect::<Vec<_>>());
    let told = generate(&model, None, &tokenizer, "", &sampling(got.len(), 0.0, 0), &mut |_| {});
    let text = golden["greedy_text"].as_str().unwrap();
    assert_eq!(told.unwrap().trim_start(), text.trim_start());
}
