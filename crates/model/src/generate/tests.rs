use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::device::cpu;
use crate::precision::Precision;
use crate::testing::{config, plain_model, tokenizer};

fn config_of_300() -> ModelConfig {
    ModelConfig { vocab_size: 300, eos_token_ids: vec![], ..config() }
}

fn sampling(max_tokens: usize, temperature: f32, seed: u64) -> Sampling {
    Sampling { max_tokens, temperature, top_p: 1.0, seed: Seed::from_number(seed) }
}

#[test]
fn the_cache_changes_nothing() {
    let config = config();
    let model = plain_model(&config, 1);
    let cached = greedy_with_margins(&model, None, &[3, 5, 7], 20).unwrap();
    let mut text = vec![3, 5, 7];
    for (id, margin) in cached {
        let tokens = Tokens::new(&config, &[&text]).unwrap();
        let last = model.hidden(&tokens, None).narrow(0, text.len() - 1, 1);
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
        let mut on_text = |piece: &str| {
            pieces.push_str(piece);
            ControlFlow::Continue(())
        };
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
    // With next to no probability to draw from, the most likely token alone is left.
    let narrow = Sampling { top_p: 1e-6, ..sampling(40, 1.0, 1) };
    assert_eq!(run(&narrow), run(&sampling(40, 0.0, 1)));
    let wide = Sampling { top_p: 0.9, ..sampling(40, 1.0, 1) };
    assert_eq!(run(&wide), run(&wide));
}

#[test]
fn who_hears_the_text_can_stop_it() {
    let (config, dir) = (config_of_300(), tempfile::tempdir().unwrap());
    let (model, tokenizer) = (plain_model(&config, 2), tokenizer(dir.path(), &config));
    let run = |on_text: &mut dyn FnMut(&str) -> ControlFlow<()>| {
        generate(&model, None, &tokenizer, "The river", &sampling(40, 1.0, 1), on_text).unwrap()
    };
    let all = run(&mut |_| ControlFlow::Continue(()));
    let mut heard = Vec::new();
    let told = run(&mut |piece| {
        heard.push(piece.to_owned());
        ControlFlow::Break(())
    });
    assert_eq!(heard, std::slice::from_ref(&told));
    assert!(all.starts_with(&told) && all.len() > told.len(), "{told:?} {all:?}");
}

#[test]
fn the_nucleus_is_the_smallest_set_of_likely_tokens_that_holds_top_p() {
    let logits = [0.1f32, 0.4, 0.2, 0.2, 0.1].map(f32::ln);
    let kept = |temperature: f32, top_p: f32| -> Vec<usize> {
        let weights = weights(&logits, temperature, top_p);
        (0..logits.len()).filter(|&id| weights[id] > 0.0).collect()
    };
    assert_eq!(kept(1.0, 0.1), [1]);
    // Of the two that are equally likely, the lower.
    assert_eq!(kept(1.0, 0.5), [1, 2]);
    assert_eq!(kept(1.0, 0.61), [1, 2, 3]);
    assert_eq!(kept(1.0, 0.85), [0, 1, 2, 3]);
    assert_eq!(kept(1.0, 1.0), [0, 1, 2, 3, 4]);
    // A temperature of a half squares the probabilities: 0.16 of 0.26 is more than 0.61.
    assert_eq!(kept(0.5, 0.61), [1]);

    let nucleus = Sampling { top_p: 0.61, ..sampling(1, 1.0, 1) };
    let mut stream = Seed::from_number(1).stream();
    let drawn: BTreeSet<u32> = (0..1000).map(|_| sample(&logits, &nucleus, &mut stream)).collect();
    assert_eq!(drawn, BTreeSet::from([1, 2, 3]));
    // Those that are kept keep their weights, and 1 changes none.
    let (all, some) = (weights(&logits, 0.7, 1.0), weights(&logits, 0.7, 0.61));
    let softmax = logits.map(|logit| (f64::from(logit - logits[1]) / f64::from(0.7f32)).exp());
    assert_eq!(all, softmax);
    assert!(some.iter().zip(&all).all(|(some, all)| *some == 0.0 || some == all));
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
    let error_of = |prompt: &str, sampling: &Sampling| {
        let on_text = &mut |_: &str| ControlFlow::Continue(());
        let result = generate(&model, None, &tokenizer, prompt, sampling, on_text);
        result.unwrap_err().to_string()
    };
    let error = |prompt: &str, temperature| error_of(prompt, &sampling(1, temperature, 1));
    let long = error(&"word ".repeat(100), 0.0);
    assert!(long.contains("prompt") && long.contains("max_position_embeddings = 64"), "{long}");
    assert!(!long.contains("word"), "{long}");
    assert!(error("The", -1.0).contains("temperature"));
    assert!(error("The", f32::NAN).contains("temperature"));
    for top_p in [0.0, -0.5, 1.1, f32::NAN] {
        let error = error_of("The", &Sampling { top_p, ..sampling(1, 1.0, 1) });
        assert!(error.contains("top_p must be above 0"), "{top_p}: {error}");
    }
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
    let model = checkpoint.load(Precision::F32, &cpu()).unwrap();
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
    let sampling = sampling(got.len(), 0.0, 0);
    let on_text = &mut |_: &str| ControlFlow::Continue(());
    let told = generate(&model, None, &tokenizer, "", &sampling, on_text);
    let text = golden["greedy_text"].as_str().unwrap();
    assert_eq!(told.unwrap().trim_start(), text.trim_start());
}
