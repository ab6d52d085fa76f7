//! `floret-lab pretrain`: a small base model from a directory of texts.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use floret_core::{ModelConfig, Seed};
use floret_model::checkpoint::{CONFIG, TOKENIZER, WEIGHTS};
use floret_model::pretrain::{BaseShape, PretrainSettings, Pretraining};
use floret_model::tokenizer_training::train_tokenizer;
use floret_model::{
    Checkpoint, Example, LocalData, Sequence, Threads, Tokenizer, Transformer, evaluate,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `floret-lab pretrain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of .txt files; paragraphs are separated by blank lines, each is one example.
    #[arg(long)]
    texts: PathBuf,
    /// Directory for config.json, model.safetensors and tokenizer.json.
    #[arg(long)]
    out: PathBuf,
    /// Replace a model that already lies in --out.
    #[arg(long)]
    force: bool,
    /// Number of tokens.
    #[arg(long, default_value_t = 1024)]
    vocab: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    /// Width of the feed-forward layer; by default 8/3 of --hidden, rounded up to a multiple of 16.
    #[arg(long)]
    intermediate: Option<usize>,
    /// Number of blocks.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Query heads.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    /// Longest sequence that the model can take.
    #[arg(long, default_value_t = 512)]
    positions: usize,
    /// Optimizer steps.
    #[arg(long, default_value_t = 400)]
    steps: u32,
    /// Sequences per step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens per sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Learning rate behind the warm-up.
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Seed of the first weights and of the order of sequences.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Computing threads; 0 for one on each core. They do not change the result.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Share of the paragraphs, spread evenly, that is held out.
    #[arg(long, default_value_t = 0.05)]
    holdout: f64,
    /// Steps between two evaluations on what is held out.
    #[arg(long, default_value_t = 50)]
    eval_every: u32,
}

impl Args {
    fn shape(&self) -> BaseShape {
        let intermediate = || (self.hidden * 8).div_ceil(3).next_multiple_of(16);
        BaseShape {
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate.unwrap_or_else(intermediate),
            num_layers: self.layers,
            num_heads: self.heads,
            num_kv_heads: self.kv_heads,
            max_positions: self.positions,
        }
    }

    fn settings(&self) -> PretrainSettings {
        PretrainSettings {
            steps: self.steps,
            batch_size: self.batch,
            learning_rate: self.lr,
            weight_decay: self.weight_decay,
            seed: Seed::from_number(self.seed),
        }
    }
}

/// Trains and saves the model that `args` describe.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.seq <= args.positions, "--seq is beyond --positions: use at most that");
    ensure!((0.0..1.0).contains(&args.holdout), "--holdout must be 0 or more, and below 1");
    refuse_to_overwrite(args)?;
    let started = Instant::now();
    let paragraphs = read_paragraphs(&args.texts)?;
    let shape = args.shape();
    let config = ModelConfig::from_json(&shape.to_json())?;
    fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let tokenizer_path = args.out.join(TOKENIZER);
    write(&tokenizer_path, &train_tokenizer(&paragraphs, args.vocab)?)?;
    let tokenizer = Tokenizer::open(&tokenizer_path, &config)?;
    let (train, holdout) = split(paragraphs, args.holdout);
    let sequences = |examples: &[Example]| -> Result<Vec<Sequence>> {
        Ok(LocalData::new(examples, 0.0, &tokenizer, &config)?.train(args.seq))
    };
    let (train, holdout) = (sequences(&train)?, sequences(&holdout)?);

    let threads = Threads::new(args.threads)?;
    let mut training = Pretraining::new(&shape, args.settings(), &train)?;
    let tokens = |all: &[Sequence]| all.iter().map(|one| one.tokens().len()).sum::<usize>();
    say(format_args!(
        "{} parameters, {} tokens to train on, {} held out",
        training.num_parameters(),
        tokens(&train),
        tokens(&holdout)
    ))?;
    threads.run(|| training_loop(&mut training, args, [&train, &holdout]))?;
    training.save(&args.out).with_context(|| format!("writing to {}", args.out.display()))?;

    let saved =
        Checkpoint::open(&args.out)?.load(floret_model::Precision::F32, &floret_model::cpu())?;
    let losses = threads.run(|| losses(&saved, [&train, &holdout]))?;
    say(format_args!("saved to {}: {losses}, {:.0?}", args.out.display(), started.elapsed()))
}

fn training_loop(
    training: &mut Pretraining<'_>,
    args: &Args,
    data: [&[Sequence]; 2],
) -> Result<()> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left, {msg}")?;
    let bar = ProgressBar::new(args.steps.into()).with_style(style);
    for _ in 0..args.steps {
        let step = training.step()?;
        bar.set_message(format!("loss {:.3}", step.loss));
        bar.inc(1);
        if step.number.is_multiple_of(args.eval_every.max(1)) {
            let losses = losses(&training.model(), data)?;
            bar.suspend(|| say(format_args!("step {}: {losses}", step.number)))?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Loss per token on all that is held out, and on as many of the sequences to train on.
fn losses(model: &Transformer, [train, holdout]: [&[Sequence]; 2]) -> Result<String> {
    let train = &train[..train.len().min(holdout.len().max(1))];
    let loss = |sequences| -> Result<String> {
        let loss = evaluate(model, None, sequences, 8)?.loss();
        Ok(loss.map_or_else(|| "none".to_owned(), |loss| format!("{loss:.4}")))
    };
    Ok(format!("train {}, holdout {}", loss(train)?, loss(holdout)?))
}

fn refuse_to_overwrite(args: &Args) -> Result<()> {
    let there = [CONFIG, WEIGHTS, TOKENIZER].map(|name| args.out.join(name));
    match there.iter().find(|path| path.exists()) {
        Some(path) if !args.force => bail!("{} is already there: use --force", path.display()),
        _ => Ok(()),
    }
}

/// The paragraphs of all .txt files in `dir`, in the order of their names.
fn read_paragraphs(dir: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading {}", dir.display());
    let entries = fs::read_dir(dir).with_context(reading)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().with_context(reading)?;
    paths.retain(|path| path.extension() == Some(OsStr::new("txt")));
    paths.sort();
    let mut paragraphs = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        paragraphs.extend(split_paragraphs(&text));
    }
    ensure!(!paragraphs.is_empty(), "{} holds no .txt file with text", dir.display());
    Ok(paragraphs)
}

fn split_paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in text.lines() {
        match paragraphs.last_mut() {
            Some(last) if !line.trim().is_empty() => {
                if !last.is_empty() {
                    last.push('\n');
                }
                last.push_str(line.trim_end());
            }
            _ => paragraphs.push(String::new()),
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs
}

/// Examples to train on and held out: every so many paragraphs, one is held out.
fn split(paragraphs: Vec<String>, holdout: f64) -> (Vec<Example>, Vec<Example>) {
    let held_out_before = |index: usize| (index as f64 * holdout).floor();
    let (held_out, train): (Vec<_>, Vec<_>) = paragraphs
        .into_iter()
        .enumerate()
        .partition(|(index, _)| held_out_before(index + 1) > held_out_before(*index));
    let examples = |part: Vec<(usize, String)>| {
        part.into_iter().map(|(_, paragraph)| Example::Text(paragraph)).collect()
    };
    (examples(train), examples(held_out))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn say(line: std::fmt::Arguments<'_>) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_split_at_blank_lines() {
        let text = "\n\nOne\ntwo  \n \n\nthree\n";
        assert_eq!(split_paragraphs(text), ["One\ntwo", "three"]);
        assert!(split_paragraphs(" \n\n").is_empty());
    }

    #[test]
    fn what_is_held_out_is_spread_evenly() {
        let paragraphs = (0..10).map(|number| number.to_string()).collect::<Vec<_>>();
        let (train, holdout) = split(paragraphs.clone(), 0.2);
        let expected = ["4", "9"].map(|text| Example::Text(text.to_owned()));
        assert_eq!(holdout, expected);
        assert_eq!(train.len(), 8);
        assert!(split(paragraphs, 0.0).1.is_empty());
    }
}
