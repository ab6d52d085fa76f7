//! Whole files: written once under a name that nothing refers to yet, and read.

use std::io;

use crate::disk::Disk;

/// Writes a file and makes it durable. What a crash left under that name is overwritten.
///
/// # Errors
/// Whatever the disk says.
pub fn write(disk: &dyn Disk, folder: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let file = disk.create(&format!("{folder}/{name}"))?;
    file.set_len(bytes.len() as u64)?;
    file.write(0, bytes)?;
    file.sync()?;
    disk.sync_folder(folder)
}

/// Reads a file of exactly `len` bytes.
///
/// # Errors
/// Another length (`InvalidData`), or whatever the disk says.
pub fn read(disk: &dyn Disk, folder: &str, name: &str, len: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(&format!("{folder}/{name}"))?;
    let got = file.len()?;
    if got != len as u64 {
        let problem = format!("it has {got} bytes where {len} were written");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let mut bytes = vec![0; len];
    file.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Reads a file as long as it is. `name` includes its folder.
///
/// # Errors
/// Whatever the disk says.
pub fn read_all(disk: &dyn Disk, name: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read(0, &mut bytes)?;
    Ok(bytes)
}
