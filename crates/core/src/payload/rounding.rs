//! Stochastic rounding.

/// `x` rounded down or up, by a `draw` from [0, 1): over draws, the expectation is `x` (QSGD, Alistarh
/// et al. 2017, arXiv 1610.02132, section 3.1).
#[inline(always)]
pub(super) fn stochastic(x: f32, draw: f32) -> f32 {
    (x + draw).floor()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ../shared/vectors, block `compression`: its values and draws.
    const X: [f32; 8] = [1.0, -2.0, 3.1, 0.5, -1.0, 0.3, 2.0, -0.7];
    const DRAWS: [f32; 8] = [0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.05, 0.95];

    fn levels(unit: f32, magnitude: bool) -> Vec<f32> {
        let level = |(x, draw): (&f32, f32)| match magnitude {
            // Its draw says when to round up, and not what to add.
            true => stochastic(x.abs() / unit, 1.0 - draw).copysign(*x),
            false => stochastic(x / unit, draw),
        };
        X.iter().zip(DRAWS).map(level).collect()
    }

    /// `qsgd_s4` and `int4_sr`.
    #[test]
    fn levels_are_those_of_the_vectors() {
        let norm = X.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert_eq!(levels(norm / 4.0, true), [1.0, -1.0, 3.0, 1.0, -1.0, 1.0, 2.0, 0.0]);
        let dequantized = 3.0 * norm / 4.0;
        assert!((dequantized - 3.390_796_4).abs() < 1e-6, "{dequantized}");
        assert_eq!(levels(3.1 / 7.0, false), [2.0, -4.0, 7.0, 1.0, -2.0, 0.0, 4.0, -1.0]);
    }
}
