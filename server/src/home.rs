//! Where a server keeps its files.

use std::path::{Path, PathBuf};

/// A server's directory: the folder of its `server.toml`.
///
/// ```text
/// server.toml            settings
/// certificates/ca.pem    the run's own authority; every device holds a copy
/// certificates/server.pem
/// certificates/devices/  a copy of each device certificate that was issued
/// certificates/ledger.pub  public key of the ledger and of receipts; every device holds a copy
/// secrets/               private keys and the run's seed, readable by their owner alone
/// state/                 the run: see [`crate::store`]
/// state/incoming/        what came of uploads that broke; empty at each start
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    dir: PathBuf,
    config: PathBuf,
}

impl Home {
    /// Name of the settings file.
    pub const CONFIG: &str = "server.toml";

    /// The directory `path`, or that of the settings file `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        if path.is_file() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let dir = parent.unwrap_or(Path::new(".")).to_owned();
            return Self { dir, config: path.to_owned() };
        }
        Self { dir: path.to_owned(), config: path.join(Self::CONFIG) }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The settings file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Certificate of the run's authority.
    #[must_use]
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.join("certificates/ca.pem")
    }

    /// Private key of the run's authority.
    #[must_use]
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("secrets/ca.key")
    }

    /// The server's certificate.
    #[must_use]
    pub fn server_certificate(&self) -> PathBuf {
        self.dir.join("certificates/server.pem")
    }

    /// The server's private key.
    #[must_use]
    pub fn server_key(&self) -> PathBuf {
        self.dir.join("secrets/server.key")
    }

    /// Copies of the device certificates that were issued.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        self.dir.join("certificates/devices")
    }

    /// Secret key that signs the ledger and receipts.
    #[must_use]
    pub fn ledger_key(&self) -> PathBuf {
        self.dir.join("secrets/ledger.key")
    }

    /// Its public half.
    #[must_use]
    pub fn ledger_public_key(&self) -> PathBuf {
        self.dir.join("certificates/ledger.pub")
    }

    /// The run's seed, when `server.toml` does not fix one.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.dir.join("secrets/run.seed")
    }

    /// What came of uploads that broke.
    #[must_use]
    pub fn incoming(&self) -> PathBuf {
        self.state().join("incoming")
    }

    /// What outlives a restart.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }
}
