use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::lora::{LoraConfig, TargetModule};
use crate::model_config::ModelConfig;
use crate::seed::Seed;

fn layout() -> Arc<Layout> {
    let model = ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "vocab_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2}"#,
    )
    .unwrap();
    let lora = LoraConfig {
        rank: 3,
        alpha: 6.0,
        use_rslora: false,
        target_modules: vec![TargetModule::QProj, TargetModule::UpProj],
    };
    Arc::new(Layout::new(&model, &lora).unwrap())
}

fn rng() -> ChaCha20Rng {
    Seed::from_number(5).stream()
}

fn encode(compression: Compression, delta: &[f32]) -> Payload {
    Payload::encode(compression, &layout(), delta, &mut rng()).unwrap()
}

/// A delta of which the value at `index` is `f(index)`.
fn delta(f: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..layout().len()).map(f).collect()
}

#[test]
fn dense_is_exact() {
    let values = delta(|i| (i as f32).sin() * 1e-3);
    let payload = encode(Compression::None, &values);
    assert_eq!(payload.decode(&layout()).unwrap(), values);
    assert_eq!(payload.bytes().len(), Payload::max_bytes(&layout()));
}

#[test]
fn int8_is_within_one_step_of_its_component_and_small() {
    let layout = layout();
    let values = delta(|i| (i as f32 * 0.7).sin() * if i % 2 == 0 { 1.0 } else { 1e-4 });
    let payload = encode(Compression::Int8, &values);
    let decoded = payload.decode(&layout).unwrap();
    for tensor in layout.tensors() {
        let largest = values[tensor.range()].iter().fold(0.0f32, |max, x| max.max(x.abs()));
        for at in tensor.range() {
            let error = (decoded[at] - values[at]).abs();
            assert!(error <= largest / 127.0 * 1.001, "{at}: {error} of {largest}");
        }
    }
    assert!(payload.bytes().len() * 2 < Payload::max_bytes(&layout));
}

#[test]
fn int8_scales_are_per_rank_component() {
    // One huge row of A and one huge column of B must not drown the others.
    let layout = layout();
    let mut values = delta(|_| 1e-6);
    let (a, b) = (&layout.tensors()[0], &layout.tensors()[1]);
    values[a.offset..a.offset + a.shape[1]].fill(1e3);
    for row in 0..b.shape[0] {
        values[b.offset + row * b.shape[1]] = -1e3;
    }
    let decoded = encode(Compression::Int8, &values).decode(&layout).unwrap();
    let wrong = values.iter().zip(&decoded).filter(|(x, y)| (*x - *y).abs() > 1e-5 * x.abs());
    assert_eq!(wrong.count(), 0);
}

#[test]
fn int8_rounding_is_unbiased() {
    let layout = layout();
    let mut values = delta(|_| 0.3);
    for tensor in layout.tensors() {
        values[tensor.offset..tensor.offset + tensor.rank().max(tensor.shape[1])].fill(100.0);
    }
    let mut rng = rng();
    let draws = 2000;
    let at = layout.tensors()[1].range().end - 1;
    let sum: f64 = (0..draws)
        .map(|_| {
            let payload = Payload::encode(Compression::Int8, &layout, &values, &mut rng).unwrap();
            f64::from(payload.decode(&layout).unwrap()[at])
        })
        .sum();
    // The step is 100/127 = 0.79; the mean of 2000 draws has deviation 0.0086.
    let mean = sum / f64::from(draws);
    assert!((mean - 0.3).abs() < 0.045, "{mean}");
}

#[test]
fn extreme_values_round_trip_finite() {
    for value in [0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, -f32::MAX] {
        for compression in [Compression::None, Compression::Int8] {
            let values = delta(|i| if i % 3 == 0 { value } else { 0.0 });
            let decoded = encode(compression, &values).decode(&layout()).unwrap();
            let close = values.iter().zip(&decoded).all(|(x, y)| (x - y).abs() <= x.abs() * 0.01);
            assert!(close || value.abs() < 1e-40, "{value} {compression:?}");
        }
    }
}

#[test]
fn deltas_that_diverged_are_not_encoded() {
    for value in [f32::NAN, f32::INFINITY] {
        let values = delta(|i| if i == 7 { value } else { 0.0 });
        let result = Payload::encode(Compression::Int8, &layout(), &values, &mut rng());
        assert_eq!(result.unwrap_err(), InvalidDelta::NotFinite);
    }
    let short = Payload::encode(Compression::Int8, &layout(), &[0.0], &mut rng());
    assert!(matches!(short, Err(InvalidDelta::Length { got: 1, .. })));
}

#[test]
fn every_cut_and_every_extra_byte_is_refused() {
    let values = delta(|i| (i as f32).cos());
    for compression in [Compression::None, Compression::Int8] {
        let bytes = encode(compression, &values).bytes().to_vec();
        for end in 0..bytes.len() {
            let cut = Payload::from_bytes(bytes[..end].to_vec());
            assert!(cut.decode(&layout()).is_err(), "cut at {end}");
        }
        let longer = Payload::from_bytes([&bytes[..], &[0]].concat());
        assert!(longer.decode(&layout()).is_err());
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let mut bytes = encode(Compression::None, &delta(|_| 1.0)).bytes().to_vec();
    bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = Payload::from_bytes(bytes).decode(&layout()).unwrap_err();
    assert_eq!(error, InvalidPayload::NotFinite);
    for scale in [f32::NAN, f32::INFINITY, -1.0] {
        let mut bytes = encode(Compression::Int8, &delta(|_| 1.0)).bytes().to_vec();
        bytes[4..8].copy_from_slice(&scale.to_le_bytes());
        assert!(Payload::from_bytes(bytes).decode(&layout()).is_err(), "{scale}");
    }
}

#[test]
fn a_frame_that_claims_a_huge_size_allocates_nothing() {
    let bomb = zstd::bulk::compress(&vec![0u8; 100 << 20], 1).unwrap();
    let scales = layout().tensors().iter().map(|t| t.rank()).sum::<usize>() * 4;
    let bytes = [&[b'F', b'P', 1, 1][..], &vec![0; scales], &bomb].concat();
    let error = Payload::from_bytes(bytes).decode(&layout()).unwrap_err();
    assert!(matches!(error, InvalidPayload::Length { got, .. } if got == 100 << 20), "{error}");
}

proptest! {
    #[test]
    fn decoding_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..3) {
        let with_header = [&[b'F', b'P', 1, kind][..], &bytes].concat();
        let _ = Payload::from_bytes(with_header).decode(&layout());
        let _ = Payload::from_bytes(bytes).decode(&layout());
    }

    #[test]
    fn flipping_any_bit_is_refused_or_stays_finite(at in 0usize..400, bit in 0u8..8) {
        let mut bytes = encode(Compression::Int8, &delta(|i| (i as f32).sin())).bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(decoded) = Payload::from_bytes(bytes).decode(&layout()) {
            prop_assert!(decoded.iter().all(|value| value.is_finite()));
        }
    }
}
