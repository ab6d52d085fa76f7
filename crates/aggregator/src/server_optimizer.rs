//! Server optimizers: how the combined delta moves the global adapter.

use serde::{Deserialize, Serialize};

/// SGD with momentum (FedAvgM, Hsu et al. 2019, arXiv 1909.06335, section 3): m ← β m + Δ,
/// x ← x + η m. With β = 0 and η = 1 this is FedAvg.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerOptimizer {
    /// η, above 0.
    pub learning_rate: f32,
    /// β, 0 or more and below 1.
    pub momentum: f32,
}

impl Default for ServerOptimizer {
    fn default() -> Self {
        Self { learning_rate: 1.0, momentum: 0.0 }
    }
}

impl ServerOptimizer {
    /// The values and momentum after one step from `values` and `momentum` by `delta`.
    #[must_use]
    pub fn step(self, values: &[f32], momentum: &[f32], delta: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let after: Vec<f32> =
            momentum.iter().zip(delta).map(|(m, change)| self.momentum * m + change).collect();
        let values = values.iter().zip(&after).map(|(x, m)| x + self.learning_rate * m).collect();
        (values, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `server optimizers`, `fedavgm` of ../shared/vectors, from numpy.
    #[test]
    fn follows_the_reference_values() {
        let sgd = ServerOptimizer { learning_rate: 1.0, momentum: 0.9 };
        let (x, m) = sgd.step(&[0.0; 3], &[0.0; 3], &[0.1, -0.2, 0.3]);
        assert_eq!(x, [0.1, -0.2, 0.3]);
        let (x, m) = sgd.step(&x, &m, &[0.05, 0.1, -0.1]);
        let close = |got: &[f32], want: [f32; 3]| {
            got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6)
        };
        assert!(close(&m, [0.14, -0.08, 0.17]), "{m:?}");
        assert!(close(&x, [0.24, -0.28, 0.47]), "{x:?}");
    }

    #[test]
    fn the_default_adds_the_mean() {
        let (x, _) = ServerOptimizer::default().step(&[1.0, 2.0], &[5.0, 5.0], &[0.5, -0.5]);
        assert_eq!(x, [1.5, 1.5]);
    }
}
