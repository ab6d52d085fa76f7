//! Products of small matrices, in tiles that stay in registers.
#![allow(unsafe_code, reason = "loads of vectors at any place of a slice")]

use pulp::Simd;

/// The left matrix \[rows, inner\]: element (i, j) lies at i * strides\[0\] + j * strides\[1\].
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) strides: [usize; 2],
}

/// The right matrix \[inner, width\]: rows begin `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// Writes left right to `out` \[rows, width\], whose rows begin `out.1` apart, or adds it.
///
/// # Panics
/// A width that is no multiple of 16, or a matrix that ends beyond its slice.
#[inline(always)]
pub(super) fn product<S: Simd>(
    simd: S,
    (out, out_stride): (&mut [f32], usize),
    left: Left<'_>,
    right: Right<'_>,
    [rows, width, inner]: [usize; 3],
    add: bool,
) {
    const { assert!(16 % S::F32_LANES == 0, "vectors fill 16 lanes") };
    if rows == 0 || width == 0 || inner == 0 {
        return;
    }
    let [row_stride, column_stride] = left.strides;
    assert!(width.is_multiple_of(16), "whole vectors");
    assert!((rows - 1) * out_stride + width <= out.len(), "out ends beyond its slice");
    assert!((inner - 1) * right.stride + width <= right.data.len(), "right ends beyond its slice");
    let left_end = (rows - 1) * row_stride + (inner - 1) * column_stride;
    assert!(left_end < left.data.len(), "left ends beyond its slice");
    let mut column = 0;
    while column < width {
        // Two vectors of 16 lanes, or of fewer.
        let wide = width - column >= 2 * S::F32_LANES;
        let mut row = 0;
        while row < rows {
            let tall = tallest::<S>(rows - row);
            // SAFETY: the tile covers `tall` rows from `row` and one or two vectors from `column`.
            // row + tall <= rows, and column + its lanes <= width, since vectors have at most 16
            // lanes, of which width is a multiple. All that lies in the slices, as asserted above.
            unsafe {
                let tile = Tile {
                    out: out.as_mut_ptr().add(row * out_stride + column),
                    out_stride,
                    left: left.data.as_ptr().add(row * row_stride),
                    strides: left.strides,
                    right: right.data.as_ptr().add(column),
                    right_stride: right.stride,
                    inner,
                    add,
                };
                match (tall, wide) {
                    (14, true) => tile.compute::<S, 14, 2>(simd),
                    (8, true) => tile.compute::<S, 8, 2>(simd),
                    (6, true) => tile.compute::<S, 6, 2>(simd),
                    (4, true) => tile.compute::<S, 4, 2>(simd),
                    (_, true) => tile.compute::<S, 1, 2>(simd),
                    (14, false) => tile.compute::<S, 14, 1>(simd),
                    (8, false) => tile.compute::<S, 8, 1>(simd),
                    (6, false) => tile.compute::<S, 6, 1>(simd),
                    (4, false) => tile.compute::<S, 4, 1>(simd),
                    (_, false) => tile.compute::<S, 1, 1>(simd),
                }
            }
            row += tall;
        }
        column += if wide { 2 * S::F32_LANES } else { S::F32_LANES };
    }
}

/// Rows of the next tile: its sums, two vectors a row, fill the registers.
#[inline(always)]
fn tallest<S: Simd>(rows: usize) -> usize {
    let most = if S::REGISTER_COUNT >= 32 { 14 } else { 6 };
    [14, 8, 6, 4].into_iter().find(|&tall| tall <= most && tall <= rows).unwrap_or(1)
}

struct Tile {
    out: *mut f32,
    out_stride: usize,
    left: *const f32,
    strides: [usize; 2],
    right: *const f32,
    right_stride: usize,
    inner: usize,
    add: bool,
}

impl Tile {
    /// Computes `ROWS` rows and `VECTORS` vectors.
    ///
    /// # Safety
    /// Those rows and vectors of `out`, those rows and `inner` columns of `left`, and `inner` rows
    /// and those vectors of `right` lie within the slices that the pointers point into.
    #[inline(always)]
    unsafe fn compute<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let Self { out, out_stride, left, strides, right, right_stride, inner, add } = self;
        let lanes = S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for at in 0..inner {
            // SAFETY: column `at` of left and row `at` of right, by contract.
            unsafe {
                let right = right.add(at * right_stride);
                let left = left.add(at * strides[1]);
                let mut vectors = [simd.splat_f32s(0.0); VECTORS];
                for (index, vector) in vectors.iter_mut().enumerate() {
                    *vector = right.add(index * lanes).cast::<S::f32s>().read_unaligned();
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = simd.splat_f32s(*left.add(row * strides[0]));
                    for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                        *sum = simd.mul_add_e_f32s(value, vector, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (index, &sum) in sums.iter().enumerate() {
                // SAFETY: this vector of the tile, by contract.
                unsafe {
                    let place = out.add(row * out_stride + index * lanes).cast::<S::f32s>();
                    let sum = if add { simd.add_f32s(place.read_unaligned(), sum) } else { sum };
                    place.write_unaligned(sum);
                }
            }
        }
    }
}
