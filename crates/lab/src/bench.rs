//! `floret-lab bench`: how fast this machine trains, generates, compresses and simulates, and in how much
//! memory.

mod compression;
mod simulation;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use floret_core::lora::TargetModule;
use floret_core::plan::TrainingConfig;
use floret_core::seed::Purpose;
use floret_core::seed::uniform_f32;
use floret_core::{Adapter, Layout, LoraConfig, ModelConfig, Round, Seed};
use floret_model::{
    Checkpoint, Continuation, DeviceChoice, Lora, Precision, Sequence, StepPlan, Threads, Training,
    Transformer, Workload, product_kernel, product_rate,
};
use rand_chacha::rand_core::Rng;
use serde_json::{Value, json};

use crate::shapes::Shape;
use crate::statistics::median;
use crate::usage::Usage;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Optimizer steps of LoRA training.
    Step(StepArgs),
    /// Greedy generation, one sequence with a cache of keys and values.
    Generate(GenerateArgs),
    /// Encoding of deltas, and decoding and adding them, on one core.
    Compression(compression::CompressionArgs),
    /// Rounds of a simulated population.
    Simulation(simulation::SimulationArgs),
}

#[derive(Debug, Args)]
struct ModelArgs {
    /// A shape with random weights.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    shape: Option<Shape>,
    /// A Hugging Face directory.
    #[arg(long)]
    model: Option<PathBuf>,
    /// How the base model is held: f32 or int8.
    #[arg(long, default_value_t)]
    base: Precision,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Linear maps with an adapter, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "q_proj,v_proj")]
    targets: Vec<String>,
    /// Computing threads; 0 for one on each core.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Who computes: cpu, wgpu, wgpu:INDEX or wgpu:cpu.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Print nothing but the JSON object.
    #[arg(long)]
    json: bool,
}

/// Arguments of `floret-lab bench step`.
#[derive(Debug, Args)]
pub(crate) struct StepArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Tokens in a sequence; by default 128 for stories260K and 256 for others.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1048576))]
    seq: Option<u32>,
    /// Batches in an optimizer step.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    accumulation: u32,
    /// Steps that are measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000000))]
    steps: u32,
    /// Steps before those.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000000))]
    warmup: u32,
    /// Keep only the inputs of blocks, and compute the rest again in the backward pass.
    #[arg(long, conflicts_with = "memory_budget_mib")]
    recompute: bool,
    /// Choose the fastest way of doing a step that fits this much memory.
    #[arg(long)]
    memory_budget_mib: Option<u64>,
}

/// Arguments of `floret-lab bench generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1048576))]
    prompt: u32,
    /// Tokens to generate.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1048576))]
    new_tokens: u32,
    /// Times that is repeated.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100000))]
    repeats: u32,
    /// Put an adapter on top.
    #[arg(long)]
    lora: bool,
    /// Merge that adapter into the weights first.
    #[arg(long, requires = "lora")]
    merged: bool,
}

/// Runs the command.
pub(crate) fn run(command: &Command) -> Result<()> {
    let started = Instant::now();
    let (json, result) = match command {
        Command::Step(args) => (args.model.json, step(args)?),
        Command::Generate(args) => (args.model.json, generate(args)?),
        Command::Compression(args) => (args.json, compression::run(args)?),
        Command::Simulation(args) => (args.model.json, simulation::run(args, started)?),
    };
    if !json {
        print_table(&result);
    }
    say(&result.to_string());
    Ok(())
}

fn step(args: &StepArgs) -> Result<Value> {
    let (threads, model) = (args.model.start_threads()?, args.model.load()?);
    let length = args.seq.unwrap_or(args.model.shape.map_or(256, Shape::sequence_length));
    let (batch, accumulation) = (args.batch as usize, args.accumulation as usize);
    let settings = args.model.lora()?;
    let adapter = Adapter::init(Arc::new(Layout::new(model.config(), &settings)?), &seed());
    let config = TrainingConfig {
        max_steps: 1_000_000,
        batch_size: args.batch,
        sequence_length: length,
        accumulation: args.accumulation,
        learning_rate: 1e-3,
        max_grad_norm: 0.0,
        ..TrainingConfig::default()
    };
    config.validate()?;
    let workload = Workload {
        clients: 1,
        stack: 1,
        model: model.config(),
        precision: args.model.base,
        lora: &settings,
        batch_size: batch,
        sequence_length: length as usize,
        threads: threads.count(),
    };
    let plan = match args.memory_budget_mib {
        Some(budget) => workload.fit(budget.saturating_mul(1 << 20))?,
        None => StepPlan { recompute: args.recompute, ..StepPlan::fastest(batch) },
    };
    let sequences = random_sequences(model.config(), batch * accumulation, length as usize);
    let start = (&settings, &adapter);
    let mut training = Training::new(&model, start, &sequences, &config, &seed())?.with_plan(plan);
    let mut losses = Vec::new();
    let mut seconds = Vec::new();
    for number in 0..args.warmup + args.steps {
        let begin = Instant::now();
        losses.push(threads.run(|| training.step())?.loss);
        if number >= args.warmup {
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    let peak_rss_mib = peak_rss_mib();
    let tokens = f64::from(args.batch) * f64::from(args.accumulation) * f64::from(length);
    let rates = spread(seconds.iter().map(|seconds| tokens / seconds).collect());
    // Frozen weights need no gradient: the backward pass costs one more forward's worth.
    let flop_per_token = 4.0 * linear_parameters(model.config()) as f64;
    let gemm = threads.run(product_rate);
    let achieved = rates["median"].as_f64().unwrap_or(0.0) * flop_per_token / 1e9;
    Ok(json!({
        "what": "lora_step",
        "model": args.model.name(),
        "base": args.model.base.to_string(),
        "batch": args.batch,
        "seq": length,
        "accumulation": args.accumulation,
        "rank": args.model.rank,
        "targets": args.model.targets,
        "threads": threads.count(),
        "device": args.model.device.to_string(),
        "micro_batch": plan.micro_batch,
        "recompute": plan.recompute,
        "steps": seconds.len(),
        "tokens_per_s": rates,
        "peak_rss_mib": peak_rss_mib,
        "estimated_mib": workload.estimate(&plan) as f64 / f64::from(1 << 20),
        "linear_gflop_per_s": achieved,
        "product_kernel": product_kernel(),
        "gemm_gflop_per_s": gemm,
        "share_of_gemm": achieved / gemm,
        "losses": losses,
    }))
}

fn generate(args: &GenerateArgs) -> Result<Value> {
    let (threads, mut model) = (args.model.start_threads()?, args.model.load()?);
    let mut lora = None;
    if args.lora {
        let settings = args.model.lora()?;
        let layout = Arc::new(Layout::new(model.config(), &settings)?);
        let adapter = Adapter::init(layout, &seed());
        lora = Some(Lora::frozen(&adapter, model.config(), &settings, &model.device())?);
        if let (true, Some(merged)) = (args.merged, &lora) {
            (model, lora) = (model.merged(merged), None);
        }
    }
    let prompt = random_sequences(model.config(), 1, args.prompt.max(2) as usize);
    let prompt = &prompt[0].tokens()[..args.prompt as usize];
    let (mut rates, mut prefill) = (Vec::new(), Vec::new());
    for repeat in 0..=args.repeats {
        let (first, rest) = threads.run(|| -> Result<_> {
            let begin = Instant::now();
            let mut text = Continuation::new(&model, lora.as_ref(), prompt)?;
            let first = begin.elapsed().as_secs_f64();
            for _ in 1..args.new_tokens {
                let id = text.most_likely();
                if !text.push(id)? {
                    bail!("the model has no position for {} new tokens", args.new_tokens);
                }
            }
            Ok((first, begin.elapsed().as_secs_f64() - first))
        })?;
        if repeat > 0 {
            prefill.push(first);
            rates.push(f64::from(args.new_tokens - 1) / rest);
        }
    }
    let peak_rss_mib = peak_rss_mib();
    let rates = spread(rates);
    let flop_per_token = 2.0 * linear_parameters(model.config()) as f64;
    let gemm = threads.run(product_rate);
    let achieved = rates["median"].as_f64().unwrap_or(0.0) * flop_per_token / 1e9;
    Ok(json!({
        "what": "greedy_decode",
        "model": args.model.name(),
        "base": args.model.base.to_string(),
        "prompt": args.prompt,
        "new_tokens": args.new_tokens,
        "lora": args.lora,
        "rank": args.model.rank,
        "targets": args.model.targets,
        "merged": args.merged,
        "threads": threads.count(),
        "device": args.model.device.to_string(),
        "tokens_per_s": rates,
        "prefill_s": spread(prefill),
        "peak_rss_mib": peak_rss_mib,
        "linear_gflop_per_s": achieved,
        "product_kernel": product_kernel(),
        "gemm_gflop_per_s": gemm,
        "share_of_gemm": achieved / gemm,
    }))
}

impl ModelArgs {
    fn load(&self) -> Result<Transformer> {
        ensure!(
            self.base == Precision::F32 || self.device == DeviceChoice::Cpu,
            "an int8 base needs the CPU: use --device cpu or --base f32"
        );
        let device = self.device.open()?;
        if let Some(dir) = &self.model {
            return Ok(Checkpoint::open(dir)?.load(self.base, &device)?);
        }
        let config = self.shape.context("--shape or --model is needed")?.config()?;
        let mut stream = seed().derive(Purpose::BaseInit, Round(0), None).stream();
        let model = Transformer::build(config, self.base, &device, &mut |spec| {
            let len = spec.shape.iter().product();
            // Norms are ones; the rest has standard deviation 0.02, as transformers starts with.
            let bound = 0.02 * 3f32.sqrt();
            let mut draw = || (2.0 * uniform_f32(stream.next_u32()) - 1.0) * bound;
            let norm = spec.shape.len() == 1;
            Ok::<_, Infallible>((0..len).map(|_| if norm { 1.0 } else { draw() }).collect())
        })?;
        Ok(model)
    }

    /// A GPU has a stream and memory for each thread that speaks to it: one does.
    fn start_threads(&self) -> Result<Threads> {
        let on_cpu = self.device == DeviceChoice::Cpu;
        Ok(Threads::new(if on_cpu { self.threads } else { 1 })?)
    }

    fn lora(&self) -> Result<LoraConfig> {
        let parse = |name: &String| {
            let found = TargetModule::from_name(name);
            found.with_context(|| format!("{name:?} is no linear map: try q_proj or down_proj"))
        };
        let target_modules = self.targets.iter().map(parse).collect::<Result<_>>()?;
        let alpha = 2.0 * self.rank as f32;
        Ok(LoraConfig { rank: self.rank, alpha, use_rslora: false, target_modules })
    }

    fn name(&self) -> String {
        match (&self.model, self.shape) {
            (Some(dir), _) => dir.display().to_string(),
            (None, Some(shape)) => format!("{shape:?}"),
            (None, None) => String::new(),
        }
    }
}

fn seed() -> Seed {
    Seed::from_number(1)
}

fn random_sequences(config: &ModelConfig, count: usize, length: usize) -> Vec<Sequence> {
    let mut stream = seed().derive(Purpose::Sampling, Round(0), None).stream();
    let mut token = || (stream.next_u32() % config.vocab_size as u32, true);
    let sequence = |_| Sequence::new((0..length.max(2)).map(|_| token()).collect::<Vec<_>>());
    (0..count.max(1)).filter_map(sequence).collect()
}

/// Weights of the linear maps and the head.
fn linear_parameters(config: &ModelConfig) -> usize {
    let maps = TargetModule::ALL.map(|target| config.linear_shape(target));
    let block: usize = maps.iter().map(|[rows, columns]| rows * columns).sum();
    config.num_layers * block + config.vocab_size * config.hidden_size
}

fn spread(mut values: Vec<f64>) -> Value {
    let median = median(&mut values);
    json!({ "median": median, "min": values[0], "max": values[values.len() - 1] })
}

/// The most memory that this process held so far, where the system tells it.
fn peak_rss_mib() -> Option<f64> {
    Usage::of(std::process::id()).ok().map(|usage| usage.peak_mib)
}

fn print_table(result: &Value) {
    for (name, value) in result.as_object().into_iter().flatten() {
        say(&format!("{name:>20}  {value}"));
    }
}

#[allow(clippy::print_stdout, reason = "the result of the command")]
fn say(line: &str) {
    println!("{line}");
}
