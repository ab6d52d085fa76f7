//! How simulated devices and their network differ from perfect ones, drawn by seed.
//!
//! What a device is like ([`Nature`]) is a function of (seed, client), and what becomes of its work
//! in a round ([`Lot`]) one of (seed, round, client): neither depends on who came before.

use std::time::Duration;

use floret_core::seed::Purpose;
use floret_core::{ClientId, Round, Seed, Time};
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

use crate::distribution::{Distribution, uniform};

/// What all devices of a world draw from. Rates are bytes a second, probabilities 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// Probability that an assignment is never answered.
    pub drop_out: f32,
    /// Probability that a training comes to nothing, which its device tells.
    pub failure: f32,
    /// Probability that the answer to a call is lost: the device asks again.
    pub lost_answer: f32,
    /// Probability that a call arrives twice.
    pub duplicate: f32,
    /// Probability that a report arrives without its end.
    pub truncate: f32,
    /// Probability, at each thing that a device does, that it crashes and starts again.
    pub crash: f32,
    /// Furthest that a device's clock is off, in seconds.
    pub max_skew_s: f64,
    /// Time of a call, beside that of its bytes.
    pub latency_s: Distribution,
    /// Time of a training, beside that of its steps.
    pub training_s: Distribution,
    /// Time of an optimizer step on a device, drawn once for each.
    pub step_s: Distribution,
    /// Probability that a training takes [`Behaviour::STRAGGLING`] times as long: the heavy tail.
    pub straggler: f32,
    /// Rate at which a device receives, drawn once for each; any if not given.
    pub down_bytes_per_s: Option<Distribution>,
    /// Rate at which a device sends, drawn once for each; any if not given.
    pub up_bytes_per_s: Option<Distribution>,
    /// When devices come at all; always if not given.
    pub availability: Option<Availability>,
    /// What a training costs; nothing if not given.
    pub battery: Option<Battery>,
}

/// The part of each day in which a device may come. Virtual time begins at midnight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Availability {
    /// Hour of the day from which a device may come, drawn once for each.
    pub from_h: Distribution,
    /// Hours for which it may, drawn once for each.
    pub hours: Distribution,
}

/// Batteries: a device does not come while too little charge is left.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Battery {
    /// Minutes of training that a full charge lasts, drawn once for each device.
    pub minutes: Distribution,
    /// Hours in which an empty battery is charged; charging never stops.
    pub charge_h: f64,
    /// Share of a full charge below which a device does not come.
    pub least: f64,
}

impl Behaviour {
    /// How many times as long a straggler trains.
    pub const STRAGGLING: u32 = 20;

    /// The first setting that is out of range, and what would be accepted.
    ///
    /// # Errors
    /// That setting.
    pub fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let chances = [
            ("drop_out", self.drop_out),
            ("failure", self.failure),
            ("lost_answer", self.lost_answer),
            ("duplicate", self.duplicate),
            ("truncate", self.truncate),
            ("crash", self.crash),
            ("straggler", self.straggler),
        ];
        let distributions = [
            ("latency_s", Some(self.latency_s)),
            ("training_s", Some(self.training_s)),
            ("step_s", Some(self.step_s)),
            ("down_bytes_per_s", self.down_bytes_per_s),
            ("up_bytes_per_s", self.up_bytes_per_s),
            ("availability.from_h", self.availability.map(|of| of.from_h)),
            ("availability.hours", self.availability.map(|of| of.hours)),
            ("battery.minutes", self.battery.map(|of| of.minutes)),
        ];
        if let Some((name, _)) = chances.into_iter().find(|(_, x)| !(0.0..=1.0).contains(x)) {
            return Err((name, "a number from 0 to 1"));
        }
        let invalid = |(_, of): &(_, Option<Distribution>)| of.is_some_and(|of| !of.is_valid());
        if let Some((name, _)) = distributions.into_iter().find(invalid) {
            return Err((name, "a distribution over finite numbers that are not negative"));
        }
        if !(0.0..=1e6).contains(&self.max_skew_s) {
            return Err(("max_skew_s", "0 to 1000000 seconds"));
        }
        match self.battery {
            Some(Battery { charge_h, .. }) if !(0.01..=1e4).contains(&charge_h) => {
                Err(("battery.charge_h", "0.01 to 10000 hours"))
            }
            Some(Battery { least, .. }) if !(0.0..1.0).contains(&least) => {
                Err(("battery.least", "0 or more, below 1"))
            }
            _ => Ok(()),
        }
    }

    /// What `client` is like.
    #[must_use]
    pub fn nature(&self, seed: &Seed, client: &ClientId) -> Nature {
        let mut stream = seed.derive(Purpose::Nature, Round(0), Some(client)).stream();
        let mut draw = |distribution: Distribution| distribution.draw(&mut stream);
        Nature {
            step_s: draw(self.step_s),
            down_bytes_per_s: self.down_bytes_per_s.map(&mut draw),
            up_bytes_per_s: self.up_bytes_per_s.map(&mut draw),
            from_h: self.availability.map_or(0.0, |of| draw(of.from_h)),
            hours: self.availability.map_or(24.0, |of| draw(of.hours)),
            battery_min: self.battery.map(|of| draw(of.minutes)),
            drop_out: self.drop_out,
            failure: self.failure,
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            drop_out: 0.0,
            failure: 0.0,
            lost_answer: 0.0,
            duplicate: 0.0,
            truncate: 0.0,
            crash: 0.0,
            max_skew_s: 0.0,
            latency_s: Distribution::Uniform([0.0, 0.1]),
            training_s: Distribution::Uniform([0.0, 10.0]),
            step_s: Distribution::Constant(0.0),
            straggler: 0.0,
            down_bytes_per_s: None,
            up_bytes_per_s: None,
            availability: None,
            battery: None,
        }
    }
}

/// What one device is like, drawn or as a trace has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nature {
    /// Seconds of an optimizer step.
    pub step_s: f64,
    /// Rate at which it receives; any if none.
    pub down_bytes_per_s: Option<f64>,
    /// Rate at which it sends; any if none.
    pub up_bytes_per_s: Option<f64>,
    /// Hour of the day from which it may come.
    pub from_h: f64,
    /// Hours for which it may.
    pub hours: f64,
    /// Minutes of training that a full charge lasts; no end if none.
    pub battery_min: Option<f64>,
    /// Probability that an assignment is never answered.
    pub drop_out: f32,
    /// Probability that a training comes to nothing, which it tells.
    pub failure: f32,
}

impl Nature {
    /// Whether probabilities are such, and other numbers finite and not negative.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let rates = [self.down_bytes_per_s, self.up_bytes_per_s, self.battery_min];
        let numbers = [self.step_s, self.from_h, self.hours].map(Some).into_iter().chain(rates);
        let chances = [self.drop_out, self.failure];
        numbers.flatten().all(|x| x.is_finite() && x >= 0.0)
            && chances.iter().all(|x| (0.0..=1.0).contains(x))
    }

    /// Whether this is an hour of the day at which the device may come.
    #[must_use]
    pub fn may_come(&self, now: Time) -> bool {
        let hour = now.0 as f64 / 3.6e6;
        (hour - self.from_h).rem_euclid(24.0) < self.hours
    }

    /// What becomes of its work as `client` in `round`.
    #[must_use]
    pub fn lot(&self, seed: &Seed, round: Round, client: &ClientId) -> Lot {
        let mut stream = seed.derive(Purpose::Mishap, round, Some(client)).stream();
        let mut happens = |probability: f32| uniform(&mut stream) < f64::from(probability);
        Lot { drops_out: happens(self.drop_out), fails: happens(self.failure) }
    }
}

/// What becomes of a device's work in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lot {
    /// It never answers.
    pub drops_out: bool,
    /// It cannot train.
    pub fails: bool,
}

/// One device's draws, from when it comes until it goes.
#[derive(Debug)]
pub(crate) struct Draws {
    behaviour: Behaviour,
    pub(crate) nature: Nature,
    stream: ChaCha20Rng,
}

/// What happens to a call on its way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fate {
    pub(crate) lost_answer: bool,
    pub(crate) duplicated: bool,
    pub(crate) truncated: bool,
}

impl Draws {
    pub(crate) fn new(behaviour: Behaviour, nature: Nature, seed: &Seed) -> Self {
        Self { behaviour, nature, stream: seed.stream() }
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
        let longest = Distribution::Uniform([0.0, self.behaviour.max_skew_s]);
        seconds(longest.draw(&mut self.stream))
    }

    pub(crate) fn latency(&mut self) -> Duration {
        seconds(self.behaviour.latency_s.draw(&mut self.stream))
    }

    /// Time of a training of so many steps.
    pub(crate) fn training(&mut self, steps: u32) -> Duration {
        let beside = self.behaviour.training_s.draw(&mut self.stream);
        let time = seconds(beside + f64::from(steps) * self.nature.step_s);
        let straggles = self.happens(self.behaviour.straggler);
        if straggles { time.saturating_mul(Behaviour::STRAGGLING) } else { time }
    }

    /// Time for receiving so many bytes.
    pub(crate) fn receiving(&self, bytes: usize) -> Duration {
        moving(bytes, self.nature.down_bytes_per_s)
    }

    /// Time for sending so many bytes.
    pub(crate) fn sending(&self, bytes: usize) -> Duration {
        moving(bytes, self.nature.up_bytes_per_s)
    }

    pub(crate) fn within(&mut self, earliest: Duration, latest: Duration) -> Duration {
        let share = uniform(&mut self.stream);
        earliest + latest.saturating_sub(earliest).mul_f64(share)
    }

    /// What never happens draws nothing, so that a run without it stays as it is.
    fn happens(&mut self, probability: f32) -> bool {
        probability > 0.0 && uniform(&mut self.stream) < f64::from(probability)
    }
}

/// A week for what takes longer: the round is over then.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 7.0 * 24.0 * 3600.0))
}

fn moving(bytes: usize, rate: Option<f64>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| seconds(bytes as f64 / rate.max(1e-3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> ClientId {
        "a".parse().unwrap()
    }

    #[test]
    fn windows_go_over_midnight() {
        let nature = Nature { from_h: 22.0, hours: 4.0, ..nature() };
        let at = |hour: f64| nature.may_come(Time((hour * 3.6e6) as u64));
        assert!(at(22.0) && at(23.9) && at(24.5) && at(25.9) && at(0.0) && at(46.5));
        assert!(!at(21.9) && !at(2.1) && !at(26.1));
        let always = self::nature();
        assert!((0..48).all(|hour| always.may_come(Time(hour * 3_600_000))));
    }

    #[test]
    fn lots_depend_on_seed_round_and_client_alone() {
        let nature = Nature { drop_out: 0.3, failure: 0.1, ..nature() };
        let seed = Seed::from_number(3);
        let lots: Vec<Lot> = (1..=2000).map(|i| nature.lot(&seed, Round(i), &client())).collect();
        let dropped = lots.iter().filter(|lot| lot.drops_out).count();
        let failed = lots.iter().filter(|lot| lot.fails).count();
        // 600 and 200 on average, with deviations 20.5 and 13.4.
        assert!((520..680).contains(&dropped) && (145..255).contains(&failed));
        assert_eq!(lots[9], nature.lot(&seed, Round(10), &client()));
        // A higher probability of one takes nothing away from the other.
        let more = Nature { failure: 1.0, ..nature };
        assert!((1..=50).all(|i| {
            let (more, less) = (more.lot(&seed, Round(i), &client()), lots[i as usize - 1]);
            more.fails && more.drops_out == less.drops_out
        }));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = Behaviour::default();
        good.validate().unwrap();
        let battery = Battery { minutes: Distribution::Constant(5.0), charge_h: 2.0, least: 1.0 };
        for (behaviour, name) in [
            (Behaviour { drop_out: 1.5, ..good }, "drop_out"),
            (Behaviour { latency_s: Distribution::Constant(-1.0), ..good }, "latency_s"),
            (Behaviour { battery: Some(battery), ..good }, "battery.least"),
        ] {
            assert_eq!(behaviour.validate().unwrap_err().0, name);
        }
    }

    fn nature() -> Nature {
        Behaviour::default().nature(&Seed::from_number(1), &client())
    }
}
