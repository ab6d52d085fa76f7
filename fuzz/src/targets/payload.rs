//! Encoded deltas, as a server decodes and clips them: the first byte chooses the layout.

use floret_aggregator::ClippedDelta;
use floret_core::payload::{Compression, Encoder, Shared};
use floret_core::{Layout, Payload, Seed};

use super::model_fixture::layouts;
use super::{Target, choice};

pub(super) const TARGET: Target =
    Target { name: "payload", run, limit, seeds, share: 12, longest: 1500 };

const CLIP_NORM: f32 = 0.5;

fn layout(data: &[u8]) -> (&'static Layout, &[u8]) {
    let (which, rest) = choice(data, layouts().len());
    (&layouts()[which], rest)
}

fn run(data: &[u8]) -> bool {
    let (layout, bytes) = layout(data);
    let payload = Payload::from_bytes(bytes.to_vec());
    let Ok(delta) = payload.decode(layout) else {
        assert!(ClippedDelta::decode(&payload, layout, CLIP_NORM).is_err());
        return false;
    };
    assert!(delta.len() == layout.len() && delta.iter().all(|value| value.is_finite()));
    if let Ok(clipped) = ClippedDelta::decode(&payload, layout, CLIP_NORM) {
        let square: f64 = clipped.values().iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!(square.sqrt() <= f64::from(CLIP_NORM) * 1.001, "norm {}", square.sqrt());
    }
    true
}

/// The input, the values as they are decoded, and a copy of them that is clipped.
fn limit(data: &[u8]) -> usize {
    data.len() + 4 * layout(data).0.bytes() + 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let encode = |which: u8, compression, scale: f32| {
        let layout = &layouts()[usize::from(which)];
        let delta: Vec<f32> = (0..layout.len()).map(|i| (i as f32).sin() * scale).collect();
        let mut rng = Seed::from_number(1).stream();
        let shared = Shared { summands: 10, norm: CLIP_NORM, turn: 1, seed: 3 };
        let payload = Encoder::new(compression, layout).shared(shared).encode(&delta, &mut rng);
        let payload = payload.unwrap_or_else(|error| unreachable!("{error}"));
        [&[which], payload.bytes()].concat()
    };
    let text = |text: &str| text.parse().unwrap_or_else(|error| unreachable!("{error}"));
    vec![
        ("dense-one", encode(0, Compression::None, 0.1)),
        ("dense-all", encode(1, Compression::None, 0.1)),
        ("int8-one", encode(0, Compression::Int8, 0.1)),
        ("int8-all", encode(1, Compression::Int8, 1e-3)),
        ("int8-zero", encode(1, Compression::Int8, 0.0)),
        ("int8-huge", encode(1, Compression::Int8, f32::MAX)),
        ("bits1-one", encode(0, text("bits1"), 0.1)),
        ("bits1-all", encode(1, text("bits1"), 1e-3)),
        ("bits1-half", encode(1, text("bits1/2"), 0.1)),
        ("bits2-huge", encode(1, text("bits2"), f32::MAX)),
        ("bits3-sixteenth", encode(1, text("bits3/16"), 1e-40)),
        ("bits4-all", encode(1, text("bits4"), 1e-3)),
        ("sparse-one", encode(0, text("sparse0.1%"), 0.1)),
        ("sparse-all", encode(1, text("sparse5%"), 0.1)),
        ("sparse-zero", encode(1, text("sparse5%"), 0.0)),
        ("sparse-half", encode(1, text("sparse50%"), f32::MAX)),
        ("linear-one", encode(0, text("linear4"), 0.1)),
        ("linear-quarter", encode(1, text("linear6/4"), 0.01)),
        ("linear-huge", encode(1, text("linear24/3"), f32::MAX)),
    ]
}
