//! Files of inputs: what mutation begins with, what once failed, and what fails now.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Target;

/// The folder of this package.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Inputs that mutation begins with.
#[must_use]
pub fn seeds_dir(target: &Target) -> PathBuf {
    root().join("corpus").join(target.name)
}

/// Inputs that once failed; a test replays them.
#[must_use]
pub fn regressions_dir(target: &Target) -> PathBuf {
    root().join("regressions").join(target.name)
}

/// Where inputs that fail are written; not part of the repository.
#[must_use]
pub fn crashes_dir() -> PathBuf {
    root().join("crashes")
}

/// The inputs of a folder in the order of their names; none if it is not there.
///
/// # Errors
/// A file that cannot be read.
pub fn read_dir(dir: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    paths.sort();
    paths.iter().map(fs::read).collect()
}

/// Writes the seeds of `target`. Files that are there stay as they are: their numbers in a run
/// would change otherwise.
///
/// # Errors
/// A file that cannot be written.
pub fn write_seeds(target: &Target) -> io::Result<usize> {
    let dir = seeds_dir(target);
    fs::create_dir_all(&dir)?;
    let mut written = 0;
    for (name, bytes) in (target.seeds)() {
        let path = dir.join(name);
        if !path.exists() {
            fs::write(path, bytes)?;
            written += 1;
        }
    }
    Ok(written)
}

/// Writes an input that fails, under a name that follows from its content.
///
/// # Errors
/// A file that cannot be written.
pub fn write_crash(target: &Target, input: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(crashes_dir())?;
    let digest = blake3::hash(input).to_hex();
    let path = crashes_dir().join(format!("{}-{}", target.name, &digest[..12]));
    fs::write(&path, input)?;
    Ok(path)
}
