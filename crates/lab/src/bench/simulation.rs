//! `floret-lab bench simulation`: rounds of a population of clients with random tokens, whole: virtual
//! time, device sessions, training, encoding, clipping and combining. Nothing is evaluated.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use floret_aggregator::config::{Aggregation, CohortConfig};
use floret_aggregator::mode::Mode;
use floret_aggregator::sections::TimingSection;
use floret_aggregator::{Coordinator, RunConfig, RunState};
use floret_core::base::BaseDigests;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::seed::Purpose;
use floret_core::{ClientId, Digest, Layout, ModelConfig, Round};
use floret_device::{
    Control, Limits, LocalModel, Progress, Session, TrainError, Trainer, TrainingOutcome,
    TrainingTask,
};
use floret_model::{Document, LocalData, LocalTrainer, TrainerOptions};
use floret_simulation::{Behaviour, Nature, Population, World};
use rand_chacha::rand_core::Rng;
use serde_json::{Value, json};

use super::{ModelArgs, peak_rss_mib, seed, spread};
use crate::simulate::LONGEST;

/// Most tokens that all clients hold, of eight bytes each.
const MOST_TOKENS: u64 = 1 << 28;

/// Arguments of `floret-lab bench simulation`.
#[derive(Debug, Args)]
pub(crate) struct SimulationArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Clients of the population.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    clients: u32,
    /// Clients of a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cohort: u32,
    /// Optimizer steps of a client.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    seq: u32,
    /// Rounds that are measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Rounds before those.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup: u32,
    /// How devices encode their deltas.
    #[arg(long, default_value = "none")]
    compression: Compression,
    /// Train one client at a time, on all threads.
    #[arg(long)]
    sequential: bool,
    /// Clients whose batches go through the base model as one, at most; by default as many as are of use.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    stack: Option<u16>,
}

pub(super) fn run(args: &SimulationArgs, started: Instant) -> Result<Value> {
    ensure!(
        args.cohort <= args.clients,
        "--cohort {} is more than --clients {}: use as many at most",
        args.cohort,
        args.clients
    );
    let tokens = u64::from(args.steps) * u64::from(args.batch) * u64::from(args.seq);
    let all = tokens.saturating_mul(args.clients.into());
    ensure!(
        all <= MOST_TOKENS,
        "all clients would hold {all} tokens: use fewer --clients, --steps, --batch or --seq, so that they \
         are {MOST_TOKENS} at most"
    );
    let model = Arc::new(args.model.load()?);
    let shape = model.config().clone();
    let options = TrainerOptions {
        threads: args.model.threads,
        sequential: args.sequential,
        stack: args.stack.map(usize::from),
        ..TrainerOptions::default()
    };
    let mut trainer = LocalTrainer::new(model, options)?;
    let crowd =
        Crowd { clients: args.clients, model: LocalModel { config: shape, digests: none() } };
    for index in 0..args.clients as usize {
        trainer.insert(crowd.client(index), data(args, &crowd.model.config, index));
    }
    let config = config(args)?;
    let layout = Arc::new(Layout::new(&crowd.model.config, &config.lora)?);
    let state = RunState::first(&config, Arc::clone(&layout));
    let coordinator = Coordinator::new(config, layout, state)?;
    let trainer = Watched { trainer, first_step: None };
    let mut world = World::populated(coordinator, crowd, trainer, Behaviour::default(), &seed());

    let (mut seconds, mut begin, mut updates) = (Vec::new(), Instant::now(), 0);
    while let Some(summary) = world.next_round(LONGEST)? {
        updates += summary.accepted.len();
        seconds.push(begin.elapsed().as_secs_f64());
        begin = Instant::now();
    }
    let expected = (args.rounds + args.warmup) as usize * args.cohort as usize;
    ensure!(updates == expected, "{updates} updates came of {expected}");
    let per_round = spread(seconds.split_off(args.warmup as usize));
    let median = per_round["median"].as_f64().unwrap_or(f64::INFINITY);
    let first = world.trainer().first_step.map(|at| (at - started).as_secs_f64());
    let rate = f64::from(args.cohort) / median;
    Ok(json!({
        "what": "federated_sim",
        "model": args.model.name(),
        "clients": args.clients,
        "cohort": args.cohort,
        "steps": args.steps,
        "batch": args.batch,
        "seq": args.seq,
        "rank": args.model.rank,
        "targets": args.model.targets,
        "compression": args.compression,
        "threads": args.model.threads,
        "sequential": args.sequential,
        "stack": args.stack,
        "rounds": args.rounds,
        "round_s": per_round,
        "rounds_per_s": 1.0 / median,
        "client_updates_per_s": rate,
        "train_tokens_per_s": rate * tokens as f64,
        "seconds_to_first_step": first,
        "peak_rss_mib": peak_rss_mib(),
    }))
}

fn config(args: &SimulationArgs) -> Result<RunConfig> {
    let training = TrainingConfig {
        max_steps: args.steps,
        batch_size: args.batch,
        sequence_length: args.seq,
        accumulation: 1,
        learning_rate: 1e-3,
        ..TrainingConfig::default()
    };
    let size = args.cohort;
    let config = RunConfig {
        run: "bench".parse()?,
        rounds: args.rounds + args.warmup,
        max_abandoned: 1,
        seed: seed(),
        base: none(),
        lora: args.model.lora()?,
        training,
        compression: args.compression,
        error_feedback: 0.0,
        mode: Mode::Synchronous,
        cohort: CohortConfig {
            size,
            over_selection: 1.0,
            quorum: size,
            min_population: size,
            trusted: None,
        },
        timing: TimingSection::default().timing(),
        aggregation: Aggregation::default(),
    };
    config.validate()?;
    Ok(config)
}

/// There are no files.
fn none() -> BaseDigests {
    let digest = Digest::of(b"");
    BaseDigests { base: digest, tokenizer: digest }
}

/// A client's own tokens: as many as its steps take.
fn data(args: &SimulationArgs, shape: &ModelConfig, index: usize) -> LocalData {
    let mut stream = seed().derive(Purpose::Sampling, Round(index as u32), None).stream();
    let mut text = || -> Document {
        (0..args.seq).map(|_| (stream.next_u32() % shape.vocab_size as u32, true)).collect()
    };
    let texts = (0..args.steps * args.batch).map(|_| text()).collect();
    LocalData::of(texts, Vec::new())
}

struct Crowd {
    clients: u32,
    model: LocalModel,
}

impl Population for Crowd {
    fn size(&self) -> usize {
        self.clients as usize
    }

    fn client(&self, index: usize) -> ClientId {
        format!("client-{index}").parse().unwrap_or_else(|_| unreachable!("it is a name"))
    }

    fn session(&self, index: usize) -> Session {
        Session::new(self.client(index), self.model.clone(), Limits::default())
    }

    fn nature(&self, _: usize) -> Option<Nature> {
        None
    }
}

/// Notes when the first step was done.
struct Watched {
    trainer: LocalTrainer,
    first_step: Option<Instant>,
}

impl Trainer for Watched {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let first_step = &mut self.first_step;
        self.trainer.train(task, &mut |step| {
            first_step.get_or_insert_with(Instant::now);
            progress(step)
        })
    }

    fn train_all(
        &mut self,
        tasks: &[TrainingTask],
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let first_step = &mut self.first_step;
        self.trainer.train_all(tasks, &mut |step| {
            first_step.get_or_insert_with(Instant::now);
            progress(step)
        })
    }

    fn steps(&self, task: &TrainingTask) -> u32 {
        self.trainer.steps(task)
    }

    fn at_once(&self, task: &TrainingTask) -> usize {
        self.trainer.at_once(task)
    }
}
