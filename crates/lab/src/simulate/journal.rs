//! What took long to compute, so that a run that was broken off is done again without it.
//!
//! A simulation is a function of its experiment: done again from the beginning, it asks for the same
//! results in the same order. Those that the journal holds are taken from there, and the rest is
//! computed and added. So whatever is in flight at a crash, devices that are late or buffered work
//! included, needs no form on disk. Each entry is on disk before it is used.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use floret_core::Digest;

/// Largest part of an entry, in bytes: a longer one is damage.
const PART_MAX: u64 = 1 << 40;

/// Results in the order in which they were asked for.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// What is left to be read; none once everything was.
    old: Option<BufReader<File>>,
    /// Where the next entry begins.
    end: u64,
    file: File,
}

impl Journal {
    /// Opens the journal at `path`, which may not be there yet.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opening = || format!("cannot open {}", path.display());
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path);
        let file = file.with_context(opening)?;
        let old = BufReader::new(file.try_clone().with_context(opening)?);
        Ok(Self { path: path.to_owned(), old: Some(old), end: 0, file })
    }

    /// The result of `key`: the next entry, or what `compute` gives, which becomes one.
    ///
    /// # Errors
    /// The disk fails, the next entry is of another key, or `compute` fails.
    pub(super) fn result(
        &mut self,
        key: &[u8],
        compute: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        if let Some(old) = &mut self.old {
            if let Some([found, value]) = read_entry(old) {
                let path = self.path.display();
                ensure!(found == key, "{path} is the journal of another program: remove it");
                self.end += entry(key, &value).len() as u64;
                return Ok(value);
            }
            // The end, or an entry that was being written when the run was broken off.
            self.old = None;
            self.file.set_len(self.end).with_context(|| self.failed())?;
            self.file.seek(SeekFrom::Start(self.end)).with_context(|| self.failed())?;
        }
        let value = compute()?;
        self.file.write_all(&entry(key, &value)).with_context(|| self.failed())?;
        Ok(value)
    }

    /// Whether results still come from an earlier run.
    pub(super) fn is_old(&self) -> bool {
        self.old.is_some()
    }

    fn failed(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

/// Two lengths, two parts, and a digest of those.
fn entry(key: &[u8], value: &[u8]) -> Vec<u8> {
    let lengths = [key.len() as u64, value.len() as u64].map(u64::to_le_bytes).concat();
    let mut bytes = [&lengths, key, value].concat();
    bytes.extend(Digest::of(&bytes).0);
    bytes
}

fn read_entry(from: &mut impl Read) -> Option<[Vec<u8>; 2]> {
    let mut length = || {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes)).filter(|length| *length <= PART_MAX)
    };
    let lengths = [length()?, length()?];
    let mut part = |length: u64| {
        let mut bytes = Vec::new();
        let read = from.by_ref().take(length).read_to_end(&mut bytes).ok()?;
        (read as u64 == length).then_some(bytes)
    };
    let [key, value, digest] = [part(lengths[0])?, part(lengths[1])?, part(32)?];
    entry(&key, &value).ends_with(&digest).then_some([key, value])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(journal: &mut Journal, keys: &[&str], computed: &mut Vec<String>) -> Vec<Vec<u8>> {
        let mut result = |key: &&str| {
            let compute = || {
                computed.push((*key).to_owned());
                Ok(format!("result of {key}").into_bytes())
            };
            journal.result(key.as_bytes(), compute).unwrap()
        };
        keys.iter().map(&mut result).collect()
    }

    /// A journal that is cut at any byte gives what is whole, and goes on with the rest.
    #[test]
    fn whatever_was_written_is_not_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let keys = ["a", "bb", "ccc"];
        let mut computed = Vec::new();
        let want = ask(&mut Journal::open(&path).unwrap(), &keys, &mut computed);
        assert_eq!(computed, keys);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut computed = Vec::new();
            let mut journal = Journal::open(&path).unwrap();
            assert_eq!(ask(&mut journal, &keys, &mut computed), want, "{length}");
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{length}");
            let rest = whole.len() - length;
            assert_eq!(computed.is_empty(), rest == 0, "{length}: {computed:?}");
        }
        let mut journal = Journal::open(&path).unwrap();
        let error = journal.result(b"other", || Ok(Vec::new())).unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error}");
    }

    #[test]
    fn a_damaged_entry_is_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let want = ask(&mut Journal::open(&path).unwrap(), &["a", "b"], &mut Vec::new());
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut computed = Vec::new();
        assert_eq!(ask(&mut Journal::open(&path).unwrap(), &["a", "b"], &mut computed), want);
        assert_eq!(computed, ["b"]);
    }
}
