use super::*;
use crate::testing::config;

#[test]
fn only_tokens_that_the_model_can_take_are_accepted() {
    let config = config();
    let tokens = Tokens::new(&config, &[&[1, 2, 3], &[4]]).unwrap();
    assert_eq!((tokens.shape(), tokens.ids()), ([2, 3], &[1, 2, 3, 4, 0, 0][..]));
    let error = |rows: &[&[u32]]| Tokens::new(&config, rows).unwrap_err();
    assert_eq!(error(&[]), InvalidTokens::Empty);
    assert_eq!(error(&[&[], &[]]), InvalidTokens::Empty);
    assert_eq!(error(&[&[39, 40]]), InvalidTokens::Vocabulary(40));
    assert_eq!(error(&[&[1; 65]]), InvalidTokens::TooLong { length: 65, max: 64 });
}

#[test]
fn a_batch_predicts_each_counted_token_from_the_one_before() {
    let sequence = |tokens: &[(u32, bool)]| Sequence::new(tokens.iter().copied());
    let long = sequence(&[(5, true), (6, false), (7, true), (8, true)]).unwrap();
    let short = sequence(&[(9, false), (4, true)]).unwrap();
    let batch = Batch::new(&config(), &[&long, &short]).unwrap();
    assert_eq!(batch.tokens.shape(), [2, 4]);
    assert_eq!(batch.rows, [1, 2, 4]);
    assert_eq!(batch.targets, [7, 8, 4]);
    assert_eq!(batch.counted(), 3);
    // The first token has none before it.
    assert_eq!(sequence(&[(5, true)]), None);
    assert_eq!(sequence(&[(5, true), (6, false)]), None);
    assert!(!format!("{batch:?} {long:?}").contains('7'));
}
