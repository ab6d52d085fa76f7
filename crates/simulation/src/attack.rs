//! Attack models: what hostile devices send in the place of what they trained, for study.
//!
//! The owner of a device changes its delta after training and before it is clipped and encoded. The
//! device's state machine does not know, and the server clips what comes as it always does. Who is
//! hostile is drawn by seed alone, so that strategies can be compared under the same attack.

use std::collections::BTreeSet;

use floret_core::seed::Purpose;
use floret_core::{ClientId, Digest, Plan, Round, Scope, Seed};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
use serde::{Deserialize, Serialize};

use crate::distribution::{normal, sample};

/// How many clients are hostile, and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    /// Share of all clients, above 0 and up to 1: the nearest whole number of them.
    pub share: f64,
    /// What they do.
    #[serde(flatten)]
    pub kind: AttackKind,
}

/// What hostile clients do. Δ is the delta that a client trained, C the run's clip norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AttackKind {
    /// They train on flipped targets: in a vocabulary of V tokens, wherever token t follows, V - 1 - t is
    /// learned (Fang et al. 2020, arXiv 1911.11815, section 5.1, with tokens for classes). Contexts stay
    /// as they are. What holds a client's texts does it, and not [`Hostile`].
    LabelFlip {},
    /// They send -`scale` Δ (Li et al. 2019, RSA, arXiv 1811.03761, section 5); without a scale, -Δ
    /// stretched to C, the farthest that the server lets an update go.
    SignFlip {
        /// Above 0.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scale: Option<f64>,
    },
    /// They send `factor` Δ, to replace the model by their own (Bagdasaryan et al. 2020,
    /// arXiv 1807.00459, section 4.2).
    Scaling {
        /// Above 0.
        factor: f64,
    },
    /// They send Gaussian noise (Blanchard et al. 2017, arXiv 1703.02757, section 6) of this L2 norm;
    /// without one, of C. What does not train stays as it is.
    Noise {
        /// Above 0.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        norm: Option<f64>,
    },
    /// They all send μ - z σ, value by value, with mean and standard deviation of what they trained
    /// (Baruch et al. 2019, A Little Is Enough, arXiv 1902.06156, algorithm 3): near enough to pass for
    /// honest. They know each other's texts: what they send in a round comes of what up to
    /// [`Hostile::COLLUDERS`] of them train, in the cohort or not.
    LittleIsEnough {
        /// 0 or more; without it, [`largest_z`] of a round's updates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        z: Option<f64>,
    },
}

impl Attack {
    /// The first setting that is out of range, and what would be accepted.
    ///
    /// # Errors
    /// That setting.
    pub fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let number = "a number above 0";
        match self.kind {
            _ if !(self.share > 0.0 && self.share <= 1.0) => Err(("share", "above 0, up to 1")),
            AttackKind::SignFlip { scale: Some(scale) } if !positive(scale) => {
                Err(("scale", number))
            }
            AttackKind::Scaling { factor } if !positive(factor) => Err(("factor", number)),
            AttackKind::Noise { norm: Some(norm) } if !positive(norm) => Err(("norm", number)),
            AttackKind::LittleIsEnough { z: Some(z) } if !(0.0..=1e6).contains(&z) => {
                Err(("z", "0 to 1000000"))
            }
            AttackKind::LittleIsEnough { z: None } if self.share >= 0.5 => {
                Err(("z", "a number: half of the clients need no supporters"))
            }
            _ => Ok(()),
        }
    }

    /// Indices of the hostile ones of `clients`.
    #[must_use]
    pub fn hostile(&self, clients: usize, seed: &Seed) -> BTreeSet<usize> {
        let count = (self.share * clients as f64).round() as usize;
        sample(clients, count, &mut seed.derive(Purpose::Attack, Round(0), None).stream())
    }
}

/// z of [`AttackKind::LittleIsEnough`] for `n` updates of which `m` are hostile: the largest with
/// Φ(z) < (n - m - s) / (n - m), where s = ⌊n/2 + 1⌋ - m honest ones beyond it make a majority with the
/// hostile ones (algorithm 3). 0 where that is below 0, and endless where the hostile are a majority.
#[must_use]
pub fn largest_z(n: u32, m: u32) -> f64 {
    let (n, m) = (f64::from(n), f64::from(m));
    let supporters = (n / 2.0 + 1.0).floor() - m;
    let below = (n - m - supporters) / (n - m);
    if supporters <= 0.0 || n <= m {
        return f64::INFINITY;
    }
    let cumulative = |z: f64| 0.5 * libm::erfc(-z / std::f64::consts::SQRT_2);
    // n is a u32: z lies below 7. Bisection ends where an f64 does.
    let (mut low, mut high) = (0.0, 16.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if cumulative(middle) < below { low = middle } else { high = middle }
    }
    low
}

/// A trainer some of whose clients are hostile.
#[derive(Debug)]
pub struct Hostile<T> {
    inner: T,
    band: Option<Band>,
}

/// Those that are hostile.
#[derive(Debug)]
struct Band {
    kind: AttackKind,
    members: BTreeSet<ClientId>,
    /// z of [`AttackKind::LittleIsEnough`].
    z: f64,
    seed: Seed,
    /// What all of them send in a round, for the adapter that it begins with.
    agreed: Option<(Round, Digest, Vec<f64>)>,
}

impl<T> Hostile<T> {
    /// Most hostile clients whose deltas make up what all of them send.
    pub const COLLUDERS: usize = 16;

    /// A trainer all of whose clients are honest.
    #[must_use]
    pub fn nobody(inner: T) -> Self {
        Self { inner, band: None }
    }

    /// A trainer whose clients `members` carry out `attack` in rounds of `updates` updates.
    #[must_use]
    pub fn new(
        inner: T,
        attack: Attack,
        members: BTreeSet<ClientId>,
        updates: u32,
        seed: &Seed,
    ) -> Self {
        let z = match attack.kind {
            AttackKind::LittleIsEnough { z } => z.unwrap_or_else(|| {
                largest_z(updates, (attack.share * f64::from(updates)).round() as u32)
            }),
            _ => 0.0,
        };
        let seed = seed.clone();
        Self { inner, band: Some(Band { kind: attack.kind, members, z, seed, agreed: None }) }
    }

    /// The trainer of all clients.
    pub fn inner(&mut self) -> &mut T {
        &mut self.inner
    }

    /// Whether `client` is hostile.
    #[must_use]
    pub fn is_hostile(&self, client: &ClientId) -> bool {
        self.band.as_ref().is_some_and(|band| band.members.contains(client))
    }
}

impl<T: Trainer> Hostile<T> {
    /// What comes of training that gave `outcome`: something else, if the task's client is hostile.
    fn turned(
        &mut self,
        task: &TrainingTask,
        mut outcome: TrainingOutcome,
    ) -> Result<TrainingOutcome, TrainError> {
        let members = self.band.as_mut().filter(|band| band.members.contains(&task.client));
        if let Some(band) = members {
            let delta = band.delta(&mut self.inner, task, &outcome)?;
            let changed = task.adapter.values().iter().zip(delta);
            outcome.values = changed.map(|(x, change)| (f64::from(*x) + change) as f32).collect();
        }
        Ok(outcome)
    }
}

impl<T: Trainer> Trainer for Hostile<T> {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let outcome = self.inner.train(task, progress)?;
        self.turned(task, outcome)
    }

    fn train_all(
        &mut self,
        tasks: &[TrainingTask],
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let outcomes = self.inner.train_all(tasks, progress);
        let pairs = tasks.iter().zip(outcomes);
        pairs.map(|(task, outcome)| self.turned(task, outcome?)).collect()
    }

    fn steps(&self, task: &TrainingTask) -> u32 {
        self.inner.steps(task)
    }

    fn at_once(&self, task: &TrainingTask) -> usize {
        self.inner.at_once(task)
    }
}

impl Band {
    /// What a member sends that trained `outcome`.
    fn delta<T: Trainer>(
        &mut self,
        inner: &mut T,
        task: &TrainingTask,
        outcome: &TrainingOutcome,
    ) -> Result<Vec<f64>, TrainError> {
        let delta = change(task, outcome);
        let clip_norm = f64::from(task.plan.clip_norm);
        Ok(match self.kind {
            AttackKind::LabelFlip {} => delta,
            AttackKind::SignFlip { scale: Some(scale) } => times(delta, -scale),
            AttackKind::SignFlip { scale: None } => stretched(delta, -clip_norm),
            AttackKind::Scaling { factor } => times(delta, factor),
            AttackKind::Noise { norm } => {
                let client = Some(&task.client);
                let seed = self.seed.derive(Purpose::Attack, task.plan.round, client);
                let mut stream = seed.stream();
                let mut noise: Vec<f64> = delta.iter().map(|_| normal(&mut stream)).collect();
                for places in task.scope.outside(task.adapter.layout()) {
                    noise[places].fill(0.0);
                }
                stretched(noise, norm.unwrap_or(clip_norm))
            }
            AttackKind::LittleIsEnough { .. } => {
                let mut delta = self.agreed(inner, task)?;
                for places in task.scope.outside(task.adapter.layout()) {
                    delta[places].fill(0.0);
                }
                delta
            }
        })
    }

    /// μ - z σ over what colluders train from the task's adapter, whoever of them asks.
    fn agreed<T: Trainer>(
        &mut self,
        inner: &mut T,
        task: &TrainingTask,
    ) -> Result<Vec<f64>, TrainError> {
        let TrainingTask { plan, adapter, scope, .. } = task;
        match &self.agreed {
            Some((round, from, delta)) if (*round, *from) == (plan.round, adapter.digest()) => {
                return Ok(delta.clone());
            }
            _ => {}
        }
        let seed = self.seed.derive(Purpose::Attack, plan.round, None);
        let (plan, rank) =
            (Plan { seed, ..plan.clone() }, plan.lora.rank.saturating_sub(plan.folded_rank));
        let scope = Scope { rank, ..*scope };
        let common = TrainingTask { plan, scope, correction: None, ..task.clone() };
        let colluders = self.members.iter().take(Hostile::<T>::COLLUDERS);
        let tasks: Vec<TrainingTask> = colluders
            .map(|client| TrainingTask { client: client.clone(), ..common.clone() })
            .collect();
        let mut deltas = Vec::with_capacity(tasks.len());
        for (task, outcome) in tasks.iter().zip(inner.train_all(&tasks, &mut |_| Control::Continue))
        {
            match outcome {
                Ok(outcome) => deltas.push(change(task, &outcome)),
                Err(TrainError::NoData | TrainError::Diverged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut delta = below_mean(&deltas, self.z);
        delta.resize(adapter.values().len(), 0.0);
        self.agreed = Some((common.plan.round, adapter.digest(), delta.clone()));
        Ok(delta)
    }
}

/// What training changed.
fn change(task: &TrainingTask, outcome: &TrainingOutcome) -> Vec<f64> {
    let pairs = outcome.values.iter().zip(task.adapter.values());
    pairs.map(|(after, before)| f64::from(*after) - f64::from(*before)).collect()
}

fn times(mut delta: Vec<f64>, factor: f64) -> Vec<f64> {
    delta.iter_mut().for_each(|value| *value *= factor);
    delta
}

/// The delta at the L2 norm |`norm`|, turned around where that is negative; zeros stay zeros.
fn stretched(delta: Vec<f64>, norm: f64) -> Vec<f64> {
    let length = delta.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length > 0.0 { times(delta, norm / length) } else { delta }
}

/// μ - z σ of each value, with the standard deviation of the deltas as a population.
fn below_mean(deltas: &[Vec<f64>], z: f64) -> Vec<f64> {
    let count = deltas.len() as f64;
    let value = |at: usize| {
        let mean = deltas.iter().map(|delta| delta[at]).sum::<f64>() / count;
        let squares = deltas.iter().map(|delta| (delta[at] - mean).powi(2)).sum::<f64>();
        mean - z * (squares / count).sqrt()
    };
    (0..deltas.first().map_or(0, Vec::len)).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantiles of the standard normal distribution: Φ⁻¹(24/26) for the paper's 24 of 50, and
    /// Φ⁻¹(9/16) for 4 of 20.
    #[test]
    fn z_follows_from_how_many_supporters_are_needed() {
        for (n, m, want) in [(50, 24, 1.426_076_872), (20, 4, 0.157_310_685), (10, 2, 0.0)] {
            let got = largest_z(n, m);
            assert!((got - want).abs() < 1e-8, "{n}, {m}: {got} is not {want}");
        }
        assert_eq!(largest_z(10, 6), f64::INFINITY);
        assert_eq!(largest_z(10, 10), f64::INFINITY);
    }

    #[test]
    fn as_many_are_hostile_as_the_share_says_and_the_seed_chooses() {
        let attack = Attack { share: 0.2, kind: AttackKind::LabelFlip {} };
        let hostile = |seed| attack.hostile(40, &Seed::from_number(seed));
        assert!((0..50).all(|seed| hostile(seed).len() == 8));
        assert_eq!(hostile(3), hostile(3));
        assert_ne!(hostile(3), hostile(4));
        let everyone = Attack { share: 1.0, ..attack };
        assert_eq!(everyone.hostile(7, &Seed::from_number(1)).len(), 7);
    }

    #[test]
    fn the_common_vector_lies_z_deviations_below_the_mean() {
        let deltas = [vec![1.0, 2.0], vec![3.0, 2.0]];
        assert_eq!(below_mean(&deltas, 1.5), [2.0 - 1.5, 2.0]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let attack = |share, kind| Attack { share, kind };
        let flip = AttackKind::SignFlip { scale: None };
        attack(1.0, flip).validate().unwrap();
        for (attack, name) in [
            (attack(0.0, flip), "share"),
            (attack(f64::NAN, flip), "share"),
            (attack(0.2, AttackKind::SignFlip { scale: Some(-1.0) }), "scale"),
            (attack(0.2, AttackKind::Scaling { factor: 0.0 }), "factor"),
            (attack(0.2, AttackKind::Noise { norm: Some(f64::INFINITY) }), "norm"),
            (attack(0.2, AttackKind::LittleIsEnough { z: Some(-0.1) }), "z"),
            (attack(0.5, AttackKind::LittleIsEnough { z: None }), "z"),
        ] {
            assert_eq!(attack.validate().unwrap_err().0, name, "{attack:?}");
        }
    }
}
