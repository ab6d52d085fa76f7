use floret_core::layout::Factor;
use floret_core::lora::TargetModule;

use super::*;
use crate::testing::{adapter, config, plain_model, settings};
use crate::tokens::Tokens;
use crate::transformer::Transformer;
use crate::weights::{WeightSpec, Weights};

/// The model with W + scale B A in place of each adapted W.
fn merged(model: &Transformer, adapter: &Adapter, scale: f32) -> Transformer {
    let config = model.config();
    let mut plain = model.weights().leaves().into_iter();
    let weights = Weights::of(config).map(|spec: &WeightSpec| {
        let weight = plain.next().unwrap().clone();
        let path = spec.name.trim_start_matches("model.").trim_end_matches(".weight");
        let factor = |which: Factor| {
            let mut tensors = adapter.layout().tensors().iter();
            let tensor = tensors.find(|t| t.factor == which && t.name.contains(path))?;
            let values = adapter.values()[tensor.range()].to_vec();
            Some(Tensor::<2>::from_data(TensorData::new(values, tensor.shape), &model.device()))
        };
        match (factor(Factor::A), factor(Factor::B)) {
            (Some(a), Some(b)) if spec.name.ends_with("proj.weight") => {
                weight + b.matmul(a).mul_scalar(scale)
            }
            _ => weight,
        }
    });
    Transformer::new(config.clone(), weights)
}

#[test]
fn factorised_equals_merged() {
    let (config, settings) = (config(), settings(3, &TargetModule::ALL));
    let model = plain_model(&config, 1);
    let adapter = adapter(&config, &settings, 2);
    let lora = Lora::frozen(&adapter, &config, &settings, &model.device()).unwrap();
    let tokens = Tokens::new(&config, &[&[1, 2, 3, 4, 5], &[9, 8, 7]]).unwrap();
    let factorised = values(model.hidden(&tokens, Some(&lora), None));
    let merged = merged(&model, &adapter, settings.scale());
    let merged = values(merged.hidden(&tokens, None, None));
    let base = values(model.hidden(&tokens, None, None));
    let largest =
        |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(largest(&factorised, &merged) < 1e-4);
    assert!(largest(&factorised, &base) > 1e-1);
}

#[test]
fn an_adapter_of_another_shape_is_refused() {
    let config = config();
    let [two, three] = [2, 3].map(|rank| settings(rank, &[TargetModule::QProj]));
    let adapter = adapter(&config, &two, 1);
    let error = Lora::frozen(&adapter, &config, &three, &crate::device::cpu()).unwrap_err();
    assert!(error.to_string().contains("rank and target_modules"), "{error}");
}
