//! Causal attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245) that never holds
//! all scores: block by block of queries, forward and backward, as in FlashAttention (Dao et al.
//! 2022, arXiv 2205.14135, algorithms 1 and 4), with whole rows of scores in place of the online
//! softmax.
//!
//! Within a block, queries lie side by side in the lanes of vectors: scores are \[keys, lanes\], so
//! maxima and sums over keys need no step across lanes.
#![allow(unsafe_code, reason = "heads of one row are written by different threads")]

mod backward;

use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::rows::{Part, Rows};
use super::simd::{dot, exp, exp_and_sum, max, transpose, vectorized};
use super::tiles::{Left, Right, product};

pub(crate) use backward::backward;

/// Queries that are computed together.
const LANES: usize = 32;

/// Sizes of one attention: rows of queries, keys and values lie side by side, as
/// `q heads | k heads | v heads`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Tokens in a sequence.
    pub(crate) length: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; divides `heads`.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
}

impl Shape {
    /// Width of a row of queries, keys and values.
    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of a row of the output.
    pub(crate) fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f64).sqrt().recip() as f32
    }

    /// Width of a head in whole vectors of 16, as [`product`] wants them.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }
}

/// Writes attention over each sequence of `qkv` \[sequences * length, width\] to `out`
/// \[sequences * length, heads * head_dim\], and the logarithm of each softmax's denominator to
/// `log_sums` \[sequences, heads, length\].
pub(crate) fn forward(out: &mut [f32], log_sums: &mut [f32], qkv: &[f32], shape: Shape) {
    let (rows, width, dim) = (Rows::new(out, shape.out_width()), shape.width(), shape.head_dim);
    let items = log_sums.par_chunks_mut(shape.length * shape.group()).enumerate();
    items.for_each_init(
        || (Scratch::forward(shape, shape.length), Packed::new(shape)),
        |(scratch, packed), (item, log_sums)| {
            let (sequence, kv_head) = (item / shape.kv_heads, item % shape.kv_heads);
            let first_row = sequence * shape.length;
            let sequence = &qkv[first_row * width..][..shape.length * width];
            packed.pack(sequence, kv_head, shape);
            for (at, log_sums) in log_sums.chunks_exact_mut(shape.length).enumerate() {
                let column = (kv_head * shape.group() + at) * dim;
                // SAFETY: each item writes the heads of its own group in its own sequence, one
                // after another: no two items have both the same rows and the same columns.
                let out = unsafe { rows.part([first_row, shape.length], [column, dim]) };
                let (keys, values) = ((&packed.keys[..], dim), (&packed.values[..], dim));
                let (queries, past) = (&sequence[column..], 0);
                let work = Forward { out, log_sums, queries, keys, values, past, shape, scratch };
                Arch::new().dispatch(work);
            }
        },
    );
}

/// Writes attention of the tokens of one sequence, `qkv` \[length, width\], over themselves and
/// the `past` tokens in the rows of `keys` and `values`, each \[capacity, kv_heads * head_dim\], to
/// `out` \[length, heads * head_dim\]; stores their keys and values behind those.
pub(crate) fn cached(
    out: &mut [f32],
    (keys, values): (&mut [f32], &mut [f32]),
    qkv: &[f32],
    past: usize,
    shape: Shape,
) {
    let (dim, width, cached) = (shape.head_dim, shape.width(), shape.kv_heads * shape.head_dim);
    for (row, qkv) in qkv.chunks_exact(width).enumerate() {
        let new = (past + row) * cached..(past + row + 1) * cached;
        let (new_keys, new_values) = qkv[shape.out_width()..].split_at(cached);
        keys[new.clone()].copy_from_slice(new_keys);
        values[new].copy_from_slice(new_values);
    }
    let (keys, values) = (&*keys, &*values);
    if shape.length == 1 {
        let mut scores = vec![0.0; past + 1];
        for (head, (out, query)) in out.chunks_exact_mut(dim).zip(qkv.chunks_exact(dim)).enumerate()
        {
            let from = head / shape.group() * dim;
            let (keys, values) = ((&keys[from..], cached), (&values[from..], cached));
            vectorized(OneQuery { out, query, keys, values, scores: &mut scores, shape });
        }
        return;
    }
    let rows = Rows::new(out, shape.out_width());
    (0..shape.heads).into_par_iter().for_each(|head| {
        let from = head / shape.group() * dim;
        let (keys, values) = ((&keys[from..], cached), (&values[from..], cached));
        // SAFETY: each head writes its own columns.
        let out = unsafe { rows.part([0, shape.length], [head * dim, dim]) };
        let mut log_sums = vec![0.0; shape.length];
        let log_sums = &mut log_sums[..];
        let scratch = &mut Scratch::forward(shape, past + shape.length);
        let queries = &qkv[head * dim..];
        Arch::new().dispatch(Forward {
            out,
            log_sums,
            queries,
            keys,
            values,
            past,
            shape,
            scratch,
        });
    });
}

/// One head of one token, over all rows of scores.
struct OneQuery<'a> {
    out: &'a mut [f32],
    query: &'a [f32],
    keys: (&'a [f32], usize),
    values: (&'a [f32], usize),
    scores: &'a mut [f32],
    shape: Shape,
}

impl NullaryFnOnce for OneQuery<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { out, query, keys, values, scores, shape } = self;
        let (dim, scale) = (shape.head_dim, shape.scale());
        for (score, key) in scores.iter_mut().zip(keys.0.chunks(keys.1)) {
            *score = dot(query, &key[..dim]) * scale;
        }
        let largest = max(scores);
        let inverse = exp_and_sum(scores, largest).recip();
        out.fill(0.0);
        for (&score, value) in scores.iter().zip(values.0.chunks(values.1)) {
            let weight = score * inverse;
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
        }
    }
}

/// Keys and values of one head without those of the others between them, \[length, head_dim\] each:
/// near each other, they stay in the first caches.
struct Packed {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Packed {
    fn new(shape: Shape) -> Self {
        let empty = vec![0.0; shape.length * shape.head_dim];
        Self { keys: empty.clone(), values: empty }
    }

    /// Takes those of `kv_head` from the rows of a sequence.
    fn pack(&mut self, sequence: &[f32], kv_head: usize, shape: Shape) {
        let dim = shape.head_dim;
        for (packed, head) in [
            (&mut self.keys, shape.heads + kv_head),
            (&mut self.values, shape.heads + shape.kv_heads + kv_head),
        ] {
            let rows = packed.chunks_exact_mut(dim).zip(sequence.chunks_exact(shape.width()));
            rows.for_each(|(packed, row)| packed.copy_from_slice(&row[head * dim..][..dim]));
        }
    }
}

/// Space for the blocks of one thread.
struct Scratch {
    /// Queries of a block, \[head_dim, LANES\].
    queries: Vec<f32>,
    /// Gradient of the output of a block, or its output, \[head_dim, LANES\].
    out: Vec<f32>,
    /// Scores, then probabilities, \[length, LANES\].
    scores: Vec<f32>,
    /// Gradient of the scores, \[length, LANES\].
    d_scores: Vec<f32>,
    /// Queries of a block as rows, \[LANES, padded\]; and the gradient of the output.
    rows: [Vec<f32>; 2],
    /// Gradients of keys and values, \[length, padded\].
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
}

impl Scratch {
    fn forward(shape: Shape, keys: usize) -> Self {
        let block = vec![0.0; shape.head_dim * LANES];
        Self {
            queries: block.clone(),
            out: block,
            scores: vec![0.0; keys * LANES],
            d_scores: Vec::new(),
            rows: [vec![0.0; shape.head_dim * LANES], Vec::new()],
            d_keys: Vec::new(),
            d_values: Vec::new(),
        }
    }

    fn backward(shape: Shape) -> Self {
        let rows = vec![0.0; shape.padded() * LANES];
        let keys = vec![0.0; shape.padded() * shape.length];
        Self {
            d_scores: vec![0.0; shape.length * LANES],
            rows: [rows.clone(), rows],
            d_keys: keys.clone(),
            d_values: keys,
            ..Self::forward(shape, shape.length)
        }
    }
}

struct Forward<'a> {
    out: Part<'a>,
    log_sums: &'a mut [f32],
    /// Where the head's queries begin, in rows of `shape.width()`.
    queries: &'a [f32],
    /// Where the head's keys begin, and the width of their rows.
    keys: (&'a [f32], usize),
    values: (&'a [f32], usize),
    /// Keys before that of the first query.
    past: usize,
    shape: Shape,
    scratch: &'a mut Scratch,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Self { shape, queries, keys, values, past, scratch, .. } = self;
        let (dim, width, length) = (shape.head_dim, shape.width(), shape.length);
        for first in (0..length).step_by(LANES) {
            let lanes = LANES.min(length - first);
            let seen = past + first + lanes;
            let rows = (&queries[first * width..], width);
            to_lanes(&mut scratch.queries, rows, [lanes, dim], shape.scale());
            let scores = &mut scratch.scores[..seen * LANES];
            let keys = Left { data: keys.0, strides: [keys.1, 1] };
            product(
                simd,
                (scores, LANES),
                keys,
                lanes_of(&scratch.queries),
                [seen, LANES, dim],
                false,
            );
            mask(scores, past + first);
            let (largest, sums) = softmax(scores);
            let out = &mut scratch.out[..];
            let values = Left { data: values.0, strides: [1, values.1] };
            product(simd, (out, LANES), values, lanes_of(scores), [dim, LANES, seen], false);
            let inverse = sums.map(f32::recip);
            for values in out.as_chunks_mut::<LANES>().0 {
                values.iter_mut().zip(&inverse).for_each(|(value, inverse)| *value *= inverse);
            }
            from_lanes(&mut self.out, first, (0, &mut scratch.rows[0]), (out, dim), lanes);
            for lane in 0..lanes {
                self.log_sums[first + lane] = largest[lane] + sums[lane].ln();
            }
        }
    }
}

/// Lays the first `dim` values of each of `count` rows, `stride` apart, into a lane of its own,
/// times `scale`; other lanes are zero. `lanes` is \[dim, LANES\].
#[inline(always)]
fn to_lanes(
    lanes: &mut [f32],
    (rows, stride): (&[f32], usize),
    [count, dim]: [usize; 2],
    scale: f32,
) {
    transpose((lanes, LANES), (rows, stride), [count, dim]);
    for values in lanes.as_chunks_mut::<LANES>().0 {
        values[count..].fill(0.0);
        values.iter_mut().for_each(|value| *value *= scale);
    }
}

/// Copies the first `dim` values of each of `count` rows, `stride` apart, to a row of `padded`; rows
/// that are left are zero.
#[inline(always)]
fn to_rows(
    out: &mut [f32],
    (rows, stride): (&[f32], usize),
    [count, dim]: [usize; 2],
    padded: usize,
) {
    for (row, out) in out.chunks_exact_mut(padded).enumerate() {
        if row < count {
            out[..dim].copy_from_slice(&rows[row * stride..][..dim]);
            out[dim..].fill(0.0);
        } else {
            out.fill(0.0);
        }
    }
}

/// Writes the first `count` lanes of `lanes` \[dim, LANES\] to rows of `part` from `first` on, at
/// this column; `block` has room for all lanes as rows.
#[inline(always)]
fn from_lanes(
    part: &mut Part<'_>,
    first: usize,
    (column, block): (usize, &mut [f32]),
    (lanes, dim): (&[f32], usize),
    count: usize,
) {
    transpose((block, dim), (lanes, LANES), [dim, LANES]);
    for (row, values) in block.chunks_exact(dim).enumerate().take(count) {
        part.row(first + row)[column..][..dim].copy_from_slice(values);
    }
}

/// A matrix \[inner, LANES\].
fn lanes_of(data: &[f32]) -> Right<'_> {
    Right { data, stride: LANES }
}

/// No query sees a later key: scores \[keys, LANES\] of queries from `first` on.
#[inline(always)]
fn mask(scores: &mut [f32], first: usize) {
    let behind = scores.chunks_exact_mut(LANES).skip(first + 1).enumerate();
    for (lane, scores) in behind {
        scores[..=lane.min(LANES - 1)].fill(f32::NEG_INFINITY);
    }
}

/// Turns scores \[keys, LANES\] into exp(score - largest); the largest and the sum of each lane.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> ([f32; LANES], [f32; LANES]) {
    let (mut largest, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
    let scores = scores.as_chunks_mut::<LANES>().0;
    for scores in scores.iter() {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(scores[lane]);
        }
    }
    for scores in scores {
        for lane in 0..LANES {
            scores[lane] = exp(scores[lane] - largest[lane]);
            sums[lane] += scores[lane];
        }
    }
    (largest, sums)
}
