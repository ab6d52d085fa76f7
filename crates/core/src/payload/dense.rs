//! f32 values, little-endian, in layout order.

use super::{InvalidPayload, all_finite};
use crate::layout::Layout;

pub(super) fn encode(delta: &[f32], out: &mut Vec<u8>) {
    out.extend(delta.iter().flat_map(|value| value.to_le_bytes()));
}

pub(super) fn decode(layout: &Layout, body: &[u8]) -> Result<Vec<f32>, InvalidPayload> {
    if body.len() != layout.bytes() {
        let (want, got) = (layout.bytes(), body.len());
        return Err(InvalidPayload::Length { part: "dense values", want, got });
    }
    let delta: Vec<f32> =
        body.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    if all_finite(&delta) { Ok(delta) } else { Err(InvalidPayload::NotFinite) }
}
