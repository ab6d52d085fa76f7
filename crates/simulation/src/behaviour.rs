//! How simulated devices differ from perfect ones: latency and drop-out, drawn by seed.

use std::time::Duration;

use floret_core::Seed;
use floret_core::seed::uniform_f32;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

/// Distributions that every device of a world draws from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Behaviour {
    /// Probability that an assignment is never answered.
    pub drop_out: f32,
    /// Time that a call takes, uniform up to this.
    pub max_latency: Duration,
    /// Time that training takes, uniform up to this.
    pub max_training: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            drop_out: 0.0,
            max_latency: Duration::from_millis(100),
            max_training: Duration::from_secs(10),
        }
    }
}

/// One device's draws.
#[derive(Debug)]
pub(crate) struct Draws {
    behaviour: Behaviour,
    rng: ChaCha20Rng,
}

impl Draws {
    pub(crate) fn new(behaviour: Behaviour, seed: &Seed) -> Self {
        Self { behaviour, rng: seed.stream() }
    }

    pub(crate) fn drops_out(&mut self) -> bool {
        self.uniform() < self.behaviour.drop_out
    }

    pub(crate) fn latency(&mut self) -> Duration {
        let share = self.uniform();
        self.behaviour.max_latency.mul_f32(share)
    }

    pub(crate) fn training(&mut self) -> Duration {
        let share = self.uniform();
        self.behaviour.max_training.mul_f32(share)
    }

    pub(crate) fn within(&mut self, earliest: Duration, latest: Duration) -> Duration {
        let share = self.uniform();
        earliest + latest.saturating_sub(earliest).mul_f32(share)
    }

    fn uniform(&mut self) -> f32 {
        uniform_f32(self.rng.next_u32())
    }
}
