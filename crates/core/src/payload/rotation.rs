//! Rotation of blocks: random signs D, then the Walsh-Hadamard matrix H (DRIVE, Vargaftik et al.
//! 2021, arXiv 2105.08339, section 6). A rotated block looks like a draw from a normal distribution,
//! whatever it was, which is what a quantiser with few levels needs.

use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};
use rand_chacha::rand_core::Rng;

use crate::seed::Seed;

/// Most values of a block: it and its signs stay in the first cache, and its scale costs little.
const LONGEST: usize = 4096;
/// Fewest: a block that has less is filled up with zeros.
const SHORTEST: usize = 64;

/// A piece of a vector, and the power of two that it is rotated as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it lies.
    pub(super) range: Range<usize>,
    /// Values with those that fill it up.
    pub(super) size: usize,
}

/// The blocks of `len` values: as long as may be, then ever shorter ones. Only the last is filled up.
pub(super) fn blocks(len: usize) -> impl Iterator<Item = Block> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = len - start;
        let size = (1 << rest.checked_ilog2()?).clamp(SHORTEST, LONGEST);
        let range = start..start + rest.min(size);
        start = range.end;
        Some(Block { range, size })
    })
}

/// How long the first block of `len` values is, which no other exceeds.
pub(super) fn longest(len: usize) -> usize {
    blocks(len).next().map_or(0, |block| block.size)
}

/// One of `segments` contiguous segments of `len` places.
pub(super) fn segment(len: usize, segments: u8, index: u8) -> Range<usize> {
    let bound = |index: u8| len * usize::from(index) / usize::from(segments);
    bound(index)..bound(index + 1)
}

/// Random signs, the same for each block of a payload.
pub(super) struct Signs {
    /// The sign bit of each value, to be flipped.
    masks: Vec<u32>,
}

impl Signs {
    /// Signs by `seed` for blocks of at most `size` values.
    pub(super) fn draw(seed: u32, size: usize) -> Self {
        let mut stream = Seed::from_number(seed.into()).stream();
        let mut masks = Vec::with_capacity(size);
        for _ in 0..size.div_ceil(64) {
            let word = stream.next_u64();
            masks.extend((0..64).map(|bit| ((word >> bit) as u32) << 31));
        }
        Self { masks }
    }

    #[cfg(test)]
    pub(super) fn given(masks: &mut dyn Iterator<Item = u32>) -> Self {
        Self { masks: masks.collect() }
    }

    /// x becomes D x.
    pub(super) fn flip(&self, block: &mut [f32]) {
        for (value, mask) in block.iter_mut().zip(&self.masks) {
            *value = f32::from_bits(value.to_bits() ^ mask);
        }
    }
}

/// x becomes H x, with H of ±1 in Sylvester's order, so that H H = d I. The length d is a power of
/// two and at least 8.
pub(super) fn hadamard(block: &mut [f32]) {
    debug_assert!(block.len().is_power_of_two() && block.len() >= 8);
    Arch::new().dispatch(Hadamard(block));
}

/// Compiled for each width of vectors.
struct Hadamard<'a>(&'a mut [f32]);

impl NullaryFnOnce for Hadamard<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self(block) = self;
        for eight in block.as_chunks_mut::<8>().0 {
            hadamard_8(eight);
        }
        let mut stride = 8;
        // Two strides at once: values are loaded and stored half as often.
        while 4 * stride <= block.len() {
            for four in block.chunks_exact_mut(4 * stride) {
                let (front, back) = four.split_at_mut(2 * stride);
                let ((a, b), (c, d)) = (front.split_at_mut(stride), back.split_at_mut(stride));
                for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                    let (p, q, r, s) = (*a + *b, *a - *b, *c + *d, *c - *d);
                    (*a, *b, *c, *d) = (p + r, q + s, p - r, q - s);
                }
            }
            stride *= 4;
        }
        if stride < block.len() {
            let (a, b) = block.split_at_mut(stride);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

/// Eight values, as three rounds of exchanges in one register: a value that has the bit of its round
/// in its place is subtracted from its partner, the other added.
#[inline(always)]
fn hadamard_8(x: &mut [f32; 8]) {
    let [a, b, c, d, e, f, g, h] = *x;
    let y = sum([e, f, g, h, a, b, c, d], [a, b, c, d, -e, -f, -g, -h]);
    let [a, b, c, d, e, f, g, h] = y;
    let y = sum([c, d, a, b, g, h, e, f], [a, b, -c, -d, e, f, -g, -h]);
    let [a, b, c, d, e, f, g, h] = y;
    *x = sum([b, a, d, c, f, e, h, g], [a, -b, c, -d, e, -f, g, -h]);
}

#[inline(always)]
fn sum(mut x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
    for lane in 0..8 {
        x[lane] += y[lane];
    }
    x
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_follow_each_other_and_little_is_filled_up() {
        let of = |len| blocks(len).map(|block| (block.range.len(), block.size)).collect::<Vec<_>>();
        assert_eq!(of(0), []);
        assert_eq!(of(1), [(1, 64)]);
        assert_eq!(of(64), [(64, 64)]);
        assert_eq!(
            of(10_000),
            [(4096, 4096), (4096, 4096), (1024, 1024), (512, 512), (256, 256), (16, 64)]
        );
        for len in 0..3000 {
            let mut end = 0;
            for block in blocks(len) {
                assert_eq!(block.range.start, end);
                assert!(block.size.is_power_of_two() && block.range.len() <= block.size);
                assert!(block.range.len() == block.size || block.range.end == len);
                end = block.range.end;
            }
            assert_eq!(end, len);
        }
    }

    #[test]
    fn signs_are_fair_and_flipping_twice_changes_nothing() {
        let signs = Signs::draw(3, LONGEST);
        let mut ones = vec![1.0; LONGEST];
        signs.flip(&mut ones);
        // 4096 fair draws have a sum of standard deviation 64.
        let sum: f32 = ones.iter().sum();
        assert!(sum.abs() < 256.0, "{sum}");
        signs.flip(&mut ones);
        assert!(ones.iter().all(|one| *one == 1.0));
    }

    /// The same sums in the same order, for each width of vectors.
    #[test]
    fn vectors_change_no_bit() {
        let mut stream = Seed::from_number(8).stream();
        for size in [8, 16, 64, 512, LONGEST] {
            let mut x: Vec<f32> = (0..size).map(|_| (stream.next_u32() as f32).sin()).collect();
            x[3] = 1e30;
            let mut y = x.clone();
            hadamard(&mut x);
            Hadamard(&mut y).call();
            assert!(x.iter().zip(&y).all(|(x, y)| x.to_bits() == y.to_bits()), "{size}");
        }
    }

    proptest! {
        #[test]
        fn hadamard_is_sylvesters_and_its_own_inverse(log in 3u32..9, seed in any::<u32>()) {
            let mut stream = Seed::from_number(seed.into()).stream();
            let size = 1usize << log;
            let x: Vec<f32> = (0..size).map(|_| (stream.next_u32() % 100) as f32).collect();
            let mut y = x.clone();
            hadamard(&mut y);
            // Whole numbers: exact. H[i, j] = (-1)^popcount(i and j).
            for (i, y) in y.iter().enumerate() {
                let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let want: f32 = x.iter().enumerate().map(|(j, x)| sign(j) * x).sum();
                prop_assert_eq!(*y, want);
            }
            hadamard(&mut y);
            prop_assert!(x.iter().zip(&y).all(|(x, y)| x * size as f32 == *y));
        }
    }
}
