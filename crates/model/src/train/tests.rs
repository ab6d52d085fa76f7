use floret_core::layout::Factor;
use floret_core::lora::TargetModule;
use floret_core::lora::TargetModule::{DownProj, KProj, QProj, VProj};

use super::*;
use crate::precision::Precision;
use crate::testing::{adapter, config, plain_model, random, sequences, settings};

fn plan(micro_batch: usize) -> StepPlan {
    StepPlan::fastest(micro_batch)
}

/// Mean loss per token with `values` in place of the adapter's.
fn loss(model: &Transformer, adapter: &Adapter, settings: &LoraConfig, values: &[f32]) -> f64 {
    let sequences = sequences(model.config(), 3, 9, 5);
    let share: Vec<&Sequence> = sequences.iter().collect();
    let batch = Batch::new(model.config(), &share).unwrap();
    let values = Adapter::new(adapter.layout().clone(), values.to_vec()).unwrap();
    let lora = Lora::frozen(&values, model.config(), settings, &model.device()).unwrap();
    let hidden = model.hidden(&batch.tokens, Some(&lora));
    loss::sum(loss::nll(model, hidden, &batch, 1 << 20)) / batch.counted() as f64
}

#[test]
fn gradients_are_finite_differences() {
    let tied = config();
    let untied = floret_core::ModelConfig {
        num_kv_heads: 1,
        head_dim: 6,
        tie_embeddings: false,
        qkv_bias: true,
        ..config()
    };
    let cases = [
        (tied.clone(), settings(2, &[QProj, VProj])),
        (tied, settings(1, &TargetModule::ALL)),
        (untied, settings(3, &[KProj, DownProj])),
    ];
    for (case, (config, settings)) in cases.into_iter().enumerate() {
        let model = plain_model(&config, case as u64);
        let adapter = adapter(&config, &settings, 3);
        let values = adapter.values();
        let lora = Lora::trainable(adapter.layout(), &[values], settings.scale(), &model.device());
        let sequences = sequences(&config, 3, 9, 5);
        let share: Vec<&Sequence> = sequences.iter().collect();
        let sum = gradient(&model, &lora, &share, &plan(2)).unwrap();
        for direction in 0..4 {
            let direction = random(values.len(), 1.0, 100 + direction);
            let moved = |step: f32| -> Vec<f32> {
                values.iter().zip(&direction).map(|(value, way)| value + step * way).collect()
            };
            let step = 2e-3;
            let [ahead, behind] =
                [step, -step].map(|step| loss(&model, &adapter, &settings, &moved(step)));
            let difference = (ahead - behind) / (2.0 * f64::from(step));
            let products = sum.gradient.iter().zip(&direction);
            let slope: f64 = products.map(|(g, way)| f64::from(*g) * f64::from(*way)).sum();
            let slope = slope / sum.counted as f64;
            let error = (slope - difference).abs() / slope.abs().max(0.05);
            assert!(error < 0.02, "case {case}: slope {slope}, difference {difference}");
        }
    }
}

#[test]
fn the_base_is_never_tracked() {
    let (config, settings) = (config(), settings(2, &[QProj]));
    let model = plain_model(&config, 1);
    let adapter = adapter(&config, &settings, 2);
    let sequences = sequences(&config, 2, 8, 3);
    let (training, seed) = (TrainingConfig::default(), Seed::from_number(1));
    let start = (&settings, &adapter);
    Training::new(&model, start, &sequences, &training, &seed).unwrap().step().unwrap();
    assert!(!model.device().is_autodiff());
    // Without an adapter in training there is no graph at all.
    let batch = Batch::new(&config, &[&sequences[0]]).unwrap();
    let lora = Lora::frozen(&adapter, &config, &settings, &model.device()).unwrap();
    assert!(!model.hidden(&batch.tokens, Some(&lora)).is_autodiff());
    let lora = Lora::trainable(adapter.layout(), &[adapter.values()], 1.0, &model.device());
    assert!(model.hidden(&batch.tokens, Some(&lora)).is_tracked());
}

#[test]
fn micro_batches_add_up_to_one_batch() {
    let (config, settings) = (config(), settings(2, &[QProj, VProj]));
    let model = plain_model(&config, 4);
    let adapter = adapter(&config, &settings, 5);
    let sequences = sequences(&config, 5, 10, 6);
    let share: Vec<&Sequence> = sequences.iter().collect();
    let lora = Lora::trainable(adapter.layout(), &[adapter.values()], 1.0, &model.device());
    let [whole, parts] = [5, 2].map(|size| gradient(&model, &lora, &share, &plan(size)).unwrap());
    assert_eq!(whole.counted, parts.counted);
    assert!((whole.nll - parts.nll).abs() < 1e-3);
    for (x, y) in whole.gradient.iter().zip(&parts.gradient) {
        assert!((x - y).abs() < 1e-3, "{x} {y}");
    }
}

#[test]
fn blocks_computed_twice_give_the_same_gradient() {
    let config = floret_core::ModelConfig { num_layers: 4, qkv_bias: true, ..config() };
    let settings = settings(2, &TargetModule::ALL);
    let (model, adapter) = (plain_model(&config, 4), adapter(&config, &settings, 5));
    let sequences = sequences(&config, 5, 10, 6);
    let share: Vec<&Sequence> = sequences.iter().collect();
    let lora = Lora::trainable(adapter.layout(), &[adapter.values()], 1.0, &model.device());
    let [kept, twice] = [false, true].map(|recompute| {
        gradient(&model, &lora, &share, &StepPlan { recompute, ..plan(2) }).unwrap()
    });
    assert_eq!((kept.counted, kept.nll), (twice.counted, twice.nll));
    let largest = kept.gradient.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    for (x, y) in kept.gradient.iter().zip(&twice.gradient) {
        assert!((x - y).abs() < 1e-5 * largest, "{x} {y}");
    }
}

#[test]
fn an_int8_base_learns_what_the_f32_base_learns() {
    let (config, settings) = (config(), settings(4, &TargetModule::ALL));
    let adapter = adapter(&config, &settings, 8);
    let sequences = sequences(&config, 6, 12, 9);
    let training = TrainingConfig { batch_size: 3, ..TrainingConfig::default() };
    let seed = Seed::from_number(1);
    let losses = [Precision::F32, Precision::Int8].map(|precision| {
        let model = crate::testing::model_with(&config, 7, precision, &crate::device::cpu());
        let start = (&settings, &adapter);
        let mut steps = Training::new(&model, start, &sequences, &training, &seed).unwrap();
        (0..30).map(|_| steps.step().unwrap().loss).collect::<Vec<f64>>()
    });
    assert!(losses[0][29] < 0.9 * losses[0][0], "{losses:?}");
    for (f32, int8) in losses[0].iter().zip(&losses[1]) {
        assert!((f32 - int8).abs() < 0.03 * f32, "{losses:?}");
    }
}

#[test]
fn training_goes_over_little_data_again_and_learns_it() {
    let (config, settings) = (config(), settings(4, &TargetModule::ALL));
    let model = plain_model(&config, 7);
    let adapter = adapter(&config, &settings, 8);
    let sequences = sequences(&config, 2, 8, 9);
    let config = TrainingConfig { learning_rate: 1e-2, batch_size: 1, ..TrainingConfig::default() };
    let seed = Seed::from_number(1);
    let mut training =
        Training::new(&model, (&settings, &adapter), &sequences, &config, &seed).unwrap();
    let losses: Vec<f64> = (0..60).map(|_| training.step().unwrap().loss).collect();
    assert!(losses[58] + losses[59] < 0.5 * (losses[0] + losses[1]), "{losses:?}");
    let counted: usize = sequences.iter().map(|sequence| sequence.targets().count()).sum();
    assert_eq!(training.finish().tokens, 30 * counted as u64);
}

#[test]
fn what_cannot_be_trained_is_told() {
    let (config, settings) = (config(), settings(2, &[QProj]));
    let model = plain_model(&config, 1);
    let good = adapter(&config, &settings, 2);
    let (training, seed) = (TrainingConfig::default(), Seed::from_number(1));
    let few = sequences(&config, 2, 8, 3);
    let new = |adapter: &Adapter, sequences: &[Sequence]| {
        Training::new(&model, (&settings, adapter), sequences, &training, &seed)
            .and_then(|mut training| training.step())
    };
    assert_eq!(new(&good, &[]), Err(TrainError::NoData));

    let other = adapter(&config, &crate::testing::settings(3, &[QProj]), 2);
    let error = new(&other, &few).unwrap_err().to_string();
    assert!(error.contains("layout"), "{error}");

    let long = sequences(&config, 1, config.max_positions + 1, 3);
    let error = new(&good, &long).unwrap_err().to_string();
    assert!(error.contains("max_position_embeddings"), "{error}");

    let huge = Adapter::new(good.layout().clone(), vec![1e30; good.values().len()]).unwrap();
    assert_eq!(new(&huge, &few), Err(TrainError::Diverged { step: 1 }));
}

/// What a scope leaves out keeps its bits, with weight decay too; what is in it trains.
#[test]
fn a_scope_trains_its_part_alone() {
    let (config, settings) = (config(), settings(3, &[QProj, VProj, DownProj]));
    let model = plain_model(&config, 1);
    let adapter = adapter(&config, &settings, 3);
    let sequences = sequences(&config, 3, 9, 5);
    let training = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
    for (frozen, rank) in
        [(None, 3), (None, 1), (Some(Factor::A), 3), (Some(Factor::B), 2), (Some(Factor::A), 1)]
    {
        let scope = Scope { frozen, rank };
        let seed = Seed::from_number(4);
        let start = (&settings, &adapter);
        let mut training =
            Training::new(&model, start, &sequences, &training, &seed).unwrap().with_scope(&scope);
        for _ in 0..3 {
            training.step().unwrap();
        }
        let after = training.finish().values;
        let mut inside = vec![true; after.len()];
        scope.outside(adapter.layout()).into_iter().for_each(|places| inside[places].fill(false));
        for (place, (after, before)) in after.iter().zip(adapter.values()).enumerate() {
            let moved = after.to_bits() != before.to_bits();
            assert_eq!(moved, inside[place], "{scope:?}, place {place}: {before} {after}");
        }
    }
}

/// The gradient of the proximal term by finite differences, and what it is for: training that is pulled
/// back ends nearer to where it began.
#[test]
fn a_proximal_term_pulls_training_back() {
    let (start, values) = (random(9, 1.0, 1), random(9, 1.0, 2));
    let term = |values: &[f32]| -> f64 {
        let squares = values.iter().zip(&start).map(|(x, y)| f64::from(x - y).powi(2));
        0.3 / 2.0 * squares.sum::<f64>()
    };
    let mut gradient = vec![0.0; 9];
    pull_back(&mut gradient, &values, &start, 0.3);
    for (place, slope) in gradient.iter().enumerate() {
        let moved = |step: f32| {
            let mut values = values.clone();
            values[place] += step;
            term(&values)
        };
        let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        assert!((f64::from(*slope) - difference).abs() < 1e-4, "{slope} {difference}");
    }

    let (config, settings) = (config(), settings(2, &[QProj, VProj]));
    let model = plain_model(&config, 1);
    let adapter = adapter(&config, &settings, 3);
    let sequences = sequences(&config, 3, 9, 5);
    let distance = |proximal: f32| {
        let training = TrainingConfig { proximal, ..TrainingConfig::default() };
        let (start, seed) = ((&settings, &adapter), Seed::from_number(4));
        let mut training = Training::new(&model, start, &sequences, &training, &seed).unwrap();
        for _ in 0..10 {
            training.step().unwrap();
        }
        let after = training.finish().values;
        let squares = after.iter().zip(adapter.values()).map(|(x, y)| f64::from(x - y).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let distances = [0.0, 10.0, 1000.0].map(distance);
    assert!(distances.is_sorted_by(|x, y| x > y), "{distances:?}");
}

/// A correction is added in equal parts, and in whole once all steps are done; where nothing trains, values stay.
#[test]
fn a_correction_is_added_over_the_steps() {
    let (config, settings) = (config(), settings(2, &[QProj, VProj]));
    let model = plain_model(&config, 1);
    let adapter = adapter(&config, &settings, 3);
    let sequences = sequences(&config, 3, 9, 5);
    let scope = Scope { frozen: Some(Factor::B), rank: 2 };
    let mut correction = random(adapter.values().len(), 1.0, 7);
    scope.outside(adapter.layout()).into_iter().for_each(|places| correction[places].fill(0.0));
    // Hardly any learning beside it.
    let training = TrainingConfig { learning_rate: 1e-7, ..TrainingConfig::default() };
    let after = |steps: u32| {
        let (start, seed) = ((&settings, &adapter), Seed::from_number(4));
        let training = Training::new(&model, start, &sequences, &training, &seed).unwrap();
        let mut training = training.with_scope(&scope).corrected_by(&correction, 4);
        for _ in 0..steps {
            training.step().unwrap();
        }
        training.finish().values
    };
    for (steps, share) in [(2, 0.5), (4, 1.0)] {
        let pairs = after(steps).into_iter().zip(adapter.values()).zip(&correction);
        for ((after, before), correction) in pairs {
            assert!((after - before - share * correction).abs() < 1e-5, "{after} {before}");
        }
    }
}

/// Clients of different data, lengths, scopes and settings, some with an epoch that ends midway: each
/// ends in the bits that it ends in alone.
#[test]
fn clients_that_train_together_end_as_each_does_alone() {
    let (config, settings) = (config(), settings(3, &[QProj, VProj, DownProj]));
    let adapters: Vec<Adapter> = (0..4).map(|seed| adapter(&config, &settings, seed)).collect();
    let data: Vec<Vec<Sequence>> = [(7, 20), (6, 20), (9, 20), (6, 15)]
        .into_iter()
        .zip(20..)
        .map(|((count, length), seed)| sequences(&config, count, length, seed))
        .collect();
    let own = |rate: f32, proximal, batch_size| TrainingConfig {
        learning_rate: rate,
        proximal,
        batch_size,
        accumulation: 2,
        weight_decay: 0.1,
        ..TrainingConfig::default()
    };
    let training = [own(1e-3, 0.0, 2), own(1e-2, 0.1, 2), own(3e-3, 0.0, 2), own(1e-3, 0.0, 2)];
    let scope = |frozen, rank| Scope { frozen, rank };
    let scopes = [scope(None, 3), scope(None, 1), scope(Some(Factor::A), 3), scope(None, 2)];
    for (precision, recompute) in
        [(Precision::F32, false), (Precision::Int8, false), (Precision::F32, true)]
    {
        let model = crate::testing::model_with(&config, 1, precision, &crate::device::cpu());
        let new = |client: usize| {
            let (start, seed) = ((&settings, &adapters[client]), Seed::from_number(client as u64));
            Training::new(&model, start, &data[client], &training[client], &seed)
                .unwrap()
                .with_plan(StepPlan { recompute, ..plan(2) })
                .with_scope(&scopes[client])
        };
        let mut together: Vec<Training<'_>> = (0..4).map(new).collect();
        let mut losses = vec![Vec::new(); 4];
        for _ in 0..5 {
            let steps = step_together(&mut together.iter_mut().collect::<Vec<_>>());
            losses.iter_mut().zip(steps).for_each(|(losses, step)| losses.push(step.unwrap()));
        }
        for (client, together) in together.into_iter().enumerate() {
            let mut alone = new(client);
            let steps: Vec<Step> = (0..5).map(|_| alone.step().unwrap()).collect();
            assert_eq!(losses[client], steps, "client {client}");
            assert_eq!(together.finish(), alone.finish(), "client {client}");
        }
    }
}

#[test]
fn batches_of_one_shape_go_through_the_model_together() {
    let config = config();
    let model = plain_model(&config, 1);
    let client = |count: usize, length: usize, seed| {
        let sequences = sequences(&config, count, length, seed);
        let share: Vec<&Sequence> = sequences.iter().collect();
        batches(&model, &share, &plan(2)).unwrap()
    };
    let members = |clients: Vec<Vec<Batch>>, logits| -> Vec<Vec<usize>> {
        let plan = StepPlan { logits, ..plan(2) };
        let stacks = stacks(&model, clients.into_iter().enumerate().collect(), &plan);
        let mut members: Vec<_> = stacks.into_iter().map(|(members, _)| members).collect();
        members.sort();
        members
    };
    let clients = || vec![client(4, 20, 1), client(3, 20, 2), client(4, 20, 3), client(4, 15, 4)];
    assert_eq!(members(clients(), 1 << 20), [vec![0, 2], vec![1], vec![3]]);
    // So few logits at once that the clients' rows would be cut elsewhere than alone.
    assert_eq!(members(clients(), 1), [vec![0], vec![1], vec![2], vec![3]]);
    // So few rows that they are dot products alone, and not together.
    let short = vec![client(1, 3, 1), client(1, 3, 2)];
    assert_eq!(members(short, 1 << 20), [vec![0], vec![1]]);
}

#[test]
fn one_that_diverges_takes_nobody_with_it() {
    let (config, settings) = (config(), settings(2, &[QProj]));
    let model = plain_model(&config, 1);
    let good = adapter(&config, &settings, 2);
    let huge = Adapter::new(good.layout().clone(), vec![1e30; good.values().len()]).unwrap();
    let (training, sequences) = (TrainingConfig::default(), sequences(&config, 3, 20, 3));
    let new = |adapter| {
        let seed = Seed::from_number(1);
        Training::new(&model, (&settings, adapter), &sequences, &training, &seed).unwrap()
    };
    let [mut bad, mut sound, mut alone] = [new(&huge), new(&good), new(&good)];
    let steps = step_together(&mut [&mut bad, &mut sound]);
    assert_eq!(steps, [Err(TrainError::Diverged { step: 1 }), alone.step()]);
    assert_eq!(sound.finish(), alone.finish());
}
