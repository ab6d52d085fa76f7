//! Inputs from a corpus: most are a few changes away from one of its files, some are random bytes.

mod edits;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::Target;

/// One in so many inputs is random bytes alone.
const RANDOM_ONE_IN: usize = 16;
/// Longest input of random bytes.
const RANDOM_MAX: usize = 200;
/// Most changes to one input.
const EDITS_MAX: u32 = 12;

/// Makes the inputs of one target: each is a function of the seed, the target and its number, and
/// of the corpus.
#[derive(Debug, Clone)]
pub struct Inputs {
    base: ChaCha8Rng,
    corpus: Vec<Vec<u8>>,
    longest: usize,
}

impl Inputs {
    /// The inputs of `target` from `corpus`; the first ones are its files.
    #[must_use]
    pub fn new(target: &Target, corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        let key = [&seed.to_le_bytes()[..], target.name.as_bytes()].concat();
        let key = blake3::derive_key("floret fuzz v1 inputs of a target", &key);
        Self { base: ChaCha8Rng::from_seed(key), corpus, longest: target.longest }
    }

    /// The input of that number.
    #[must_use]
    pub fn get(&self, number: u64) -> Vec<u8> {
        let whole = usize::try_from(number).ok().and_then(|number| self.corpus.get(number));
        if let Some(whole) = whole {
            return whole.clone();
        }
        let mut rng = self.base.clone();
        rng.set_stream(number);
        let mut draw = Draw(rng);
        if self.corpus.is_empty() || draw.below(RANDOM_ONE_IN) == 0 {
            let length = draw.below(RANDOM_MAX);
            return draw.bytes(length);
        }
        let mut input = draw.of(&self.corpus).clone();
        let other = draw.of(&self.corpus);
        // One change in half of the inputs, two in a quarter, and so on.
        let edits = (draw.0.next_u32() | 1 << (EDITS_MAX - 1)).trailing_zeros() + 1;
        for _ in 0..edits {
            edits::apply(&mut input, other, &mut draw);
            input.truncate(self.longest);
        }
        input
    }
}

/// Draws from a stream.
struct Draw(ChaCha8Rng);

impl Draw {
    /// A number below `bound`, which is not zero, with a bias that does not matter here.
    fn below(&mut self, bound: usize) -> usize {
        let wide = u64::from(self.0.next_u32()) * bound as u64;
        (wide >> 32) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn byte(&mut self) -> u8 {
        self.0.next_u32() as u8
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// A place in `input` and a length from there, mostly short.
    fn span(&mut self, input: &[u8]) -> (usize, usize) {
        if input.is_empty() {
            return (0, 0);
        }
        let start = self.below(input.len());
        let rest = input.len() - start;
        let longest = if self.below(4) == 0 { rest } else { rest.min(16) };
        (start, 1 + self.below(longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::ALL;

    #[test]
    fn inputs_follow_from_seed_target_and_number() {
        let corpus = vec![b"{\"a\": 10}".to_vec(), vec![0; 40]];
        let inputs = |target: usize, seed| Inputs::new(&ALL[target], corpus.clone(), seed);
        let some = |inputs: Inputs| (0..500).map(|number| inputs.get(number)).collect::<Vec<_>>();
        assert_eq!(some(inputs(0, 1)), some(inputs(0, 1)));
        assert_ne!(some(inputs(0, 1)), some(inputs(0, 2)));
        assert_ne!(some(inputs(0, 1)), some(inputs(1, 1)));
        assert_eq!(some(inputs(0, 1))[..2], corpus);
    }

    #[test]
    fn inputs_differ_and_keep_the_longest_length() {
        let target = Target { longest: 64, ..ALL[0] };
        let inputs = Inputs::new(&target, vec![vec![b'7'; 60], b"[1, 2]".to_vec()], 3);
        let mut all: Vec<_> = (2..20_000).map(|number| inputs.get(number)).collect();
        assert!(all.iter().all(|input| input.len() <= 64.max(RANDOM_MAX)));
        all.sort();
        all.dedup();
        assert!(all.len() > 10_000, "{}", all.len());
    }
}
