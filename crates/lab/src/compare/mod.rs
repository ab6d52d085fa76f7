//! `floret-lab compare`: several experiments over several seeds, side by side.
//!
//! # Layout
//!
//! - `outcome`: what one run left in its folder, and what a loss cost
//! - `measures`, `table`: figures of a run; their mean and spread over seeds
//! - `settings`: where experiments differ
//! - `figures`: which plots there are; `plot`: how they are drawn
//! - `report`: the page with all of it

mod figures;
mod measures;
mod outcome;
mod plot;
mod report;
mod settings;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::experiment::Experiment;
use crate::simulate::results::write_json;
use crate::simulate::{Computing, simulate};
use outcome::Outcome;
use table::Comparison;

/// The page.
const REPORT_FILE: &str = "report.html";
/// The figures.
const COMPARISON_FILE: &str = "comparison.json";
/// Folder of the plots, each in a file of its own.
const PLOTS_DIR: &str = "plots";

/// Arguments of `floret-lab compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Experiment files; the first is the baseline.
    #[arg(required = true)]
    experiments: Vec<PathBuf>,
    /// Seeds with which each of them is run, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    seeds: Vec<u64>,
    /// Folder for the runs and the report. Runs that are complete there are not run again.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    computing: Computing,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// An experiment with a run for each seed.
#[derive(Debug)]
struct Contender {
    /// Name of its file, without the ending.
    name: String,
    /// The experiment as resolved.
    settings: toml::Table,
    outcomes: Vec<Outcome>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut seen = BTreeSet::new();
    let twice = args.seeds.iter().find(|seed| !seen.insert(**seed));
    ensure!(twice.is_none(), "--seeds has {} twice", twice.unwrap_or(&0));
    let experiments = read(&args.experiments)?;
    let mut contenders = Vec::new();
    for (name, experiment) in experiments {
        let outcomes =
            args.seeds.iter().map(|seed| outcome(args, (name.as_str(), &experiment), *seed));
        let outcomes = outcomes.collect::<Result<_>>()?;
        let settings = toml::from_str(&toml::to_string(&experiment)?)?;
        contenders.push(Contender { name, settings, outcomes });
    }
    let comparison = Comparison::of(&contenders, &args.seeds);
    write(&args.out, &contenders, &comparison)?;
    match args.json {
        true => say(&serde_json::to_string(&comparison)?),
        false => {
            let report = args.out.join(REPORT_FILE);
            say(&format!("{}\nwritten to {}", comparison.text(), report.display()));
        }
    }
    if let Some((name, run)) = comparison.given_up().next() {
        bail!("{name}, seed {}, was given up: {}", run.seed, run.message);
    }
    Ok(())
}

/// Reads all experiments before any is run.
fn read(paths: &[PathBuf]) -> Result<Vec<(String, Experiment)>> {
    let mut found: Vec<(String, Experiment)> = Vec::new();
    for path in paths {
        let stem = path.file_stem().with_context(|| format!("{} is no file", path.display()))?;
        let name = stem.to_string_lossy().into_owned();
        ensure!(
            found.iter().all(|(other, _)| *other != name),
            "two of the experiment files are named {name}: results go by that name, rename one"
        );
        found.push((name, Experiment::read(path)?));
    }
    Ok(found)
}

/// Runs an experiment with `seed`, or reads what is complete.
fn outcome(args: &Args, (name, experiment): (&str, &Experiment), seed: u64) -> Result<Outcome> {
    eprintln!("{name}, seed {seed}");
    let folder = args.out.join(name).join(format!("seed-{seed}"));
    let experiment = experiment.clone().with_seed(seed);
    simulate(&experiment, &folder, args.computing)
        .with_context(|| format!("{name}, seed {seed}"))?;
    Outcome::read(&folder)
}

fn write(out: &Path, contenders: &[Contender], comparison: &Comparison) -> Result<()> {
    let figures = figures::all(contenders);
    let plots = out.join(PLOTS_DIR);
    let page = report::page(contenders, comparison, &figures);
    let files = || {
        fs::create_dir_all(&plots)?;
        for figure in &figures {
            fs::write(plots.join(format!("{}.svg", figure.name)), figure.plot.file())?;
        }
        fs::write(out.join(REPORT_FILE), page.into_string())
    };
    files().with_context(|| format!("cannot write the report to {}", out.display()))?;
    write_json(&out.join(COMPARISON_FILE), comparison)
}

#[allow(clippy::print_stdout, reason = "the result of the command")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_name_are_refused() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart.toml");
        let error = read(&[file.clone(), file]).unwrap_err().to_string();
        assert!(error.contains("named quickstart"), "{error}");
        let error = read(&["..".into()]).unwrap_err().to_string();
        assert!(error.contains("no file"), "{error}");
    }
}
