//! What can be wrong with a run's state.

use std::io;
use std::path::PathBuf;

use floret_core::Version;

use crate::files::FileError;

/// Saved state that cannot be used, or that cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The disk refused an operation on one of the state's files.
    #[error("cannot {action} {file} of the run's state: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The file, within the state directory.
        file: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The database refused an operation.
    #[error("the database run.redb of the run's state: {0}")]
    Database(#[from] redb::Error),
    /// Another server runs on this directory.
    #[error("{} is in use by another floret-server: stop that one first", .0.display())]
    Locked(PathBuf),
    /// A file that changed since it was written.
    #[error("{file} of the run's state: {problem}: restore the state directory from a backup")]
    Damaged {
        /// The file, within the state directory.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// State of another run, base model or adapter.
    #[error(
        "the state directory holds a run with another {what} ({saved}) than the settings' \
         ({configured}): restore the settings, or begin a new run in another directory"
    )]
    OtherRun {
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

impl StoreError {
    pub(crate) fn damaged(file: impl Into<String>, problem: impl ToString) -> Self {
        Self::Damaged { file: file.into(), problem: problem.to_string() }
    }

    /// Gives a disk's error the name of what it was about. A file of the wrong length is damage.
    pub(crate) fn disk(action: &'static str, file: &str) -> impl Fn(io::Error) -> Self + use<> {
        let file = file.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::damaged(&file, source)
            }
            io::ErrorKind::NotFound => Self::damaged(&file, "it is missing"),
            _ => Self::Disk { action, file: file.clone(), source },
        }
    }
}

floret_store::from_redb!(StoreError);
