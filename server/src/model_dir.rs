//! The base model as the server needs it: its shape, and digests of its files. The weights are
//! read once, in pieces, and never kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use floret_core::base::BaseDigests;
use floret_core::model_config::InvalidModelConfig;
use floret_core::{Digest, ModelConfig};
use serde::Deserialize;

use crate::files::{self, FileError};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";

/// A model directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that is missing or cannot be read.
    #[error("the base model is not complete: {0}")]
    File(#[from] FileError),
    /// A configuration that Floret cannot honour.
    #[error("in {}: {source}", dir.display())]
    Config {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        source: InvalidModelConfig,
    },
    /// An index of shards that cannot be followed.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// A base model.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseModel {
    /// Shape and constants.
    pub config: ModelConfig,
    /// What devices must hold.
    pub digests: BaseDigests,
}

impl BaseModel {
    /// Reads every file of the Hugging Face directory `dir` once.
    ///
    /// # Errors
    /// A file that is missing, or a configuration that Floret cannot honour.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let config = read_config(dir)?;
        let weights = weight_files(dir)?;
        let digests = BaseDigests::new(
            digest(&dir.join(CONFIG))?,
            weights.iter().map(|path| digest(path)).collect::<Result<_, _>>()?,
            digest(&dir.join(TOKENIZER))?,
        );
        Ok(Self { config, digests })
    }
}

/// The model's shape, from `config.json` alone.
pub(crate) fn read_config(dir: &Path) -> Result<ModelConfig, ModelError> {
    let text = files::read_text(&dir.join(CONFIG))?;
    ModelConfig::from_json(&text)
        .map_err(|source| ModelError::Config { dir: dir.to_owned(), source })
}

/// Digest of a whole file, read in pieces.
fn digest(path: &Path) -> Result<Digest, FileError> {
    let read = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(Digest(*hasher.finalize().as_bytes()))
    };
    read().map_err(|error| FileError::new("read", path, error))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The one weight file, or all shards that the index names: the choice that devices make too.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let (single, index_path) = (dir.join(WEIGHTS), dir.join(INDEX));
    if single.exists() || !index_path.exists() {
        return Ok(vec![single]);
    }
    let wrong = |problem: String| ModelError::Index { path: index_path.clone(), problem };
    let index: Index = serde_json::from_str(&files::read_text(&index_path)?)
        .map_err(|error| wrong(format!("it is not a safetensors index: {error}")))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(wrong("its weight_map is empty".to_owned()));
    }
    let outside = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref()));
    match outside {
        Some(name) => Err(wrong(format!("it names a shard {name:?}: use names without a path"))),
        None => Ok(names.into_iter().map(|name| dir.join(name)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
        "vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}"#;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn expected(weights: &[&str]) -> BaseDigests {
        let weights = weights.iter().map(|text| Digest::of(text.as_bytes())).collect();
        BaseDigests::new(Digest::of(MODEL.as_bytes()), weights, Digest::of(b"tokens"))
    }

    #[test]
    fn digests_cover_every_file() {
        let files = [(CONFIG, MODEL), (WEIGHTS, "weights"), (TOKENIZER, "tokens")];
        let model = BaseModel::read(dir(&files).path()).unwrap();
        assert_eq!(model.digests, expected(&["weights"]));
        assert_eq!(model.config.hidden_size, 8);
        for missing in 0..files.len() {
            let rest = [&files[..missing], &files[missing + 1..]].concat();
            let error = BaseModel::read(dir(&rest).path()).unwrap_err().to_string();
            assert!(error.contains(files[missing].0), "{error}");
        }
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let index =
            r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#;
        let shards = [("1.safetensors", "one"), ("2.safetensors", "two")];
        let files = [&[(CONFIG, MODEL), (INDEX, index), (TOKENIZER, "tokens")], &shards[..]];
        let model = BaseModel::read(dir(&files.concat()).path()).unwrap();
        assert_eq!(model.digests, expected(&["one", "two"]));

        for (bad, word) in [
            (r#"{"weight_map": {"a": "../1.safetensors"}}"#, "without a path"),
            (r#"{"weight_map": {}}"#, "empty"),
            ("[", "not a safetensors index"),
        ] {
            let files = [(CONFIG, MODEL), (INDEX, bad), (TOKENIZER, "tokens")];
            let error = BaseModel::read(dir(&files).path()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
