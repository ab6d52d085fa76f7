//! The devices of a world: those that are there, and, if it has a population, those that are not.
//!
//! A device of a population is made when it comes and dropped when its work is done, so that what a
//! round costs does not grow with the population. Whoever comes is drawn from those that may.

use std::collections::BTreeMap;
use std::time::Duration;

use floret_core::seed::Purpose;
use floret_core::{ClientId, Digest, Round, Seed, Time};
use floret_device::{Own, Session};
use rand_chacha::ChaCha20Rng;

use crate::behaviour::{Battery, Behaviour, Draws, Nature};
use crate::device::{Device, DeviceStore};
use crate::distribution::below;

/// Up to this many, all devices are looked at for one that may come.
const FEW: usize = 1024;
/// Among more, this many are drawn before it is put off.
const TRIES: usize = 256;

/// Everyone who could take part.
pub trait Population {
    /// How many there are.
    fn size(&self) -> usize;

    /// Name of the device `index`.
    fn client(&self, index: usize) -> ClientId;

    /// The device `index` when it comes.
    fn session(&self, index: usize) -> Session;

    /// What the device `index` is like; none for one that is drawn from the world's behaviour.
    fn nature(&self, index: usize) -> Option<Nature>;
}

/// Devices that are there, by index.
pub(crate) struct Crowd {
    behaviour: Behaviour,
    seed: Seed,
    there: BTreeMap<usize, Device>,
    /// How many of those are at work.
    at_work: usize,
    absent: Option<Absent>,
}

/// Devices that come and go.
struct Absent {
    population: Box<dyn Population>,
    arrivals: ChaCha20Rng,
    /// Charge of those that have worked, as a share, and when it was that.
    charges: BTreeMap<usize, (Time, f64)>,
    /// What those that have worked keep of their own.
    own: BTreeMap<usize, Own>,
    /// The adapters that those hold which have fetched one.
    held: BTreeMap<usize, Digest>,
    /// Whom the coordinator trusts, if it trusts one of them.
    trusted: Option<usize>,
}

impl Crowd {
    /// Devices that are always there.
    pub(crate) fn of_residents(
        devices: Vec<(Session, DeviceStore)>,
        behaviour: Behaviour,
        seed: &Seed,
    ) -> Self {
        let (there, at_work) = (BTreeMap::new(), 0);
        let mut crowd = Self { behaviour, seed: seed.clone(), there, at_work, absent: None };
        for (index, (session, store)) in devices.into_iter().enumerate() {
            let nature = behaviour.nature(seed, session.client());
            crowd.arrive(index, session, store, nature, Round(0));
        }
        crowd
    }

    /// Devices that come and go.
    pub(crate) fn of_population(
        population: Box<dyn Population>,
        trusted: Option<&ClientId>,
        behaviour: Behaviour,
        seed: &Seed,
    ) -> Self {
        let is_trusted =
            |of: &ClientId| (0..population.size()).find(|i| population.client(*i) == *of);
        let trusted = trusted.and_then(is_trusted);
        let arrivals = seed.derive(Purpose::Arrival, Round(0), None).stream();
        let (charges, own, held) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let absent = Some(Absent { population, arrivals, charges, own, held, trusted });
        Self { behaviour, seed: seed.clone(), there: BTreeMap::new(), at_work: 0, absent }
    }

    fn arrive(
        &mut self,
        index: usize,
        session: Session,
        store: DeviceStore,
        nature: Nature,
        round: Round,
    ) {
        let seed = self.seed.derive(Purpose::RetryJitter, round, Some(session.client()));
        let draws = Draws::new(self.behaviour, nature, &seed);
        self.there.insert(index, Device::new(session, store, draws));
    }

    /// What the device `index` keeps of its own, whether it is there or not.
    pub(crate) fn own(&self, index: usize) -> Option<&Own> {
        let absent = || self.absent.as_ref()?.own.get(&index);
        self.there.get(&index).map(|device| device.session.own()).or_else(absent)
    }

    /// Indices of those that are there.
    pub(crate) fn indices(&self) -> Vec<usize> {
        self.there.keys().copied().collect()
    }

    /// The device `index`, which is there.
    pub(crate) fn device(&mut self, index: usize) -> &mut Device {
        self.there.get_mut(&index).unwrap_or_else(|| unreachable!("device {index} is there"))
    }

    /// Whether more could come, while fewer than `wanted` are there and free.
    pub(crate) fn lacks(&self, wanted: usize) -> bool {
        let size = self.absent.as_ref().map_or(0, |absent| absent.population.size());
        self.there.len() - self.at_work < wanted && self.there.len() < size
    }

    /// Whether the trusted one is of the population, and not there.
    pub(crate) fn lacks_trusted(&self) -> bool {
        let trusted = self.absent.as_ref().and_then(|absent| absent.trusted);
        trusted.is_some_and(|index| !self.there.contains_key(&index))
    }

    /// Lets the trusted one come, if it may.
    pub(crate) fn wake_trusted(&mut self, now: Time, round: Round) -> Option<usize> {
        let index = self.absent.as_ref()?.trusted.filter(|index| self.may_come(*index, now))?;
        self.let_come(index, round)
    }

    /// Lets one come, if one is found that may.
    pub(crate) fn wake(&mut self, now: Time, round: Round) -> Option<usize> {
        let index = self.draw(now)?;
        self.let_come(index, round)
    }

    fn let_come(&mut self, index: usize, round: Round) -> Option<usize> {
        let absent = self.absent.as_ref()?;
        let (session, nature) = (absent.population.session(index), self.nature(absent, index));
        let own = absent.own.get(&index).cloned().unwrap_or_default();
        self.arrive(index, session, DeviceStore::holding(own), nature, round);
        let held = self.absent.as_mut()?.held.remove(&index);
        self.device(index).held = held;
        Some(index)
    }

    fn draw(&mut self, now: Time) -> Option<usize> {
        let mut arrivals = self.absent.as_ref()?.arrivals.clone();
        let size = self.absent.as_ref()?.population.size();
        let found = if size <= FEW {
            let free: Vec<usize> = (0..size).filter(|index| self.may_come(*index, now)).collect();
            (!free.is_empty()).then(|| free[below(free.len(), &mut arrivals)])
        } else {
            let draws = std::iter::repeat_with(|| below(size, &mut arrivals)).take(TRIES);
            { draws }.find(|index| self.may_come(*index, now))
        };
        self.absent.as_mut()?.arrivals = arrivals;
        found
    }

    fn may_come(&self, index: usize, now: Time) -> bool {
        let Some(absent) = &self.absent else { return false };
        let least = self.behaviour.battery.map_or(0.0, |battery| battery.least);
        !self.there.contains_key(&index)
            && self.charge(absent, index, now) >= least
            && self.nature(absent, index).may_come(now)
    }

    fn nature(&self, absent: &Absent, index: usize) -> Nature {
        let traced = absent.population.nature(index);
        traced
            .unwrap_or_else(|| self.behaviour.nature(&self.seed, &absent.population.client(index)))
    }

    fn charge(&self, absent: &Absent, index: usize, now: Time) -> f64 {
        let (Some((at, charge)), Some(Battery { charge_h, .. })) =
            (absent.charges.get(&index), self.behaviour.battery)
        else {
            return 1.0;
        };
        (charge + at.until(now).as_secs_f64() / (3600.0 * charge_h)).min(1.0)
    }

    /// The device begins to work: another one may come for what else there is to do.
    pub(crate) fn begin(&mut self, index: usize) {
        let device = self.device(index);
        if !std::mem::replace(&mut device.at_work, true) {
            self.at_work += 1;
        }
    }

    /// A device that trains for so long has less charge.
    pub(crate) fn drain(&mut self, index: usize, now: Time, training: Duration) {
        let Some(minutes) = self.device(index).draws.nature.battery_min else { return };
        let Some(absent) = &self.absent else { return };
        let used = training.as_secs_f64() / (60.0 * minutes.max(1e-3));
        let left = (self.charge(absent, index, now) - used).max(0.0);
        if let Some(absent) = &mut self.absent {
            absent.charges.insert(index, (now.after(training), left));
        }
    }

    /// A device that has nothing to do: whether it stays. One of a population goes when its work is
    /// done, or its time of day is over.
    pub(crate) fn stays(&mut self, index: usize, now: Time) -> bool {
        let device = self.device(index);
        let worked = std::mem::take(&mut device.at_work);
        let may_come = device.draws.nature.may_come(now);
        self.at_work -= usize::from(worked);
        let goes = self.absent.is_some() && (worked || !may_come);
        if goes
            && let Some(device) = self.there.remove(&index)
            && let Some(absent) = &mut self.absent
        {
            absent.held.extend(device.held.map(|held| (index, held)));
            let own = device.session.own().clone();
            let has_some = own != Own::default();
            absent.own.extend(has_some.then_some((index, own)));
        }
        !goes
    }
}
