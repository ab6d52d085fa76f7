//! How simulated devices and their network differ from perfect ones, drawn by seed.

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
    /// Probability that the answer to a call is lost: the device asks again.
    pub lost_answer: f32,
    /// Probability that a call arrives twice.
    pub duplicate: f32,
    /// Probability that a report arrives without its end.
    pub truncate: f32,
    /// Probability, at each thing that a device does, that it crashes and starts again.
    pub crash: f32,
    /// Furthest that a device's clock is off.
    pub max_skew: Duration,
    /// Time that a call takes, uniform up to this.
    pub max_latency: Duration,
    /// Time that training takes, uniform up to this.
    pub max_training: Duration,
    /// Probability that a training takes [`Behaviour::STRAGGLING`] times as long: the heavy tail.
    pub straggler: f32,
}

impl Behaviour {
    /// How many times as long a straggler trains.
    pub const STRAGGLING: u32 = 20;
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            drop_out: 0.0,
            lost_answer: 0.0,
            duplicate: 0.0,
            truncate: 0.0,
            crash: 0.0,
            max_skew: Duration::ZERO,
            max_latency: Duration::from_millis(100),
            max_training: Duration::from_secs(10),
            straggler: 0.0,
        }
    }
}

/// One device's draws.
#[derive(Debug)]
pub(crate) struct Draws {
    behaviour: Behaviour,
    rng: ChaCha20Rng,
}

/// What happens to a call on its way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fate {
    pub(crate) lost_answer: bool,
    pub(crate) duplicated: bool,
    pub(crate) truncated: bool,
}

impl Draws {
    pub(crate) fn new(behaviour: Behaviour, seed: &Seed) -> Self {
        Self { behaviour, rng: seed.stream() }
    }

    pub(crate) fn drops_out(&mut self) -> bool {
        self.happens(self.behaviour.drop_out)
    }

    pub(crate) fn crashes(&mut self) -> bool {
        self.happens(self.behaviour.crash)
    }

    pub(crate) fn fate(&mut self) -> Fate {
        let Behaviour { lost_answer, duplicate, truncate, .. } = self.behaviour;
        Fate {
            lost_answer: self.happens(lost_answer),
            duplicated: self.happens(duplicate),
            truncated: self.happens(truncate),
        }
    }

    pub(crate) fn skew(&mut self) -> Duration {
        self.share_of(self.behaviour.max_skew)
    }

    pub(crate) fn latency(&mut self) -> Duration {
        self.share_of(self.behaviour.max_latency)
    }

    pub(crate) fn training(&mut self) -> Duration {
        let time = self.share_of(self.behaviour.max_training);
        let straggles = self.happens(self.behaviour.straggler);
        if straggles { time * Behaviour::STRAGGLING } else { time }
    }

    pub(crate) fn within(&mut self, earliest: Duration, latest: Duration) -> Duration {
        earliest + self.share_of(latest.saturating_sub(earliest))
    }

    fn share_of(&mut self, longest: Duration) -> Duration {
        longest.mul_f32(self.uniform())
    }

    /// What never happens draws nothing, so that a run without it stays as it is.
    fn happens(&mut self, probability: f32) -> bool {
        probability > 0.0 && self.uniform() < probability
    }

    fn uniform(&mut self) -> f32 {
        uniform_f32(self.rng.next_u32())
    }
}
