//! One safetensors file, read tensor by tensor; its header is checked before anything else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use floret_core::Digest;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::checkpoint::InvalidCheckpoint;

/// Largest header that is read, as in the safetensors format: 100 MB.
const HEADER_MAX: u64 = 100_000_000;

/// A file whose header was checked: every tensor lies within it.
#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFile {
    /// Reads and checks the header of the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or is truncated.
    pub(crate) fn open(path: PathBuf) -> Result<Self, InvalidCheckpoint> {
        let file = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = file.map_err(|error| unreadable(&path, error))?;
        Self::from_reader(path, file, length)
    }

    /// Reads and checks the header of the `length` bytes in `file`, which lies at `path`.
    ///
    /// # Errors
    /// Bytes that cannot be read, are no safetensors file, or are truncated.
    pub(crate) fn from_reader(
        path: PathBuf,
        file: impl Read,
        length: u64,
    ) -> Result<Self, InvalidCheckpoint> {
        let (header, data_start) = read_header(&path, file, length)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| bad(&path, format!("its header is not valid: {error}")))?;
        let data_length = length - data_start;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let tensor = |problem: String| InvalidCheckpoint::Tensor {
                path: path.clone(),
                name: name.clone(),
                problem,
            };
            if byte_size(info) != end.checked_sub(start) {
                return Err(tensor("has a size that does not fit its shape and type".to_owned()));
            }
            if end as u64 > data_length {
                let problem = "lies beyond the end of the file, which is truncated: copy it again";
                return Err(tensor(problem.to_owned()));
            }
            tensors.insert(name, info.clone());
        }
        Ok(Self { path, data_start, tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors, by name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The bytes of a tensor of this file.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub(crate) fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, InvalidCheckpoint> {
        let (start, end) = info.data_offsets;
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.data_start + start as u64))?;
            let mut bytes = vec![0; end - start];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| unreadable(&self.path, error))
    }
}

/// Digest of a whole file, read in pieces.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn digest(path: &Path) -> Result<Digest, InvalidCheckpoint> {
    let read = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(Digest(*hasher.finalize().as_bytes()))
    };
    read().map_err(|error| unreadable(path, error))
}

pub(crate) fn unreadable(path: &Path, source: io::Error) -> InvalidCheckpoint {
    InvalidCheckpoint::Unreadable { path: path.to_owned(), source }
}

fn bad(path: &Path, problem: impl Into<String>) -> InvalidCheckpoint {
    InvalidCheckpoint::File { path: path.to_owned(), problem: problem.into() }
}

/// The header's JSON, and where the tensor bytes begin.
fn read_header(
    path: &Path,
    mut file: impl Read,
    length: u64,
) -> Result<(Vec<u8>, u64), InvalidCheckpoint> {
    let io = |error| unreadable(path, error);
    let mut size = [0; 8];
    if length < size.len() as u64 {
        return Err(bad(path, "it is too short for a safetensors file: copy it again"));
    }
    file.read_exact(&mut size).map_err(io)?;
    let header_length = u64::from_le_bytes(size);
    if header_length > HEADER_MAX {
        return Err(bad(path, "it is not a safetensors file: its header would be over 100 MB"));
    }
    let data_start = size.len() as u64 + header_length;
    if data_start > length {
        return Err(bad(path, "it ends within its header, so it is truncated: copy it again"));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(io)?;
    Ok((header, data_start))
}

fn byte_size(info: &TensorInfo) -> Option<usize> {
    let values = info.shape.iter().try_fold(1usize, |size, &dim| size.checked_mul(dim))?;
    Some(values.checked_mul(info.dtype.bitsize())? / 8)
}
