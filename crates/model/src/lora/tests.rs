use floret_core::lora::TargetModule;

use super::*;
use crate::testing::{adapter, config, plain_model, settings};
use crate::tokens::Tokens;

#[test]
fn factorised_equals_merged() {
    let (config, settings) = (config(), settings(3, &TargetModule::ALL));
    let model = plain_model(&config, 1);
    let adapter = adapter(&config, &settings, 2);
    let lora = Lora::frozen(&adapter, &config, &settings, &model.device()).unwrap();
    let tokens = Tokens::new(&config, &[&[1, 2, 3, 4, 5], &[9, 8, 7]]).unwrap();
    let factorised = values(model.hidden(&tokens, Some(&lora)));
    let merged = values(model.merged(&lora).hidden(&tokens, None));
    let base = values(model.hidden(&tokens, None));
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
