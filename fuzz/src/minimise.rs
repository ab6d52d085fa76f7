//! A smaller input that fails in the same way.

use crate::Target;
use crate::check::{Failure, check};

/// Most inputs that are tried.
const TRIES: usize = 4000;

/// Removes pieces of `input`, from halves down to bytes, as long as it fails like `failure`.
#[must_use]
pub fn minimise(target: &Target, input: Vec<u8>, failure: &Failure) -> Vec<u8> {
    if matches!(failure, Failure::Hang(_) | Failure::Death) {
        return input;
    }
    let mut smallest = input;
    let mut piece = smallest.len().div_ceil(2);
    let mut tries = 0;
    while piece > 0 {
        let mut start = 0;
        while start < smallest.len() && tries < TRIES {
            let end = (start + piece).min(smallest.len());
            let shorter = [&smallest[..start], &smallest[end..]].concat();
            tries += 1;
            match check(target, &shorter) {
                Err(other) if other.is_like(failure) => smallest = shorter,
                _ => start = end,
            }
        }
        piece /= 2;
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::ALL;

    #[test]
    fn what_does_not_matter_is_removed() {
        fn refuses_seven(data: &[u8]) -> bool {
            assert!(!data.contains(&7));
            true
        }
        let target = Target { run: refuses_seven, ..ALL[0] };
        let input: Vec<u8> = (0..100).collect();
        let failure = check(&target, &input).unwrap_err();
        assert_eq!(minimise(&target, input, &failure), [7]);
    }
}
