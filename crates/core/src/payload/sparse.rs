//! The values of each tensor that matter most, as signs and positions: sparse ternary compression (STC,
//! Sattler et al. 2019, arXiv 1903.02891, algorithm 1). Each value that is kept becomes ± the mean
//! magnitude of those of its tensor; the gaps between positions are Rice codes, a sign after each.
//!
//! Where the adapter is known, a value counts as much as it moves the product B A (FedSRD, 2025,
//! importance score): |ΔA[v, ·]| ‖B[·, v]‖ and |ΔB[·, v]| ‖A[v, ·]‖ for the rank component v.
//!
//! ```text
//! values kept of a thousand   u16, little-endian
//! low bits of a Rice code     a byte
//! for each tensor             the mean magnitude, a bf16, little-endian; 0 where nothing is kept
//! for each value kept         gap, then a bit that is 1 for minus; zeros fill the last byte up
//! ```

use half::bf16;

use super::InvalidPayload;
use super::compression::Sparse;
use super::rice::{self, Reader, Writer};
use crate::layout::{Layout, TensorSpec};

const HEADER: usize = 3;
const MEAN: usize = size_of::<bf16>();
const MAGNITUDE: u32 = !(1 << 31);

pub(super) fn encode(
    sparse: Sparse,
    layout: &Layout,
    delta: &[f32],
    after: Option<&[f32]>,
    out: &mut Vec<u8>,
) {
    let total = layout.tensors().iter().map(|tensor| kept(sparse, tensor)).sum();
    let (mut gaps, mut minus) = (Vec::with_capacity(total), Vec::with_capacity(total));
    let mut means = Vec::with_capacity(layout.tensors().len() * MEAN);
    let (mut scores, mut scratch) = (Vec::new(), Vec::new());
    for (tensor, other) in layout.pairs().flat_map(|[a, b]| [(a, b), (b, a)]) {
        let values = &delta[tensor.range()];
        let importance = after.and_then(|after| norms(other, &after[other.range()]));
        let scores = match importance {
            Some(norms) => {
                scores.clear();
                let score = |(value, norm): (&f32, f32)| value * norm;
                scores.extend(values.iter().zip(tensor.spread(&norms)).map(score));
                &scores
            }
            None => values,
        };
        let (mut sum, mut next, before) = (0.0, 0, gaps.len());
        largest(scores, kept(sparse, tensor), &mut scratch, |at| {
            sum += f64::from(values[at].abs());
            gaps.push((at - next) as u32);
            minus.push(values[at].is_sign_negative());
            next = at + 1;
        });
        let mean = bf16::from_f64(sum / kept(sparse, tensor) as f64).min(bf16::MAX);
        means.extend(mean.to_le_bytes());
        if mean == bf16::ZERO {
            // Nothing changed, or next to nothing: there are no positions.
            gaps.truncate(before);
            minus.truncate(before);
        }
    }
    let low = rice::best(&gaps);
    out.extend(sparse.per_mille().to_le_bytes());
    out.push(low);
    out.extend(means);
    let mut writer = Writer::new(out);
    for (gap, minus) in gaps.into_iter().zip(minus) {
        writer.rice(gap, low);
        writer.bits(minus.into(), 1);
    }
    writer.finish();
}

pub(super) fn decode(layout: &Layout, body: &[u8]) -> Result<Vec<f32>, InvalidPayload> {
    let want = layout.tensors().len() * MEAN;
    let length = || InvalidPayload::Length { part: "means", want, got: body.len() };
    let ([density @ .., low], rest) = body.split_first_chunk::<HEADER>().ok_or_else(length)?;
    let (means, codes) = rest.split_at_checked(want).ok_or_else(length)?;
    let sparse = Sparse::new(u16::from_le_bytes(*density));
    let sparse = sparse.map_err(|_| InvalidPayload::Damaged("density"))?;
    if *low > rice::LOW_BITS_MAX {
        return Err(InvalidPayload::Damaged("Rice code"));
    }
    let mut reader = Reader::new(codes);
    let mut delta = vec![0.0; layout.len()];
    for (tensor, mean) in layout.tensors().iter().zip(means.as_chunks::<MEAN>().0) {
        let mean = bf16::from_le_bytes(*mean).to_f32();
        if !(mean.is_finite() && mean >= 0.0) {
            return Err(InvalidPayload::NotFinite);
        }
        let values = &mut delta[tensor.range()];
        let count = if mean == 0.0 { 0 } else { kept(sparse, tensor) };
        place(&mut reader, *low, count, mean, values)
            .ok_or(InvalidPayload::Damaged("list of positions"))?;
    }
    match reader.is_done() {
        true => Ok(delta),
        false => Err(InvalidPayload::Damaged("end: something follows the last position, which")),
    }
}

/// Reads `count` positions, and puts ± `mean` there.
fn place(
    reader: &mut Reader<'_>,
    low: u8,
    count: usize,
    mean: f32,
    values: &mut [f32],
) -> Option<()> {
    let mut rest = values;
    for _ in 0..count {
        let most = (rest.len() as u64).checked_sub(1)?;
        let gap = reader.rice(low, most)? as usize;
        let minus = reader.bits(1)? << 31;
        rest = &mut rest[gap..];
        let (value, behind) = rest.split_first_mut()?;
        *value = f32::from_bits(mean.to_bits() | minus);
        rest = behind;
    }
    Some(())
}

fn kept(sparse: Sparse, tensor: &TensorSpec) -> usize {
    sparse.kept(tensor.range().len())
}

/// The norm of each rank component, divided by the largest of them; none where all are nothing, as those
/// of B are at first.
fn norms(tensor: &TensorSpec, values: &[f32]) -> Option<Vec<f32>> {
    let squares = tensor.fold(values, 0.0, |sum, value| sum + f64::from(value).powi(2));
    let largest = squares.iter().copied().fold(0.0, f64::max);
    let norm = |square: f64| (square / largest).sqrt() as f32;
    (largest > 0.0).then(|| squares.into_iter().map(norm).collect())
}

/// Visits the positions of the `count` values of largest magnitude, in order; among equals, the
/// first.
fn largest(values: &[f32], count: usize, scratch: &mut Vec<u32>, mut visit: impl FnMut(usize)) {
    // The bits of magnitudes are in the order of the magnitudes.
    scratch.clear();
    scratch.extend(values.iter().map(|value| value.to_bits() & MAGNITUDE));
    let smaller = scratch.len() - count;
    let (_, threshold, above) = scratch.select_nth_unstable(smaller);
    let threshold = *threshold;
    let above = above.iter().filter(|bits| **bits > threshold).count();
    let mut equals = count - above;
    for (at, value) in values.iter().enumerate() {
        let bits = value.to_bits() & MAGNITUDE;
        if bits < threshold {
            continue;
        }
        if bits == threshold {
            if equals == 0 {
                continue;
            }
            equals -= 1;
        }
        visit(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Seed, uniform_f32};
    use rand_chacha::rand_core::Rng;

    fn positions(values: &[f32], count: usize) -> Vec<usize> {
        let mut found = Vec::new();
        largest(values, count, &mut Vec::new(), |at| found.push(at));
        found
    }

    /// ../shared/vectors, block `compression`, `stc_k3`.
    #[test]
    fn three_of_eight_are_those_of_the_vectors() {
        let x = [1.0, -2.0, 3.1, 0.5, -1.0, 0.3, 2.0, -0.7];
        let found = positions(&x, 3);
        assert_eq!(found, [1, 2, 6]);
        let mean = found.iter().map(|at| f64::from(x[*at].abs())).sum::<f64>() / 3.0;
        assert!((mean - 2.366_666_666_666_666_7).abs() < 1e-7, "{mean}");
    }

    #[test]
    fn among_equals_the_first_are_kept() {
        assert_eq!(positions(&[1.0; 6], 2), [0, 1]);
        assert_eq!(positions(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert_eq!(positions(&[1.0, 2.0, -1.0, 1.0, -3.0], 4), [0, 1, 2, 4]);
        assert_eq!(positions(&[5.0], 1), [0]);
    }

    /// ../shared/vectors, block `compression`, `golomb_table`: bits for each position, without its sign.
    #[test]
    fn random_positions_take_the_bits_of_the_table() {
        let table = [
            (0.005, 9.111_694_322_7),
            (0.01, 8.107_910_194),
            (0.02, 7.100_324_699),
            (0.03, 6.592_377_112_5),
            (0.05, 5.786_118_295),
            (0.08, 5.054_311_362_6),
            (0.1, 4.755_825_156_3),
            (0.15, 4.092_077_563_8),
            (0.2, 3.693_766_937_7),
        ];
        let mut stream = Seed::from_number(11).stream();
        for (density, want) in table {
            let mut gaps = Vec::new();
            let mut gap = 0;
            for _ in 0..1_000_000 {
                match uniform_f32(stream.next_u32()) < density {
                    true => gaps.push(std::mem::take(&mut gap)),
                    false => gap += 1,
                }
            }
            let (low, mut out) = (rice::best(&gaps), Vec::new());
            let mut writer = Writer::new(&mut out);
            gaps.iter().for_each(|gap| writer.rice(*gap, low));
            writer.finish();
            let bits = out.len() as f64 * 8.0 / gaps.len() as f64;
            // The best whole parameter is at most a little better than the table's.
            assert!((bits / want - 1.0).abs() < 0.02, "{density}: {bits} where {want}");
        }
    }
}
