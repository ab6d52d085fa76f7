//! What the tests of the rules share, and tests of rules on adapters.

use std::sync::Arc;

use floret_core::lora::TargetModule;
use floret_core::payload::Compression;
use floret_core::seed::uniform_f32;
use floret_core::{LoraConfig, ModelConfig, Payload, Seed};
use rand_chacha::rand_core::Rng;

use super::*;

/// Block `robust` of ../shared/vectors, `X`: the last two are Byzantine.
pub(crate) const X: [[f64; 3]; 7] = [
    [1.0, 2.0, 3.0],
    [1.4, 1.5, 3.3],
    [0.7, 2.6, 2.5],
    [1.3, 2.2, 3.7],
    [0.5, 1.7, 2.2],
    [10.0, -10.0, 10.0],
    [-5.0, 20.0, 0.0],
];

/// Block `lora_aggregation` of ../shared/vectors: A \[2, 4\] and B \[3, 2\] of three clients.
pub(crate) mod values {
    pub(crate) type A = [[f32; 4]; 2];
    pub(crate) type B = [[f32; 2]; 3];

    pub(crate) const CLIENTS: [(A, B); 3] = [
        ([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, -1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        ([[0.0, 1.0, 1.0, -1.0], [1.0, 0.0, 0.0, 2.0]], [[2.0, 1.0], [-1.0, 0.0], [0.0, 2.0]]),
        ([[-1.0, 1.0, 3.0, 1.0], [2.0, 0.0, 1.0, 0.0]], [[0.0, -1.0], [1.0, 2.0], [1.0, 0.0]]),
    ];

    pub(crate) fn flat(a: A, b: B) -> Vec<f32> {
        [a.as_flattened(), b.as_flattened()].concat()
    }
}

/// One pair of factors, A \[2, 4\] and B \[3, 2\].
pub(crate) fn pair_layout() -> Arc<Layout> {
    let model = ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 3, "vocab_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2}"#,
    );
    let lora = LoraConfig {
        rank: 2,
        alpha: 2.0,
        use_rslora: false,
        target_modules: vec![TargetModule::GateProj],
    };
    Arc::new(Layout::new(&model.unwrap(), &lora).unwrap())
}

/// Deltas from zero of the vectors' three clients, of ranks 1, 2 and 2: block `hetero`.
pub(crate) fn mixed_clients(layout: &Layout) -> [ClippedDelta; 3] {
    let mut clients = values::CLIENTS;
    let (a, b) = &mut clients[0];
    a[1].fill(0.0);
    b.iter_mut().for_each(|row| row[1] = 0.0);
    clients.map(|(a, b)| clipped(layout, 1e6, &values::flat(a, b)))
}

/// The delta of these values.
pub(crate) fn clipped(layout: &Layout, clip_norm: f32, values: &[f32]) -> ClippedDelta {
    let mut rng = Seed::from_number(0).stream();
    let payload = Payload::encode(Compression::None, layout, values, &mut rng).unwrap();
    ClippedDelta::decode(&payload, layout, clip_norm).unwrap()
}

pub(crate) fn random_values(layout: &Layout, seed: u64) -> Vec<f64> {
    let mut stream = Seed::from_number(seed).stream();
    (0..layout.len()).map(|_| f64::from(uniform_f32(stream.next_u32())) - 0.5).collect()
}

/// B A of the pair.
pub(crate) fn product(layout: &Layout, values: &[f64]) -> Vec<f64> {
    let [a, b] = layout.pairs().next().unwrap();
    let (rank, input, out) = (a.rank(), a.shape[1], b.shape[0]);
    let entry = |o: usize, i: usize| {
        let term = |c| values[b.offset + o * rank + c] * values[a.offset + c * input + i];
        (0..rank).map(term).sum::<f64>()
    };
    (0..out).flat_map(|o| (0..input).map(move |i| entry(o, i))).collect()
}

pub(crate) fn assert_near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (x, y) in got.iter().zip(want) {
        assert!((x - y).abs() < tolerance, "{got:?} is not {want:?}");
    }
}

/// Σ w_k x_k.
pub(crate) fn average(weights: &[f64], rows: &[[f64; 3]]) -> Vec<f64> {
    let at = |i: usize| weights.iter().zip(rows).map(|(w, row)| w * row[i]).sum();
    (0..3).map(at).collect()
}

fn mean(deltas: &[ClippedDelta]) -> Vec<f32> {
    let shares = vec![1.0 / deltas.len() as f64; deltas.len()];
    sum(&pair_layout(), deltas, &shares).into_iter().map(|value| value as f32).collect()
}

fn all_rules(trim: u32) -> [Robust; 8] {
    [
        Robust::Median {},
        Robust::TrimmedMean { trim },
        Robust::Krum { byzantine: trim },
        Robust::MultiKrum { byzantine: trim, keep: 3 },
        Robust::GeometricMedian { iterations: 20 },
        Robust::CenteredClipping { radius: 0.3, iterations: 10 },
        Robust::Dnc { byzantine: trim },
        Robust::Fltrust {},
    ]
}

/// Seven honest updates around one, and two that go far the other way: each rule stays near the honest
/// mean where the mean itself does not.
#[test]
fn two_hostile_updates_of_nine_move_no_rule_far() {
    let layout = pair_layout();
    let before: Vec<f32> =
        random_values(&layout, 1).into_iter().map(|value| value as f32).collect();
    let truth = random_values(&layout, 2);
    for seed in 0..20 {
        let update = |client: u64, way: f64| {
            let noise = random_values(&layout, 1000 * (seed + 1) + client);
            let values = truth.iter().zip(noise).map(|(x, noise)| way * (0.2 * x + 0.02 * noise));
            clipped(&layout, 1e6, &values.map(|value| value as f32).collect::<Vec<_>>())
        };
        let deltas: Vec<ClippedDelta> =
            (0..9).map(|client| update(client, if client < 7 { 1.0 } else { -20.0 })).collect();
        let honest = mean(&deltas[..7]);
        let error = |got: &[f32]| {
            let squares = got.iter().zip(&honest).map(|(x, y)| f64::from(x - y).powi(2));
            let norm = honest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            squares.sum::<f64>().sqrt() / norm
        };
        assert!(error(&mean(&deltas)) > 3.0, "seed {seed}");
        for rule in all_rules(2) {
            let error =
                error(&rule.combine(&layout, &before, &deltas, &[1, 0, 0, 0, 0, 0, 0, 0, 0]));
            assert!(error < 0.7, "seed {seed}: {rule:?} is off by {error}");
        }
    }
}

#[test]
fn equal_updates_are_what_every_rule_gives() {
    let layout = pair_layout();
    let (a, b) = values::CLIENTS[0];
    let delta: Vec<f32> = values::flat(a, b).iter().map(|value| value / 100.0).collect();
    let deltas = vec![clipped(&layout, 1e6, &delta); 7];
    let before = vec![0.1; layout.len()];
    for rule in all_rules(2) {
        let got = rule.combine(&layout, &before, &deltas, &[1; 7]);
        let near = got.iter().zip(&delta).all(|(x, y)| (x - y).abs() < 1e-6);
        assert!(near, "{rule:?}: {got:?}");
        assert_eq!(rule.combine(&layout, &before, &[], &[]), vec![0.0; layout.len()]);
    }
}

#[test]
fn rules_read_and_write_as_tables_with_their_name() {
    let read = |text: &str| serde_json::from_str::<Robust>(text);
    let trimmed = r#"{"rule":"trimmed_mean","trim":2}"#;
    assert_eq!(read(trimmed).unwrap(), Robust::TrimmedMean { trim: 2 });
    assert_eq!(serde_json::to_string(&read(trimmed).unwrap()).unwrap(), trimmed);
    let median = read(r#"{"rule": "geometric_median"}"#).unwrap();
    assert_eq!(median, Robust::GeometricMedian { iterations: 8 });
    for wrong in [r#"{"rule":"median","trim":2}"#, r#"{"rule":"krum"}"#, r#"{"rule":"mean"}"#] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
