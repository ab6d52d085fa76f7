//! What a store needs of a disk.

use std::fmt::Debug;
use std::io;

/// Files by name. A name may have one folder, as in `blobs/adapter-1`.
///
/// What was written is durable once the file is synced, and a file's existence (or absence) once
/// its folder is.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing; creates it (and its folder) if it is not there.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// `NotFound`, or whatever the operating system says.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Names of the files in `folder`, in no order; `""` for those in none.
    ///
    /// # Errors
    /// Whatever the operating system says; a folder that is not there is empty.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name in its folder, in the place of whatever has that name.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes durable which files a folder has.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Its length, in bytes.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end, or whatever the operating system says.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`; the file grows as needed.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts the file, or grows it with zeros.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn sync(&self) -> io::Result<()>;
}
