//! What goes wrong for a device, drawn by seed.

use floret_core::seed::{Purpose, uniform_f32};
use floret_core::{ClientId, Round, Seed};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

/// Probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Chances {
    /// That an assigned device vanishes.
    pub(super) drop_out: f32,
    /// That a device comes back on a new connection after a call.
    pub(super) churn: f32,
    /// That a device's link is slow.
    pub(super) slow: f32,
    /// That a report meets a fault.
    pub(super) faults: f32,
}

/// What happens to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is cut on the way.
    Cut,
    /// A byte changes on the way.
    Flip,
    /// It is sent once more after its receipt.
    Repeat,
}

/// What happens to one device in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fate {
    /// It vanishes when it is assigned, and comes back.
    pub(super) drops_out: bool,
    /// How long it is away, as a part of the longest time.
    pub(super) absence: f32,
    /// What happens to its report.
    pub(super) fault: Option<Fault>,
    /// Where in the report, as a part of its length.
    pub(super) at: f32,
}

/// All draws: functions of the seed, the round and the device.
#[derive(Debug, Clone)]
pub(super) struct Mishaps {
    seed: Seed,
    chances: Chances,
}

impl Mishaps {
    pub(super) fn new(seed: Seed, chances: Chances) -> Self {
        Self { seed, chances }
    }

    pub(super) fn fate(&self, round: Round, client: &ClientId) -> Fate {
        let mut rng = self.stream(round, client);
        let mut draw = || uniform_f32(rng.next_u32());
        let drops_out = draw() < self.chances.drop_out;
        let absence = draw();
        let faulty = draw() < self.chances.faults;
        let kind = match draw() {
            x if x < 1.0 / 3.0 => Fault::Cut,
            x if x < 2.0 / 3.0 => Fault::Flip,
            _ => Fault::Repeat,
        };
        Fate { drops_out, absence, fault: faulty.then_some(kind), at: draw() }
    }

    /// Whether any link may be slow.
    pub(super) fn some_are_slow(&self) -> bool {
        self.chances.slow > 0.0
    }

    /// What a device is like for the whole run.
    pub(super) fn nature(&self, client: &ClientId) -> Nature {
        let mut rng = self.stream(Round(0), client);
        let slow = uniform_f32(rng.next_u32()) < self.chances.slow;
        Nature { slow, churn: self.chances.churn, rng }
    }

    fn stream(&self, round: Round, client: &ClientId) -> ChaCha20Rng {
        self.seed.derive(Purpose::Mishap, round, Some(client)).stream()
    }
}

/// A device's own draws.
#[derive(Debug)]
pub(super) struct Nature {
    /// Its link is slow.
    pub(super) slow: bool,
    churn: f32,
    rng: ChaCha20Rng,
}

impl Nature {
    /// Whether it loses its connection after this call.
    pub(super) fn churns(&mut self) -> bool {
        uniform_f32(self.rng.next_u32()) < self.churn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_follow_the_seed_and_the_chances() {
        let chances = Chances { drop_out: 0.1, churn: 0.0, slow: 0.5, faults: 0.3 };
        let mishaps = Mishaps::new(Seed::from_number(4), chances);
        let client: ClientId = "a".parse().unwrap();
        let fates: Vec<Fate> = (1..=3000).map(|i| mishaps.fate(Round(i), &client)).collect();
        let count = |is: &dyn Fn(&Fate) -> bool| fates.iter().filter(|fate| is(fate)).count();
        assert!((220..380).contains(&count(&|fate| fate.drops_out)));
        // 300 of each kind on average, with deviation 16.
        for kind in [Fault::Cut, Fault::Flip, Fault::Repeat] {
            assert!((220..380).contains(&count(&|fate| fate.fault == Some(kind))), "{kind:?}");
        }
        assert_eq!(fates[7], mishaps.fate(Round(8), &client));
        let other = Mishaps::new(Seed::from_number(5), chances);
        assert!((1..=3000).any(|i| other.fate(Round(i), &client) != fates[i as usize - 1]));
        assert!(!mishaps.nature(&client).churns());
    }
}
