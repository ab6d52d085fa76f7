//! `compression = "auto"`: settings for those who would rather not choose. What they rest on was
//! measured; docs/compression.md has the figures.

use std::fmt;
use std::str::FromStr;

use floret_core::payload::{Bits, Compression, InvalidCompression, Sparse};
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

/// `run.compression` as a configuration file says it: a compression, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CompressionSetting {
    /// [`choose`] chooses.
    Auto,
    /// The user chose.
    Fixed(Compression),
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// How devices encode their deltas.
    pub compression: Compression,
    /// How steps of the adapter go down.
    pub download_compression: Compression,
    /// Why, in words.
    pub reason: String,
}

/// Below this, an adapter is so small that its bytes hardly matter: 64 KiB of f32.
const SMALL: usize = 16 * 1024;
/// A device that takes part less often than in one round of so many has a residual that is stale.
const RARE: u64 = 20;

/// Chooses for a run of an adapter of `values` values whose cohorts come out of `population` clients, if
/// that is known. `config` says what else the run does with updates.
#[must_use]
pub fn choose(config: &RunConfig, values: usize, population: Option<u64>) -> Choice {
    let training = &config.training;
    let summands = u64::from(config.summands());
    let population = population.unwrap_or_else(|| config.cohort.min_population.into());
    let half = !training.freeze.is_none() || training.personal_b;
    let rare = population == 0 || population > RARE * summands;
    let (up, down, reason) = if values < SMALL {
        let reason = format!("{values} values are so few that one byte for each is little");
        (Compression::Int8, Compression::None, reason)
    } else if training.nested_ranks {
        let reason = "with nested ranks, a device's rank shows in which values it changed";
        (Compression::Int8, Compression::None, reason.to_owned())
    } else if config.aggregation.fold_residual > 0 && config.error_feedback == 0.0 {
        let reason = "with aggregation.fold_residual and without error feedback, nothing smaller is right in expectation";
        (Compression::Int8, Compression::None, reason.to_owned())
    } else if config.aggregation.fold_residual > 0 {
        let reason = "with aggregation.fold_residual, a part of the adapter changes altogether in each round";
        (sparse(50), Compression::None, reason.to_owned())
    } else if config.aggregation.refactor {
        let reason =
            "with aggregation.refactor, what is left for later would belong to other factors";
        (Compression::Int8, Compression::None, reason.to_owned())
    } else if config.error_feedback == 0.0 && half {
        let reason = "with a factor that is not sent and without error feedback, nothing smaller is right in \
                      expectation";
        (Compression::Int8, sparse(50), reason.to_owned())
    } else if half {
        let reason =
            "with a factor that is not sent, only the places of the other are worth their bits";
        (sparse(50), sparse(50), reason.to_owned())
    } else if config.error_feedback == 0.0 {
        let reason = "without error feedback, what an update leaves out would be lost, but for an \
                      encoding that is right in expectation";
        (bits(1, 1), sparse(150), reason.to_owned())
    } else if rare {
        let of = match population {
            0 => "an unknown number of".to_owned(),
            population => population.to_string(),
        };
        let reason = format!(
            "{summands} of {of} clients a round come so rarely that what an update leaves out is \
             stale when its device comes again, and that steps of the adapter pile up"
        );
        (bits(1, 1), Compression::None, reason)
    } else {
        let reason = format!(
            "{summands} of {population} clients a round come often enough to send what an update \
             leaves out with one of their next"
        );
        (sparse(50), sparse(150), reason)
    };
    Choice { compression: up, download_compression: down, reason }
}

impl CompressionSetting {
    /// Writes into `config` what the user chose, or what [`choose`] does; a download compression that
    /// the user chose stays. Gives the choice, if there was one.
    pub fn apply(
        self,
        config: &mut RunConfig,
        values: usize,
        population: Option<u64>,
    ) -> Option<Choice> {
        if let Self::Fixed(compression) = self {
            config.compression = compression;
            return None;
        }
        let mut choice = choose(config, values, population);
        if !config.aggregation.download_compression.is_none() {
            choice.download_compression = config.aggregation.download_compression;
        }
        config.compression = choice.compression;
        config.aggregation.download_compression = choice.download_compression;
        Some(choice)
    }
}

impl From<Compression> for CompressionSetting {
    fn from(compression: Compression) -> Self {
        Self::Fixed(compression)
    }
}

impl FromStr for CompressionSetting {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => Ok(Self::Fixed(text.parse()?)),
        }
    }
}

/// Neither `auto` nor a compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; or \"auto\"")]
pub struct InvalidSetting(#[from] InvalidCompression);

impl TryFrom<String> for CompressionSetting {
    type Error = InvalidSetting;

    fn try_from(text: String) -> Result<Self, InvalidSetting> {
        text.parse()
    }
}

impl From<CompressionSetting> for String {
    fn from(setting: CompressionSetting) -> Self {
        match setting {
            CompressionSetting::Auto => "auto".to_owned(),
            CompressionSetting::Fixed(compression) => compression.to_string(),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compression, download_compression, reason } = self;
        write!(f, "auto: {compression} up and {download_compression} down, since {reason}")
    }
}

fn bits(width: u8, segments: u8) -> Compression {
    let bits = Bits::new(width, segments);
    Compression::Bits(bits.unwrap_or_else(|error| unreachable!("{error}")))
}

fn sparse(per_mille: u16) -> Compression {
    let sparse = Sparse::new(per_mille);
    Compression::Sparse(sparse.unwrap_or_else(|error| unreachable!("{error}")))
}

#[cfg(test)]
mod tests {
    use floret_core::plan::TrainingConfig;
    use floret_core::scope::Freeze;

    use super::*;
    use crate::config::{Aggregation, CohortConfig};
    use crate::coordinator::tests::config;

    const LARGE: usize = 1_000_000;

    fn chosen(config: &RunConfig, values: usize, population: Option<u64>) -> [String; 2] {
        let choice = choose(config, values, population);
        // Whatever is chosen is a run that is not refused.
        let mut resolved = config.clone();
        assert_eq!(CompressionSetting::Auto.apply(&mut resolved, values, population), Some(choice));
        resolved.validate().unwrap();
        [resolved.compression, resolved.aggregation.download_compression].map(|it| it.to_string())
    }

    #[test]
    fn what_is_chosen_fits_the_run() {
        let config = config();
        assert_eq!(chosen(&config, 1000, Some(10)), ["int8", "none"]);
        assert_eq!(chosen(&config, LARGE, Some(10)), ["sparse5%", "sparse15%"]);
        assert_eq!(chosen(&config, LARGE, Some(1000)), ["bits1", "none"]);
        assert_eq!(chosen(&config, LARGE, None), ["bits1", "none"]);
        let cohort = CohortConfig { min_population: 20, ..config.cohort.clone() };
        assert_eq!(chosen(&RunConfig { cohort, ..config.clone() }, LARGE, None)[0], "sparse5%");
        let training = TrainingConfig { freeze: Freeze::A, ..TrainingConfig::default() };
        let frozen = RunConfig { training, ..config.clone() };
        assert_eq!(chosen(&frozen, LARGE, Some(10)), ["sparse5%", "sparse5%"]);
        let lossy = RunConfig { error_feedback: 0.0, ..config.clone() };
        assert_eq!(chosen(&lossy, LARGE, Some(10)), ["bits1", "sparse15%"]);
        let lossy = RunConfig { error_feedback: 0.0, ..frozen.clone() };
        assert_eq!(chosen(&lossy, LARGE, Some(10)), ["int8", "sparse5%"]);
        let aggregation = Aggregation { refactor: true, ..config.aggregation };
        let replaced = RunConfig { aggregation, ..frozen };
        assert_eq!(chosen(&replaced, LARGE, Some(10)), ["int8", "none"]);
        let aggregation = Aggregation { fold_residual: 1, ..config.aggregation };
        let folded = RunConfig { aggregation, ..config.clone() };
        assert_eq!(chosen(&folded, LARGE, Some(10)), ["sparse5%", "none"]);
        let lossy = RunConfig { error_feedback: 0.0, ..folded };
        assert_eq!(chosen(&lossy, LARGE, Some(10)), ["int8", "none"]);
        let training = TrainingConfig { personal_b: true, ..TrainingConfig::default() };
        let personal = RunConfig { training, ..config.clone() };
        assert_eq!(chosen(&personal, LARGE, Some(10)), ["sparse5%", "sparse5%"]);
        assert_eq!(chosen(&personal, LARGE, None), ["sparse5%", "sparse5%"]);
        let training = TrainingConfig { nested_ranks: true, ..TrainingConfig::default() };
        assert_eq!(chosen(&RunConfig { training, ..config }, LARGE, Some(10)), ["int8", "none"]);
    }

    #[test]
    fn what_the_user_chose_stays() {
        let mut config = config();
        let int8: CompressionSetting = "int8".parse().unwrap();
        assert_eq!(int8.apply(&mut config, LARGE, None), None);
        assert_eq!(config.compression, Compression::Int8);
        config.aggregation.download_compression = Compression::Int8;
        CompressionSetting::Auto.apply(&mut config, LARGE, Some(10));
        assert_eq!(config.aggregation.download_compression, Compression::Int8);
        let error = "Auto".parse::<CompressionSetting>().unwrap_err().to_string();
        assert!(error.contains("bits1/2") && error.contains("\"auto\""), "{error}");
    }
}
