//! Angles of rotary position embeddings.

use std::ops::Range;

use floret_core::model_config::Rope;

/// The angles of `positions`, row by row \[positions, head_dim\]: the cosines of all frequencies,
/// then their sines. They are computed in f64.
pub(crate) fn angles(rope: &Rope, head_dim: usize, positions: Range<usize>) -> Vec<f32> {
    let frequencies = rope.inverse_frequencies(head_dim);
    let mut angles = Vec::with_capacity(positions.len() * head_dim);
    for position in positions {
        let of = |frequency: &f64| position as f64 * frequency;
        angles.extend(frequencies.iter().map(|frequency| of(frequency).cos() as f32));
        angles.extend(frequencies.iter().map(|frequency| of(frequency).sin() as f32));
    }
    angles
}
