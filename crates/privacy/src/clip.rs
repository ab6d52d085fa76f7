//! Clipping to an L2 norm: x becomes x · min(1, C / ‖x‖) (McMahan et al. 2018, arXiv 1710.06963,
//! section 3, flat clipping).

use pulp::{Arch, NullaryFnOnce};

/// Clips `values` to the L2 norm `clip_norm`, in place, and gives the norm they had.
///
/// The norm is summed in f64, in a fixed order, so that it is the same everywhere.
///
/// # Errors
/// Values that are not finite, or a clip norm that is not a positive number; nothing is changed.
pub fn clip_l2(values: &mut [f32], clip_norm: f32) -> Result<f64, Unclippable> {
    if !(clip_norm.is_finite() && clip_norm > 0.0) {
        return Err(Unclippable::ClipNorm(clip_norm));
    }
    // f64 holds the square of the largest f32, and of 2^500 of them.
    let norm = Arch::new().dispatch(SumOfSquares(values)).sqrt();
    if !norm.is_finite() {
        return Err(Unclippable::NotFinite);
    }
    let factor = f64::from(clip_norm) / norm;
    if factor < 1.0 {
        Arch::new().dispatch(Scale { values, factor });
    }
    Ok(norm)
}

/// Σ x², in eight sums side by side (value i in sum i mod 8) that are added in order, whatever the
/// width of vectors that it is compiled for.
struct SumOfSquares<'a>(&'a [f32]);

impl NullaryFnOnce for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let (eights, rest) = self.0.as_chunks::<8>();
        let mut sums = [0.0f64; 8];
        for eight in eights {
            for (sum, value) in sums.iter_mut().zip(eight) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        for (sum, value) in sums.iter_mut().zip(rest) {
            *sum += f64::from(*value) * f64::from(*value);
        }
        sums.iter().sum()
    }
}

/// x becomes x · factor, in f64.
struct Scale<'a> {
    values: &'a mut [f32],
    factor: f64,
}

impl NullaryFnOnce for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for value in self.values {
            *value = (f64::from(*value) * self.factor) as f32;
        }
    }
}

/// What cannot be clipped.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Unclippable {
    /// NaN or infinity among the values.
    #[error("a value is not finite")]
    NotFinite,
    /// A clip norm that is not a positive number.
    #[error("the clip norm is {0}: use a positive number")]
    ClipNorm(f32),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(values: &[f32]) -> f64 {
        values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn long_vectors_get_the_norm_and_keep_their_direction() {
        let mut values = vec![3.0, -4.0];
        assert_eq!(clip_l2(&mut values, 1.0), Ok(5.0));
        assert!((norm(&values) - 1.0).abs() < 1e-6);
        assert!((values[0] / values[1] + 0.75).abs() < 1e-6);
    }

    #[test]
    fn vectors_of_any_width_give_the_same_bits() {
        let mut values: Vec<f32> = (0..1003).map(|at| (at as f32 * 0.7).sin()).collect();
        (values[3], values[4]) = (1e30, 1e-42);
        let sum = Arch::new().dispatch(SumOfSquares(&values));
        assert_eq!(sum.to_bits(), SumOfSquares(&values).call().to_bits());
        let mut scalars = values.clone();
        Arch::new().dispatch(Scale { values: &mut values, factor: 0.3 });
        Scale { values: &mut scalars, factor: 0.3 }.call();
        assert!(values.iter().zip(&scalars).all(|(x, y)| x.to_bits() == y.to_bits()));
    }

    #[test]
    fn short_vectors_are_left_alone_to_the_bit() {
        let mut values = vec![0.3, -0.4, 1e-42, 0.0];
        let before = values.clone();
        clip_l2(&mut values, 0.6).unwrap();
        assert_eq!(values, before);
        assert_eq!(clip_l2(&mut [], 1.0), Ok(0.0));
        assert_eq!(clip_l2(&mut [0.0], 1.0), Ok(0.0));
    }

    #[test]
    fn the_largest_values_are_clipped_and_bad_ones_refused() {
        let mut values = vec![f32::MAX; 1000];
        clip_l2(&mut values, 2.0).unwrap();
        assert!((norm(&values) - 2.0).abs() < 1e-5);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0, bad];
            assert_eq!(clip_l2(&mut values, 1.0), Err(Unclippable::NotFinite));
            assert_eq!(values[0], 1.0);
            assert!(clip_l2(&mut [1.0], bad).is_err());
        }
        assert_eq!(clip_l2(&mut [1.0], 0.0), Err(Unclippable::ClipNorm(0.0)));
    }
}
