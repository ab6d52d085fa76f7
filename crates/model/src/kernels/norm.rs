//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4): y = x / rms(x) * scale, with
//! rms(x)² = mean(x²) + epsilon, row by row.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::rows_per_piece;
use super::simd::{dot, vectorized};

/// Writes the norm of each row of `x` \[rows, width\] to `y`; `scale` has `width` values.
pub(crate) fn forward(y: &mut [f32], x: &[f32], scale: &[f32], epsilon: f32) {
    let width = scale.len();
    let piece = rows_per_piece(width) * width;
    let pieces = y.par_chunks_mut(piece).zip(x.par_chunks(piece));
    pieces.for_each(|(y, x)| vectorized(Forward { y, x, scale, epsilon }));
}

struct Forward<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    scale: &'a [f32],
    epsilon: f32,
}

impl NullaryFnOnce for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { y, x, scale, epsilon } = self;
        let width = scale.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse_rms(x, epsilon);
            for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scale) {
                *y = x * inverse * scale;
            }
        }
    }
}

/// Turns `dy`, the gradient of the norm of `x`, into the gradient of `x`:
/// dx = (g - x mean(g x) / rms²) / rms with g = dy scale.
pub(crate) fn backward(dy: &mut [f32], x: &[f32], scale: &[f32], epsilon: f32) {
    let width = scale.len();
    let piece = rows_per_piece(width) * width;
    let pieces = dy.par_chunks_mut(piece).zip(x.par_chunks(piece));
    pieces.for_each(|(dy, x)| vectorized(Backward { dy, x, scale, epsilon }));
}

struct Backward<'a> {
    dy: &'a mut [f32],
    x: &'a [f32],
    scale: &'a [f32],
    epsilon: f32,
}

impl NullaryFnOnce for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { dy, x, scale, epsilon } = self;
        let width = scale.len();
        for (dy, x) in dy.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse_rms(x, epsilon);
            for (dy, &scale) in dy.iter_mut().zip(scale) {
                *dy *= scale;
            }
            let pull = dot(dy, x) / width as f32 * inverse * inverse;
            for (dy, &x) in dy.iter_mut().zip(x) {
                *dy = (*dy - x * pull) * inverse;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    (dot(x, x) / x.len() as f32 + epsilon).sqrt().recip()
}

/// Writes the gradient of `scale`: the sum over rows of dy x / rms(x).
pub(crate) fn backward_scale(d_scale: &mut [f32], dy: &[f32], x: &[f32], epsilon: f32) {
    vectorized(BackwardScale { d_scale, dy, x, epsilon });
}

struct BackwardScale<'a> {
    d_scale: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    epsilon: f32,
}

impl NullaryFnOnce for BackwardScale<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { d_scale, dy, x, epsilon } = self;
        let width = d_scale.len();
        d_scale.fill(0.0);
        for (dy, x) in dy.chunks_exact(width).zip(x.chunks_exact(width)) {
            let inverse = inverse_rms(x, epsilon);
            for ((sum, dy), x) in d_scale.iter_mut().zip(dy).zip(x) {
                *sum += dy * x * inverse;
            }
        }
    }
}
