//! Token ids that a model can take, and sequences of them with what counts as loss.

use std::fmt;

use burn::tensor::{Device, Int, Tensor, TensorData};
use floret_core::ModelConfig;

/// A grid of token ids, checked against a model: every id is below its vocabulary size, and no row
/// is longer than its positions. Shorter rows are padded on the right with id 0.
#[derive(Clone)]
pub struct Tokens {
    ids: Vec<u32>,
    shape: [usize; 2],
}

/// Token ids that a model cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTokens {
    /// Nothing at all.
    #[error("there is no token: give at least one")]
    Empty,
    /// An id beyond the vocabulary; it is not told, since tokens are private.
    #[error(
        "a token id is not below the model's vocab_size = {0}: the tokenizer belongs to another \
         model"
    )]
    Vocabulary(usize),
    /// More than an index can count.
    #[error("a batch of {rows} sequences of {length} tokens is too large: use a smaller one")]
    TooMany {
        /// Rows.
        rows: usize,
        /// Tokens in a row.
        length: usize,
    },
    /// A row beyond the model's positions.
    #[error(
        "a sequence of {length} tokens is longer than the model's max_position_embeddings = {max}: \
         use a shorter one"
    )]
    TooLong {
        /// Tokens in the row.
        length: usize,
        /// Positions that the model has.
        max: usize,
    },
}

impl Tokens {
    /// The grid of `rows` for a model of shape `config`.
    ///
    /// # Errors
    /// No token, an id beyond the vocabulary, or a row that is too long.
    pub fn new(config: &ModelConfig, rows: &[&[u32]]) -> Result<Self, InvalidTokens> {
        let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        if length == 0 {
            return Err(InvalidTokens::Empty);
        }
        if length > config.max_positions {
            return Err(InvalidTokens::TooLong { length, max: config.max_positions });
        }
        if rows.len().saturating_mul(length) > i32::MAX as usize {
            return Err(InvalidTokens::TooMany { rows: rows.len(), length });
        }
        if rows.iter().copied().flatten().any(|&id| id as usize >= config.vocab_size) {
            return Err(InvalidTokens::Vocabulary(config.vocab_size));
        }
        let mut ids = Vec::with_capacity(rows.len() * length);
        for row in rows {
            ids.extend_from_slice(row);
            ids.resize(ids.len() + length - row.len(), 0);
        }
        Ok(Self { ids, shape: [rows.len(), length] })
    }

    /// The ids, row by row.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Rows and their length.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
}

/// A sequence of tokens, and which of them the loss counts.
#[derive(Clone, PartialEq, Eq)]
pub struct Sequence {
    tokens: Vec<u32>,
    counted: Vec<bool>,
    /// The last token, if targets are counted from it.
    flipped: Option<u32>,
}

impl Sequence {
    /// The tokens paired with whether the loss counts them; none if no token after the first
    /// counts, since there would be nothing to predict.
    #[must_use]
    pub fn new(tokens: impl IntoIterator<Item = (u32, bool)>) -> Option<Self> {
        let (tokens, counted): (Vec<u32>, Vec<bool>) = tokens.into_iter().unzip();
        let something = counted.iter().skip(1).any(|&counts| counts);
        something.then_some(Self { tokens, counted, flipped: None })
    }

    /// The same with V - 1 - t as target where it was t, in a vocabulary of V = `vocabulary` tokens: what
    /// a hostile client may train on. The tokens themselves stay.
    #[must_use]
    pub fn with_flipped_targets(self, vocabulary: usize) -> Self {
        let last = u32::try_from(vocabulary.saturating_sub(1)).unwrap_or(u32::MAX);
        Self { flipped: Some(last), ..self }
    }

    /// The token ids.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions whose next token the loss counts, with that token.
    pub fn targets(&self) -> impl Iterator<Item = (usize, u32)> {
        let next = self.tokens.iter().zip(&self.counted).skip(1).enumerate();
        let target = |token: u32| self.flipped.map_or(token, |last| last.saturating_sub(token));
        next.filter(|(_, (_, counts))| **counts).map(move |(at, (&token, _))| (at, target(token)))
    }
}

/// Sequences side by side, ready for a model.
#[derive(Clone)]
pub struct Batch {
    /// The tokens.
    pub(crate) tokens: Tokens,
    /// Rows of the hidden states that predict a counted token.
    pub(crate) rows: Vec<u32>,
    /// The token that each of `rows` should predict.
    pub(crate) targets: Vec<u32>,
}

impl Batch {
    /// The batch of `sequences` for a model of shape `config`.
    ///
    /// # Errors
    /// What [`Tokens::new`] refuses.
    pub fn new(config: &ModelConfig, sequences: &[&Sequence]) -> Result<Self, InvalidTokens> {
        let rows: Vec<&[u32]> = sequences.iter().map(|sequence| sequence.tokens()).collect();
        let tokens = Tokens::new(config, &rows)?;
        let length = tokens.shape()[1];
        let (rows, targets) = sequences
            .iter()
            .enumerate()
            .flat_map(|(row, sequence)| {
                sequence.targets().map(move |(at, token)| ((row * length + at) as u32, token))
            })
            .unzip();
        Ok(Self { tokens, rows, targets })
    }

    /// The sequences of `batches`, one batch below another; their grids have one shape.
    pub(crate) fn stacked(batches: &[&Self]) -> Self {
        let grids = batches.iter().map(|batch| batch.tokens.shape);
        let [rows, length] = grids.fold([0; 2], |[all, _], [rows, length]| [all + rows, length]);
        let mut stacked = Self {
            tokens: Tokens { ids: Vec::with_capacity(rows * length), shape: [rows, length] },
            rows: Vec::new(),
            targets: Vec::new(),
        };
        for Self { tokens, rows, targets } in batches {
            let first = stacked.tokens.ids.len() as u32;
            stacked.tokens.ids.extend(&tokens.ids);
            stacked.rows.extend(rows.iter().map(|row| first + row));
            stacked.targets.extend(targets);
        }
        stacked
    }

    /// Number of tokens that the loss counts.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.targets.len() as u64
    }
}

/// Token ids or row numbers as a tensor.
pub(crate) fn indices(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

// Tokens are private data: their Debug forms show sizes only.

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} x {})", self.shape[0], self.shape[1])
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sequence({} tokens)", self.tokens.len())
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({:?}, {} counted)", self.tokens, self.targets.len())
    }
}

#[cfg(test)]
mod tests;
