//! Matrix products: for many rows on matrix tiles where the processor has them (`split`) and by the
//! `gemm` crate elsewhere, dot products for few, and weights of eight bits that are widened as they
//! are read.
#![allow(unsafe_code, reason = "the gemm crate takes pointers")]

use gemm::Parallelism;
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::simd::vectorized;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::split::{self, Split};
use super::{dots, pool};

/// Multiplications below which a product stays on one thread.
pub(super) const SERIAL: usize = 1 << 17;

/// Rows of x up to which each weight is read once for dot products: below, memory is the limit.
const FEW_ROWS: usize = 4;

/// Results up to which the `gemm` crate sums along both operands' rows.
const GEMM_FEW: usize = 256;

/// Rows and columns up to which it cuts the inner dimension into equal parts and a rest, instead of
/// equal parts alone.
const GEMM_SMALL: usize = 64;

/// Inner values that it sums at once, at least.
const GEMM_INNER: usize = 512;

/// 8-bit weights widened at once: a part of the last-level cache, beside the other operand.
const WIDENED: usize = 1 << 19;

/// Bytes that the packed operands of one product take on matrix tiles, at most; what the `gemm`
/// crate packs is in proportion to its operands.
pub(crate) const PACKED: usize = 20 << 20;

/// A matrix of f32 values that lie in a slice: row `i` begins at `i * row_stride`, and its values
/// are `column_stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) shape: [usize; 2],
    pub(super) strides: [usize; 2],
}

impl<'a> View<'a> {
    /// The row-major matrix \[rows, columns\] that fills `data`.
    pub(crate) fn new(data: &'a [f32], columns: usize) -> Self {
        Self::part(data, columns, 0, columns)
    }

    /// Columns `from..from + width` of the row-major matrix \[rows, columns\] that fills `data`.
    pub(crate) fn part(data: &'a [f32], columns: usize, from: usize, width: usize) -> Self {
        let rows = data.len() / columns.max(1);
        let data = data.get(from..).unwrap_or_default();
        Self { data, shape: [rows, width], strides: [columns, 1] }
    }

    /// Its transpose.
    pub(crate) fn transposed(self) -> Self {
        let ([rows, columns], [row_stride, column_stride]) = (self.shape, self.strides);
        Self { shape: [columns, rows], strides: [column_stride, row_stride], ..self }
    }
}

/// Writes scale x y to the columns `from..` of the row-major matrix `out` with `columns` columns,
/// or adds it to them.
///
/// # Panics
/// Shapes that do not fit each other, or a matrix that ends beyond its slice.
pub(crate) fn multiply(
    (out, columns, from): (&mut [f32], usize, usize),
    x: View<'_>,
    y: View<'_>,
    scale: f32,
    add: bool,
) {
    let ([rows, inner], [inner_y, width]) = (x.shape, y.shape);
    assert_eq!(inner, inner_y, "the inner dimensions of a product");
    if rows == 0 || width == 0 || (inner == 0 && add) {
        return;
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let Some(split) = Split::worthwhile([rows, inner, width]) {
        return split::multiply(split, (out, columns, from), x, y, scale, add);
    }
    multiply_as_f32((out, columns, from), x, y, scale, add);
}

/// [`multiply`] of matrices that are not empty, by f32 instructions.
fn multiply_as_f32(
    (out, columns, from): (&mut [f32], usize, usize),
    x: View<'_>,
    y: View<'_>,
    scale: f32,
    add: bool,
) {
    let ([rows, inner], [_, width]) = (x.shape, y.shape);
    assert!(from + width <= columns, "the product is wider than its rows");
    let out = &mut out[from..];
    assert!(end([rows, width], [columns, 1]) <= out.len(), "the product ends beyond its slice");
    assert!(inner == 0 || end(x.shape, x.strides) <= x.data.len(), "x ends beyond its slice");
    assert!(inner == 0 || end(y.shape, y.strides) <= y.data.len(), "y ends beyond its slice");
    let serial = rows * width * inner < SERIAL;
    let parallelism = if serial { Parallelism::None } else { Parallelism::Rayon(0) };
    let [x_row, x_column] = x.strides.map(|stride| stride as isize);
    let [y_row, y_column] = y.strides.map(|stride| stride as isize);
    // SAFETY: gemm reads element (i, j) of each operand at i * row stride + j * column stride, for
    // i and j below the shapes given. The last of these lies within its slice, as checked above,
    // and so do all others, since strides are not negative. `out` is borrowed mutably, so it
    // overlaps neither operand; its rows do not overlap each other, since width <= columns.
    unsafe {
        gemm::gemm(
            rows,
            width,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            add,
            x.data.as_ptr(),
            x_column,
            x_row,
            y.data.as_ptr(),
            y_column,
            y_row,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Index behind the last element of a matrix that is not empty.
fn end([rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> usize {
    (rows - 1) * row_stride + (columns - 1) * column_stride + 1
}

/// Frozen weights \[rows, columns\], row-major.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Each row is `values` times that row's scale.
    Int8 {
        /// The values, in -127..=127.
        values: &'a [i8],
        /// One scale for each row.
        scales: &'a [f32],
    },
}

/// Writes x Wᵀ, or adds it, to `y` \[rows, outputs\]; x is \[rows, inputs\] and W \[outputs, inputs\].
pub(crate) fn linear(
    y: &mut [f32],
    x: &[f32],
    weights: Weights<'_>,
    [outputs, inputs]: [usize; 2],
    add: bool,
) {
    let rows = x.len() / inputs;
    if rows <= FEW_ROWS {
        return dots::linear(y, x, weights, [outputs, inputs], add);
    }
    match weights {
        Weights::F32(weights) => {
            let weights = View::new(weights, inputs).transposed();
            multiply((y, outputs, 0), View::new(x, inputs), weights, 1.0, add);
        }
        Weights::Int8 { values, scales } => {
            for_each_panel(values, scales, inputs, |first, panel| {
                let panel = View::new(panel, inputs).transposed();
                multiply((y, outputs, first), View::new(x, inputs), panel, 1.0, add);
            });
        }
    }
}

/// Writes dy W, or adds it, to `dx` \[rows, inputs\]; dy is \[rows, outputs\].
pub(crate) fn linear_backward(
    dx: &mut [f32],
    dy: &[f32],
    weights: Weights<'_>,
    [outputs, inputs]: [usize; 2],
    add: bool,
) {
    match weights {
        Weights::F32(weights) => {
            let dy = View::new(dy, outputs);
            multiply((dx, inputs, 0), dy, View::new(weights, inputs), 1.0, add);
        }
        Weights::Int8 { values, scales } => {
            for_each_panel(values, scales, inputs, |first, panel| {
                let dy = View::part(dy, outputs, first, panel.len() / inputs);
                multiply((dx, inputs, 0), dy, View::new(panel, inputs), 1.0, add || first > 0);
            });
        }
    }
}

/// Whether a row of x Wᵀ, and of dy W, has the same bits among `one` rows as among `all` of several
/// such operands, one below another; W is \[outputs, inputs\], of eight bits or not. It may have them
/// where this says no.
pub(crate) fn same_bits(
    [one, all]: [usize; 2],
    [outputs, inputs]: [usize; 2],
    eight_bits: bool,
) -> bool {
    let panel = if eight_bits { panel_rows(inputs, outputs) } else { outputs };
    let panels = [panel, outputs % panel].into_iter().filter(|&panel| panel > 0);
    let products = panels.flat_map(|panel| [[inputs, panel], [panel, inputs]]);
    let order = |rows, [inner, width]: [usize; 2]| Order::of([rows, inner, width]);
    let mut orders = products.map(|sides| [one, all].map(|rows| order(rows, sides)));
    one == all || (one > FEW_ROWS && orders.all(|[one, all]| one == all && !one.tiles))
}

/// What decides in which order a product's sums are taken, beside its inner dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    tiles: bool,
    /// Of the `gemm` crate.
    few: bool,
    small: bool,
}

impl Order {
    fn of([rows, inner, width]: [usize; 3]) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        let tiles = Split::worthwhile([rows, inner, width]).is_some();
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        let tiles = false;
        let small = rows.max(width) <= GEMM_SMALL && inner > GEMM_INNER;
        Self { tiles, few: rows * width <= GEMM_FEW, small }
    }
}

/// Rows of 8-bit weights \[outputs, inputs\] that are widened at once.
fn panel_rows(inputs: usize, outputs: usize) -> usize {
    (WIDENED / inputs).clamp(1, outputs)
}

/// Gives each panel of whole rows, widened to f32, to `f` with the number of its first row.
fn for_each_panel(values: &[i8], scales: &[f32], inputs: usize, mut f: impl FnMut(usize, &[f32])) {
    let rows = panel_rows(inputs, scales.len());
    let mut panel = pool::take(rows * inputs);
    for (index, (values, scales)) in
        values.chunks(rows * inputs).zip(scales.chunks(rows)).enumerate()
    {
        let panel = &mut panel[..values.len()];
        panel
            .par_chunks_mut(inputs)
            .with_min_len(super::rows_per_piece(inputs))
            .zip(values.par_chunks(inputs).zip(scales))
            .for_each(|(out, (values, &scale))| vectorized(Widen { out, values, scale }));
        f(index * rows, panel);
    }
    pool::keep(panel);
}

/// Writes `values` times `scale` to `out`.
struct Widen<'a> {
    out: &'a mut [f32],
    values: &'a [i8],
    scale: f32,
}

impl NullaryFnOnce for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (out, &value) in self.out.iter_mut().zip(self.values) {
            *out = f32::from(value) * self.scale;
        }
    }
}

/// Who computes large products here.
#[must_use]
pub fn product_kernel() -> &'static str {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if Split::get().is_some() {
        return "amx";
    }
    "gemm"
}

/// This machine's own rate of products by f32 instructions on the current threads, in GFLOP/s: the
/// median over products of 2048-square matrices.
#[must_use]
pub fn product_rate() -> f64 {
    const SIZE: usize = 2048;
    let (x, y) = (vec![0.5; SIZE * SIZE], vec![0.25; SIZE * SIZE]);
    let mut out = vec![0.0; SIZE * SIZE];
    let mut rates: Vec<f64> = (0..7)
        .map(|_| {
            let begin = std::time::Instant::now();
            multiply_as_f32(
                (&mut out, SIZE, 0),
                View::new(&x, SIZE),
                View::new(&y, SIZE),
                1.0,
                false,
            );
            2.0 * (SIZE as f64).powi(3) / begin.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[cfg(test)]
mod tests;
