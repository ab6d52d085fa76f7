//! Int8 with stochastic rounding: one f32 scale per rank component (rows of A, columns of B), then
//! the values as i8 in layout order, compressed by zstd as one frame.
//!
//! With scale s = max |x| / 127 over a component, x becomes floor(x / s + u), u uniform in [0, 1):
//! the expectation is x, and the error is below s (QSGD, Alistarh et al. 2017, arXiv 1610.02132,
//! section 3.1, with uniform levels).

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use super::InvalidPayload;
use super::rounding::stochastic;
use crate::layout::{Layout, TensorSpec};
use crate::seed::uniform_f32;

const ZSTD_LEVEL: i32 = 3;
const STEPS: f32 = 127.0;

pub(super) fn encode(layout: &Layout, delta: &[f32], rng: &mut ChaCha20Rng, out: &mut Vec<u8>) {
    let mut steps = Vec::with_capacity(layout.len());
    for tensor in layout.tensors() {
        let values = &delta[tensor.range()];
        let scales = scales(tensor, values);
        out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
        for (index, value) in values.iter().enumerate() {
            let scale = scales[tensor.component(index)];
            let rounded = round(*value, scale, rng);
            steps.push(rounded.cast_unsigned());
        }
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
        let steps = steps[tensor.range()].iter().enumerate();
        delta.extend(steps.map(|(index, step)| {
            // 127 times the rounded scale of f32::MAX would overflow.
            let value = f32::from(step.cast_signed()) * scales[tensor.component(index)];
            value.clamp(f32::MIN, f32::MAX)
        }));
    }
    Ok(delta)
}

fn scales(tensor: &TensorSpec, values: &[f32]) -> Vec<f32> {
    let mut largest = vec![0.0f32; tensor.rank()];
    for (index, value) in values.iter().enumerate() {
        let slot = &mut largest[tensor.component(index)];
        *slot = slot.max(value.abs());
    }
    largest.into_iter().map(|largest| largest / STEPS).collect()
}

fn round(value: f32, scale: f32, rng: &mut ChaCha20Rng) -> i8 {
    let draw = uniform_f32(rng.next_u32());
    if scale == 0.0 {
        return 0;
    }
    stochastic(value / scale, draw).clamp(-STEPS, STEPS) as i8
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
