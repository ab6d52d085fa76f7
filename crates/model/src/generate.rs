//! Text from a model, token by token.

use std::fmt;
use std::ops::ControlFlow;

use burn::tensor::Tensor;
use floret_core::Seed;
use floret_core::seed::{Purpose, uniform_f32};
use floret_core::{ModelConfig, Round};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use crate::cache::KvCache;
use crate::lora::{Lora, values};
use crate::tokenizer::{NotTokenizable, TextStream, Tokenizer};
use crate::tokens::{InvalidTokens, Tokens};
use crate::transformer::Transformer;

/// How to generate.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Tokens at most; generation also ends with an end token, or where the model's positions end.
    pub max_tokens: usize,
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the smallest set of most likely tokens whose probabilities, after the temperature, add
    /// up to this can be drawn (Holtzman et al. 2020, arXiv 1904.09751, section 3.1). Above 0, up
    /// to 1, which keeps all tokens; only read with a temperature above 0.
    pub top_p: f32,
    /// Root of the draws; only read with a temperature above 0.
    pub seed: Seed,
}

/// A prompt or a text that cannot be handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The tokenizer has no rule for it.
    #[error(transparent)]
    Tokenizer(#[from] NotTokenizable),
    /// The model cannot take the prompt.
    #[error("the prompt cannot be used: {0}")]
    Prompt(#[from] InvalidTokens),
    /// The temperature is negative or no number.
    #[error("the temperature must be 0 or more")]
    Temperature,
    /// The part of the probability to draw from is not in (0, 1].
    #[error("top_p must be above 0 and at most 1, where 1 draws from all tokens")]
    TopP,
}

/// Continues `prompt`, giving each new piece of text to `on_text`, which can stop it; returns all
/// of the new text. A piece never ends within a character.
///
/// # Errors
/// A prompt that is empty, too long for the model, or that the tokenizer has no rule for; a
/// temperature or top_p out of range.
pub fn generate(
    model: &Transformer,
    lora: Option<&Lora>,
    tokenizer: &Tokenizer,
    prompt: &str,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<String, GenerateError> {
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return Err(GenerateError::Temperature);
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(GenerateError::TopP);
    }
    let prompt = tokenizer.encode_beginning(prompt)?;
    let mut text = TextStream::new(tokenizer, &prompt);
    let mut stream = sampling.seed.derive(Purpose::Sampling, Round(0), None).stream();
    let mut all = String::new();
    let mut tokens = Continuation::new(model, lora, &prompt)?;
    for _ in 0..sampling.max_tokens {
        let id = sample(&tokens.logits, sampling, &mut stream);
        if model.config().eos_token_ids.contains(&id) {
            break;
        }
        if let Some(piece) = text.push(id)? {
            all.push_str(&piece);
            if on_text(&piece).is_break() {
                return Ok(all);
            }
        }
        if !tokens.push(id)? {
            break;
        }
    }
    if let Some(rest) = text.finish()? {
        all.push_str(&rest);
        let _ = on_text(&rest);
    }
    Ok(all)
}

/// The `count` most likely tokens behind `prompt`, one after another, each with how far its logit
/// lies above the second best.
pub(crate) fn greedy_with_margins(
    model: &Transformer,
    lora: Option<&Lora>,
    prompt: &[u32],
    count: usize,
) -> Result<Vec<(u32, f32)>, InvalidTokens> {
    let mut tokens = Continuation::new(model, lora, prompt)?;
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        let id = most_likely(&tokens.logits);
        let best = tokens.logits[id as usize];
        let others = tokens.logits.iter().enumerate().filter(|(other, _)| *other != id as usize);
        let second = others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        chosen.push((id, best - second));
        if !tokens.push(id)? {
            break;
        }
    }
    Ok(chosen)
}

/// A text that grows, with keys and values of what was seen.
pub struct Continuation<'a> {
    model: &'a Transformer,
    lora: Option<&'a Lora>,
    cache: KvCache,
    /// Logits of the next token.
    logits: Vec<f32>,
}

// The text is private: the Debug form shows sizes only.
impl fmt::Debug for Continuation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Continuation({} tokens)", self.cache.length())
    }
}

impl<'a> Continuation<'a> {
    /// Reads `prompt` in one pass.
    ///
    /// # Errors
    /// What [`Tokens::new`] refuses.
    pub fn new(
        model: &'a Transformer,
        lora: Option<&'a Lora>,
        prompt: &[u32],
    ) -> Result<Self, InvalidTokens> {
        let mut text = Self { model, lora, cache: KvCache::default(), logits: Vec::new() };
        text.forward(prompt)?;
        Ok(text)
    }

    /// The most likely next token; the lowest of those that are equally so.
    #[must_use]
    pub fn most_likely(&self) -> u32 {
        most_likely(&self.logits)
    }

    /// Appends a token; false if the model has no position for it.
    ///
    /// # Errors
    /// An id beyond the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<bool, InvalidTokens> {
        let &ModelConfig { max_positions, .. } = self.model.config();
        if self.cache.length() >= max_positions {
            return Ok(false);
        }
        self.forward(&[id])?;
        Ok(true)
    }

    fn forward(&mut self, ids: &[u32]) -> Result<(), InvalidTokens> {
        let tokens = Tokens::new(self.model.config(), &[ids])?;
        let hidden: Tensor<2> = self.model.extend(&tokens, self.lora, &mut self.cache);
        self.logits = values(self.model.logits(hidden.narrow(0, ids.len() - 1, 1)));
        Ok(())
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&x, &y| logits[x].total_cmp(&logits[y]).then(y.cmp(&x)));
    best.unwrap_or(0) as u32
}

fn sample(logits: &[f32], sampling: &Sampling, stream: &mut ChaCha20Rng) -> u32 {
    if sampling.temperature == 0.0 {
        return most_likely(logits);
    }
    let weights = weights(logits, sampling.temperature, sampling.top_p);
    let total: f64 = weights.iter().sum();
    let mut left = f64::from(uniform_f32(stream.next_u32())) * total;
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    drawn.map_or_else(|| most_likely(logits), |id| id as u32)
}

/// What the probability of each token is in proportion to; 0 for those that `top_p` leaves out.
fn weights(logits: &[f32], temperature: f32, top_p: f32) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| (f64::from(logit - largest) / f64::from(temperature)).exp();
    let mut weights: Vec<f64> = logits.iter().map(weight).collect();
    if top_p < 1.0 {
        let enough = f64::from(top_p) * weights.iter().sum::<f64>();
        // The sort is stable: of tokens that are equally likely, the lower stands first.
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&x, &y| weights[y].total_cmp(&weights[x]));
        let mut kept = 0.0;
        for id in order {
            if kept >= enough {
                weights[id] = 0.0;
            }
            kept += weights[id];
        }
    }
    weights
}

#[cfg(test)]
mod tests;
