//! What is known of a run between two rounds. The database holds it; `run.json` is a copy for
//! programs that read beside a running server.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use floret_aggregator::concerns::Concerns;
use floret_aggregator::ledger::Head;
use floret_aggregator::{Assignments, Moments, RunEnd, Totals};
use floret_core::base::BaseDigests;
use floret_core::{Adapter, Digest, Layout, LoraConfig, Round, RunId, Version};
use floret_store::{Disk, blob};
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::files::{self, Access, FileError};

/// Name of the copy.
const COPY: &str = "run.json";
/// Folder of adapters and moments.
pub(super) const ADAPTERS: &str = "adapters";
pub(super) const FORMAT: u32 = 2;

/// A run between two rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRun {
    pub(super) format: u32,
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
    /// The last round that was closed.
    pub round: Round,
    /// Adapters that are kept.
    pub adapters: BTreeMap<Version, Kept>,
    /// Rounds abandoned since the last commit.
    pub abandoned_in_a_row: u32,
    /// Counts over the whole run.
    pub totals: Totals,
    /// What the rounds so far give cause for.
    pub concerns: Concerns,
    /// Buffered work that was given out before the round closed, and is awaited.
    #[serde(default, skip_serializing_if = "Assignments::is_empty")]
    pub assignments: Assignments,
    /// Set when the run is over.
    pub end: Option<RunEnd>,
    /// Digest of the settings that the ledger stated last.
    pub plan: Digest,
    /// The ledger's last entry.
    pub ledger: Head,
}

/// An adapter that is kept, and what the server optimizer knew then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Digest of the adapter.
    pub adapter: Digest,
    /// Digest of the momentum.
    pub momentum: Digest,
    /// Digest of the second moment, of an adaptive optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_moment: Option<Digest>,
    /// Digest of what the steps that devices download left out so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsent: Option<Digest>,
}

impl SavedRun {
    /// Reads the copy in a state directory; `None` when nothing was saved yet.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        match files::read(&dir.join(COPY)) {
            Err(error) if error.is_missing() => Ok(None),
            text => Self::parse(COPY, &text?).map(Some),
        }
    }

    /// Puts a copy into a state directory.
    pub(crate) fn publish(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(COPY);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| FileError::new("write", &path, error.into()))?;
        Ok(files::replace(&path, Access::Shared, &text)?)
    }

    pub(super) fn parse(file: &str, text: &[u8]) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| StoreError::damaged(file, error);
        match serde_json::from_slice(text).map_err(damaged)? {
            Format { format: FORMAT } => serde_json::from_slice(text).map_err(damaged),
            Format { format } => {
                let problem = format!("format {format} is not {FORMAT}, which this build reads");
                Err(StoreError::damaged(file, problem))
            }
        }
    }

    /// Reads an adapter that is kept, the current one by default, and verifies its digest.
    ///
    /// # Errors
    /// A version that is not kept, another layout, or a damaged file.
    pub fn adapter(
        &self,
        disk: &dyn Disk,
        layout: &Arc<Layout>,
        version: Option<Version>,
    ) -> Result<Adapter, StoreError> {
        let version = version.unwrap_or(self.version);
        let values =
            read_values(disk, &adapter_file(version), layout.len(), self.kept(version)?.adapter)?;
        Adapter::new(Arc::clone(layout), values)
            .map_err(|error| StoreError::damaged(adapter_file(version), error))
    }

    /// Reads the server optimizer's moments of a version that is kept, and verifies their digests.
    ///
    /// # Errors
    /// A version that is not kept, or a damaged file.
    pub fn moments(
        &self,
        disk: &dyn Disk,
        layout: &Layout,
        version: Version,
    ) -> Result<Moments, StoreError> {
        let kept = self.kept(version)?;
        let read = |name: String, digest| read_values(disk, &name, layout.len(), digest);
        let second = kept.second_moment;
        Ok(Moments {
            first: read(momentum_file(version), kept.momentum)?,
            second: second.map(|digest| read(second_moment_file(version), digest)).transpose()?,
        })
    }

    /// Reads what the steps before a version that is kept left out, and verifies its digest.
    ///
    /// # Errors
    /// A version that is not kept, or a damaged file.
    pub fn unsent(
        &self,
        disk: &dyn Disk,
        layout: &Layout,
        version: Version,
    ) -> Result<Option<Vec<f32>>, StoreError> {
        let digest = self.kept(version)?.unsent;
        digest
            .map(|digest| read_values(disk, &unsent_file(version), layout.len(), digest))
            .transpose()
    }

    fn kept(&self, version: Version) -> Result<Kept, StoreError> {
        self.adapters.get(&version).copied().ok_or_else(|| {
            let kept: Vec<String> = self.adapters.keys().map(ToString::to_string).collect();
            let kept = format!("choose one of {}", kept.join(", "));
            StoreError::NoSuchVersion { version, kept }
        })
    }

    /// Names of the files of values that are kept.
    pub(super) fn files(&self) -> impl Iterator<Item = String> {
        self.adapters.iter().flat_map(|(version, kept)| {
            let second = kept.second_moment.map(|_| second_moment_file(*version));
            let unsent = kept.unsent.map(|_| unsent_file(*version));
            let always = [adapter_file(*version), momentum_file(*version)];
            always.into_iter().chain(second).chain(unsent)
        })
    }
}

pub(super) fn adapter_file(version: Version) -> String {
    format!("adapter-{:08}.f32", version.0)
}

pub(super) fn momentum_file(version: Version) -> String {
    format!("momentum-{:08}.f32", version.0)
}

pub(super) fn second_moment_file(version: Version) -> String {
    format!("second-moment-{:08}.f32", version.0)
}

pub(super) fn unsent_file(version: Version) -> String {
    format!("unsent-{:08}.f32", version.0)
}

/// Writes f32 little-endian values, and gives the digest of their bytes.
pub(super) fn write_values(
    disk: &dyn Disk,
    name: &str,
    values: &[f32],
) -> Result<Digest, StoreError> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    blob::write(disk, ADAPTERS, name, &bytes).map_err(StoreError::disk("write", name))?;
    Ok(Digest::of(&bytes))
}

fn read_values(
    disk: &dyn Disk,
    name: &str,
    len: usize,
    digest: Digest,
) -> Result<Vec<f32>, StoreError> {
    let bytes = blob::read(disk, ADAPTERS, name, len * size_of::<f32>())
        .map_err(StoreError::disk("read", name))?;
    if Digest::of(&bytes) != digest {
        return Err(StoreError::damaged(name, "its bytes are not those that were written"));
    }
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
