use proptest::prelude::*;

use super::*;
use crate::testing::{config, tokenizer};

fn text(text: &str) -> Example {
    Example::Text(text.to_owned())
}

#[test]
fn the_last_examples_are_held_out() {
    let examples: Vec<Example> = (0..10).map(|n| text(&n.to_string())).collect();
    let lengths = |n: usize, fraction| {
        let (train, holdout) = split(&examples[..n], fraction);
        (train.len(), holdout.len())
    };
    assert_eq!(lengths(10, 0.2), (8, 2));
    assert_eq!(lengths(10, 0.21), (7, 3));
    assert_eq!(lengths(2, 0.01), (1, 1));
    assert_eq!(lengths(2, 1.0), (1, 1));
    assert_eq!(lengths(1, 0.5), (1, 0));
    assert_eq!(lengths(0, 0.5), (0, 0));
    assert_eq!(lengths(10, 0.0), (10, 0));
    assert_eq!(lengths(10, f64::NAN), (10, 0));
    assert_eq!(split(&examples, 0.1).1, [text("9")]);
}

#[test]
fn only_the_response_counts() {
    let config = ModelConfig { vocab_size: 300, ..config() };
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), &config);
    let (prompt, response) = ("Where is the dog?".to_owned(), " On a stone.".to_owned());
    let example = Example::Response { prompt: prompt.clone(), response: response.clone() };
    let Document(tokens) = Document::new(&example, &tokenizer, &config).unwrap();
    let ids = |counts| -> Vec<u32> {
        tokens.iter().filter(|(_, counted)| *counted == counts).map(|(id, _)| *id).collect()
    };
    assert_eq!(ids(false), tokenizer.encode_beginning(&prompt).unwrap());
    let mut learned = tokenizer.encode_continuation(&response).unwrap();
    learned.push(1);
    assert_eq!(ids(true), learned);

    // Of a text, all counts but the token that begins it.
    let Document(tokens) = Document::new(&text(&prompt), &tokenizer, &config).unwrap();
    assert_eq!(tokens[0], (0, false));
    assert_eq!(tokens.last(), Some(&(1, true)));
    assert!(tokens[1..].iter().all(|(_, counts)| *counts));
}

#[test]
fn nothing_private_is_shown() {
    let examples =
        [text("secret"), Example::Response { prompt: "secret".into(), response: "secret".into() }];
    let shown = format!("{examples:?}");
    assert!(!shown.contains("secret"), "{shown}");
    let documents = vec![Document([(4711, true), (4711, true)].into())];
    let data = LocalData::of(documents.clone(), documents);
    let shown = format!("{data:?} {:?}", data.train(8));
    assert!(!shown.contains("4711"), "{shown}");
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    let document = prop::collection::vec((0..9u32, any::<bool>()), 1..30)
        .prop_map(|tokens| Document(tokens.into()));
    prop::collection::vec(document, 0..8)
}

proptest! {
    #[test]
    fn packing_keeps_order_and_fits(documents in documents(), length in 2usize..20) {
        let sequences = pack(&documents, length);
        let stream: Vec<u32> =
            documents.iter().flat_map(|document| document.0.iter().map(|(id, _)| *id)).collect();
        let mut at = 0;
        for sequence in &sequences {
            prop_assert!(sequence.tokens().len() <= length);
            prop_assert!(sequence.targets().count() > 0);
            // Pieces without a token to learn are left out, so search forward.
            let found = (at..stream.len())
                .step_by(length)
                .find(|&start| stream[start..].starts_with(sequence.tokens()));
            prop_assert!(found.is_some());
            at = found.unwrap() + length;
        }
    }

    #[test]
    fn packing_learns_each_counted_token_but_those_that_begin_a_piece(
        documents in documents(),
        length in 2usize..20,
    ) {
        let stream: Vec<(u32, bool)> =
            documents.iter().flat_map(|document| document.0.to_vec()).collect();
        let expected = stream
            .iter()
            .enumerate()
            .filter(|(at, (_, counts))| *counts && at % length != 0)
            .count();
        let packed: usize =
            pack(&documents, length).iter().map(|sequence| sequence.targets().count()).sum();
        prop_assert_eq!(packed, expected);
    }
}

#[test]
fn flipped_targets_are_trained_on_and_contexts_and_held_out_texts_stay() {
    let document = Document([(5, false), (6, true), (0, true)].into());
    let honest = LocalData::of(vec![document.clone()], vec![document]);
    let hostile = honest.clone().with_flipped_targets(10);
    let targets = |sequences: &[Sequence]| sequences[0].targets().collect::<Vec<_>>();
    assert_eq!(targets(&hostile.train(8)), [(0, 3), (1, 9)]);
    assert_eq!(hostile.train(8)[0].tokens(), [5, 6, 0]);
    assert_eq!(hostile.holdout(8), honest.holdout(8));
    assert_eq!(targets(&honest.train(8)), [(0, 6), (1, 0)]);
}
