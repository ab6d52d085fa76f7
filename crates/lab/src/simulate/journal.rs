//! What took long to compute, so that a run that was broken off is done again without it.
//!
//! A simulation is a function of its experiment: done again from the beginning, it asks for the same
//! results. Those that the journal holds are taken from there, and the rest is computed and added. So
//! whatever is in flight at a crash, devices that are late or buffered work included, needs no form on
//! disk. Each entry is handed to the operating system before it is used.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use floret_core::Digest;

/// Largest part of an entry, in bytes: a longer one is damage.
const PART_MAX: u64 = 1 << 40;

/// Results by their keys.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Where the entries of an earlier run begin.
    old: BTreeMap<Vec<u8>, u64>,
    /// Whether the last result came from there.
    recalls: bool,
}

impl Journal {
    /// Opens the journal at `path`, which may not be there yet, of the work that is known as `work`.
    ///
    /// # Errors
    /// The disk fails, or it is of other work.
    pub(super) fn open(path: &Path, work: &[u8]) -> Result<Self> {
        let opening = || format!("cannot open {}", path.display());
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path);
        let file = file.with_context(opening)?;
        let mut reader = BufReader::new(file.try_clone().with_context(opening)?);
        let (mut old, mut end) = (BTreeMap::new(), 0);
        while let Some([key, value]) = read_entry(&mut reader) {
            let known = end > 0 || key == work;
            ensure!(known, "{} is the journal of another program: remove it", path.display());
            let begins = end;
            end += entry(&key, &value).len() as u64;
            old.insert(key, begins);
        }
        let mut journal = Self { path: path.to_owned(), file, old, recalls: false };
        // Behind the last may be an entry that was being written when the run was broken off.
        journal.file.set_len(end).with_context(|| journal.failed())?;
        if journal.old.is_empty() {
            journal.add(work, &[])?;
        }
        Ok(journal)
    }

    /// The result of `key`: an entry, or what `compute` gives, which becomes one.
    ///
    /// # Errors
    /// The disk or `compute` fails.
    pub(super) fn result(
        &mut self,
        key: &[u8],
        compute: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        if let Some(value) = self.old_result(key)? {
            return Ok(value);
        }
        let value = compute()?;
        self.add(key, &value)?;
        Ok(value)
    }

    /// The result of `key`, if an earlier run had it.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn old_result(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(begins) = self.old.get(key) else { return Ok(None) };
        let reading = || format!("cannot read {}", self.path.display());
        self.file.seek(SeekFrom::Start(*begins)).with_context(reading)?;
        let [_, value] = read_entry(&mut self.file).with_context(reading)?;
        self.recalls = true;
        Ok(Some(value))
    }

    /// Adds the result of `key`, which no earlier run had.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.recalls = false;
        let mut write = || {
            self.file.seek(SeekFrom::End(0))?;
            self.file.write_all(&entry(key, value))
        };
        write().with_context(|| self.failed())
    }

    /// Whether results still come from an earlier run.
    pub(super) fn is_old(&self) -> bool {
        self.recalls
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
        let open = || Journal::open(&path, b"work").unwrap();
        let want = ask(&mut open(), &keys, &mut computed);
        assert_eq!(computed, keys);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut computed = Vec::new();
            assert_eq!(ask(&mut open(), &keys, &mut computed), want, "{length}");
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{length}");
            let rest = whole.len() - length;
            assert_eq!(computed.is_empty(), rest == 0, "{length}: {computed:?}");
        }
        // In another order, too.
        let mut computed = Vec::new();
        let mut reversed = ask(&mut open(), &["ccc", "bb", "a"], &mut computed);
        reversed.reverse();
        assert_eq!((reversed, computed.len()), (want, 0));
        let error = Journal::open(&path, b"other work").unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_damaged_entry_is_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let open = || Journal::open(&path, b"work").unwrap();
        let want = ask(&mut open(), &["a", "b"], &mut Vec::new());
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut computed = Vec::new();
        assert_eq!(ask(&mut open(), &["a", "b"], &mut computed), want);
        assert_eq!(computed, ["b"]);
    }
}
