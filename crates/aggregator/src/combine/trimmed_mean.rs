//! Trimmed mean and median of one coordinate (Yin et al. 2018, arXiv 1803.01498, definitions 1 and 2).

/// The mean of what is left of `values` without the `trim` largest and the `trim` smallest; of as few
/// dropped as leave one or two. Puts them in ascending order. Zero of none.
#[must_use]
pub fn trimmed_mean(values: &mut [f64], trim: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    let trim = trim.min(n.saturating_sub(1) / 2);
    let kept = &values[trim..n - trim];
    if kept.is_empty() { 0.0 } else { kept.iter().sum::<f64>() / kept.len() as f64 }
}

/// The middle one of `values`, or the mean of the two in the middle. Puts them in ascending order.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    trimmed_mean(values, usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{X, assert_near};

    fn by_column(rule: impl Fn(&mut [f64]) -> f64) -> Vec<f64> {
        (0..3).map(|at| rule(&mut X.map(|row| row[at]))).collect()
    }

    /// Block `robust` of ../shared/vectors: `median`, `trimmed_b1`, `trimmed_b2`.
    #[test]
    fn follow_the_reference_values() {
        assert_near(&by_column(median), &[1.0, 2.0, 3.0], 1e-9);
        let trimmed = |trim| by_column(|values| trimmed_mean(values, trim));
        assert_near(&trimmed(1), &[0.98, 2.0, 2.94], 1e-9);
        assert_near(&trimmed(2), &[1.0, 1.9666666666666668, 2.9333333333333336], 1e-9);
        // `mean`.
        let mean = [1.4142857142857141, 2.857142857142857, 3.5285714285714285];
        assert_near(&trimmed(0), &mean, 1e-9);
    }

    #[test]
    fn something_is_always_left() {
        assert_eq!(trimmed_mean(&mut [], 1), 0.0);
        assert_eq!(trimmed_mean(&mut [5.0], 9), 5.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 100.0]), 3.5);
    }
}
