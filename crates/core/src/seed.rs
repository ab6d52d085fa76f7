//! Reproducible randomness: seeds, what they are derived for, and their ChaCha streams.
//!
//! A seed is never used for two purposes: [`Seed::derive`] keys BLAKE3 with it, over the purpose,
//! the round and the client. Secret draws (noise, keys, masks) do not come from here.

use std::fmt;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::id::{ClientId, Digest, Round};

/// What a derived seed is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Values of the first adapter.
    AdapterInit,
    /// Which clients of the population form a cohort; stays on the server.
    CohortSampling,
    /// One client's work in one round: the root of what its plan carries.
    ClientRound,
    /// Order of training sequences.
    Shuffle,
    /// Stochastic rounding of an update.
    Rounding,
    /// Spread of the times at which clients return.
    RetryJitter,
    /// First values of a base model that is trained from nothing.
    BaseInit,
    /// Tokens drawn while generating.
    Sampling,
    /// What goes wrong for a device in a round of a load test or a simulation.
    Mishap,
    /// What a simulated device is like.
    Nature,
    /// Which simulated devices come.
    Arrival,
    /// Which examples a simulated device holds.
    Partition,
    /// Which simulated devices are evaluated.
    Evaluation,
    /// Which simulated devices are hostile, and what they draw.
    Attack,
}

impl Purpose {
    fn label(self) -> &'static str {
        match self {
            Self::AdapterInit => "adapter-init",
            Self::CohortSampling => "cohort-sampling",
            Self::ClientRound => "client-round",
            Self::Shuffle => "shuffle",
            Self::Rounding => "rounding",
            Self::RetryJitter => "retry-jitter",
            Self::BaseInit => "base-init",
            Self::Sampling => "sampling",
            Self::Mishap => "mishap",
            Self::Nature => "nature",
            Self::Arrival => "arrival",
            Self::Partition => "partition",
            Self::Evaluation => "evaluation",
            Self::Attack => "attack",
        }
    }
}

/// 256 bits from which reproducible draws come. Its `Debug` form does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seed(pub [u8; 32]);

impl Seed {
    /// A seed from a small number, as people write it in a config file.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(blake3::derive_key("floret v1 seed from number", &number.to_le_bytes()))
    }

    /// The seed for one purpose, round and client.
    #[must_use]
    pub fn derive(&self, purpose: Purpose, round: Round, client: Option<&ClientId>) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let label = purpose.label().as_bytes();
        hasher.update(&(label.len() as u64).to_le_bytes()).update(label);
        hasher.update(&round.0.to_le_bytes());
        if let Some(client) = client {
            hasher.update(client.as_str().as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The ChaCha20 stream of this seed.
    #[must_use]
    pub fn stream(&self) -> ChaCha20Rng {
        ChaCha20Rng::from_seed(self.0)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl TryFrom<String> for Seed {
    type Error = crate::id::InvalidDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(text.parse::<Digest>()?.0))
    }
}

impl From<Seed> for String {
    fn from(seed: Seed) -> Self {
        Digest(seed.0).to_string()
    }
}

/// A uniform draw from [0, 1) with 24 bits, the most that f32 holds exactly.
#[must_use]
pub fn uniform_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::Rng;

    #[test]
    fn derived_seeds_differ_in_every_coordinate() {
        let root = Seed::from_number(7);
        let a: ClientId = "a".parse().unwrap();
        let b: ClientId = "b".parse().unwrap();
        let seeds = [
            root.derive(Purpose::Shuffle, Round(1), Some(&a)),
            root.derive(Purpose::Rounding, Round(1), Some(&a)),
            root.derive(Purpose::Shuffle, Round(2), Some(&a)),
            root.derive(Purpose::Shuffle, Round(1), Some(&b)),
            root.derive(Purpose::Shuffle, Round(1), None),
            Seed::from_number(8).derive(Purpose::Shuffle, Round(1), Some(&a)),
        ];
        for (i, x) in seeds.iter().enumerate() {
            assert!(seeds.iter().skip(i + 1).all(|y| x != y));
        }
        assert_eq!(seeds[0], root.derive(Purpose::Shuffle, Round(1), Some(&a)));
    }

    #[test]
    fn debug_shows_no_bits_and_text_round_trips() {
        let seed = Seed::from_number(1);
        assert_eq!(format!("{seed:?}"), "Seed(..)");
        assert_eq!(Seed::try_from(String::from(seed.clone())).unwrap(), seed);
    }

    #[test]
    fn uniform_draws_stay_below_one() {
        assert_eq!(uniform_f32(0), 0.0);
        assert!(uniform_f32(u32::MAX) < 1.0);
        let mut stream = Seed::from_number(3).stream();
        let mean =
            (0..10_000).map(|_| f64::from(uniform_f32(stream.next_u32()))).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
