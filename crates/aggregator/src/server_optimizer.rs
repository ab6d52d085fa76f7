//! Server optimizers: how the combined delta moves the global adapter.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// SGD with momentum (FedAvgM, Hsu et al. 2019, arXiv 1909.06335, section 3): m ← β m + Δ,
/// x ← x + η m. With β = 0 and η = 1 this is FedAvg.
///
/// With [`Adaptive`], one of FedOpt (Reddi et al. 2021, arXiv 2003.00295, algorithm 2), without bias
/// correction: m ← β m + (1 - β) Δ, the rule's v, x ← x + η m / (√v + τ), all value by value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerOptimizer {
    /// η, above 0.
    pub learning_rate: f32,
    /// β, 0 or more and below 1.
    pub momentum: f32,
    /// Divides each value's step by the root of its second moment; none for SGD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
}

/// How an adaptive optimizer's second moment v goes on from τ².
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum Adaptive {
    /// v ← v + Δ².
    Adagrad {
        /// τ, above 0: bounds how far rare changes are scaled up.
        #[serde(default = "Adaptive::default_tau")]
        tau: f64,
    },
    /// v ← β2 v + (1 - β2) Δ².
    Adam {
        /// β2, 0 or more and below 1.
        #[serde(default = "Adaptive::default_beta2")]
        beta2: f64,
        /// τ, above 0.
        #[serde(default = "Adaptive::default_tau")]
        tau: f64,
    },
    /// v ← v - (1 - β2) Δ² sign(v - Δ²).
    Yogi {
        /// β2, 0 or more and below 1.
        #[serde(default = "Adaptive::default_beta2")]
        beta2: f64,
        /// τ, above 0.
        #[serde(default = "Adaptive::default_tau")]
        tau: f64,
    },
}

/// What a server optimizer remembers from round to round, in layout order.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// m.
    pub first: Vec<f32>,
    /// v; none before the first step of an adaptive optimizer.
    pub second: Option<Vec<f32>>,
}

impl Default for ServerOptimizer {
    fn default() -> Self {
        Self { learning_rate: 1.0, momentum: 0.0, adaptive: None }
    }
}

impl Moments {
    /// Those before the first step, of `len` values.
    #[must_use]
    pub fn zero(len: usize) -> Self {
        Self { first: vec![0.0; len], second: None }
    }

    /// Whether they are those of `len` values.
    #[must_use]
    pub fn fit(&self, len: usize) -> bool {
        self.first.len() == len && self.second.as_ref().is_none_or(|second| second.len() == len)
    }
}

impl ServerOptimizer {
    /// Whether a step depends on those before it.
    #[must_use]
    pub fn remembers(&self) -> bool {
        self.momentum > 0.0 || self.adaptive.is_some()
    }

    /// Whether a step is the combined delta: FedAvg.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.learning_rate == 1.0 && !self.remembers()
    }

    /// The values and moments after one step from `values` by `delta`; places of `held` stay as they
    /// are, with their moments. Moments that another kind of optimizer left mean something else: then it
    /// begins anew.
    #[must_use]
    pub fn step(
        self,
        values: &[f32],
        moments: &Moments,
        delta: &[f32],
        held: &[Range<usize>],
    ) -> (Vec<f32>, Moments) {
        let anew = self.first_moments(values.len());
        let of_same_kind = moments.second.is_some() == self.adaptive.is_some();
        let moments = if of_same_kind { moments } else { &anew };
        let (mut after, mut next) = match self.adaptive {
            None => self.sgd(values, &moments.first, delta),
            Some(rule) => self.fed_opt(rule, values, moments, delta),
        };
        for places in held {
            let hold = |after: &mut [f32], before: &[f32]| {
                after[places.clone()].copy_from_slice(&before[places.clone()]);
            };
            hold(&mut after, values);
            hold(&mut next.first, &moments.first);
            if let (Some(next), Some(second)) = (&mut next.second, &moments.second) {
                hold(next, second);
            }
        }
        (after, next)
    }

    fn first_moments(self, len: usize) -> Moments {
        let second = self.adaptive.map(|rule| vec![(rule.tau() * rule.tau()) as f32; len]);
        Moments { second, ..Moments::zero(len) }
    }

    fn sgd(self, values: &[f32], first: &[f32], delta: &[f32]) -> (Vec<f32>, Moments) {
        let first: Vec<f32> =
            first.iter().zip(delta).map(|(m, change)| self.momentum * m + change).collect();
        let values = values.iter().zip(&first).map(|(x, m)| x + self.learning_rate * m).collect();
        (values, Moments { first, second: None })
    }

    fn fed_opt(
        self,
        rule: Adaptive,
        values: &[f32],
        moments: &Moments,
        delta: &[f32],
    ) -> (Vec<f32>, Moments) {
        let [rate, beta1] = [self.learning_rate, self.momentum].map(f64::from);
        let tau = rule.tau();
        let Moments { mut first, second } = moments.clone();
        let mut second = second.unwrap_or_default();
        let mut values = values.to_vec();
        let remembered = first.iter_mut().zip(&mut second);
        for ((x, (m, v)), change) in values.iter_mut().zip(remembered).zip(delta) {
            let change = f64::from(*change);
            let now = beta1 * f64::from(*m) + (1.0 - beta1) * change;
            let scale = rule.next(f64::from(*v), change * change);
            *x = (f64::from(*x) + rate * now / (scale.sqrt() + tau)) as f32;
            (*m, *v) = (now as f32, scale as f32);
        }
        (values, Moments { first, second: Some(second) })
    }
}

impl Adaptive {
    fn default_beta2() -> f64 {
        0.99
    }

    fn default_tau() -> f64 {
        1e-3
    }

    /// τ.
    #[must_use]
    pub fn tau(self) -> f64 {
        match self {
            Self::Adagrad { tau } | Self::Adam { tau, .. } | Self::Yogi { tau, .. } => tau,
        }
    }

    /// β2, of those that have one.
    #[must_use]
    pub fn beta2(self) -> Option<f64> {
        match self {
            Self::Adagrad { .. } => None,
            Self::Adam { beta2, .. } | Self::Yogi { beta2, .. } => Some(beta2),
        }
    }

    /// v after a change whose square is `square`.
    fn next(self, v: f64, square: f64) -> f64 {
        match self {
            Self::Adagrad { .. } => v + square,
            Self::Adam { beta2, .. } => beta2 * v + (1.0 - beta2) * square,
            // Equal ones do not move.
            Self::Yogi { .. } if v == square => v,
            Self::Yogi { beta2, .. } => v - (1.0 - beta2) * square * (v - square).signum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELTAS: [[f32; 3]; 2] = [[0.1, -0.2, 0.3], [0.05, 0.1, -0.1]];
    const BETA2: f64 = 0.99;
    const TAU: f64 = 1e-3;

    /// Two steps from zero: x, m and v (v0 for SGD, which has none) after each.
    fn check(optimizer: ServerOptimizer, want: [[[f64; 3]; 3]; 2]) {
        let (mut x, mut moments) = (vec![0.0; 3], Moments::zero(3));
        for (delta, [want_x, want_m, want_v]) in DELTAS.iter().zip(want) {
            (x, moments) = optimizer.step(&x, &moments, delta, &[]);
            let v = moments.second.clone().unwrap_or_else(|| vec![1e-6; 3]);
            for (got, want) in [(&x, want_x), (&moments.first, want_m), (&v, want_v)] {
                for (got, want) in got.iter().zip(want) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 1e-6 * want.abs(), "{optimizer:?}: {got} is not {want}");
                }
            }
        }
    }

    /// Block `server_opt` of ../shared/vectors, `steps.fedavgm`, from numpy.
    #[test]
    fn sgd_follows_the_reference_values() {
        let sgd = ServerOptimizer { learning_rate: 1.0, momentum: 0.9, adaptive: None };
        let v = [1e-6; 3];
        check(
            sgd,
            [
                [[0.1, -0.2, 0.3], [0.1, -0.2, 0.3], v],
                [[0.24, -0.28, 0.47], [0.14, -0.08, 0.17], v],
            ],
        );
    }

    /// Block `server_opt` of ../shared/vectors, `steps.fedadagrad`, `fedadam` and `fedyogi`.
    #[test]
    fn adaptive_rules_follow_the_reference_values() {
        let with = |adaptive| ServerOptimizer {
            learning_rate: 0.1,
            momentum: 0.9,
            adaptive: Some(adaptive),
        };
        let (m1, m2) = ([0.01, -0.02, 0.03], [0.014, -0.008, 0.017]);
        check(
            with(Adaptive::Adagrad { tau: TAU }),
            [
                [
                    [0.009900499987500627, -0.009950124999218761, 0.009966722222067903],
                    m1,
                    [0.010001, 0.040001, 0.090001],
                ],
                [
                    [0.022310981530709227, -0.013511869540127182, 0.01532562112364706],
                    m2,
                    [0.012501, 0.050001, 0.100001],
                ],
            ],
        );
        check(
            with(Adaptive::Adam { beta2: BETA2, tau: TAU }),
            [
                [
                    [0.09050283118522214, -0.09512605167558885, 0.096722726246938],
                    m1,
                    [0.00010099, 0.00040099, 0.00090099],
                ],
                [
                    [0.20545055147121338, -0.12947105944770343, 0.14903731509569476],
                    m2,
                    [0.0001249801, 0.0004969801, 0.0009919801],
                ],
            ],
        );
        check(
            with(Adaptive::Yogi { beta2: BETA2, tau: TAU }),
            [
                [
                    [0.09049875621120891, -0.09512492197250395, 0.0967222067986909],
                    m1,
                    [0.000101, 0.000401, 0.000901],
                ],
                [
                    [0.20501844440681335, -0.129337768829463, 0.14880779966518257],
                    m2,
                    [0.000126, 0.000501, 0.001001],
                ],
            ],
        );
    }

    #[test]
    fn the_default_adds_the_combined_delta() {
        let moments = Moments { first: vec![5.0; 2], second: None };
        let (x, _) = ServerOptimizer::default().step(&[1.0, 2.0], &moments, &[0.5, -0.5], &[]);
        assert_eq!(x, [1.5, 1.5]);
    }

    #[test]
    fn moments_of_another_kind_are_not_used() {
        let sgd = ServerOptimizer { momentum: 0.9, ..ServerOptimizer::default() };
        let adam =
            ServerOptimizer { adaptive: Some(Adaptive::Adam { beta2: BETA2, tau: TAU }), ..sgd };
        let (values, delta) = ([1.0, 2.0], [0.5, -0.5]);
        let (_, of_sgd) = sgd.step(&values, &Moments::zero(2), &delta, &[]);
        let (_, of_adam) = adam.step(&values, &Moments::zero(2), &delta, &[]);
        for (optimizer, other) in [(sgd, of_adam), (adam, of_sgd)] {
            let anew = optimizer.step(&values, &Moments::zero(2), &delta, &[]);
            assert_eq!(optimizer.step(&values, &other, &delta, &[]), anew);
        }
    }

    #[test]
    fn what_is_held_stays_with_its_moments() {
        let sgd = ServerOptimizer { momentum: 0.9, ..ServerOptimizer::default() };
        let adam =
            ServerOptimizer { adaptive: Some(Adaptive::Adam { beta2: BETA2, tau: TAU }), ..sgd };
        for optimizer in [sgd, adam] {
            let (x, moments) = optimizer.step(&[0.0; 3], &Moments::zero(3), &DELTAS[0], &[]);
            let (free, moved) = optimizer.step(&x, &moments, &[0.0; 3], &[]);
            let (held, kept) = optimizer.step(&x, &moments, &[0.0; 3], &[0..1, 2..3]);
            assert_eq!((held[0], held[1], held[2]), (x[0], free[1], x[2]));
            assert!(free[0] != x[0] && moved.first[2] != moments.first[2]);
            assert_eq!(kept.first, [moments.first[0], moved.first[1], moments.first[2]]);
            assert_eq!(kept.second.map(|v| v[0]), moments.second.map(|v| v[0]));
        }
    }

    #[test]
    fn settings_of_sgd_read_and_write_as_before_there_were_others() {
        let text = r#"{"learning_rate":1.0,"momentum":0.5}"#;
        let sgd: ServerOptimizer = serde_json::from_str(text).unwrap();
        assert_eq!(sgd, ServerOptimizer { momentum: 0.5, ..ServerOptimizer::default() });
        assert_eq!(serde_json::to_string(&sgd).unwrap(), text);
        let yogi: ServerOptimizer =
            serde_json::from_str(r#"{"adaptive": {"rule": "yogi", "tau": 0.1}}"#).unwrap();
        assert_eq!(yogi.adaptive, Some(Adaptive::Yogi { beta2: 0.99, tau: 0.1 }));
    }
}
