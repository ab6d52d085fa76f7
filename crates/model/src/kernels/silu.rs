//! The gated product of a feed-forward layer, silu(gate) up (Shazeer 2020, arXiv 2002.05202,
//! equation 6), with silu(x) = x / (1 + exp(-x)).

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::rows_per_piece;
use super::simd::{exp, vectorized};

/// Writes silu(gate) up to `y` \[rows, width\], given rows `gate | up` \[rows, 2 width\].
pub(crate) fn forward(y: &mut [f32], gate_up: &[f32], width: usize) {
    let rows = rows_per_piece(width);
    let pieces = y.par_chunks_mut(rows * width).zip(gate_up.par_chunks(rows * 2 * width));
    pieces.for_each(|(y, gate_up)| vectorized(Forward { y, gate_up, width }));
}

struct Forward<'a> {
    y: &'a mut [f32],
    gate_up: &'a [f32],
    width: usize,
}

impl NullaryFnOnce for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { y, gate_up, width } = self;
        for (y, row) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gate, up) = row.split_at(width);
            for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate * sigmoid(gate) * up;
            }
        }
    }
}

/// Writes the gradient of `gate | up` \[rows, 2 width\], given `dy` \[rows, width\].
pub(crate) fn backward(d_gate_up: &mut [f32], gate_up: &[f32], dy: &[f32], width: usize) {
    let rows = rows_per_piece(width);
    let pieces = d_gate_up
        .par_chunks_mut(rows * 2 * width)
        .zip(gate_up.par_chunks(rows * 2 * width))
        .zip(dy.par_chunks(rows * width));
    pieces.for_each(|((d_gate_up, gate_up), dy)| {
        vectorized(Backward { d_gate_up, gate_up, dy, width });
    });
}

struct Backward<'a> {
    d_gate_up: &'a mut [f32],
    gate_up: &'a [f32],
    dy: &'a [f32],
    width: usize,
}

impl NullaryFnOnce for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { d_gate_up, gate_up, dy, width } = self;
        let rows = d_gate_up.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
        for ((d_row, row), dy) in rows.zip(dy.chunks_exact(width)) {
            let (gate, up) = row.split_at(width);
            let (d_gate, d_up) = d_row.split_at_mut(width);
            let (up, d_up) = (&up[..width], &mut d_up[..width]);
            let dy = &dy[..width];
            for at in 0..width {
                let sigmoid = sigmoid(gate[at]);
                d_up[at] = dy[at] * gate[at] * sigmoid;
                d_gate[at] = dy[at] * up[at] * sigmoid * (1.0 + gate[at] * (1.0 - sigmoid));
            }
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    (1.0 + exp(-x)).recip()
}
