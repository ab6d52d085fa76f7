//! Values of a matrix as bf16 terms, in the order that matrix tiles want.
#![allow(unsafe_code, reason = "loads and stores of vectors")]
#![allow(clippy::needless_range_loop, reason = "several arrays go side by side")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::amx::{DEPTH, SIDE, Step, TERMS, Tile};
use super::matmul::View;
use super::simd::prefetch;

/// The order that tiles want values in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// \[line, pair\].
    Left,
    /// \[pair, line\].
    Right,
}

/// That this processor has the vectors that packing uses (AVX-512 F and BW).
#[derive(Clone, Copy)]
pub(super) struct Vectors(());

impl Vectors {
    pub(super) fn get() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        all.then_some(Self(()))
    }

    /// Splits `lines` (up to 32) of `view` \[lines, inner\] into terms, a step for each 32 of the
    /// inner values; what lies beyond the range is zero.
    ///
    /// # Panics
    /// Neither stride of the view is 1, or the range ends beyond its slice.
    pub(super) fn pack(
        self,
        panel: &mut [Step],
        view: View<'_>,
        lines: Range<usize>,
        inner: Range<usize>,
        side: Side,
    ) {
        // SAFETY: the processor has these vectors, or there would be no `Vectors`.
        unsafe { pack(panel, view, lines, inner, side) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack(panel: &mut [Step], view: View<'_>, lines: Range<usize>, inner: Range<usize>, side: Side) {
    let [line_stride, inner_stride] = view.strides;
    let natural = if inner_stride == 1 { Side::Left } else { Side::Right };
    let stride = if inner_stride == 1 { line_stride } else { inner_stride };
    assert!(inner_stride == 1 || line_stride == 1, "values of a line or a column lie side by side");
    for (step, first) in panel.iter_mut().zip(inner.clone().step_by(DEPTH)) {
        let depth = DEPTH.min(inner.end - first);
        for half in 0..2 {
            let line = (lines.start + half * SIDE).min(lines.end);
            let count = SIDE.min(lines.end - line);
            let start = line * line_stride + first * inner_stride;
            let data = view.data.get(start..).unwrap_or_default();
            let mut terms = match natural {
                Side::Left => split_lines((data, stride), [count, depth]),
                Side::Right => split_pairs((data, stride), [count, depth]),
            };
            for (step, term) in step.iter_mut().zip(&mut terms) {
                if natural != side {
                    transpose(term);
                }
                store(&mut step[half], term);
            }
        }
    }
}

/// One tile, a vector for each row.
type Vectors16 = [__m512i; SIDE];

/// Terms of lines whose inner values lie side by side, as \[line, pair\].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split_lines((data, stride): (&[f32], usize), [lines, inner]: [usize; 2]) -> [Vectors16; TERMS] {
    let mut terms = [[_mm512_setzero_si512(); SIDE]; TERMS];
    // The upper halves of 32 words.
    let upper: [u16; DEPTH] = std::array::from_fn(|at| 2 * at as u16 + 1);
    // SAFETY: the array has the 64 bytes that are loaded.
    let upper = unsafe { _mm512_loadu_si512(upper.as_ptr().cast()) };
    for line in 0..lines {
        let values = &data[line * stride..][..inner];
        prefetch(values.as_ptr().wrapping_add(4 * DEPTH));
        prefetch(values.as_ptr().wrapping_add(4 * DEPTH + SIDE));
        let (low, high) = values.split_at(SIDE.min(inner));
        let (low, high) = (split(load(low)), split(load(high)));
        for term in 0..TERMS {
            terms[term][line] = _mm512_permutex2var_epi16(low[term], upper, high[term]);
        }
    }
    terms
}

/// Terms of values whose neighbours belong to other lines, as \[pair, line\].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split_pairs((data, stride): (&[f32], usize), [lines, inner]: [usize; 2]) -> [Vectors16; TERMS] {
    let mut terms = [[_mm512_setzero_si512(); SIDE]; TERMS];
    let values = |at: usize| {
        let values = if at < inner && lines > 0 { &data[at * stride..][..lines] } else { &[] };
        prefetch(values.as_ptr().wrapping_add(DEPTH * stride));
        split(load(values))
    };
    for pair in 0..inner.div_ceil(2) {
        let (even, odd) = (values(2 * pair), values(2 * pair + 1));
        for term in 0..TERMS {
            // All terms have zeros in the lower halves of their words.
            terms[term][pair] = _mm512_or_si512(_mm512_srli_epi32::<16>(even[term]), odd[term]);
        }
    }
    terms
}

/// Up to 16 values, and zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(values: &[f32]) -> __m512 {
    assert!(values.len() <= SIDE);
    let mask = ((1u32 << values.len()) - 1) as u16;
    // SAFETY: the mask leaves out what lies beyond the slice, and that is not read.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store(tile: &mut Tile, rows: &Vectors16) {
    for (words, &row) in tile.iter_mut().zip(rows) {
        // SAFETY: the row has the 64 bytes that are written.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), row) };
    }
}

/// Bits of three numbers for each value, which add up to it and have at most 8 significant bits,
/// all in the upper halves of the words. Only the first is rounded; NaN stays in the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split(values: __m512) -> [__m512i; TERMS] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let rounded = _mm512_add_epi32(_mm512_castps_si512(values), _mm512_set1_epi32(0x8000));
    let first = _mm512_and_si512(rounded, upper);
    let rest = _mm512_sub_ps(values, _mm512_castsi512_ps(first));
    let second = _mm512_and_si512(_mm512_castps_si512(rest), upper);
    let third = _mm512_sub_ps(rest, _mm512_castsi512_ps(second));
    // Of a number too small for its terms, the last bits are cut off.
    [first, second, _mm512_and_si512(_mm512_castps_si512(third), upper)]
}

/// The transpose, in four rounds of exchanges between rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(rows: &mut Vectors16) {
    let mut pairs = [_mm512_setzero_si512(); SIDE];
    for at in 0..8 {
        let (even, odd) = (rows[2 * at], rows[2 * at + 1]);
        pairs[2 * at] = _mm512_unpacklo_epi32(even, odd);
        pairs[2 * at + 1] = _mm512_unpackhi_epi32(even, odd);
    }
    for at in (0..SIDE).step_by(4) {
        rows[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        rows[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        rows[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        rows[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    for at in 0..4 {
        for half in [0, 8] {
            let (x, y) = (rows[at + half], rows[at + half + 4]);
            pairs[at + half] = _mm512_shuffle_i32x4::<0x88>(x, y);
            pairs[at + half + 4] = _mm512_shuffle_i32x4::<0xdd>(x, y);
        }
    }
    for at in 0..4 {
        for quarter in [0, 4] {
            let (x, y) = (pairs[at + quarter], pairs[at + quarter + 8]);
            rows[at + quarter] = _mm512_shuffle_i32x4::<0x88>(x, y);
            rows[at + quarter + 8] = _mm512_shuffle_i32x4::<0xdd>(x, y);
        }
    }
}
