use std::time::Duration;

use floret_core::base::BaseDigests;
use floret_core::lora::TargetModule::{DownProj, QProj, VProj};
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{Digest, Round, Scope, Seed, Version};

use super::*;
use crate::data::Example;
use crate::testing::{adapter, config, plain_model, settings, texts, tokenizer};

fn on_threads(threads: usize) -> TrainerOptions {
    TrainerOptions { threads, ..TrainerOptions::default() }
}

/// A model large enough for its products to be split over threads.
fn task_and_trainer(options: TrainerOptions) -> (TrainingTask, LocalTrainer) {
    let config = floret_core::ModelConfig {
        vocab_size: 300,
        hidden_size: 128,
        intermediate_size: 352,
        head_dim: 32,
        max_positions: 128,
        ..config()
    };
    let lora = settings(4, &[QProj, VProj, DownProj]);
    let adapter = adapter(&config, &lora, 1);
    let client: ClientId = "garden".parse().unwrap();
    let training = TrainingConfig { max_steps: 3, ..TrainingConfig::default() };
    let any = Digest::of(b"any");
    let plan = Plan {
        run: "run".parse().unwrap(),
        round: Round(1),
        version: Version(0),
        adapter_digest: adapter.digest(),
        layout_digest: adapter.layout().digest(),
        base: BaseDigests { base: any, tokenizer: any },
        lora,
        folded_rank: 0,
        training,
        compression: Compression::None,
        error_feedback: 0.0,
        clip_norm: 1.0,
        summands: 10,
        seed: Seed::from_number(3),
        report_within: Duration::from_secs(60),
    };
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), &config);
    let examples: Vec<Example> = (0..30).flat_map(|_| texts()).map(Example::Text).collect();
    let data = LocalData::new(&examples, 0.1, &tokenizer, &config).unwrap();
    let mut trainer = LocalTrainer::new(Arc::new(plain_model(&config, 2)), options).unwrap();
    trainer.insert(client.clone(), data);
    let scope = Scope { frozen: None, rank: plan.lora.rank };
    (TrainingTask { client, plan, adapter, scope, correction: None }, trainer)
}

#[test]
fn the_same_task_gives_the_same_bits_on_any_number_of_threads() {
    let train = |threads, tasks| {
        let (task, mut trainer) = task_and_trainer(on_threads(threads));
        let tasks = vec![task; tasks];
        let outcomes = trainer.train_all(&tasks, &mut |_| Control::Continue);
        outcomes.into_iter().collect::<Result<Vec<_>, _>>().unwrap()
    };
    // Two side by side, each on one thread; one on three.
    let [one, two, again] = [train(1, 1), train(2, 2), train(3, 1)];
    assert!(one[0].last_loss < 100.0 && one[0].tokens > 1000 && one[0].num_examples == 108);
    let bits = |outcome: &TrainingOutcome| -> Vec<u32> {
        outcome.values.iter().map(|value| value.to_bits()).collect()
    };
    for other in [&two[0], &two[1], &again[0]] {
        assert_eq!(bits(&one[0]), bits(other));
        assert_eq!(one[0].last_loss.to_bits(), other.last_loss.to_bits());
    }
}

/// A client whose batches have few rows, and others with other data and seeds.
fn few_rows(options: TrainerOptions, clients: usize) -> (Vec<TrainingTask>, LocalTrainer) {
    let (task, mut trainer) = task_and_trainer(options);
    let data = trainer.data(&task.client).unwrap().clone();
    let training = TrainingConfig {
        max_steps: 3,
        batch_size: 1,
        sequence_length: 30,
        ..TrainingConfig::default()
    };
    let plan = Plan { training, ..task.plan.clone() };
    let tasks = (0..clients).map(|index| {
        let client: ClientId = format!("client-{index}").parse().unwrap();
        trainer.insert(client.clone(), data.clone());
        let mut plan = plan.clone();
        plan.training.max_steps += index as u32 % 2;
        TrainingTask { client, plan, ..task.clone() }
    });
    (tasks.collect(), trainer)
}

#[test]
fn clients_of_few_rows_go_through_the_model_together_and_end_in_the_same_bits() {
    let train = |options| {
        let (tasks, mut trainer) = few_rows(options, 7);
        let (mut seen, stacks) = (vec![0; 7], trainer.stacks(&tasks, trainer.width(&tasks)));
        let outcomes = trainer.train_all(&tasks, &mut |progress| {
            seen[progress.task] += 1;
            assert_eq!(progress.steps, 3 + progress.task as u32 % 2);
            Control::Continue
        });
        assert_eq!(seen, [3, 4, 3, 4, 3, 4, 3]);
        let bits = |outcome: Result<TrainingOutcome, TrainError>| {
            let outcome = outcome.unwrap();
            let values: Vec<u32> = outcome.values.iter().map(|value| value.to_bits()).collect();
            (values, outcome.tokens, outcome.last_loss.to_bits())
        };
        (stacks, outcomes.into_iter().map(bits).collect::<Vec<_>>())
    };
    let (alone, want) = train(TrainerOptions { sequential: true, ..on_threads(1) });
    assert!(alone.iter().all(|stack| stack.len() == 1));
    for (options, most) in [
        (on_threads(1), 7),
        (on_threads(2), 4),
        (on_threads(3), 3),
        (TrainerOptions { stack: Some(1), ..on_threads(2) }, 1),
    ] {
        let (stacks, got) = train(options);
        let largest = stacks.iter().map(Vec::len).max().unwrap();
        // Tiles for large products bound the rows of a stack.
        assert!(largest <= most && (largest > 1 || most == 1), "{stacks:?}");
        assert!(got == want, "{stacks:?}");
    }
}

#[test]
fn as_many_go_through_the_model_together_as_fill_its_products() {
    let stack = |batch_size, options| {
        let (mut tasks, trainer) = few_rows(options, 1);
        tasks[0].plan.training.batch_size = batch_size;
        trainer.stack(&tasks[0].plan, 1)
    };
    let on_one = on_threads(1);
    assert!((2..=ROWS / 30).contains(&stack(1, on_one.clone())));
    assert_eq!(stack(8, on_one.clone()), 1);
    assert_eq!(stack(1, TrainerOptions { stack: Some(2), ..on_one.clone() }), 2);
    assert_eq!(stack(1, TrainerOptions { sequential: true, ..on_one.clone() }), 1);
    let (tasks, trainer) = few_rows(on_one.clone(), 1);
    assert_eq!(trainer.at_once(&tasks[0]), stack(1, on_one.clone()));
    let plan = &tasks[0].plan;
    let needs =
        |stack| Workload { stack, ..trainer.workload(plan, 1) }.estimate(&trainer.fastest(plan));
    let within = |budget| TrainerOptions { memory_budget: Some(budget), ..on_one.clone() };
    assert_eq!(stack(1, within(needs(2))), 2);
    assert_eq!(stack(1, within(needs(2) - 1)), 1);
}

#[test]
fn one_of_a_stack_without_data_leaves_the_others_theirs() {
    let (mut tasks, mut trainer) = few_rows(on_threads(1), 3);
    tasks[1].client = "stranger".parse().unwrap();
    let outcomes = trainer.train_all(&tasks, &mut |_| Control::Continue);
    assert_eq!(outcomes[1], Err(TrainError::NoData));
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
}

#[test]
fn progress_is_reported_and_can_cancel() {
    let (task, mut trainer) = task_and_trainer(on_threads(1));
    let mut seen = Vec::new();
    let result = trainer.train(&task, &mut |progress| {
        seen.push((progress.task, progress.step, progress.steps));
        if progress.step == 2 { Control::Cancel } else { Control::Continue }
    });
    assert_eq!(result, Err(TrainError::Cancelled));
    assert_eq!(seen, [(0, 1, 3), (0, 2, 3)]);
}

#[test]
fn an_unknown_client_has_no_data() {
    let (mut task, mut trainer) = task_and_trainer(on_threads(1));
    task.client = "stranger".parse().unwrap();
    assert_eq!(trainer.train(&task, &mut |_| Control::Continue), Err(TrainError::NoData));
}

#[test]
fn every_way_of_doing_a_step_ends_in_nearly_the_same_adapter() {
    let (mut task, mut trainer) = task_and_trainer(on_threads(1));
    // So large that AdamW does not blow up what rounding makes of tiny gradients.
    task.plan.training.epsilon = 1e-3;
    let mut train = |memory_budget: Option<u64>, recompute: bool| {
        trainer.options = TrainerOptions { memory_budget, recompute, ..on_threads(1) };
        let way = trainer.step_plan(&task.plan)?;
        let outcome = trainer.train(&task, &mut |_| Control::Continue)?;
        Ok::<_, TrainError>((way, outcome.values))
    };
    let (fastest, want) = train(None, false).unwrap();
    let recomputed = train(None, true).unwrap();
    let tight = (1u64..).find_map(|mib| train(Some(mib << 20), false).ok()).unwrap();
    for (way, values) in [recomputed, tight] {
        assert_ne!(way, fastest);
        for (x, y) in values.iter().zip(&want) {
            assert!((x - y).abs() < 1e-4, "{way:?}: {x} {y}");
        }
    }
    let moved = want.iter().zip(task.adapter.values()).map(|(after, before)| after - before);
    assert!(moved.fold(0.0f32, |most, by| most.max(by.abs())) > 1e-3);
}

#[test]
fn a_budget_that_nothing_fits_is_refused_before_training() {
    let options = TrainerOptions { memory_budget: Some(1 << 20), ..on_threads(1) };
    let (task, mut trainer) = task_and_trainer(options);
    let refused = trainer.train(&task, &mut |_| panic!("a step was done")).unwrap_err();
    assert!(matches!(refused, TrainError::Unsupported(_)));
    let refused = refused.to_string();
    assert!(refused.contains("memory_budget_mib allows 1 MiB"), "{refused}");
}

#[test]
fn as_many_train_side_by_side_as_threads_and_memory_permit() {
    let width = |threads, memory_budget: Option<u64>, sequential, tasks| {
        let options = TrainerOptions { memory_budget, sequential, ..on_threads(threads) };
        let (task, trainer) = task_and_trainer(options);
        trainer.width(&vec![task; tasks])
    };
    assert_eq!(width(3, None, false, 10), 3);
    assert_eq!(width(3, None, false, 2), 2);
    assert_eq!(width(3, None, true, 10), 1);
    let (task, trainer) = task_and_trainer(on_threads(3));
    let way = StepPlan::fastest(task.plan.training.batch_size as usize);
    let needs = |clients| trainer.workload(&task.plan, clients).estimate(&way);
    assert!(needs(3) > needs(2) && needs(2) > needs(1));
    assert_eq!(width(3, Some(needs(2)), false, 10), 2);
    assert_eq!(width(3, Some(needs(2) - 1), false, 10), 1);
}
