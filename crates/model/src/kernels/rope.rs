//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), in the convention of
//! transformers: component i of a head turns with component i + width / 2.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::rows_per_piece;
use super::simd::vectorized;

/// Rotates, in place, the first `heads` heads of each row of `x`, whose rows have `width` values.
///
/// Row `r` turns by the angles of row `r % positions` of `table` \[positions, head_dim\], whose
/// first half holds cosines and whose second half sines. `inverse` turns the other way, which is
/// also how a gradient is taken back.
pub(crate) fn rotate(
    x: &mut [f32],
    width: usize,
    heads: usize,
    (table, head_dim): (&[f32], usize),
    inverse: bool,
) {
    let rows = rows_per_piece(width);
    x.par_chunks_mut(rows * width).enumerate().for_each(|(piece, x)| {
        let first = piece * rows;
        vectorized(Rotate { x, first, width, heads, table, head_dim, inverse });
    });
}

struct Rotate<'a> {
    x: &'a mut [f32],
    first: usize,
    width: usize,
    heads: usize,
    table: &'a [f32],
    head_dim: usize,
    inverse: bool,
}

impl NullaryFnOnce for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // Short loops of a length that is known are several times as fast.
        match self.head_dim {
            8 => self.rotate::<8>(),
            16 => self.rotate::<16>(),
            32 => self.rotate::<32>(),
            48 => self.rotate::<48>(),
            64 => self.rotate::<64>(),
            96 => self.rotate::<96>(),
            128 => self.rotate::<128>(),
            _ => self.rotate::<0>(),
        }
    }
}

impl Rotate<'_> {
    /// `WIDTH` is the width of a head, or 0 for any.
    #[inline(always)]
    fn rotate<const WIDTH: usize>(self) {
        let Self { x, first, width, heads, table, head_dim, inverse } = self;
        let positions = table.len() / head_dim;
        let sign = if inverse { -1.0 } else { 1.0 };
        for (row, x) in x.chunks_exact_mut(width).enumerate() {
            let angles = &table[(first + row) % positions * head_dim..][..head_dim];
            for head in x[..heads * head_dim].chunks_exact_mut(head_dim) {
                if WIDTH == 0 {
                    rotate_any(head, angles, sign);
                } else {
                    rotate_known::<WIDTH>(head, angles, sign);
                }
            }
        }
    }
}

/// Rotates one head of `WIDTH` values.
#[inline(always)]
fn rotate_known<const WIDTH: usize>(head: &mut [f32], angles: &[f32], sign: f32) {
    let half = WIDTH / 2;
    if let ([head], [angles]) = (head.as_chunks_mut::<WIDTH>().0, angles.as_chunks::<WIDTH>().0) {
        let old = *head;
        for at in 0..half {
            head[at] = old[at] * angles[at] - old[half + at] * (angles[half + at] * sign);
        }
        for at in 0..half {
            head[half + at] = old[half + at] * angles[at] + old[at] * (angles[half + at] * sign);
        }
    }
}

/// Rotates one head of any width.
#[inline(always)]
fn rotate_any(head: &mut [f32], angles: &[f32], sign: f32) {
    let half = head.len() / 2;
    let (x, y) = head.split_at_mut(half);
    let (cos, sin) = angles.split_at(half);
    for (((x, y), &cos), &sin) in x.iter_mut().zip(y).zip(cos).zip(sin) {
        let sin = sin * sign;
        (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
    }
}
