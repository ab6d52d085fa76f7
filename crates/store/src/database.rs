//! redb over a disk's file.

use std::io;

use redb::{Builder, Database, DatabaseError, StorageBackend};

use crate::disk::{Disk, DiskFile};

/// Memory that the database keeps pages in, in bytes.
const CACHE: usize = 4 << 20;

/// Opens the database in file `name`, and makes an empty one if there is none. Its commits sync the
/// file; one that a crash cut short is as if it had never begun.
///
/// # Errors
/// A file that cannot be read, or that is no database.
pub fn open_database(disk: &dyn Disk, name: &str) -> Result<Database, DatabaseError> {
    let file = match disk.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_empty(disk, name)?;
            disk.open(name)?
        }
        file => file?,
    };
    Builder::new().set_cache_size(CACHE).create_with_backend(Backend(file))
}

/// Makes an empty database under another name first: one that a crash left half made must not be
/// taken for one that was damaged.
fn make_empty(disk: &dyn Disk, name: &str) -> Result<(), DatabaseError> {
    let unfinished = format!("{name}.new");
    let file = disk.create(&unfinished)?;
    file.set_len(0)?;
    drop(Builder::new().create_with_backend(Backend(file))?);
    disk.sync_folder("")?;
    disk.rename(&unfinished, name)?;
    Ok(disk.sync_folder("")?)
}

/// Lets `?` make of each of redb's errors one of a type that is `From<redb::Error>`.
#[macro_export]
macro_rules! from_redb {
    ($into:ty) => {
        $crate::from_redb!($into: DatabaseError TransactionError TableError StorageError CommitError);
    };
    ($into:ty: $($error:ident)*) => {
        $(impl From<redb::$error> for $into {
            fn from(error: redb::$error) -> Self {
                redb::Error::from(error).into()
            }
        })*
    };
}

#[derive(Debug)]
struct Backend(Box<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
