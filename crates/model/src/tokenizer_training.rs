//! A byte-level BPE tokenizer trained from texts (Sennrich et al. 2016, arXiv 1508.07909).

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// The token that begins a text; its id is 0.
const BEGINNING: &str = "<s>";
/// The token that ends a text; its id is 1.
const END: &str = "</s>";
/// Ids of the tokens that begin and end a text.
pub const SPECIAL_IDS: [u32; 2] = [0, 1];
/// Smallest vocabulary: all bytes, and the two special tokens.
pub const VOCAB_MIN: usize = 258;

/// A tokenizer that could not be trained.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerTrainingError {
    /// No room for all bytes.
    #[error("a vocabulary of {0} tokens cannot hold all bytes: use {VOCAB_MIN} or more")]
    TooSmall(usize),
    /// Not enough text.
    #[error(
        "the texts only give {got} tokens of the {want} asked for: use more text, or a smaller \
         vocabulary"
    )]
    TooFewTexts {
        /// Tokens found.
        got: usize,
        /// Tokens asked for.
        want: usize,
    },
    /// What crate `tokenizers` said.
    #[error("the tokenizer could not be trained: {0}")]
    Training(#[from] tokenizers::Error),
}

/// The `tokenizer.json` of a tokenizer with `vocab_size` tokens, trained on `texts`. The same texts
/// give the same bytes.
///
/// # Errors
/// A vocabulary that is too small for all bytes, or too large for the texts.
pub fn train_tokenizer(
    texts: &[String],
    vocab_size: usize,
) -> Result<String, TokenizerTrainingError> {
    if vocab_size < VOCAB_MIN {
        return Err(TokenizerTrainingError::TooSmall(vocab_size));
    }
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens([BEGINNING, END].map(|token| AddedToken::from(token, true)).into())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.iter())?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{BEGINNING} $A"))
        .and_then(|builder| builder.try_pair(format!("{BEGINNING} $A $B:1")))
        .map_err(tokenizers::Error::from)?
        .special_tokens(vec![(BEGINNING, SPECIAL_IDS[0])])
        .build()
        .map_err(tokenizers::Error::from)?;
    tokenizer.with_post_processor(Some(template));
    let got = tokenizer.get_vocab_size(true);
    if got != vocab_size {
        return Err(TokenizerTrainingError::TooFewTexts { got, want: vocab_size });
    }
    Ok(tokenizer.to_string(true)?)
}
