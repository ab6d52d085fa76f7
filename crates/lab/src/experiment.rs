//! The experiment file: who takes part with which data, how devices behave, and the run as
//! `server.toml` describes it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use floret_aggregator::RunConfig;
use floret_aggregator::auto::{Choice, CompressionSetting};
use floret_aggregator::config::{Aggregation, BufferedConfig, CohortConfig};
use floret_aggregator::sections::{ModeName, TimingSection};
use floret_core::base::BaseDigests;
use floret_core::config_file::{ConfigVersion, from_toml};
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{LoraConfig, RunId, Seed};
use floret_simulation::{Attack, Behaviour, Distribution};
use serde::{Deserialize, Serialize};

/// An experiment. Paths are relative to its file. The sections `lora`, `training`, `cohort`,
/// `buffered`, `timing` and `aggregation` are those of `server.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Format of the file.
    pub version: ConfigVersion,
    /// The run.
    #[serde(default)]
    pub run: RunSection,
    /// The base model.
    pub model: ModelSection,
    /// The texts of all clients.
    pub data: DataSection,
    /// Who holds which of them.
    #[serde(default)]
    pub population: PopulationSection,
    /// How devices differ from perfect ones.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// Who is hostile, and how; nobody without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack: Option<Attack>,
    /// Who is evaluated, and when.
    #[serde(default)]
    pub evaluation: EvaluationSection,
    /// LoRA settings.
    #[serde(default)]
    pub lora: LoraConfig,
    /// How devices train.
    #[serde(default)]
    pub training: TrainingConfig,
    /// Whom a synchronous round chooses, and how many it needs.
    #[serde(default)]
    pub cohort: CohortConfig,
    /// Buffered rounds.
    #[serde(default)]
    pub buffered: BufferedConfig,
    /// Deadlines and retry windows.
    #[serde(default)]
    pub timing: TimingSection,
    /// How updates become the next adapter.
    #[serde(default)]
    pub aggregation: Aggregation,
}

/// The run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSection {
    /// Its name.
    pub name: RunId,
    /// Rounds to commit.
    pub rounds: u32,
    /// Rounds abandoned in a row after which the run is given up.
    pub max_abandoned: u32,
    /// When a round closes.
    pub mode: ModeName,
    /// How devices encode their deltas.
    pub compression: CompressionSetting,
    /// How much of what an update leaves out is added to the next, as in `server.toml`.
    pub error_feedback: f32,
    /// Root of every draw: the same gives the same results.
    pub seed: u64,
}

impl Default for RunSection {
    fn default() -> Self {
        Self {
            name: "run".parse().unwrap_or_else(|_| unreachable!("`run` is a valid name")),
            rounds: 10,
            max_abandoned: 5,
            mode: ModeName::default(),
            compression: Compression::Int8.into(),
            error_feedback: 0.95,
            seed: 1,
        }
    }
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Its Hugging Face directory.
    pub dir: PathBuf,
}

/// The texts of all clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Folders and `.txt` and `.jsonl` files, as devices read them.
    pub paths: Vec<PathBuf>,
    /// The field of a `.jsonl` line that names its source. Without it, and for `.txt` files, the
    /// source is the entry of the folder that the text lies in, or the file's own name.
    pub key: Option<String>,
    /// Part of a client's texts that is never trained on: the last ones.
    #[serde(default = "default_holdout")]
    pub holdout: f64,
}

fn default_holdout() -> f64 {
    0.1
}

/// Who holds which texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PopulationSection {
    /// How texts are given out.
    pub partition: PartitionName,
    /// How many clients there are. With `partition = "key"` those of the sources with most text;
    /// 0 for all sources.
    pub clients: usize,
    /// How many texts a client holds: quantity skew. They are drawn with replacement, so that there
    /// can be more clients than texts. Without it, `iid` deals out each text once, evenly.
    pub examples: Option<Distribution>,
    /// With `partition = "dirichlet"`: how like each other clients are. Near 0, each has one source
    /// alone; far above 1, all have the same mixture.
    pub alpha: f64,
    /// A CSV file with a line for each device: what it is like, in place of `[behaviour]`'s draws.
    pub trace: Option<PathBuf>,
    /// The largest ranks that devices permit, dealt out by turns, for `training.nested_ranks`. Without
    /// it, each permits the run's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<usize>,
}

impl Default for PopulationSection {
    fn default() -> Self {
        let (partition, ranks) = (PartitionName::default(), Vec::new());
        Self { partition, clients: 0, examples: None, alpha: 0.5, trace: None, ranks }
    }
}

/// How texts are given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionName {
    /// Each source is a client.
    #[default]
    Key,
    /// All texts alike.
    Iid,
    /// Each client has its own mixture of sources.
    Dirichlet,
}

/// Who is evaluated, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSection {
    /// Rounds between two evaluations of the adapter; 0 for the last one alone.
    pub every: u32,
    /// Most clients that are evaluated, the same ones each time.
    pub clients: usize,
    /// Steps that each of them trains the last adapter further on its own texts, to see what that
    /// is worth to it; 0 for none.
    pub personal_steps: u32,
    /// Learning rates with which the texts of those clients are also trained on in one place, over as
    /// many examples as the run's updates saw. The best of them is compared with the run.
    pub central_learning_rates: Vec<f32>,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        let central_learning_rates = Vec::new();
        Self { every: 0, clients: 100, personal_steps: 0, central_learning_rates }
    }
}

impl Experiment {
    /// Reads the experiment file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key (with the nearest known one), or a value out of
    /// range.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let mut experiment: Self = from_toml(&name, &text)?;
        experiment.validate().with_context(|| name.clone())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let (model, data) = (&mut experiment.model.dir, &mut experiment.data.paths);
        let trace = &mut experiment.population.trace;
        for path in data.iter_mut().chain([model]).chain(trace) {
            let found = folder.join(&*path).canonicalize();
            *path = found.with_context(|| format!("{name} names {}", path.display()))?;
        }
        Ok(experiment)
    }

    /// The same experiment with another seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.run.seed = seed;
        self
    }

    /// Root of every draw.
    #[must_use]
    pub fn seed(&self) -> Seed {
        Seed::from_number(self.run.seed)
    }

    /// Updates that a round waits for.
    #[must_use]
    pub fn updates_of_a_round(&self) -> u32 {
        let buffered = self.run.mode.with(self.buffered).buffered();
        buffered.map_or(self.cohort.size, |buffered| buffered.buffer)
    }

    /// The run's settings, for a base model of these digests and an adapter of `values` values whose
    /// cohorts come out of `population` clients; with `run.compression = "auto"`, and what that chose.
    ///
    /// # Errors
    /// Settings that a server would refuse.
    pub fn run_config(
        &self,
        base: BaseDigests,
        values: usize,
        population: usize,
    ) -> Result<(RunConfig, Option<Choice>)> {
        let mut config = RunConfig {
            run: self.run.name.clone(),
            rounds: self.run.rounds,
            max_abandoned: self.run.max_abandoned,
            seed: self.seed(),
            base,
            lora: self.lora.clone(),
            training: self.training.clone(),
            compression: Compression::None,
            error_feedback: self.run.error_feedback,
            mode: self.run.mode.with(self.buffered),
            cohort: self.cohort.clone(),
            timing: self.timing.timing(),
            aggregation: self.aggregation,
        };
        let setting = self.run.compression;
        let choice = setting.apply(&mut config, values, Some(population as u64));
        config.validate()?;
        Ok((config, choice))
    }

    /// Checks the sections that `server.toml` does not have.
    fn validate(&self) -> Result<()> {
        if let Err((key, accepted)) = self.behaviour.validate() {
            bail!("behaviour.{key} is out of range: use {accepted}");
        }
        if let Some(Err((key, accepted))) = self.attack.map(|attack| attack.validate()) {
            bail!("attack.{key} is out of range: use {accepted}");
        }
        let (data, population) = (&self.data, &self.population);
        ensure!(!population.ranks.contains(&0), "population.ranks has a 0: use 1 or more");
        ensure!(!data.paths.is_empty(), "data.paths is empty: name files or folders");
        ensure!((0.0..1.0).contains(&data.holdout), "data.holdout: use 0 or more, below 1");
        ensure!(
            population.partition == PartitionName::Key || population.clients > 0,
            "population.clients is 0: say how many, or use partition = \"key\""
        );
        ensure!(
            population.examples.is_none_or(|of| of.is_valid()),
            "population.examples: use a distribution over numbers that are not negative"
        );
        match population.partition {
            PartitionName::Key => ensure!(
                population.examples.is_none(),
                "population.examples has no meaning with partition = \"key\": leave it out"
            ),
            PartitionName::Dirichlet => {
                let alpha = population.alpha;
                ensure!((1e-3..=1e6).contains(&alpha), "population.alpha: use 0.001 to 1000000");
                let hint = "say how many texts a client holds";
                ensure!(population.examples.is_some(), "population.examples is missing: {hint}");
            }
            PartitionName::Iid => {}
        }
        ensure!(self.evaluation.clients > 0, "evaluation.clients is 0: use 1 or more");
        let bad = |rate: &f32| !(*rate > 0.0 && *rate <= 10.0);
        let central = &self.evaluation.central_learning_rates;
        ensure!(
            !central.iter().any(bad),
            "evaluation.central_learning_rates: use numbers above 0, up to 10"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use floret_simulation::AttackKind;

    use super::*;

    fn read(text: &str) -> Result<Experiment> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        fs::write(folder.path().join("texts.txt"), "a").unwrap();
        let path = folder.path().join("experiment.toml");
        fs::write(&path, text).unwrap();
        Experiment::read(&path)
    }

    const GOOD: &str = "version = 1\nmodel.dir = \"model\"\ndata.paths = [\"texts.txt\"]\n";

    #[test]
    fn a_small_file_is_enough_and_is_the_same_once_resolved() {
        let experiment = read(GOOD).unwrap();
        assert!(experiment.model.dir.is_absolute());
        let text = toml::to_string(&experiment).unwrap();
        assert_eq!(from_toml::<Experiment>("resolved", &text).unwrap(), experiment);
    }

    #[test]
    fn distributions_are_read() {
        let text = "[behaviour]\nstep_s = { log_normal = { median = 0.5, sigma = 1.0 } }\n\
                    availability = { from_h = { constant = 20 }, hours = { uniform = [4, 9] } }\n\
                    [population]\npartition = \"dirichlet\"\nclients = 9\n\
                    examples = { exponential = 12.0 }\n";
        let experiment = read(&format!("{GOOD}{text}")).unwrap();
        let want = Distribution::LogNormal { median: 0.5, sigma: 1.0 };
        assert_eq!(experiment.behaviour.step_s, want);
        assert_eq!(experiment.population.examples, Some(Distribution::Exponential(12.0)));
        let text = toml::to_string(&experiment).unwrap();
        assert_eq!(from_toml::<Experiment>("resolved", &text).unwrap(), experiment);
    }

    #[test]
    fn attacks_are_read_and_written() {
        for (text, kind) in [
            ("kind = \"sign_flip\"", AttackKind::SignFlip { scale: None }),
            ("kind = \"sign_flip\"\nscale = 3", AttackKind::SignFlip { scale: Some(3.0) }),
            ("kind = \"label_flip\"", AttackKind::LabelFlip {}),
            ("kind = \"little_is_enough\"\nz = 1.5", AttackKind::LittleIsEnough { z: Some(1.5) }),
        ] {
            let experiment = read(&format!("{GOOD}[attack]\nshare = 0.2\n{text}\n")).unwrap();
            assert_eq!(experiment.attack, Some(Attack { share: 0.2, kind }));
            let text = toml::to_string(&experiment).unwrap();
            assert_eq!(from_toml::<Experiment>("resolved", &text).unwrap(), experiment);
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (line, word) in [
            ("[population]\nclient = 3", "did you mean `clients`?"),
            ("[training]\nmax_step = 3", "did you mean `max_steps`?"),
            ("[behaviour]\ndrop_out = 2.0", "behaviour.drop_out"),
            ("[population]\npartition = \"iid\"", "population.clients is 0"),
            ("[population]\npartition = \"dirichlet\"\nclients = 4", "population.examples"),
            ("[population]\ntrace = \"absent.csv\"", "absent.csv"),
            ("[population]\nranks = [2, 0]", "population.ranks"),
            ("[attack]\nshare = 0.2", "kind"),
            ("[attack]\nshare = 1.2\nkind = \"label_flip\"", "attack.share"),
            ("[attack]\nshare = 0.2\nkind = \"scaling\"\nfactor = 0.0", "attack.factor"),
            ("[attack]\nshare = 0.2\nkind = \"sign_flip\"\nfactor = 2.0", "factor"),
            ("[evaluation]\ncentral_learning_rates = [0.0]", "central_learning_rates"),
        ] {
            let error = format!("{:#}", read(&format!("{GOOD}{line}\n")).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
        let error = format!("{:#}", read("version = 2").unwrap_err());
        assert!(error.contains("version = 1"), "{error}");
    }
}
