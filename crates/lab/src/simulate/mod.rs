//! `floret-lab simulate`: an experiment in virtual time, with the device and aggregator code that
//! production runs.
//!
//! # Layout
//!
//! - `team`: trains whoever is at work; `journal`: so that nothing is trained twice
//! - `judge`: evaluates each client on its own texts
//! - `results`: the files that come out
//! - `record`: from rounds to rows

mod journal;
pub(crate) mod judge;
mod record;
pub(crate) mod results;
mod team;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use floret_aggregator::auto::Choice;
use floret_aggregator::{Coordinator, RunState};
use floret_client::setup::{Base, BaseOptions};
use floret_core::peft::{CONFIG_FILE, WEIGHTS_FILE, to_peft};
use floret_core::{Adapter, Layout};
use floret_model::{LocalTrainer, TrainerOptions};
use floret_simulation::{AttackKind, Hostile, Nature, World};
use floret_store::{Folder, Locked};
use indicatif::{ProgressBar, ProgressStyle};

use crate::corpus::Corpus;
use crate::experiment::Experiment;
use crate::people::{People, Roster};
use crate::usage::Usage;
use journal::Journal;
use judge::Judge;
use record::Recorder;
use team::{Flips, Team};

pub use judge::Spread;
use results::{ADAPTER_DIR, EXPERIMENT_FILE, SUMMARY_FILE, WALL_FILE, Wall, write_json};
pub use results::{Central, ClientRow, RoundRow, Summary};

/// Longest virtual time of a run: one that takes longer has nobody who comes.
pub(crate) const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What took long to compute, until the run is complete.
const JOURNAL: &str = "journal";

/// Arguments of `floret-lab simulate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The experiment file.
    experiment: PathBuf,
    /// Folder for the results. A run that was broken off goes on there.
    #[arg(long)]
    out: PathBuf,
    /// Another seed than the file's.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    computing: Computing,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How a simulation uses the machine. Nothing of it changes a result.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Computing {
    /// Computing threads; 0 for one on each core. They do not change the result.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Train one client at a time on all threads, instead of several side by side and, where batches are
    /// small, as one batch. It does not change the result.
    #[arg(long)]
    pub sequential: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let experiment = Experiment::read(&args.experiment)?;
    let seed = args.seed.unwrap_or(experiment.run.seed);
    let experiment = experiment.with_seed(seed);
    let summary = simulate(&experiment, &args.out, args.computing)?;
    match args.json {
        true => say(&serde_json::to_string(&summary)?),
        false => say(&describe(&summary, experiment.training.personal_b, &args.out)),
    }
    ensure!(summary.completed, "the run was given up: {}", summary.message);
    Ok(())
}

/// Runs `experiment` and writes its results to the folder `out`, or reads them there if they are
/// complete. A run that was broken off goes on, and ends in the same files.
///
/// # Errors
/// Settings, a model or texts that cannot be used, a folder of another experiment, or a disk that
/// fails.
pub fn simulate(experiment: &Experiment, out: &Path, computing: Computing) -> Result<Summary> {
    let started = Instant::now();
    let _held = hold(out)?;
    claim(out, experiment)?;
    let summary = out.join(SUMMARY_FILE);
    if summary.exists() {
        let text = fs::read_to_string(&summary)?;
        return serde_json::from_str(&text).with_context(|| summary.display().to_string());
    }
    let mut stage = Stage::set(experiment, out, computing)?;
    let recorder = stage.run(experiment, out)?;
    let (result, clients) = recorder.finish(&mut stage)?;
    let mut table = results::Table::create(out, "clients")?;
    clients.iter().try_for_each(|row| table.push(row))?;
    table.flush()?;
    stage.export(experiment, &out.join(ADAPTER_DIR))?;
    let seconds = started.elapsed().as_secs_f64();
    let team = stage.team();
    let wall = Wall {
        seconds,
        seconds_to_first_step: team.first_step.map(|at| (at - started).as_secs_f64()),
        trainings: team.computed,
        trainings_per_s: team.computed as f64 / seconds,
        threads: computing.threads,
        peak_rss_mib: Usage::of(std::process::id()).ok().map(|usage| usage.peak_mib),
    };
    write_json(&out.join(WALL_FILE), &wall)?;
    write_json(&summary, &result)?;
    fs::remove_file(out.join(JOURNAL))?;
    Ok(result)
}

fn hold(out: &Path) -> Result<Folder> {
    Folder::hold(out).map_err(|error| match error {
        Locked::ByAnother => anyhow::anyhow!("another program works in {}", out.display()),
        Locked::System(error) => anyhow::anyhow!("cannot use {}: {error}", out.display()),
    })
}

/// Makes `out` the folder of this experiment.
fn claim(out: &Path, experiment: &Experiment) -> Result<()> {
    let path = out.join(EXPERIMENT_FILE);
    let text = toml::to_string(experiment)?;
    match fs::read_to_string(&path) {
        Ok(there) if there == text => Ok(()),
        Ok(_) => bail!("{} is of another experiment: choose another folder", path.display()),
        Err(_) => {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        }
    }
}

/// Everything that a run needs.
struct Stage {
    world: World<Hostile<Team>>,
    judge: Judge,
    people: Arc<People>,
    /// How many clients are hostile.
    hostile: usize,
    /// What `run.compression = "auto"` chose.
    choice: Option<Choice>,
}

impl Stage {
    fn set(experiment: &Experiment, out: &Path, computing: Computing) -> Result<Self> {
        let Computing { threads, sequential } = computing;
        let base = Base::open(&experiment.model.dir, BaseOptions::default())?;
        let layout = Arc::new(Layout::new(&base.local.config, &experiment.lora)?);
        let corpus = Corpus::read(&experiment.data, &base)?;
        let digests = base.local.digests;
        let tokens: usize = (0..corpus.sources.len()).map(|source| corpus.tokens(source)).sum();
        let begun = format!("{digests:?} {} texts {tokens} tokens", corpus.documents.len());
        let people = Arc::new(People::new(experiment, corpus)?);
        let (config, choice) = experiment.run_config(digests, layout.len(), people.len())?;
        let state = RunState::first(&config, Arc::clone(&layout));
        let coordinator = Coordinator::new(config, layout, state)?;

        let journal = Journal::open(&out.join(JOURNAL), begun.as_bytes())?;

        let options = TrainerOptions { threads, sequential, ..TrainerOptions::default() };
        let trainer = LocalTrainer::new(Arc::clone(&base.model), options)?;
        let (hostile, updates) = (people.hostile(experiment), experiment.updates_of_a_round());
        if let Some(trusted) = &experiment.cohort.trusted {
            let index = people.index(trusted).filter(|index| people.client(*index) == *trusted);
            ensure!(index.is_some(), "cohort.trusted is {trusted}, and no client has that name");
            ensure!(
                !hostile.contains(trusted),
                "cohort.trusted is {trusted}, whom run.seed makes hostile: trust another"
            );
        }
        let flips = experiment.attack.filter(|attack| attack.kind == AttackKind::LabelFlip {});
        let vocabulary = base.local.config.vocab_size;
        let flips = flips.map(|_| Flips { clients: hostile.clone(), vocabulary });
        let team = Team::new(Arc::clone(&people), trainer, flips, experiment.seed(), journal);
        let (behaviour, seed, count) = (experiment.behaviour, experiment.seed(), hostile.len());
        let team = match experiment.attack {
            Some(attack) => Hostile::new(team, attack, hostile, updates, &seed),
            None => Hostile::nobody(team),
        };
        let trace = match &experiment.population.trace {
            Some(path) => read_trace(path)?,
            None => Vec::new(),
        };
        let roster = Roster { people: Arc::clone(&people), model: base.local.clone(), trace };
        let world = World::populated(coordinator, roster, team, behaviour, &seed);
        let judge = Judge::new(experiment, base, Arc::clone(&people), threads)?;
        Ok(Self { world, judge, people, hostile: count, choice })
    }

    /// Runs to the end, and tells every round.
    fn run(&mut self, experiment: &Experiment, out: &Path) -> Result<Recorder> {
        let style =
            ProgressStyle::with_template("{bar:30} round {pos} of {len}, {eta} left, {msg}")?;
        let bar = ProgressBar::new(experiment.run.rounds.into()).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        let mut recorder = Recorder::new(experiment, out)?;
        while let Some(summary) = self.world.next_round(LONGEST)? {
            let row = recorder.round(&summary, self)?;
            bar.set_position(row.version);
            if let Some(loss) = row.holdout_loss.or(row.train_loss) {
                bar.set_message(format!("{} updates, loss {loss:.3}", row.accepted));
            }
            if self.team().journal.is_old() {
                // What comes from the journal says nothing about the time that is left.
                bar.reset_eta();
            }
        }
        bar.finish_and_clear();
        Ok(recorder)
    }

    fn team(&mut self) -> &mut Team {
        self.world.trainer().inner()
    }

    fn adapter(&self) -> Adapter {
        self.world.coordinator().state().adapter.clone()
    }

    /// Writes the adapter as a PEFT directory.
    fn export(&self, experiment: &Experiment, dir: &Path) -> Result<()> {
        let base = experiment.model.dir.display().to_string();
        let peft = to_peft(&self.adapter(), &experiment.lora, &base);
        let write = || {
            fs::create_dir_all(dir)?;
            fs::write(dir.join(WEIGHTS_FILE), &peft.weights)?;
            fs::write(dir.join(CONFIG_FILE), &peft.config)
        };
        write().with_context(|| format!("cannot write the adapter to {}", dir.display()))
    }
}

fn read_trace(path: &Path) -> Result<Vec<Nature>> {
    let reading = || format!("cannot use the trace {}", path.display());
    let mut rows = csv::Reader::from_path(path).with_context(reading)?;
    let natures = rows.deserialize().collect::<Result<Vec<Nature>, _>>().with_context(reading)?;
    ensure!(!natures.is_empty(), "the trace {} has no device", path.display());
    let wrong = natures.iter().position(|nature| !nature.is_valid());
    if let Some(row) = wrong {
        bail!(
            "{} line {}: use probabilities from 0 to 1, and other numbers that are not negative",
            path.display(),
            row + 2
        );
    }
    Ok(natures)
}

fn describe(summary: &Summary, personal_b: bool, out: &Path) -> String {
    let mut lines: Vec<String> = summary.auto.iter().map(Choice::to_string).collect();
    lines.push(format!(
        "{} rounds in {:.0} s of virtual time, {} updates of {} clients out of {}, {} drop-outs",
        summary.version,
        summary.virtual_s,
        summary.updates,
        summary.participants,
        summary.clients,
        summary.drop_outs,
    ));
    if personal_b {
        lines.push(
            "each client is evaluated with its own B; in the adapter that is written, B is zero"
                .to_owned(),
        );
    }
    if summary.hostile > 0 {
        lines.push(format!("{} of the clients are hostile", summary.hostile));
    }
    lines.push("loss on held-out text   all tokens  mean  median  worst tenth".to_owned());
    let spreads = [
        ("base model", summary.base),
        ("federated adapter", summary.federated),
        ("and own steps", summary.personal),
    ];
    for (name, spread) in spreads {
        if let Some(Spread { pooled, mean, median, worst_decile, .. }) = spread {
            lines.push(format!(
                "{name:<23} {pooled:>9.4} {mean:>7.4} {median:>7.4} {worst_decile:>9.4}"
            ));
        }
    }
    if let (Some(spread), worse) = (summary.federated, summary.worse_than_base) {
        lines.push(format!("worse than the base model for {worse} of {} clients", spread.clients));
    }
    if let Some(central) = &summary.central {
        let more = 100.0 * (central.federated_over_central - 1.0);
        lines.push(format!(
            "training in one place, {} steps: {:.4}; federated: {more:+.1}%",
            central.steps, central.best
        ));
    }
    lines.push(format!("written to {}", out.display()));
    lines.join("\n")
}

#[allow(clippy::print_stdout, reason = "the result of the command")]
fn say(text: &str) {
    println!("{text}");
}
