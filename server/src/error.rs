//! Why a command could not do its work.

use std::path::PathBuf;

use floret_core::lora::InvalidLora;

use crate::authority::AuthorityError;
use crate::config::ConfigError;
use crate::files::FileError;
use crate::model_dir::ModelError;
use crate::store::StoreError;
use crate::verify::VerifyError;

/// Why `init`, `enroll` or `export` could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Settings that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A base model that cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// LoRA settings that cannot be used.
    #[error("[lora] {0}")]
    Lora(#[from] InvalidLora),
    /// A certificate that cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// State that cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is there already.
    #[error("{} exists already: {hint}", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A key of the ledger that was damaged.
    #[error("{}: it is not 64 hexadecimal digits: restore it from a backup", .0.display())]
    LedgerKey(PathBuf),
    /// A ledger, or an adapter that it names, that does not hold.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
}
