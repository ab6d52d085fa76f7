//! Loops for the processor at hand: the same Rust code compiled for each instruction set.
#![allow(unsafe_code, reason = "memory is asked for ahead of its use")]
#![allow(clippy::needless_range_loop, reason = "loops over lanes become vector instructions")]

use pulp::{Arch, NullaryFnOnce};

/// Values that are computed side by side: one register of AVX-512, two of AVX2, four of NEON.
pub(crate) const LANES: usize = 16;

/// Runs `work` compiled for the widest vectors that this processor has.
///
/// It is a type of its own, whose `call` is marked `#[inline(always)]`: a closure or the path of a
/// function would be compiled apart, for the oldest processor.
pub(crate) fn vectorized<W: NullaryFnOnce>(work: W) -> W::Output {
    Arch::new().dispatch(work)
}

/// exp(x) within 2 units in the last place; 0 below -87.3, and at most exp(88.3).
///
/// Cody and Waite's range reduction, x = n ln 2 + r, and the minimax polynomial of degree 6 for
/// exp(r) from Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n ln 2 is exact enough.
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_2e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0]
    {
        p = p.mul_add(r, coefficient);
    }
    // p lies in [0.7, 1.5): adding n to its exponent cannot leave the range of normal numbers.
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.3 { 0.0 } else { scaled }
}

/// Asks for the memory at `place`, which will be read soon; nothing happens where it is no memory.
#[inline(always)]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it changes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Sum of x y, in a fixed order that keeps the processor busy.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    const UNROLLED: usize = 4;
    debug_assert_eq!(x.len(), y.len());
    let mut sums = [[0.0f32; LANES]; UNROLLED];
    let ((xs, x_rest), (ys, y_rest)) =
        (x.as_chunks::<{ LANES * UNROLLED }>(), y.as_chunks::<{ LANES * UNROLLED }>());
    for (x, y) in xs.iter().zip(ys) {
        for unrolled in 0..UNROLLED {
            for lane in 0..LANES {
                let at = unrolled * LANES + lane;
                sums[unrolled][lane] = x[at].mul_add(y[at], sums[unrolled][lane]);
            }
        }
    }
    let ((xs, x_rest), (ys, y_rest)) = (x_rest.as_chunks::<LANES>(), y_rest.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..LANES {
            sums[0][lane] = x[lane].mul_add(y[lane], sums[0][lane]);
        }
    }
    let rest = x_rest.iter().zip(y_rest).fold(0.0f32, |sum, (&x, &y)| x.mul_add(y, sum));
    let mut lanes = [0.0; LANES];
    for lane in 0..LANES {
        lanes[lane] = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
    sum_lanes(lanes) + rest
}

/// Sum of all lanes, in a fixed order.
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut halves = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            halves[lane] += halves[lane + width];
        }
        width /= 2;
    }
    halves[0]
}

/// The largest of x; minus infinity of nothing. NaN is passed over.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |x: f32, y: f32| if x > y { x } else { y };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            most[lane] = larger(chunk[lane], most[lane]);
        }
    }
    let most = most.iter().copied().fold(f32::NEG_INFINITY, larger);
    rest.iter().copied().fold(most, larger)
}

/// Turns x into exp(x - largest); the sum of that.
#[inline(always)]
pub(crate) fn exp_and_sum(x: &mut [f32], largest: f32) -> f32 {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - largest);
            sums[lane] += chunk[lane];
        }
    }
    let mut sum = sum_lanes(sums);
    for x in rest {
        *x = exp(*x - largest);
        sum += *x;
    }
    sum
}

/// Writes the transpose of `x` \[rows, columns\] to `out` \[columns, rows\], where rows of x begin
/// `x_stride` apart and rows of out `out_stride`.
#[inline(always)]
pub(crate) fn transpose(
    (out, out_stride): (&mut [f32], usize),
    (x, x_stride): (&[f32], usize),
    [rows, columns]: [usize; 2],
) {
    const SIDE: usize = 8;
    let (whole_rows, whole_columns) = (rows / SIDE * SIDE, columns / SIDE * SIDE);
    for row in (0..whole_rows).step_by(SIDE) {
        for column in (0..whole_columns).step_by(SIDE) {
            let mut block = [[0.0f32; SIDE]; SIDE];
            for (at, block) in block.iter_mut().enumerate() {
                block.copy_from_slice(&x[(row + at) * x_stride + column..][..SIDE]);
            }
            let block = transposed(block);
            for (at, block) in block.iter().enumerate() {
                out[(column + at) * out_stride + row..][..SIDE].copy_from_slice(block);
            }
        }
    }
    for row in 0..rows {
        let from = if row < whole_rows { whole_columns } else { 0 };
        for column in from..columns {
            out[column * out_stride + row] = x[row * x_stride + column];
        }
    }
}

/// The transpose, in three rounds of exchanges between rows at a distance of 4, 2 and 1.
#[inline(always)]
fn transposed(rows: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let ([a, e], [b, f], [c, g], [d, h]) = (swap4(a, e), swap4(b, f), swap4(c, g), swap4(d, h));
    let ([a, c], [b, d], [e, g], [f, h]) = (swap2(a, c), swap2(b, d), swap2(e, g), swap2(f, h));
    let ([a, b], [c, d], [e, f], [g, h]) = (swap1(a, b), swap1(c, d), swap1(e, f), swap1(g, h));
    [a, b, c, d, e, f, g, h]
}

/// The upper half of x and the lower half of y change places.
#[inline(always)]
fn swap4(x: [f32; 8], y: [f32; 8]) -> [[f32; 8]; 2] {
    [
        [x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]],
        [x[4], x[5], x[6], x[7], y[4], y[5], y[6], y[7]],
    ]
}

/// [`swap4`] within halves.
#[inline(always)]
fn swap2(x: [f32; 8], y: [f32; 8]) -> [[f32; 8]; 2] {
    [
        [x[0], x[1], y[0], y[1], x[4], x[5], y[4], y[5]],
        [x[2], x[3], y[2], y[3], x[6], x[7], y[6], y[7]],
    ]
}

/// [`swap4`] within pairs.
#[inline(always)]
fn swap1(x: [f32; 8], y: [f32; 8]) -> [[f32; 8]; 2] {
    [
        [x[0], y[0], x[2], y[2], x[4], y[4], x[6], y[6]],
        [x[1], y[1], x[3], y[3], x[5], y[5], x[7], y[7]],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp(f32);

    impl NullaryFnOnce for Exp {
        type Output = f32;

        #[inline(always)]
        fn call(self) -> f32 {
            exp(self.0)
        }
    }

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let (got, want) = (vectorized(Exp(x)), f64::from(x).exp());
            let error = (f64::from(got) - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_and_maxima_take_every_value_once() {
        for len in [0, 1, 63, 64, 65, 200] {
            let x: Vec<f32> = (0..len).map(|value| value as f32).collect();
            let want = len as f32 * (len as f32 - 1.0) / 2.0;
            assert_eq!(dot(&x, &vec![2.0; len]), if len == 0 { 0.0 } else { 2.0 * want });
            assert_eq!(max(&x), if len == 0 { f32::NEG_INFINITY } else { len as f32 - 1.0 });
        }
    }

    #[test]
    fn transposes_of_any_shape() {
        for (rows, columns) in [(1, 1), (8, 8), (3, 20), (17, 9), (32, 48)] {
            let (x_stride, out_stride) = (columns + 3, rows + 2);
            let x: Vec<f32> = (0..rows * x_stride).map(|value| value as f32).collect();
            let mut out = vec![0.0; columns * out_stride];
            transpose((&mut out, out_stride), (&x, x_stride), [rows, columns]);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(out[column * out_stride + row], x[row * x_stride + column]);
                }
            }
        }
    }
}
