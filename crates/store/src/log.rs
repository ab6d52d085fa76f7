//! Files that grow at their end: many appends share one sync.

use std::io;

use crate::disk::{Disk, DiskFile};

/// A file that is appended to.
#[derive(Debug)]
pub struct Log {
    file: Box<dyn DiskFile>,
    len: u64,
}

impl Log {
    /// Opens a log of which `len` bytes count; whatever a crash left behind them is cut off.
    ///
    /// # Errors
    /// A file shorter than that (`UnexpectedEof`), or whatever the disk says.
    pub fn open(disk: &dyn Disk, folder: &str, name: &str, len: u64) -> io::Result<Self> {
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let file = disk.create(&path)?;
        let got = file.len()?;
        if got < len {
            let problem = format!("it has {got} bytes where {len} were written");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        if got > len {
            file.set_len(len)?;
        }
        disk.sync_folder(folder)?;
        Ok(Self { file, len })
    }

    /// Appends bytes, which are durable after [`Log::sync`]; gives their offset.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.len;
        self.file.write(offset, bytes)?;
        self.len += bytes.len() as u64;
        Ok(offset)
    }

    /// Makes durable what was appended.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `len` bytes from `offset` on.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}
