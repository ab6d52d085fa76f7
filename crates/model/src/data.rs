//! A client's own data: examples, their tokens, and the sequences that training takes.

use std::fmt;
use std::sync::Arc;

use floret_core::ModelConfig;
use floret_core::plan::TrainingConfig;

use crate::tokenizer::{NotTokenizable, Tokenizer};
use crate::tokens::Sequence;

/// One example of a client.
#[derive(Clone, PartialEq, Eq)]
pub enum Example {
    /// A text, all of which is learned.
    Text(String),
    /// A prompt and the response to it; only the response is learned.
    Response {
        /// What is given.
        prompt: String,
        /// What follows it.
        response: String,
    },
}

/// Splits `examples`, in the order in which they were read: the last ceil(`fraction` n) are held
/// out, but always at least one is trained on. A fraction of 0 (or not between 0 and 1) holds out
/// none or all but one.
#[must_use]
pub fn split<T>(examples: &[T], fraction: f64) -> (&[T], &[T]) {
    let n = examples.len();
    let held_out = (n as f64 * fraction).ceil().max(0.0) as usize;
    examples.split_at(n - held_out.min(n.saturating_sub(1)))
}

/// What one client trains and is evaluated on, as tokens.
#[derive(Debug, Clone, Default)]
pub struct LocalData {
    train: Vec<Document>,
    holdout: Vec<Document>,
    /// Tokens that there are, for one who trains on flipped targets.
    flipped: Option<usize>,
}

impl LocalData {
    /// Tokens of `examples`, of which the last `holdout_fraction` are held out (see [`split`]).
    ///
    /// # Errors
    /// An example that the tokenizer has no rule for.
    pub fn new(
        examples: &[Example],
        holdout_fraction: f64,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
    ) -> Result<Self, NotTokenizable> {
        let documents = |examples: &[Example]| {
            examples
                .iter()
                .map(|example| Document::new(example, tokenizer, config))
                .collect::<Result<Vec<_>, _>>()
        };
        let (train, holdout) = split(examples, holdout_fraction);
        Ok(Self::of(documents(train)?, documents(holdout)?))
    }

    /// The documents to train on and those held out.
    #[must_use]
    pub fn of(train: Vec<Document>, holdout: Vec<Document>) -> Self {
        Self { train, holdout, flipped: None }
    }

    /// The same with flipped targets to train on, in a vocabulary of so many tokens: see
    /// [`Sequence::with_flipped_targets`]. What is held out stays as it is.
    #[must_use]
    pub fn with_flipped_targets(self, vocabulary: usize) -> Self {
        Self { flipped: Some(vocabulary), ..self }
    }

    /// Number of examples to train on.
    #[must_use]
    pub fn num_examples(&self) -> usize {
        self.train.len()
    }

    /// Sequences to train on, of `length` tokens.
    #[must_use]
    pub fn train(&self, length: usize) -> Vec<Sequence> {
        let sequences = pack(&self.train, length);
        match self.flipped {
            Some(vocabulary) => {
                let flip = |sequence: Sequence| sequence.with_flipped_targets(vocabulary);
                sequences.into_iter().map(flip).collect()
            }
            None => sequences,
        }
    }

    /// Optimizer steps of training on it by `config`. Nothing is packed where its size does not matter.
    #[must_use]
    pub fn steps(&self, config: &TrainingConfig) -> u32 {
        match config.max_epochs {
            0 => config.max_steps,
            _ => config.steps(self.train(config.sequence_length as usize).len()),
        }
    }

    /// Sequences held out, of `length` tokens.
    #[must_use]
    pub fn holdout(&self, length: usize) -> Vec<Sequence> {
        pack(&self.holdout, length)
    }
}

/// Tokens of one example, each with whether the loss counts it. Clones share them.
#[derive(Clone)]
pub struct Document(Arc<[(u32, bool)]>);

impl Document {
    /// It begins as the tokenizer begins a text, and ends with the model's first id that ends one,
    /// so a model learns both where it will meet them when generating.
    ///
    /// # Errors
    /// An example that the tokenizer has no rule for.
    pub fn new(
        example: &Example,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
    ) -> Result<Self, NotTokenizable> {
        let given = |id| (id, false);
        let learned = |id| (id, true);
        let mut tokens: Vec<(u32, bool)> = match example {
            Example::Text(text) => {
                let ids = tokenizer.encode_beginning(text)?;
                ids.into_iter().map(|id| (id, !tokenizer.is_special(id))).collect()
            }
            Example::Response { prompt, response } => {
                let prompt = tokenizer.encode_beginning(prompt)?.into_iter().map(given);
                let response = tokenizer.encode_continuation(response)?.into_iter().map(learned);
                prompt.chain(response).collect()
            }
        };
        if let Some(&end) = config.eos_token_ids.first() {
            // Some tokenizers put it there themselves.
            tokens.pop_if(|(id, _)| *id == end);
            tokens.push(learned(end));
        }
        Ok(Self(tokens.into()))
    }

    /// Number of tokens.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<(u32, bool)> for Document {
    /// Tokens as they are, each with whether the loss counts it.
    fn from_iter<T: IntoIterator<Item = (u32, bool)>>(tokens: T) -> Self {
        Self(tokens.into_iter().collect())
    }
}

/// The documents one after another, cut into sequences of `length` tokens; the last may be
/// shorter, and is padded when it becomes part of a batch. A piece without a token to learn is
/// left out.
fn pack(documents: &[Document], length: usize) -> Vec<Sequence> {
    let stream: Vec<(u32, bool)> =
        documents.iter().flat_map(|document| document.0.iter().copied()).collect();
    let pieces = stream.chunks(length.max(2));
    pieces.filter_map(|piece| Sequence::new(piece.iter().copied())).collect()
}

// Examples are private: their Debug forms show sizes only.

impl fmt::Debug for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Response { prompt, response } => {
                write!(f, "Response({} + {} bytes)", prompt.len(), response.len())
            }
        }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} tokens)", self.0.len())
    }
}

#[cfg(test)]
mod tests;
