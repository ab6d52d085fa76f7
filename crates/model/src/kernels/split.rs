//! Products of f32 matrices from products of bf16 ones, where the processor has matrix tiles.
//!
//! A value of 24 significant bits is the exact sum of three bf16 terms of 8. Of the nine products
//! of terms, the three smallest lie below the rounding of an f32 product, so that the six others
//! give what f32 arithmetic gives (Henry, Tang and Heinecke 2019, arXiv 1904.06376, section 3): on
//! these processors in less than half of its time. A sum that is not finite is not finite here
//! either. Tiles take no denormal numbers: factors below 2^-102 lose their last bits.
#![allow(unsafe_code, reason = "blocks of one matrix are written by different threads")]

use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
use std::ops::Range;

use pulp::NullaryFnOnce;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::amx::{AHEAD, BLOCK, DEPTH, SIDE, Step, Sums, Tiles};
use super::matmul::View;
use super::pack::{Side, Vectors};
use super::pool;
use super::rows::{Part, Rows};
use super::simd::vectorized;

/// Inner values that are summed before they are added to the result, at most: the sums stay as
/// exact as those of short products, and packed operands stay in the second-level cache.
const INNER: usize = 768;

/// Rows, and columns, that are packed at once, at most.
const LINES: usize = 2048;

/// Bytes of a packed operand, at most.
const PACKED: usize = LINES / BLOCK * (INNER / DEPTH) * size_of::<Step>();
const _: () = assert!(2 * PACKED <= super::matmul::PACKED, "the memory estimate counts on it");

/// Panels of rows, and of columns, that one piece of work takes: less than 1 MiB when packed, so
/// that two threads can share a second-level cache.
const PIECE: [usize; 2] = [2, 4];

/// A side, below which packing takes more time than it saves.
const SHORT: usize = 128;

/// What this processor has for such products.
#[derive(Clone, Copy)]
pub(super) struct Split {
    tiles: Tiles,
    vectors: Vectors,
}

impl Split {
    /// Asks the processor.
    pub(super) fn get() -> Option<Self> {
        Some(Self { tiles: Tiles::get()?, vectors: Vectors::get()? })
    }

    /// Asks the processor, if a product of [rows, inner] and [inner, width] is worth its packing.
    pub(super) fn worthwhile([rows, inner, width]: [usize; 3]) -> Option<Self> {
        if rows.min(inner).min(width) >= SHORT { Self::get() } else { None }
    }
}

/// Writes scale x y to the columns `from..` of the row-major matrix `out` with `columns` columns,
/// or adds it to them. All shapes fit each other, and no side is zero.
pub(super) fn multiply(
    Split { tiles, vectors }: Split,
    (out, columns, from): (&mut [f32], usize, usize),
    x: View<'_>,
    y: View<'_>,
    scale: f32,
    add: bool,
) {
    let ([rows, inner], [_, width]) = (x.shape, y.shape);
    let y = y.transposed();
    // Chunks of the same size, as far as whole steps go.
    let chunk = inner.div_ceil(inner.div_ceil(INNER)).next_multiple_of(DEPTH);
    let out = Rows::new(out, columns);
    let (mut left, mut right) = (Packed::new(), Packed::new());
    for inner in parts(0..inner, chunk) {
        for rows in parts(0..rows, LINES) {
            for (index, width) in parts(0..width, LINES).enumerate() {
                let steps = inner.len().div_ceil(DEPTH);
                // The left side stays as it is while columns go by.
                let left_rows = if index == 0 { rows.clone() } else { 0..0 };
                let left_panels = left.panels(steps).zip(parts(left_rows, BLOCK));
                let left_panels = left_panels.map(|(panel, rows)| (panel, x, rows, Side::Left));
                let right_panels = right.panels(steps).zip(parts(width.clone(), BLOCK));
                let right_panels =
                    right_panels.map(|(panel, lines)| (panel, y, lines, Side::Right));
                let panels: Vec<_> = left_panels.chain(right_panels).collect();
                panels.into_par_iter().with_max_len(2).for_each(|(panel, view, lines, side)| {
                    vectors.pack(panel, view, lines, inner.clone(), side);
                });
                let product = Product {
                    left: left.steps(),
                    right: right.steps(),
                    steps,
                    scale,
                    add: add || inner.start > 0,
                };
                product.compute(tiles, &out, rows.clone(), from, width);
            }
        }
    }
    left.give_back();
    right.give_back();
}

/// Ranges of `size` that make up `range`; the last may be shorter.
fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
}

/// A packed operand: panels of `BLOCK` lines (rows on the left, columns on the right).
struct Packed {
    buffer: Vec<f32>,
    /// Words before the first that a cache line begins with.
    skipped: usize,
}

impl Packed {
    /// Room for all that is packed at once; of a smaller operand, the rest is never touched.
    fn new() -> Self {
        let words = PACKED / size_of::<f32>();
        let buffer = pool::take(words + SIDE);
        let skipped = buffer.as_ptr().align_offset(64);
        Self { buffer, skipped }
    }

    fn panels(&mut self, steps: usize) -> impl Iterator<Item = &mut [Step]> {
        let words = self.words();
        let steps_of_all: &mut [Step] = cast_slice_mut(&mut self.buffer[words]);
        steps_of_all.chunks_exact_mut(steps)
    }

    fn steps(&self) -> &[Step] {
        cast_slice(&self.buffer[self.words()])
    }

    /// Where the steps lie.
    fn words(&self) -> Range<usize> {
        self.skipped..self.skipped + PACKED / size_of::<f32>()
    }

    fn give_back(self) {
        pool::keep(self.buffer);
    }
}

/// Packed operands, and what to do with their product.
struct Product<'a> {
    left: &'a [Step],
    right: &'a [Step],
    /// Steps of a panel.
    steps: usize,
    scale: f32,
    add: bool,
}

impl Product<'_> {
    /// Computes those rows of `out`, and the columns `from + width`, in pieces.
    fn compute(
        &self,
        tiles: Tiles,
        out: &Rows<'_>,
        rows: Range<usize>,
        from: usize,
        width: Range<usize>,
    ) {
        let [tall, wide] = PIECE;
        let panels = width.len().div_ceil(BLOCK);
        // Pieces of the same width, as far as whole panels go.
        let (tall, wide) = (tall * BLOCK, panels.div_ceil(panels.div_ceil(wide)) * BLOCK);
        // Columns change last: a thread keeps those it has packed in its caches.
        let pieces: Vec<_> = parts(0..width.len(), wide)
            .flat_map(|columns| parts(0..rows.len(), tall).map(move |rows| (rows, columns.clone())))
            .collect();
        pieces.into_par_iter().with_max_len(1).for_each(|(piece_rows, columns)| {
            let place = [rows.start + piece_rows.start, piece_rows.len()];
            let columns_of_out = [from + width.start + columns.start, columns.len()];
            // SAFETY: pieces differ in their rows or their columns.
            let part = unsafe { out.part(place, columns_of_out) };
            self.piece(tiles, part, piece_rows, columns);
        });
    }

    fn piece(&self, tiles: Tiles, mut part: Part<'_>, rows: Range<usize>, columns: Range<usize>) {
        let tiles = tiles.configure();
        let mut sums = Sums([[0.0; BLOCK]; BLOCK]);
        // Rows of the next piece, a share with each product: of pieces of full width, one panel.
        let ahead = self.left.get(rows.end / BLOCK * self.steps..).unwrap_or_default();
        let mut ahead = ahead.as_ptr().cast();
        for column in parts(0..columns.len(), BLOCK) {
            let right = self.panel(self.right, columns.start + column.start);
            for row in parts(0..rows.len(), BLOCK) {
                for row in row.clone() {
                    prefetch(&mut part.row(row)[column.clone()]);
                }
                let left = self.panel(self.left, rows.start + row.start);
                tiles.product(&mut sums, left, right, ahead);
                ahead = ahead.wrapping_add(self.steps * AHEAD);
                let (part, columns) = (&mut part, column.clone());
                let (scale, add) = (self.scale, self.add);
                vectorized(Store { sums: &sums, part, rows: row, columns, scale, add });
            }
        }
    }

    /// The panel that begins with that line.
    fn panel<'a>(&self, operand: &'a [Step], line: usize) -> &'a [Step] {
        &operand[line / BLOCK * self.steps..][..self.steps]
    }
}

/// Asks for a place that will be written.
fn prefetch(place: &mut [f32]) {
    for line in place.chunks(SIDE) {
        // SAFETY: asking for memory changes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
}

/// Writes or adds sums to those rows and columns of a part.
struct Store<'a, 'b> {
    sums: &'a Sums,
    part: &'a mut Part<'b>,
    rows: Range<usize>,
    columns: Range<usize>,
    scale: f32,
    add: bool,
}

impl NullaryFnOnce for Store<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (sums, row) in self.sums.0.iter().zip(self.rows) {
            let out = &mut self.part.row(row)[self.columns.clone()];
            for (out, sum) in out.iter_mut().zip(sums) {
                let sum = self.scale * sum;
                *out = if self.add { *out + sum } else { sum };
            }
        }
    }
}
