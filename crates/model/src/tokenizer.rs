//! A `tokenizer.json`, as crate `tokenizers` reads it.

mod outline;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use floret_core::ModelConfig;

/// A tokenizer whose ids all lie within a model's vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    vocab_size: usize,
}

/// A tokenizer that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTokenizer {
    /// A file that is missing or no tokenizer.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A token beyond the model's vocabulary.
    #[error(
        "{path}: it has a token id {id} where the model's vocab_size is {vocab_size}: use the \
         tokenizer that belongs to the model"
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The largest id.
        id: u32,
        /// Number of ids that the model has.
        vocab_size: usize,
    },
}

fn unreadable(path: &Path, error: &dyn Error) -> InvalidTokenizer {
    file(path, format!("it cannot be read as a tokenizer: {error}"))
}

fn file(path: &Path, problem: String) -> InvalidTokenizer {
    InvalidTokenizer::File { path: path.to_owned(), problem }
}

/// A text that the tokenizer could not take, or ids that it could not turn into text. The text is
/// private and is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer cannot convert this text: its tokenizer.json lacks a rule for it")]
pub struct NotTokenizable;

impl Tokenizer {
    /// Reads the file at `path` for a model of shape `config`.
    ///
    /// # Errors
    /// A file that is missing or no tokenizer, or has ids beyond the model's vocabulary.
    pub fn open(path: &Path, config: &ModelConfig) -> Result<Self, InvalidTokenizer> {
        let text = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
        Self::from_bytes(path, &text, config)
    }

    /// Reads `bytes`, the content of the file at `path`, for a model of shape `config`.
    ///
    /// # Errors
    /// No tokenizer, or ids beyond the model's vocabulary.
    pub fn from_bytes(
        path: &Path,
        bytes: &[u8],
        config: &ModelConfig,
    ) -> Result<Self, InvalidTokenizer> {
        outline::check(bytes).map_err(|problem| file(path, problem))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| unreadable(path, &*error))?;
        let vocab_size = config.vocab_size;
        match inner.get_vocab(true).into_values().max() {
            Some(id) if id as usize >= vocab_size => {
                return Err(InvalidTokenizer::Vocabulary { path: path.to_owned(), id, vocab_size });
            }
            Some(_) => {}
            None => {
                return Err(file(path, "it has no token at all".to_owned()));
            }
        }
        // Saved settings of some past batch; they would cut or pad documents.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        Ok(Self { inner, special, vocab_size })
    }

    /// Token ids of the beginning of a text, with what the tokenizer puts before it (such as
    /// `<s>`).
    ///
    /// # Errors
    /// A text that the tokenizer has no rule for.
    pub fn encode_beginning(&self, text: &str) -> Result<Vec<u32>, NotTokenizable> {
        self.encode(text, true)
    }

    /// Token ids of a text that follows another.
    ///
    /// # Errors
    /// A text that the tokenizer has no rule for.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, NotTokenizable> {
        self.encode(text, false)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, NotTokenizable> {
        let encoding = self.inner.encode_fast(text, special).map_err(|_| NotTokenizable)?;
        let ids = encoding.get_ids().to_vec();
        // Templates bring ids of their own.
        let known = ids.iter().all(|id| (*id as usize) < self.vocab_size);
        known.then_some(ids).ok_or(NotTokenizable)
    }

    /// The text of `ids`, without special tokens.
    ///
    /// # Errors
    /// Ids that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32]) -> Result<String, NotTokenizable> {
        self.inner.decode(ids, true).map_err(|_| NotTokenizable)
    }

    /// Whether `id` is a special token, such as `<s>`.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.inner.get_vocab_size(true))
    }
}

/// Turns tokens into text as they come; a character split over tokens waits until it is whole.
pub(crate) struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens whose text was given, and those that wait.
    ids: Vec<u32>,
    /// How many of `ids` were given.
    given: usize,
}

/// Tokens of context from which a tokenizer can tell whether a space belongs before the next.
const CONTEXT: usize = 8;

impl<'a> TextStream<'a> {
    /// Text that follows that of `ids`.
    pub(crate) fn new(tokenizer: &'a Tokenizer, ids: &[u32]) -> Self {
        let ids = ids[ids.len().saturating_sub(CONTEXT)..].to_vec();
        Self { tokenizer, given: ids.len(), ids }
    }

    /// The text that still waits, whole or not, if any.
    pub(crate) fn finish(self) -> Result<Option<String>, NotTokenizable> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let after = self.tokenizer.decode(&self.ids)?;
        Ok(after.strip_prefix(&before).map(str::to_owned).filter(|rest| !rest.is_empty()))
    }

    /// Appends a token; returns the text that is now whole, if any.
    pub(crate) fn push(&mut self, id: u32) -> Result<Option<String>, NotTokenizable> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let after = self.tokenizer.decode(&self.ids)?;
        if after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let Some(new) = after.strip_prefix(&before) else {
            return Ok(None);
        };
        self.ids.drain(..self.ids.len().saturating_sub(CONTEXT));
        self.given = self.ids.len();
        Ok(Some(new.to_owned()).filter(|new| !new.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_a_template_brings_lie_within_the_vocabulary() {
        let config = ModelConfig::from_json(
            r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
                "vocab_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1}"#,
        );
        let config = config.unwrap();
        let open = |id: u32| {
            let text = format!(
                r#"{{"version": "1.0", "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1}},
                    "merges": []}}, "post_processor": {{"type": "TemplateProcessing", "single":
                    [{{"SpecialToken": {{"id": "<s>", "type_id": 0}}}}, {{"Sequence": {{"id": "A",
                    "type_id": 0}}}}], "pair": [], "special_tokens": {{"<s>": {{"id": "<s>",
                    "ids": [{id}], "tokens": ["<s>"]}}}}}}}}"#
            );
            Tokenizer::from_bytes(Path::new("tokenizer.json"), text.as_bytes(), &config).unwrap()
        };
        assert_eq!(open(2).encode_beginning("ab").unwrap(), [2, 0, 1]);
        assert_eq!(open(3).encode_beginning("ab"), Err(NotTokenizable));
        assert_eq!(open(3).encode_continuation("ab").unwrap(), [0, 1]);
    }
}
