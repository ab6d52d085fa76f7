//! `fuzz`, the runner of the targets on stable Rust. docs/fuzzing.md tells how to use it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use floret_fuzz::campaign::{Campaign, Found};
use floret_fuzz::check::check;
use floret_fuzz::mutate::Inputs;
use floret_fuzz::targets::{self, Target};
use floret_fuzz::{corpus, outlive, report};

/// Gives changed inputs to the decoders, and stops at the first that fails.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// A target; all if not given. May be given several times.
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// Inputs over all targets.
    #[arg(long)]
    inputs: Option<u64>,
    /// Time for all targets; 60 if neither it nor --inputs is given.
    #[arg(long)]
    seconds: Option<f64>,
    /// Seed of the inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first input.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads; one for each core if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Check the one input of this number.
    #[arg(long, value_name = "NUMBER")]
    input: Option<u64>,
    /// Check the one input in this file.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Write the result as JSON.
    #[arg(long)]
    json: bool,
    /// Run in this process, and note in this folder what is run.
    #[arg(long, hide = true)]
    trace: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the inputs that mutation begins with to fuzz/corpus; files that are there are kept.
    MakeCorpus,
    /// Name the targets.
    List,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::MakeCorpus) => return make_corpus(),
        Some(Command::List) => {
            for target in targets::ALL {
                writeln!(io::stdout(), "{}", target.name)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    let chosen = chosen(&cli.targets)?;
    if cli.input.is_some() || cli.file.is_some() {
        return one_input(&cli, &chosen);
    }
    match &cli.trace {
        Some(trace) => run(&cli, chosen, trace),
        None => run_in_child(&cli),
    }
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(targets::ALL.iter().collect());
    }
    let find = |name: &String| {
        targets::find(name).with_context(|| format!("there is no target {name}: see `fuzz list`"))
    };
    names.iter().map(find).collect()
}

fn make_corpus() -> anyhow::Result<ExitCode> {
    for target in targets::ALL {
        let written = corpus::write_seeds(target)?;
        writeln!(io::stdout(), "{}: {written} new", target.name)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn one_input(cli: &Cli, chosen: &[&'static Target]) -> anyhow::Result<ExitCode> {
    let [target] = chosen else { anyhow::bail!("name one target, with --target") };
    let number = cli.input.unwrap_or_default();
    let input = match &cli.file {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
        None => {
            let seeds = corpus::read_dir(&corpus::seeds_dir(target))?;
            Inputs::new(target, seeds, cli.seed).get(number)
        }
    };
    let mut out = io::stdout();
    writeln!(out, "{} bytes:\n{}", input.len(), input.escape_ascii())?;
    match check(target, &input) {
        Ok(outcome) => {
            let limit = (target.limit)(&input);
            writeln!(out, "{outcome:?}, of {limit} bytes permitted")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            report::failure(&Found { target, number, input, failure }, cli.seed);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn run(cli: &Cli, targets: Vec<&'static Target>, trace: &Path) -> anyhow::Result<ExitCode> {
    let threads = || std::thread::available_parallelism().map_or(1, usize::from);
    let seconds = cli.seconds.or(cli.inputs.is_none().then_some(60.0));
    let time = seconds.map(Duration::try_from_secs_f64).transpose().context("--seconds")?;
    let campaign = Campaign {
        targets,
        seed: cli.seed,
        from: cli.from,
        inputs: cli.inputs.unwrap_or(u64::MAX),
        time: time.unwrap_or(Duration::MAX),
        threads: cli.jobs.unwrap_or_else(threads).max(1),
        trace: Some(trace.to_owned()),
    };
    let begin = Instant::now();
    let result = campaign.run()?;
    report::result(&campaign, &result, begin.elapsed(), cli.json)?;
    let Some(found) = result.found else { return Ok(ExitCode::SUCCESS) };
    report::failure(&found, cli.seed);
    Ok(ExitCode::FAILURE)
}

/// Runs the campaign in a child, which an input may kill.
fn run_in_child(cli: &Cli) -> anyhow::Result<ExitCode> {
    let trace = corpus::crashes_dir().join(format!("trace-{}", std::process::id()));
    let status = outlive::child(&trace, std::env::args_os().skip(1))?;
    let found = match status.code() {
        Some(_) => None,
        None => outlive::find_killer(&trace, cli.seed)?,
    };
    let _ = std::fs::remove_dir_all(&trace);
    match (status.code(), found) {
        (Some(0), _) => Ok(ExitCode::SUCCESS),
        (Some(_), _) => Ok(ExitCode::FAILURE),
        (None, Some(found)) => {
            report::failure(&found, cli.seed);
            Ok(ExitCode::FAILURE)
        }
        (None, None) => anyhow::bail!("the process died ({status}), and does not die again"),
    }
}
