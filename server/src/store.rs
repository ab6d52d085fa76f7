//! What outlives a restart: adapters and momentum as files of f32, and `run.json`, which names
//! them by digest. `run.json` is replaced last and atomically, so that a crash between two files
//! leaves the run as it was before.

mod values;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use floret_aggregator::{RunEnd, RunState, Totals};
use floret_core::base::BaseDigests;
use floret_core::{Adapter, Digest, Layout, LoraConfig, Round, RunId, Version};
use serde::{Deserialize, Serialize};

use crate::files::{self, Access, FileError};

const MANIFEST: &str = "run.json";
const FORMAT: u32 = 1;

/// Saved state that cannot be used, or that cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another server runs on this directory.
    #[error("{} is in use by another floret-server: stop that one first", .0.display())]
    Locked(PathBuf),
    /// A file that changed since it was written.
    #[error("{}: {problem}: restore the state directory from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// State of another run, base model or adapter.
    #[error(
        "{} holds a run with another {what} ({saved}) than the settings' ({configured}): restore \
         the settings, or begin a new run in another directory", path.display()
    )]
    OtherRun {
        /// The manifest.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As saved.
        saved: String,
        /// As configured.
        configured: String,
    },
    /// Nothing saved yet.
    #[error("{} holds no run yet: start the server first", .0.display())]
    Empty(PathBuf),
    /// A version that is not kept.
    #[error("version {version} is not kept: {kept}")]
    NoSuchVersion {
        /// The version.
        version: Version,
        /// Which are.
        kept: String,
    },
}

/// What `run.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRun {
    format: u32,
    /// The run.
    pub run: RunId,
    /// The base model.
    pub base: BaseDigests,
    /// Settings of the adapter: its scale is part of what its values mean.
    pub lora: LoraConfig,
    /// Digest of the adapter's layout.
    pub layout: Digest,
    /// The current version.
    pub version: Version,
    /// The last round that was opened.
    pub round: Round,
    /// Digests of the adapters that are kept.
    pub adapters: BTreeMap<Version, Digest>,
    /// Digest of the server optimizer's momentum.
    pub momentum: Digest,
    /// Rounds abandoned since the last commit.
    pub abandoned_in_a_row: u32,
    /// Counts over the whole run.
    pub totals: Totals,
    /// Set when the run is over.
    pub end: Option<RunEnd>,
}

impl SavedRun {
    /// Reads `run.json` of a state directory; `None` when nothing was saved yet.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(MANIFEST);
        let text = match files::read_text(&path) {
            Err(error) if error.is_missing() => return Ok(None),
            text => text?,
        };
        let damaged = |problem| StoreError::Damaged { path: path.clone(), problem };
        let saved: Self =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match saved.format {
            FORMAT => Ok(Some(saved)),
            other => {
                Err(damaged(format!("format {other} is not {FORMAT}, which this build reads")))
            }
        }
    }

    /// Reads an adapter that is kept, the current one by default, and verifies its digest.
    ///
    /// # Errors
    /// A version that is not kept, another layout, or a damaged file.
    pub fn adapter(
        &self,
        dir: &Path,
        layout: &Arc<Layout>,
        version: Option<Version>,
    ) -> Result<Adapter, StoreError> {
        self.expect_same(dir, "adapter layout", self.layout, layout.digest())?;
        let version = version.unwrap_or(self.version);
        let Some(digest) = self.adapters.get(&version) else {
            let kept: Vec<String> = self.adapters.keys().map(ToString::to_string).collect();
            let kept = format!("choose one of {}", kept.join(", "));
            return Err(StoreError::NoSuchVersion { version, kept });
        };
        let path = adapter_path(dir, version);
        let values = values::read(&path, layout.len(), *digest)?;
        Adapter::new(Arc::clone(layout), values)
            .map_err(|error| StoreError::Damaged { path, problem: error.to_string() })
    }

    fn expect_same<T: PartialEq + ToString>(
        &self,
        dir: &Path,
        what: &'static str,
        saved: T,
        configured: T,
    ) -> Result<(), StoreError> {
        if saved == configured {
            return Ok(());
        }
        let [saved, configured] = [saved, configured].map(|value| value.to_string());
        Err(StoreError::OtherRun { path: dir.join(MANIFEST), what, saved, configured })
    }
}

/// What a state directory belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) run: RunId,
    pub(crate) base: BaseDigests,
    pub(crate) lora: LoraConfig,
    pub(crate) layout: Arc<Layout>,
}

/// A state directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    identity: Identity,
    /// Adapter versions to keep.
    keep: usize,
    /// What is on disk.
    saved: Option<SavedRun>,
    /// Locked while it is open.
    _lock: File,
}

impl Store {
    /// Opens the state directory `dir`, and reads the run that it holds, if any.
    pub(crate) fn open(
        dir: &Path,
        identity: Identity,
        keep: usize,
    ) -> Result<(Self, Option<RunState>), StoreError> {
        files::create_dir(&dir.join("adapters"), Access::Shared)?;
        let lock = lock(dir)?;
        let saved = SavedRun::read(dir)?;
        let state = saved.as_ref().map(|saved| load(dir, saved, &identity)).transpose()?;
        let dir = dir.to_owned();
        Ok((Self { dir, identity, keep, saved, _lock: lock }, state))
    }

    /// Makes `state` durable.
    pub(crate) fn save(&mut self, state: &RunState) -> Result<(), StoreError> {
        let version = state.version;
        let on_disk = self.saved.as_ref().filter(|saved| saved.version == version);
        let momentum = match on_disk {
            Some(saved) => saved.momentum,
            None => {
                values::write(&adapter_path(&self.dir, version), state.adapter.values())?;
                values::write(&momentum_path(&self.dir, version), &state.momentum)?
            }
        };
        let kept = self.saved.iter().flat_map(|saved| saved.adapters.clone());
        let mut adapters: BTreeMap<_, _> = kept.collect();
        adapters.insert(version, state.adapter.digest());
        while adapters.len() > self.keep {
            adapters.pop_first();
        }
        let saved = SavedRun {
            format: FORMAT,
            run: self.identity.run.clone(),
            base: self.identity.base,
            lora: self.identity.lora.clone(),
            layout: self.identity.layout.digest(),
            version,
            round: state.round,
            adapters,
            momentum,
            abandoned_in_a_row: state.abandoned_in_a_row,
            totals: state.totals,
            end: state.end.clone(),
        };
        self.write_manifest(&saved)?;
        let new_version = on_disk.is_none();
        self.saved = Some(saved);
        if new_version {
            self.prune();
        }
        Ok(())
    }

    fn write_manifest(&self, saved: &SavedRun) -> Result<(), StoreError> {
        let path = self.dir.join(MANIFEST);
        let text = serde_json::to_vec_pretty(saved)
            .map_err(|error| FileError::new("write", &path, error.into()))?;
        Ok(files::replace(&path, Access::Shared, &text)?)
    }

    /// Removes value files that `run.json` does not name. One that stays for now does no harm: the
    /// next commit tries again.
    fn prune(&self) {
        let Some(saved) = &self.saved else { return };
        let adapters = saved.adapters.keys().map(|version| adapter_path(&self.dir, *version));
        let named: Vec<_> = adapters.chain([momentum_path(&self.dir, saved.version)]).collect();
        for entry in fs::read_dir(self.dir.join("adapters")).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "f32")
                && !named.contains(&path)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "an old version cannot be removed");
            }
        }
    }
}

fn load(dir: &Path, saved: &SavedRun, identity: &Identity) -> Result<RunState, StoreError> {
    let name = |run: &RunId| run.to_string();
    saved.expect_same(dir, "name", name(&saved.run), name(&identity.run))?;
    saved.expect_same(dir, "base model", saved.base.base, identity.base.base)?;
    saved.expect_same(dir, "tokenizer", saved.base.tokenizer, identity.base.tokenizer)?;
    let settings = |lora: &LoraConfig| serde_json::to_string(lora).unwrap_or_default();
    saved.expect_same(
        dir,
        "set of LoRA settings",
        settings(&saved.lora),
        settings(&identity.lora),
    )?;
    let layout = &identity.layout;
    let adapter = saved.adapter(dir, layout, None)?;
    let momentum = momentum_path(dir, saved.version);
    Ok(RunState {
        version: saved.version,
        round: saved.round,
        adapter,
        momentum: values::read(&momentum, layout.len(), saved.momentum)?,
        abandoned_in_a_row: saved.abandoned_in_a_row,
        totals: saved.totals,
        end: saved.end.clone(),
    })
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|error| FileError::new("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(FileError::new("lock", &path, error).into()),
    }
}

fn adapter_path(dir: &Path, version: Version) -> PathBuf {
    dir.join(format!("adapters/adapter-{:08}.f32", version.0))
}

fn momentum_path(dir: &Path, version: Version) -> PathBuf {
    dir.join(format!("adapters/momentum-{:08}.f32", version.0))
}

#[cfg(test)]
mod tests;
