//! Linear maps of few rows: each weight is read once, and memory is the limit.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::matmul::{SERIAL, Weights};
use super::simd::{LANES, prefetch, sum_lanes};

/// Outputs that are computed together: as many sums keep the processor busy.
const TOGETHER: usize = 4;

/// Writes x Wᵀ, or adds it, to `y` \[rows, outputs\]; x is \[rows, inputs\] and W \[outputs, inputs\].
pub(super) fn linear(
    y: &mut [f32],
    x: &[f32],
    weights: Weights<'_>,
    [outputs, inputs]: [usize; 2],
    add: bool,
) {
    let rows = x.len() / inputs;
    // Outputs by themselves first, so that a piece of them is one slice.
    let mut by_output = vec![0.0; rows * outputs];
    let compute = |first: usize, out: &mut [f32]| {
        let part = first * inputs..(first + out.len() / rows) * inputs;
        match weights {
            Weights::F32(weights) => {
                Arch::new().dispatch(Dots { out, x, weights: &weights[part], inputs });
            }
            Weights::Int8 { values, scales } => {
                Arch::new().dispatch(Dots { out, x, weights: &values[part], inputs });
                for (out, scale) in out.chunks_exact_mut(rows).zip(&scales[first..]) {
                    out.iter_mut().for_each(|out| *out *= scale);
                }
            }
        }
    };
    if outputs * inputs < SERIAL {
        compute(0, &mut by_output);
    } else {
        let piece = (SERIAL / 2 / inputs).next_multiple_of(TOGETHER);
        let pieces = by_output.par_chunks_mut(piece * rows).enumerate();
        pieces.for_each(|(index, out)| compute(index * piece, out));
    }
    for (row, y) in y.chunks_exact_mut(outputs).enumerate() {
        for (y, computed) in y.iter_mut().zip(by_output.chunks_exact(rows)) {
            *y = if add { *y + computed[row] } else { computed[row] };
        }
    }
}

/// A value of a matrix.
trait Value: Copy + Default + Into<f32> {}

impl Value for f32 {}
impl Value for i8 {}

/// Dot products of each row of `weights` with every row of `x`.
struct Dots<'a, W> {
    /// \[rows of weights, rows of x\].
    out: &'a mut [f32],
    x: &'a [f32],
    weights: &'a [W],
    inputs: usize,
}

impl<W: Value> WithSimd for Dots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, x, weights, inputs } = self;
        let rows = x.len() / inputs;
        let mut groups = out.chunks_exact_mut(TOGETHER * rows);
        let mut weights = weights.chunks_exact(TOGETHER * inputs);
        for (out, weights) in groups.by_ref().zip(weights.by_ref()) {
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                let dots = dots::<S, W, TOGETHER>(simd, x, weights);
                (0..TOGETHER).for_each(|at| out[at * rows + row] = dots[at]);
            }
        }
        let rest = groups.into_remainder().chunks_exact_mut(rows);
        for (out, weights) in rest.zip(weights.remainder().chunks_exact(inputs)) {
            for (out, x) in out.iter_mut().zip(x.chunks_exact(inputs)) {
                [*out] = dots::<S, W, 1>(simd, x, weights);
            }
        }
    }
}

/// Sums of x w for the `N` rows of `weights`, each in the same order whatever `N` is.
#[inline(always)]
fn dots<S: Simd, W: Value, const N: usize>(simd: S, x: &[f32], weights: &[W]) -> [f32; N] {
    const { assert!(LANES.is_multiple_of(S::F32_LANES), "vectors fill the lanes") };
    let inputs = x.len();
    let (chunks, rest) = x.as_chunks::<LANES>();
    let rows: [_; N] =
        std::array::from_fn(|row| weights[row * inputs..][..inputs].as_chunks::<LANES>());
    // A vector of all lanes, or several of fewer: as many as there are lanes without vectors.
    let mut sums = [[simd.splat_f32s(0.0); LANES]; N];
    // The next rows: too short each for the processor to see where reading goes on.
    let lines = (64 / size_of::<[W; LANES]>()).max(1);
    for (at, x) in chunks.iter().enumerate() {
        for (sums, (chunks, _)) in sums.iter_mut().zip(&rows) {
            if at % lines == 0 {
                prefetch(chunks.as_ptr().wrapping_add(at).cast::<W>().wrapping_add(N * inputs));
            }
            accumulate(simd, sums, x, &chunks[at]);
        }
    }
    if !rest.is_empty() {
        for (sums, (_, weights)) in sums.iter_mut().zip(&rows) {
            accumulate(simd, sums, &padded(rest), &padded(weights));
        }
    }
    sums.map(|sums| {
        let mut lanes = [0.0; LANES];
        let vectors = S::as_mut_simd_f32s(&mut lanes).0;
        vectors.iter_mut().zip(sums).for_each(|(vector, sum)| *vector = sum);
        sum_lanes(lanes)
    })
}

/// Adds x w to the sums, lane by lane.
#[inline(always)]
fn accumulate<S: Simd, W: Value>(
    simd: S,
    sums: &mut [S::f32s; LANES],
    x: &[f32; LANES],
    weights: &[W; LANES],
) {
    let weights: [f32; LANES] = weights.map(Into::into);
    let (x, weights) = (S::as_simd_f32s(x).0, S::as_simd_f32s(&weights).0);
    for ((sum, &x), &weight) in sums.iter_mut().zip(x).zip(weights) {
        *sum = simd.mul_add_e_f32s(x, weight, *sum);
    }
}

/// The values, and zeros behind them.
#[inline(always)]
fn padded<T: Value>(values: &[T]) -> [T; LANES] {
    let mut padded = [T::default(); LANES];
    padded[..values.len()].copy_from_slice(values);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of one lane need as many sums as there are lanes.
    #[test]
    fn processors_without_vectors_sum_every_lane() {
        let (rows, inputs, outputs) = (2, 3 * LANES + 5, 6);
        let x: Vec<f32> = (0..rows * inputs).map(|at| (at as f32).sin()).collect();
        let weights: Vec<f32> = (0..outputs * inputs).map(|at| (at as f32).cos()).collect();
        let mut out = vec![0.0; outputs * rows];
        let dots = Dots { out: &mut out, x: &x, weights: &weights, inputs };
        dots.with_simd(pulp::Scalar);
        for (at, got) in out.iter().enumerate() {
            let (x, weights) = (&x[at % rows * inputs..], &weights[at / rows * inputs..]);
            let products = x.iter().zip(weights).take(inputs);
            let want: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*got) - want).abs() < 1e-5, "{at}: {got}, not {want}");
        }
    }
}
