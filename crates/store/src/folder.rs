//! A folder of the operating system, held by one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskFile};

/// Name of the file that is locked while a folder is held.
const LOCK: &str = "lock";

/// A folder that this process holds alone until it is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

/// Why a folder cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum Locked {
    /// Another process holds it.
    #[error("another process holds it")]
    ByAnother,
    /// It cannot be made or locked.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Folder {
    /// Makes the folder if it is not there, and holds it.
    ///
    /// # Errors
    /// Another process holds it, or the operating system refuses.
    pub fn hold(path: &Path) -> Result<Self, Locked> {
        fs::create_dir_all(path)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Locked::ByAnother),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    fn folder(&self, folder: &str) -> PathBuf {
        if folder.is_empty() { self.path.clone() } else { self.path.join(folder) }
    }
}

impl Disk for Folder {
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path.join(name);
        match open(&path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.path))?;
                // The new folder must outlive a crash too.
                File::open(&self.path)?.sync_all()?;
                open(&path, true)
            }
            file => file,
        }
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        open(&self.path.join(name), false)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        list(&self.folder(folder))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        match File::open(self.folder(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            folder => folder?.sync_all(),
        }
    }
}

/// A folder that is only read, whoever holds it.
#[derive(Debug, Clone)]
pub struct ReadFolder(PathBuf);

impl ReadFolder {
    /// Reads the folder at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Disk for ReadFolder {
    fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FolderFile(File::open(self.0.join(name))?)))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        list(&self.0.join(folder))
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_folder(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn open(path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(create).truncate(false).open(path)?;
    Ok(Box::new(FolderFile(file)))
}

#[derive(Debug)]
struct FolderFile(File);

impl DiskFile for FolderFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder_and_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let folder = Folder::hold(&path).unwrap();
        assert!(matches!(Folder::hold(&path), Err(Locked::ByAnother)));
        assert!(folder.open("blobs/a").is_err());
        let file = folder.create("blobs/a").unwrap();
        file.write(3, b"xyz").unwrap();
        file.sync().unwrap();
        folder.sync_folder("blobs").unwrap();
        let mut bytes = [9; 6];
        folder.open("blobs/a").unwrap().read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0xyz");
        assert_eq!(folder.list("blobs").unwrap(), ["a"]);
        assert!(folder.list("nothing").unwrap().is_empty());
        folder.remove("blobs/a").unwrap();
        folder.remove("blobs/a").unwrap();
        assert!(folder.list("blobs").unwrap().is_empty());
        drop(folder);
        Folder::hold(&path).unwrap();
    }
}
