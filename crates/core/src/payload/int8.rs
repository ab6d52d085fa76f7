//! Int8 with stochastic rounding: one f32 scale per rank component (rows of A, columns of B), then
//! the values as i8 in layout order, compressed by zstd as one frame.
//!
//! With scale s = max |x| / 127 over a component, x becomes floor(x / s + u), u uniform in [0, 1):
//! the expectation is x, and the error is below s (QSGD, Alistarh et al. 2017, arXiv 1610.02132,
//! section 3.1, with uniform levels).

use pulp::{Arch, NullaryFnOnce};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use super::InvalidPayload;
use super::rounding::stochastic;
use crate::layout::{Layout, TensorSpec};
use crate::seed::uniform_f32;

const ZSTD_LEVEL: i32 = 3;
const STEPS: f32 = 127.0;

pub(super) fn encode(layout: &Layout, delta: &[f32], rng: &mut ChaCha20Rng, out: &mut Vec<u8>) {
    let (mut steps, mut draws) = (vec![0; layout.len()], Vec::new());
    for tensor in layout.tensors() {
        let values = &delta[tensor.range()];
        let scales = scales(tensor, values);
        out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
        draws.clear();
        draws.extend(values.iter().map(|_| uniform_f32(rng.next_u32())));
        let (scales, steps) = (&tensor.spread(&scales), &mut steps[tensor.range()]);
        Arch::new().dispatch(Round { values, scales, draws: &draws, steps });
    }
    let frame = zstd::bulk::compress(&steps, ZSTD_LEVEL);
    out.extend(frame.unwrap_or_else(|_| unreachable!("zstd compresses a buffer of any content")));
}

pub(super) fn decode(layout: &Layout, body: &[u8]) -> Result<Vec<f32>, InvalidPayload> {
    let want = layout.tensors().iter().map(TensorSpec::rank).sum::<usize>() * size_of::<f32>();
    let Some((scales, frame)) = body.split_at_checked(want) else {
        return Err(InvalidPayload::Length { part: "scales", want, got: body.len() });
    };
    let steps = decompress(frame, layout.len())?;
    let mut scales = scales.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
    let mut delta = Vec::with_capacity(layout.len());
    for tensor in layout.tensors() {
        let scales: Vec<f32> = scales.by_ref().take(tensor.rank()).collect();
        if !scales.iter().all(|scale| scale.is_finite() && *scale >= 0.0) {
            return Err(InvalidPayload::NotFinite);
        }
        let steps = steps[tensor.range()].iter().zip(tensor.spread(&scales));
        delta.extend(steps.map(|(step, scale)| {
            // 127 times the rounded scale of f32::MAX would overflow.
            (f32::from(step.cast_signed()) * scale).clamp(f32::MIN, f32::MAX)
        }));
    }
    Ok(delta)
}

fn scales(tensor: &TensorSpec, values: &[f32]) -> Vec<f32> {
    let largest = tensor.fold(values, 0.0f32, |largest, value| largest.max(value.abs()));
    largest.into_iter().map(|largest| largest / STEPS).collect()
}

/// Rounds values to steps of their scales; compiled for each width of vectors.
struct Round<'a> {
    values: &'a [f32],
    scales: &'a [f32],
    draws: &'a [f32],
    /// Each as the bits of an i8.
    steps: &'a mut [u8],
}

impl NullaryFnOnce for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let inputs = self.values.iter().zip(self.scales).zip(self.draws);
        for (step, ((value, scale), draw)) in self.steps.iter_mut().zip(inputs) {
            let rounded = stochastic(value / scale, *draw).clamp(-STEPS, STEPS);
            let rounded = if *scale == 0.0 { 0.0 } else { rounded };
            *step = (rounded as i8).cast_unsigned();
        }
    }
}

fn decompress(frame: &[u8], want: usize) -> Result<Vec<u8>, InvalidPayload> {
    let damaged = InvalidPayload::Damaged("zstd frame");
    let size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    let got = size.and_then(|size| usize::try_from(size).ok()).ok_or(damaged.clone())?;
    if got != want {
        return Err(InvalidPayload::Length { part: "quantized values", want, got });
    }
    match zstd::zstd_safe::find_frame_compressed_size(frame) {
        Ok(length) if length == frame.len() => {}
        Ok(_) => return Err(InvalidPayload::Damaged("end: bytes follow the zstd frame, which")),
        Err(_) => return Err(damaged),
    }
    let steps = zstd::bulk::decompress(frame, want).map_err(|_| damaged)?;
    if steps.len() == want {
        Ok(steps)
    } else {
        Err(InvalidPayload::Length { part: "quantized values", want, got: steps.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn vectors_change_no_bit() {
        let mut stream = Seed::from_number(8).stream();
        let mut draws =
            || -> Vec<f32> { (0..1003).map(|_| uniform_f32(stream.next_u32())).collect() };
        let (mut values, mut scales, draws) = (draws(), draws(), draws());
        (scales[5], values[5], values[6], scales[7]) = (0.0, 1e-45, f32::MAX, f32::MIN_POSITIVE);
        let [mut vectors, mut scalars] = [vec![0; 1003], vec![0; 1003]];
        let (values, scales, draws) = (&values[..], &scales[..], &draws[..]);
        Arch::new().dispatch(Round { values, scales, draws, steps: &mut vectors });
        Round { values, scales, draws, steps: &mut scalars }.call();
        assert_eq!(vectors, scalars);
    }
}
