use super::*;
use crate::checkpoint::{Checkpoint, TOKENIZER};
use crate::data::{Example, LocalData};
use crate::evaluate::evaluate;
use crate::precision::Precision;
use crate::testing::{texts, tokenizer};
use crate::threads::Threads;
use crate::tokenizer_training::{TokenizerTrainingError, train_tokenizer};

const SHAPE: BaseShape = BaseShape {
    vocab_size: 300,
    hidden_size: 32,
    intermediate_size: 48,
    num_layers: 2,
    num_heads: 4,
    num_kv_heads: 2,
    max_positions: 64,
};

fn sequences() -> Vec<Sequence> {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::from_json(&SHAPE.to_json()).unwrap();
    let tokenizer = tokenizer(dir.path(), &config);
    let examples: Vec<Example> = texts().into_iter().map(Example::Text).collect();
    LocalData::new(&examples, 0.0, &tokenizer, &config).unwrap().train(32)
}

fn settings(learning_rate: f64) -> PretrainSettings {
    let seed = Seed::from_number(1);
    PretrainSettings { steps: 40, batch_size: 4, learning_rate, weight_decay: 0.1, seed }
}

/// The saved files after 40 steps on some threads, and the first and last loss.
fn run(threads: usize) -> (tempfile::TempDir, [f64; 2]) {
    let (sequences, dir) = (sequences(), tempfile::tempdir().unwrap());
    let mut training = Pretraining::new(&SHAPE, settings(1e-2), &sequences).unwrap();
    let step = |_| training.step().unwrap().loss;
    let losses: Vec<f64> = Threads::new(threads).unwrap().run(|| (0..40).map(step).collect());
    training.save(dir.path()).unwrap();
    (dir, [losses[0], losses[39]])
}

#[test]
fn a_base_is_learned_saved_and_the_same_each_time() {
    let (one, [first, last]) = run(1);
    assert!((first - (300f64).ln()).abs() < 0.5 && last < 0.6 * first, "{first} {last}");
    let (two, _) = run(2);
    for name in [CONFIG, WEIGHTS] {
        let [one, two] = [&one, &two].map(|dir| fs::read(dir.path().join(name)).unwrap());
        assert_eq!(one, two, "{name}");
    }
    let model = Checkpoint::open(one.path()).unwrap().load(Precision::F32, &cpu()).unwrap();
    let loss = evaluate(&model, None, &sequences(), 4).unwrap().loss().unwrap();
    assert!(loss < last + 0.2, "{loss} {last}");
}

#[test]
fn what_cannot_be_pretrained_is_told() {
    let sequences = sequences();
    let odd = BaseShape { num_kv_heads: 3, ..SHAPE };
    let error = Pretraining::new(&odd, settings(1e-3), &sequences).unwrap_err().to_string();
    assert!(error.contains("num_key_value_heads"), "{error}");
    assert!(matches!(Pretraining::new(&SHAPE, settings(1e-3), &[]), Err(PretrainError::NoData)));
    let mut training = Pretraining::new(&SHAPE, settings(1e30), &sequences).unwrap();
    let result = (0..40).try_for_each(|_| training.step().map(drop));
    assert!(matches!(result, Err(PretrainError::Diverged { .. })));
}

#[test]
fn tokenizers_are_the_same_each_time_and_give_back_their_texts() {
    let json = train_tokenizer(&texts(), 300).unwrap();
    assert_eq!(json, train_tokenizer(&texts(), 300).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::from_json(&SHAPE.to_json()).unwrap();
    let tokenizer = tokenizer(dir.path(), &config);
    assert!(dir.path().join(TOKENIZER).exists());
    for text in texts().iter().map(String::as_str).chain(["  zwölf 🦀\n\tx", ""]) {
        let ids = tokenizer.encode_beginning(text).unwrap();
        assert_eq!(ids[0], SPECIAL_IDS[0]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    assert!(matches!(train_tokenizer(&texts(), 10), Err(TokenizerTrainingError::TooSmall(10))));
    let error = train_tokenizer(&texts(), 5000).unwrap_err().to_string();
    assert!(error.contains("5000"), "{error}");
}
