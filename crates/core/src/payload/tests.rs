use std::sync::Arc;

use proptest::prelude::*;
use rand_chacha::rand_core::Rng;

use super::*;
use crate::layout::Factor;
use crate::lora::{LoraConfig, TargetModule};
use crate::model_config::ModelConfig;
use crate::seed::{Seed, uniform_f32};

fn layout() -> Arc<Layout> {
    layout_of(16, 24)
}

/// 2 blocks of width `hidden`, with 6 (3 hidden + inner) values of an adapter each.
fn layout_of(hidden: usize, inner: usize) -> Arc<Layout> {
    let model = ModelConfig::from_json(&format!(
        r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {inner},
            "vocab_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}}"#,
    ))
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

/// An encoder that can encode any compression.
fn encoder(compression: Compression, layout: &Layout) -> Encoder<'_> {
    Encoder::new(compression, layout).shared(Shared { summands: 3, norm: 4.0, turn: 1, seed: 9 })
}

fn encode(compression: Compression, delta: &[f32]) -> Payload {
    encoder(compression, &layout()).encode(delta, &mut rng()).unwrap()
}

/// Every kind, with the settings that matter.
fn all() -> Vec<Compression> {
    [
        "none",
        "int8",
        "bits1",
        "bits2",
        "bits3",
        "bits4",
        "bits1/2",
        "bits2/16",
        "sparse5%",
        "sparse50%",
        "linear4",
        "linear8/3",
    ]
    .map(|text| text.parse().unwrap())
    .to_vec()
}

/// ‖x - y‖² / ‖x‖².
fn error(x: &[f32], y: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let energy: f64 = x.iter().map(|x| square(f64::from(*x))).sum();
    let error: f64 = x.iter().zip(y).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
    if energy == 0.0 { error } else { error / energy }
}

/// A delta of which the value at `index` is `f(index)`.
fn delta(f: impl FnMut(usize) -> f32) -> Vec<f32> {
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
    for compression in all() {
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
    fn decoding_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..6) {
        let with_header = [&[b'F', b'P', 1, kind][..], &bytes].concat();
        let _ = Payload::from_bytes(with_header).decode(&layout());
        let _ = Payload::from_bytes(bytes).decode(&layout());
    }

    #[test]
    fn flipping_any_bit_is_refused_or_stays_finite(at in 0usize..400, bit in 0u8..8, kind in 0usize..12) {
        let mut bytes = encode(all()[kind], &delta(|i| (i as f32).sin())).bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(decoded) = Payload::from_bytes(bytes).decode(&layout()) {
            prop_assert!(decoded.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn any_delta_round_trips_within_bounds(
        seed in any::<u64>(),
        shape in 0u8..5,
        scale in prop::sample::select(vec![1.0f32, 1e-3, 1e-30, f32::MIN_POSITIVE, 1e-44, 1e30, f32::MAX]),
        kind in 0usize..12,
        turn in any::<u32>(),
    ) {
        let (layout, compression) = (layout(), all()[kind]);
        let mut stream = Seed::from_number(seed).stream();
        let values = delta(|i| scale * match shape {
            0 => 0.0,
            1 => 1.0,
            2 => 2.0 * uniform_f32(stream.next_u32()) - 1.0,
            3 => f32::from(i.is_multiple_of(64)),
            _ => if stream.next_u32().is_multiple_of(2) { 1.0 } else { -1.0 },
        });
        let payload =
            encoder(compression, &layout).with_feedback(turn).encode(&values, &mut stream).unwrap();
        prop_assert!(payload.bytes().len() <= Payload::max_bytes(&layout));
        let decoded = payload.decode(&layout).unwrap();
        // What is fed back is never more than what came in, but on a grid that all clients share.
        let shared = matches!(compression, Compression::Linear(_));
        prop_assert!(shared || scale < 1e-30 || error(&values, &decoded) < 1.0001, "{}", error(&values, &decoded));
        let payload = encoder(compression, &layout).encode(&values, &mut stream).unwrap();
        prop_assert!(payload.bytes().len() <= Payload::max_bytes(&layout));
        prop_assert!(payload.decode(&layout).unwrap().iter().all(|value| value.is_finite()));
    }
}

/// ../shared/vectors, block `compression`: `eden_unbiased_vnmse` and `lloyd_max_mse`. The second holds
/// for the scale of least error: 1 - <y, q>² / (‖y‖² ‖q‖²) is the quantiser's own error.
#[test]
fn few_bits_have_the_errors_of_eden() {
    let layout = layout_of(4096, 4096);
    let mut stream = Seed::from_number(17).stream();
    // Far from normal: most values are nearly nothing.
    let values: Vec<f32> =
        (0..layout.len()).map(|_| (uniform_f32(stream.next_u32()) - 0.5).powi(9)).collect();
    let dropped = [0.570_796_326_8, 0.133_121_168_7, 0.035_784_018_5, 0.009_592_143];
    let fed_back = [0.363_380_227_6, 0.117_481_847_8, 0.034_547_760_8, 0.009_501_008];
    for (width, (dropped, fed_back)) in (1..=4).zip(dropped.into_iter().zip(fed_back)) {
        let compression = Compression::Bits(Bits::new(width, 1).unwrap());
        let payload = Payload::encode(compression, &layout, &values, &mut stream).unwrap();
        let got = error(&values, &payload.decode(&layout).unwrap());
        assert!((got / dropped - 1.0).abs() < 0.03, "{width} bits: {got} where {dropped}");
        let payload =
            Encoder::new(compression, &layout).with_feedback(0).encode(&values, &mut stream);
        let payload = payload.unwrap();
        let got = error(&values, &payload.decode(&layout).unwrap());
        assert!((got / fed_back - 1.0).abs() < 0.03, "{width} bits: {got} where {fed_back}");
        let bits = payload.bytes().len() as f64 * 8.0 / layout.len() as f64;
        assert!(bits < f64::from(width) + 0.02, "{bits}");
    }
}

#[test]
fn without_feedback_few_bits_are_unbiased() {
    let layout = layout();
    let values = delta(|i| (i as f32 * 0.37).sin());
    for text in ["bits1", "bits2", "bits1/2", "bits3/4"] {
        let mut rng = rng();
        let draws = 4000;
        let mut mean = vec![0.0f32; layout.len()];
        for _ in 0..draws {
            let payload =
                Payload::encode(text.parse().unwrap(), &layout, &values, &mut rng).unwrap();
            let decoded = payload.decode(&layout).unwrap();
            mean.iter_mut().zip(decoded).for_each(|(mean, value)| *mean += value / draws as f32);
        }
        // The error of one draw is at most about 4 times the energy; that of the mean of 4000 a 1000th.
        let error = error(&values, &mean);
        assert!(error < 0.004, "{text}: {error}");
    }
}

#[test]
fn segments_take_turns() {
    let (layout, values) = (layout(), delta(|i| (i as f32).sin()));
    let compression = "bits2/4".parse().unwrap();
    for turn in [0, 1, 2, 3, 4, 7, u32::MAX] {
        let payload = Encoder::new(compression, &layout)
            .with_feedback(turn)
            .encode(&values, &mut rng())
            .unwrap();
        assert!(payload.bytes().len() < layout.len() * 2 / 8 / 4 + 100);
        let mut decoded = payload.decode(&layout).unwrap();
        let bound = |index: u32| layout.len() * index as usize / 4;
        let sent = bound(turn % 4)..bound(turn % 4 + 1);
        assert!(error(&values[sent.clone()], &decoded[sent.clone()]) < 0.25);
        decoded[sent].fill(0.0);
        assert!(decoded.iter().all(|value| *value == 0.0));
    }
}

#[test]
fn a_linear_payload_needs_what_the_clients_of_a_round_share() {
    let (layout, values) = (layout(), delta(|_| 0.1));
    let alone = Payload::encode("linear8".parse().unwrap(), &layout, &values, &mut rng());
    assert_eq!(alone.unwrap_err(), InvalidDelta::NotShared);
    for norm in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        let shared = Shared { summands: 0, norm, turn: 0, seed: 0 };
        let encoder = Encoder::new("linear8".parse().unwrap(), &layout).shared(shared);
        assert_eq!(encoder.encode(&values, &mut rng()).unwrap_err(), InvalidDelta::NotShared);
    }
    let shared = Shared { summands: u32::MAX, norm: f32::MAX, turn: u32::MAX, seed: 0 };
    let encoder = Encoder::new("linear1/16".parse().unwrap(), &layout).shared(shared);
    encoder.encode(&values, &mut rng()).unwrap().decode(&layout).unwrap();
}

/// All values change alike; those of the last rank component meet a factor that is ten times as large.
#[test]
fn sparse_keeps_what_moves_the_product_most() {
    let layout = layout();
    let component = |at: usize| {
        let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&at)).unwrap();
        let components: Vec<usize> = (0..tensor.rank()).collect();
        tensor.spread(&components)[at - tensor.offset]
    };
    let after = delta(|at| if component(at) == 2 { 10.0 } else { 1.0 });
    let values = delta(|at| if at % 2 == 0 { 0.1 } else { -0.1 });
    let compression = "sparse20%".parse().unwrap();
    let kept = |encoder: Encoder<'_>| {
        let payload = encoder.encode(&values, &mut rng()).unwrap();
        let decoded = payload.decode(&layout).unwrap().into_iter().enumerate();
        decoded.filter(|(_, value)| *value != 0.0).map(|(at, _)| component(at)).collect::<Vec<_>>()
    };
    let blind = Encoder::new(compression, &layout);
    assert!(kept(blind).contains(&0));
    assert!(kept(blind.leading_to(&after)).iter().all(|component| *component == 2));
    // Where the other factor is nothing, magnitudes decide.
    let nothing = vec![0.0; layout.len()];
    assert_eq!(kept(blind.leading_to(&nothing)), kept(blind));
    let short = blind.leading_to(&after[1..]).encode(&values, &mut rng());
    assert!(matches!(short, Err(InvalidDelta::Length { .. })));
}

#[test]
fn a_sparse_payload_has_the_size_of_its_table() {
    // ../shared/vectors, block `compression`, `golomb_table`: at 5%, 0.339 bits a value with signs.
    let layout = layout_of(4096, 4096);
    let mut stream = Seed::from_number(23).stream();
    let values: Vec<f32> =
        (0..layout.len()).map(|_| uniform_f32(stream.next_u32()) - 0.5).collect();
    let payload =
        Payload::encode("sparse5%".parse().unwrap(), &layout, &values, &mut stream).unwrap();
    let bits = payload.bytes().len() as f64 * 8.0 / layout.len() as f64;
    assert!((bits / 0.339_305_914_7 - 1.0).abs() < 0.02, "{bits}");
    let decoded = payload.decode(&layout).unwrap();
    for tensor in layout.tensors() {
        let (x, y) = (&values[tensor.range()], &decoded[tensor.range()]);
        let kept = y.iter().filter(|value| **value != 0.0).count();
        assert_eq!(kept, tensor.range().len().div_ceil(20));
        // The largest tenth of [0, 0.5] begins at 0.475 and has the mean 0.4875.
        let all_large = x.iter().zip(y).all(|(x, y)| *y == 0.0 || (x.abs() > 0.46 && x * y > 0.0));
        assert!(all_large && y.iter().all(|y| *y == 0.0 || (y.abs() - 0.4875).abs() < 0.003));
    }
}

/// What does not train takes its mean, and no position.
#[test]
fn sparse_spends_nothing_on_what_does_not_change() {
    let layout = layout();
    let frozen = |at: usize| {
        let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&at));
        tensor.unwrap().factor == Factor::A
    };
    let bytes = |values: &[f32]| {
        let payload =
            Payload::encode("sparse20%".parse().unwrap(), &layout, values, &mut rng()).unwrap();
        // Behind the headers and the means.
        let positions = payload.bytes().len() - 7 - 2 * layout.tensors().len();
        (positions, payload.decode(&layout).unwrap())
    };
    let (all, _) = bytes(&delta(|at| 0.1 + at as f32));
    let (half, decoded) = bytes(&delta(|at| if frozen(at) { 0.0 } else { 0.1 + at as f32 }));
    assert!(20 * half < 13 * all, "{half} of {all}");
    assert!(decoded.iter().enumerate().all(|(at, value)| !frozen(at) || *value == 0.0));
    assert!(decoded.iter().any(|value| *value != 0.0));
}
