//! AdamW on flat vectors, as torch computes it, and clipping by the global norm.

use floret_core::plan::TrainingConfig;

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, behind its bias correction.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl From<&TrainingConfig> for AdamWConfig {
    fn from(config: &TrainingConfig) -> Self {
        Self {
            learning_rate: config.learning_rate.into(),
            beta1: config.beta1.into(),
            beta2: config.beta2.into(),
            epsilon: config.epsilon.into(),
            weight_decay: config.weight_decay.into(),
        }
    }
}

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2) with its moments.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    step: i32,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    /// A fresh optimizer of `len` values.
    #[must_use]
    pub fn new(config: AdamWConfig, len: usize) -> Self {
        Self { config, step: 0, first: vec![0.0; len], second: vec![0.0; len] }
    }

    /// Sets the learning rate of the next steps.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.config.learning_rate = learning_rate;
    }

    /// Moves `values` one step against `gradient`; both have the length of this optimizer.
    pub fn step(&mut self, values: &mut [f32], gradient: &[f32]) {
        let AdamWConfig { learning_rate, beta1, beta2, epsilon, weight_decay } = self.config;
        self.step = self.step.saturating_add(1);
        let keep = (1.0 - learning_rate * weight_decay) as f32;
        let step_size = (learning_rate / (1.0 - beta1.powi(self.step))) as f32;
        let root_correction = (1.0 - beta2.powi(self.step)).sqrt() as f32;
        // 1 - beta2 in f32 would be wrong by 5e-5 of itself.
        let [new1, new2] = [1.0 - beta1, 1.0 - beta2].map(|value| value as f32);
        let [beta1, beta2, epsilon] = [beta1, beta2, epsilon].map(|value| value as f32);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = beta1 * *first + new1 * gradient;
            *second = beta2 * *second + new2 * gradient * gradient;
            let root = second.sqrt() / root_correction + epsilon;
            *value = *value * keep - step_size * *first / root;
        }
    }
}

/// Multiplies `gradient` by `factor`, then scales it down to a global L2 norm of at most
/// `max_norm` (0: no bound), as torch's `clip_grad_norm_`; returns the norm before clipping.
pub fn scale_and_clip(gradient: &mut [f32], factor: f64, max_norm: f64) -> f64 {
    let squares: f64 = gradient.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    let norm = squares.sqrt() * factor;
    let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let factor = (factor * clip) as f32;
    gradient.iter_mut().for_each(|value| *value *= factor);
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };

    #[test]
    fn follows_torch() {
        // torch.optim.AdamW([1.0, -2.0], lr=0.1, weight_decay=0.01) with gradients [0.5, -1.0],
        // then [0.25, 3.0].
        let mut values = [1.0, -2.0];
        let mut optimizer = AdamW::new(CONFIG, 2);
        optimizer.step(&mut values, &[0.5, -1.0]);
        let near = |x: f32, y: f32| assert!((x - y).abs() < 1e-6, "{x} {y}");
        near(values[0], 0.899);
        near(values[1], -1.898);
        optimizer.step(&mut values, &[0.25, 3.0]);
        near(values[0], 0.804_883_06);
        near(values[1], -1.945_521);
    }

    #[test]
    fn clips_by_the_norm_of_all_values() {
        let mut gradient = [6.0, 8.0];
        assert_eq!(scale_and_clip(&mut gradient, 0.5, 1.0), 5.0);
        assert!((gradient[0] - 0.6).abs() < 1e-6 && (gradient[1] - 0.8).abs() < 1e-6);
        let mut gradient = [6.0, 8.0];
        scale_and_clip(&mut gradient, 1.0, 0.0);
        assert_eq!(gradient, [6.0, 8.0]);
    }
}
