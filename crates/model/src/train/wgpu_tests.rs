//! A GPU computes what the CPU computes, here with a software driver for Vulkan.

use std::path::Path;

use floret_core::lora::TargetModule;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::device::{DeviceChoice, Gpu, cpu};
use crate::precision::Precision;
use crate::testing::{adapter, config, model, sequences, settings};

/// Most that a gradient or a value may differ, as a share of the largest of its tensor.
const TOLERANCE: f64 = 1e-3;

/// The software driver; none, with the reason printed, where there is none.
fn software() -> Option<burn::tensor::Device> {
    match DeviceChoice::Wgpu(Gpu::Software).open() {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Compares loss, gradients and ten steps of two models that should be the same.
fn compare([on_cpu, on_gpu]: [&Transformer; 2], settings: &LoraConfig, length: usize) {
    let config = on_cpu.config();
    let adapter = adapter(config, settings, 2);
    let sequences = sequences(config, 4, length, 3);
    let share: Vec<&Sequence> = sequences.iter().collect();
    let (layout, values, scale) = (adapter.layout(), adapter.values(), settings.scale());
    for recompute in [false, true] {
        let plan = StepPlan { recompute, ..StepPlan::fastest(2) };
        let [cpu, gpu] = [on_cpu, on_gpu].map(|model| {
            let lora = Lora::trainable(layout, &[values], scale, &model.device());
            gradient(model, &lora, &share, &plan).unwrap()
        });
        assert!((cpu.nll - gpu.nll).abs() < TOLERANCE * cpu.nll.abs(), "{} {}", cpu.nll, gpu.nll);
        for spec in layout.tensors() {
            let pairs = || cpu.gradient[spec.range()].iter().zip(&gpu.gradient[spec.range()]);
            let most = pairs().map(|(x, _)| f64::from(x.abs())).fold(0.0, f64::max);
            let worst = pairs().map(|(x, y)| f64::from((x - y).abs())).fold(0.0, f64::max);
            assert!(worst <= TOLERANCE * most, "{}: {worst} of {most}", spec.name);
        }
    }
    let training = TrainingConfig { batch_size: 2, ..TrainingConfig::default() };
    let seed = Seed::from_number(4);
    let losses = [on_cpu, on_gpu].map(|model| {
        let start = (settings, &adapter);
        let mut training = Training::new(model, start, &sequences, &training, &seed).unwrap();
        (0..10).map(|_| training.step().unwrap().loss).collect::<Vec<f64>>()
    });
    for (cpu, gpu) in losses[0].iter().zip(&losses[1]) {
        assert!((cpu - gpu).abs() < TOLERANCE * cpu, "{losses:?}");
    }
}

// One test, since training stays on one long-lived thread: each thread has its own GPU stream.
#[test]
fn the_software_driver_trains_as_the_cpu_does() {
    let Some(device) = software() else { return };
    let config = config();
    let [on_cpu, on_gpu] = [cpu(), device.clone()].map(|device| model(&config, 1, &device));
    compare([&on_cpu, &on_gpu], &settings(2, &TargetModule::ALL), 12);

    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260K");
    if !dir.exists() {
        eprintln!("stories260K skipped: there is no ../shared/models beside this repository");
        return;
    }
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let [on_cpu, on_gpu] =
        [cpu(), device].map(|device| checkpoint.load(Precision::F32, &device).unwrap());
    let targets = [TargetModule::QProj, TargetModule::VProj];
    compare([&on_cpu, &on_gpu], &settings(8, &targets), 64);
}
