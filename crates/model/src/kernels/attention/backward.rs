//! The gradient of attention: scores are computed again, block by block.
#![allow(unsafe_code, reason = "heads of one row are written by different threads")]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{LANES, Packed, Scratch, Shape, from_lanes, lanes_of, mask, to_lanes, to_rows};
use crate::kernels::rows::{Part, Rows};
use crate::kernels::simd::{dot, exp};
use crate::kernels::tiles::{Left, Right, product};

/// Writes the gradient of `qkv` to `d_qkv`, given that of the output, `d_out`.
pub(crate) fn backward(
    d_qkv: &mut [f32],
    qkv: &[f32],
    (out, d_out): (&[f32], &[f32]),
    log_sums: &[f32],
    shape: Shape,
) {
    let sequences = qkv.len() / (shape.length * shape.width());
    let rows = Rows::new(d_qkv, shape.width());
    (0..sequences * shape.kv_heads).into_par_iter().for_each_init(
        || (Scratch::backward(shape), Packed::new(shape)),
        |(scratch, packed), item| {
            let (sequence, kv_head) = (item / shape.kv_heads, item % shape.kv_heads);
            let (dim, group) = (shape.head_dim, shape.group());
            let first_row = sequence * shape.length;
            let of_sequence = [first_row, shape.length];
            // SAFETY: each item writes the query heads of one group and its key and value head, in
            // the rows of one sequence: no two items write the same place, and the three parts of
            // one item do not overlap.
            let [d_queries, d_keys, d_values] = unsafe {
                [
                    rows.part(of_sequence, [kv_head * group * dim, group * dim]),
                    rows.part(of_sequence, [(shape.heads + kv_head) * dim, dim]),
                    rows.part(of_sequence, [(shape.heads + shape.kv_heads + kv_head) * dim, dim]),
                ]
            };
            let out_rows = first_row * shape.out_width()..out.len();
            let sequence_rows = &qkv[first_row * shape.width()..][..shape.length * shape.width()];
            packed.pack(sequence_rows, kv_head, shape);
            Arch::new().dispatch(Backward {
                d_queries,
                d_keys,
                d_values,
                sequence: sequence_rows,
                packed,
                out: &out[out_rows.clone()],
                d_out: &d_out[out_rows],
                log_sums: &log_sums[sequence * shape.heads * shape.length..],
                kv_head,
                shape,
                scratch,
            });
        },
    );
}

struct Backward<'a> {
    d_queries: Part<'a>,
    d_keys: Part<'a>,
    d_values: Part<'a>,
    sequence: &'a [f32],
    packed: &'a Packed,
    out: &'a [f32],
    d_out: &'a [f32],
    log_sums: &'a [f32],
    kv_head: usize,
    shape: Shape,
    scratch: &'a mut Scratch,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (dim, length) = (self.shape.head_dim, self.shape.length);
        self.scratch.d_keys.fill(0.0);
        self.scratch.d_values.fill(0.0);
        for head in 0..self.shape.group() {
            for first in (0..length).step_by(LANES) {
                self.block(simd, head, first);
            }
        }
        let padded = self.shape.padded();
        for (part, gradient) in
            [(&mut self.d_keys, &self.scratch.d_keys), (&mut self.d_values, &self.scratch.d_values)]
        {
            for (row, gradient) in gradient.chunks_exact(padded).enumerate() {
                part.row(row).copy_from_slice(&gradient[..dim]);
            }
        }
    }
}

impl Backward<'_> {
    /// The queries from `first` on, of one head of the group.
    #[inline(always)]
    fn block<S: Simd>(&mut self, simd: S, head_in_group: usize, first: usize) {
        let Self { shape, sequence, scratch, .. } = self;
        let (dim, width, length) = (shape.head_dim, shape.width(), shape.length);
        let (out_width, padded) = (shape.out_width(), shape.padded());
        let head = self.kv_head * shape.group() + head_in_group;
        let (keys_at, values_at) = (&self.packed.keys, &self.packed.values);
        let lanes = LANES.min(length - first);
        let keys = first + lanes;
        let Scratch { queries, out, scores, d_scores, rows: [q_rows, d_rows], d_keys, d_values } =
            &mut **scratch;
        let (scores, d_scores) = (&mut scores[..keys * LANES], &mut d_scores[..keys * LANES]);

        let rows = (&sequence[first * width + head * dim..], width);
        to_lanes(queries, rows, [lanes, dim], shape.scale());
        to_rows(q_rows, rows, [lanes, dim], padded);
        let of_head = first * out_width + head * dim;
        let (mixed, d_out) = (&self.out[of_head..], &self.d_out[of_head..]);
        to_lanes(out, (d_out, out_width), [lanes, dim], 1.0);
        to_rows(d_rows, (d_out, out_width), [lanes, dim], padded);
        let mut log_sums = [f32::INFINITY; LANES];
        let mut pulls = [0.0f32; LANES];
        log_sums[..lanes].copy_from_slice(&self.log_sums[head * length + first..][..lanes]);
        for (lane, pull) in pulls.iter_mut().enumerate().take(lanes) {
            let row = lane * out_width..lane * out_width + dim;
            *pull = dot(&mixed[row.clone()], &d_out[row]);
        }

        let of_keys = |data| Left { data, strides: [dim, 1] };
        let block = [keys, LANES, dim];
        product(simd, (scores, LANES), of_keys(keys_at), lanes_of(queries), block, false);
        mask(scores, first);
        product(simd, (d_scores, LANES), of_keys(values_at), lanes_of(out), block, false);
        let scale = shape.scale();
        let pairs = scores.as_chunks_mut::<LANES>().0.iter_mut();
        for (scores, d_scores) in pairs.zip(d_scores.as_chunks_mut::<LANES>().0) {
            for lane in 0..LANES {
                scores[lane] = exp(scores[lane] - log_sums[lane]);
                d_scores[lane] = scores[lane] * (d_scores[lane] - pulls[lane]) * scale;
            }
        }
        let keys_by_dim = Left { data: keys_at, strides: [1, dim] };
        product(simd, (out, LANES), keys_by_dim, lanes_of(d_scores), [dim, LANES, keys], false);
        for (gradient, left, right) in [(d_keys, d_scores, &*q_rows), (d_values, scores, &*d_rows)]
        {
            let left = Left { data: left, strides: [LANES, 1] };
            let right = Right { data: right, stride: padded };
            product(simd, (gradient, padded), left, right, [keys, padded, LANES], true);
        }
        let column = head_in_group * dim;
        from_lanes(&mut self.d_queries, first, (column, q_rows), (out, dim), lanes);
    }
}
