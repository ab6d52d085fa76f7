//! The CPU kernels of the device engine: functions on slices, which know nothing of tensors.
//!
//! Work is cut into pieces by shape alone and the pieces run on the current rayon pool, so that
//! results have the same bits for any number of threads. Loops are plain Rust, compiled once for
//! each instruction set and chosen at run time ([`simd`]). Large products run on matrix tiles
//! (`split`, `pack`, `amx`) or are the `gemm` crate's ([`matmul`]), those of few rows are [`dots`];
//! attention's small ones go through [`tiles`] that stay in registers, and its heads
//! share the rows of their result ([`rows`]). All `unsafe` code lies in these modules and
//! [`attention`].

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
mod dots;
pub(crate) mod matmul;
pub(crate) mod norm;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod pack;
pub(crate) mod pool;
pub(crate) mod rope;
mod rows;
pub(crate) mod silu;
pub(crate) mod simd;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod split;
mod tiles;

/// Values that one piece of element-wise work takes.
const PIECE: usize = 1 << 14;

/// Rows of `width` values that make one piece of work, at least one.
fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}
