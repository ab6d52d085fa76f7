//! A combine rule of one's own, tried out on the quickstart's four devices in virtual time: the mean of
//! updates at the length of the median one, so that nobody counts for more by going further.
//!
//! `cargo run --release -p floret-examples --bin own_strategy`
#![allow(clippy::print_stdout, reason = "the program's output")]

use std::{path::Path, sync::Arc, time::Duration};

use floret_aggregator::{ClippedDelta, Coordinator, RunState, combine::Combine};
use floret_client::setup::{Base, BaseOptions};
use floret_core::Layout;
use floret_lab::{Experiment, corpus::Corpus, people::People, people::Roster};
use floret_model::{Evaluation, LocalTrainer, Lora, TrainerOptions, evaluate};
use floret_simulation::World;

#[derive(Debug)]
struct EqualLengths;

impl Combine for EqualLengths {
    fn combine(&self, layout: &Layout, _: &[f32], deltas: &[ClippedDelta], _: &[u32]) -> Vec<f32> {
        let length =
            |delta: &ClippedDelta| delta.values().iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut lengths: Vec<f32> = deltas.iter().map(length).collect();
        lengths.sort_by(f32::total_cmp);
        let mut mean = vec![0.0; layout.len()];
        for delta in deltas {
            let factor = lengths[deltas.len() / 2] / length(delta).max(1e-20) / deltas.len() as f32;
            mean.iter_mut().zip(delta.values()).for_each(|(mean, x)| *mean += factor * x);
        }
        mean
    }
}

fn main() -> anyhow::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let experiment = Experiment::read(&here.join("quickstart.toml"))?;
    let base = Base::open(&experiment.model.dir, BaseOptions::default())?;
    let layout = Arc::new(Layout::new(&base.local.config, &experiment.lora)?);
    let people = Arc::new(People::new(&experiment, Corpus::read(&experiment.data, &base)?)?);
    let (config, _) = experiment.run_config(base.local.digests, layout.len(), people.len())?;
    let state = RunState::first(&config, Arc::clone(&layout));
    let coordinator = Coordinator::new(config, layout, state)?.with_rule(Box::new(EqualLengths))?;
    let mut trainer = LocalTrainer::new(Arc::clone(&base.model), TrainerOptions::default())?;
    (0..people.len()).for_each(|of| trainer.insert(people.client(of), people.data(of)));
    let (model, trace, seed) = (base.local.clone(), Vec::new(), experiment.seed());
    let roster = Roster { people: Arc::clone(&people), model, trace };
    let world = World::populated(coordinator, roster, trainer, experiment.behaviour, &seed);
    let adapter = world.run(Duration::from_secs(86_400))?.coordinator.state().adapter.clone();

    let (model, mut losses) = (&base.model, [Evaluation::default(); 2]);
    let lora = Lora::frozen(&adapter, model.config(), &experiment.lora, &model.device())?;
    for holdout in (0..people.len()).map(|of| people.data(of).holdout(64)) {
        losses[0] += evaluate(model, None, &holdout, 8)?;
        losses[1] += evaluate(model, Some(&lora), &holdout, 8)?;
    }
    let [before, after] = losses.map(|of| of.loss().unwrap_or(f64::NAN));
    println!("loss on held-out texts: {before:.3} before, {after:.3} after");
    Ok(())
}
