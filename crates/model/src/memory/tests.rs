use super::*;
use crate::testing::{config, settings};

fn workload<'a>(model: &'a ModelConfig, lora: &'a LoraConfig) -> Workload<'a> {
    Workload {
        model,
        precision: Precision::F32,
        lora,
        batch_size: 8,
        sequence_length: 64,
        threads: 1,
        clients: 1,
        stack: 1,
    }
}

#[test]
fn the_cheapest_way_that_fits_is_chosen() {
    let model = ModelConfig {
        hidden_size: 512,
        intermediate_size: 1024,
        num_layers: 24,
        vocab_size: 512,
        ..config()
    };
    let lora = settings(8, &[TargetModule::QProj]);
    let workload = workload(&model, &lora);
    let fastest = StepPlan::fastest(8);
    let most = workload.estimate(&fastest);
    assert_eq!(workload.fit(most), Ok(fastest));

    let mut budget = most;
    let mut chosen = vec![fastest];
    while let Ok(plan) = workload.fit(budget) {
        let bytes = workload.estimate(&plan);
        assert!(bytes <= budget);
        if chosen.last() != Some(&plan) {
            chosen.push(plan);
        }
        budget = bytes - 1;
    }
    assert!(chosen.len() > 4, "{chosen:?}");
    // Nothing is computed twice while a smaller micro-batch would do.
    let recompute: Vec<bool> = chosen.iter().map(|plan| plan.recompute).collect();
    assert!(recompute.is_sorted() && recompute.contains(&true), "{chosen:?}");

    let refusal = workload.fit(budget).unwrap_err().to_string();
    assert!(refusal.contains("memory_budget_mib") && refusal.contains("int8"), "{refusal}");
    let int8 = Workload { precision: Precision::Int8, ..workload };
    assert!(int8.fit(budget).is_ok());
}

#[test]
fn a_stack_takes_more_than_one_client_and_less_than_as_many_side_by_side() {
    let (model, lora) = (config(), settings(8, &[TargetModule::QProj]));
    let one = workload(&model, &lora);
    let way = StepPlan::fastest(8);
    let estimate = |clients, stack| Workload { clients, stack, ..one.clone() }.estimate(&way);
    assert!(estimate(1, 1) < estimate(1, 4) && estimate(1, 4) < estimate(1, 5));
    assert!(estimate(1, 4) <= estimate(4, 1) && estimate(2, 4) <= estimate(8, 1));
}
