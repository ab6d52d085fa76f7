//! A Hugging Face directory: `config.json`, `model.safetensors` or its shards, `tokenizer.json`.
//!
//! Every tensor's name, shape and type is checked from the headers before a model is allocated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use floret_core::ModelConfig;
use floret_core::base::BaseDigests;
use floret_core::model_config::InvalidModelConfig;
use floret_core::tensor_bytes::to_f32;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;

use crate::precision::Precision;
use crate::transformer::Transformer;
use crate::weight_file::{WeightFile, digest, unreadable};
use crate::weights::{HEAD, Weights};

/// Shape and constants of the model.
pub const CONFIG: &str = "config.json";
/// The weights, when they lie in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Which shard holds which weight, when they lie in several.
pub const INDEX: &str = "model.safetensors.index.json";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCheckpoint {
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A configuration that Floret cannot honour.
    #[error("in {dir}: {source}")]
    Config {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        source: InvalidModelConfig,
    },
    /// A file that is not what it should be.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A tensor that is missing, unexpected, or of a wrong shape or type.
    #[error("{path}: tensor {name} {problem}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// A directory whose configuration and tensor headers were checked.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: ModelConfig,
    files: Vec<WeightFile>,
}

impl Checkpoint {
    /// Opens `dir` and checks all that can be checked without reading weights.
    ///
    /// # Errors
    /// An unsupported architecture, a file that is missing, truncated or not safetensors, or a
    /// tensor that is missing, unexpected, or of a wrong shape or type: file and tensor are named.
    pub fn open(dir: &Path) -> Result<Self, InvalidCheckpoint> {
        let text = read_text(&dir.join(CONFIG))?;
        let config = ModelConfig::from_json(&text)
            .map_err(|source| InvalidCheckpoint::Config { dir: dir.to_owned(), source })?;
        let checkpoint = Self { dir: dir.to_owned(), config, files: open_files(dir)? };
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// Makes the checks of [`Checkpoint::open`] on `weights`, the bytes of one weight file in
    /// memory, for a model of shape `config`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]. A saved copy of a tied head needs the file and is refused.
    pub fn check_bytes(config: ModelConfig, weights: &[u8]) -> Result<(), InvalidCheckpoint> {
        let file = WeightFile::from_reader(WEIGHTS.into(), weights, weights.len() as u64)?;
        Self { dir: PathBuf::new(), config, files: vec![file] }.check_tensors()
    }

    /// Shape and constants of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Reads the weights as f32 onto `device`.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn load(
        &self,
        precision: Precision,
        device: &Device,
    ) -> Result<Transformer, InvalidCheckpoint> {
        Transformer::build(self.config.clone(), precision, device, &mut |spec| {
            let (file, info) = self.find(&spec.name)?;
            Ok(to_f32(info.dtype, &file.read(info)?).unwrap_or_default())
        })
    }

    /// Digests over `config.json` and the weight files, and over `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is missing or cannot be read.
    pub fn digests(&self) -> Result<BaseDigests, InvalidCheckpoint> {
        let weights = self.files.iter().map(|file| digest(file.path()));
        Ok(BaseDigests::new(
            digest(&self.dir.join(CONFIG))?,
            weights.collect::<Result<_, _>>()?,
            digest(&self.dir.join(TOKENIZER))?,
        ))
    }

    fn find(&self, name: &str) -> Result<(&WeightFile, &TensorInfo), InvalidCheckpoint> {
        let found = self.files.iter().find_map(|file| Some((file, file.tensors().get(name)?)));
        found.ok_or_else(|| match &self.files[..] {
            [file] => tensor(file.path(), name, "is missing"),
            _ => tensor(&self.dir.join(INDEX), name, "is missing from every shard"),
        })
    }

    fn check_tensors(&self) -> Result<(), InvalidCheckpoint> {
        let specs = Weights::of(&self.config);
        let mut known = BTreeSet::new();
        for spec in specs.leaves() {
            let (file, info) = self.find(&spec.name)?;
            if info.shape != spec.shape {
                let (got, want) = (&info.shape, &spec.shape);
                let problem = format!("has shape {got:?} where {CONFIG} asks for {want:?}");
                return Err(tensor(file.path(), &spec.name, problem));
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let problem = format!("has type {:?}: save it as f32, f16 or bf16", info.dtype);
                return Err(tensor(file.path(), &spec.name, problem));
            }
            known.insert(spec.name.as_str());
        }
        let mut seen = BTreeSet::new();
        for file in &self.files {
            for name in file.tensors().keys() {
                if !seen.insert(name) {
                    return Err(tensor(file.path(), name, "also lies in another shard"));
                }
                if !known.contains(name.as_str()) {
                    self.check_extra(file, name)?;
                }
            }
        }
        Ok(())
    }

    /// Two tensors are harmless although no weight has their name: rotary frequencies, which
    /// follow from the configuration, and a saved copy of a tied head.
    fn check_extra(&self, file: &WeightFile, name: &str) -> Result<(), InvalidCheckpoint> {
        if name.ends_with("rotary_emb.inv_freq") {
            return Ok(());
        }
        if name == HEAD {
            let (embedding_file, embedding) =
                self.find(&Weights::of(&self.config).embedding.name)?;
            let head = &file.tensors()[name];
            let alike = head.dtype == embedding.dtype && head.shape == embedding.shape;
            if alike && file.read(head)? == embedding_file.read(embedding)? {
                return Ok(());
            }
            let problem = "differs from the embedding, but config.json ties them: set \
                           tie_word_embeddings to false, or remove the tensor";
            return Err(tensor(file.path(), name, problem));
        }
        Err(tensor(file.path(), name, "does not belong to the model of config.json"))
    }
}

fn tensor(path: &Path, name: &str, problem: impl Into<String>) -> InvalidCheckpoint {
    let (path, name) = (path.to_owned(), name.to_owned());
    InvalidCheckpoint::Tensor { path, name, problem: problem.into() }
}

fn read_text(path: &Path) -> Result<String, InvalidCheckpoint> {
    fs::read_to_string(path).map_err(|error| unreadable(path, error))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The one weight file, or all shards that the index names.
fn open_files(dir: &Path) -> Result<Vec<WeightFile>, InvalidCheckpoint> {
    let (single, index_path) = (dir.join(WEIGHTS), dir.join(INDEX));
    if single.exists() || !index_path.exists() {
        return Ok(vec![WeightFile::open(single)?]);
    }
    let wrong = |problem: String| InvalidCheckpoint::File { path: index_path.clone(), problem };
    let weight_map = shard_index(&read_text(&index_path)?).map_err(wrong)?;
    let mut shards = BTreeMap::new();
    for name in weight_map.values().collect::<BTreeSet<_>>() {
        shards.insert(name.as_str(), WeightFile::open(dir.join(name))?);
    }
    for (name, shard) in &weight_map {
        if !shards[shard.as_str()].tensors().contains_key(name) {
            let problem = format!("is missing, though {INDEX} says that it lies here");
            return Err(tensor(&dir.join(shard), name, problem));
        }
    }
    Ok(shards.into_values().collect())
}

/// Which shard holds which tensor, from the text of an index; no shard lies elsewhere than beside it.
///
/// # Errors
/// What is wrong with the index.
pub fn shard_index(text: &str) -> Result<BTreeMap<String, String>, String> {
    let index: Index = serde_json::from_str(text)
        .map_err(|error| format!("it is not a safetensors index: {error}"))?;
    if index.weight_map.is_empty() {
        return Err("its weight_map is empty".to_owned());
    }
    let outside = |name: &&String| Path::new(name).file_name() != Some(name.as_ref());
    match index.weight_map.values().find(outside) {
        Some(name) => Err(format!("it names a shard {name:?}: use a file name without a path")),
        None => Ok(index.weight_map),
    }
}

#[cfg(test)]
mod tests;
