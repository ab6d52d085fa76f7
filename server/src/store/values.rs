//! Files of f32 little-endian values.

use std::io::Write;
use std::path::Path;

use floret_core::Digest;

use super::StoreError;
use crate::files::{self, Access};

/// Values in one piece of a file that is written or hashed.
const PIECE: usize = 4096;

/// Writes `values`, and gives the digest of their bytes.
pub(super) fn write(path: &Path, values: &[f32]) -> Result<Digest, StoreError> {
    let mut hasher = blake3::Hasher::new();
    files::replace_with(path, Access::Shared, |file| {
        let mut piece = Vec::with_capacity(PIECE * size_of::<f32>());
        for chunk in values.chunks(PIECE) {
            piece.clear();
            piece.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&piece);
            file.write_all(&piece)?;
        }
        Ok(())
    })?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Reads `len` values and verifies the digest of their bytes.
pub(super) fn read(path: &Path, len: usize, digest: Digest) -> Result<Vec<f32>, StoreError> {
    let damaged = |problem| StoreError::Damaged { path: path.to_owned(), problem };
    let bytes = match files::read(path) {
        Err(error) if error.is_missing() => return Err(damaged("it is missing".to_owned())),
        bytes => bytes?,
    };
    if bytes.len() != len * size_of::<f32>() {
        let (got, want) = (bytes.len(), len * size_of::<f32>());
        return Err(damaged(format!("it has {got} bytes where {want} were written")));
    }
    if Digest::of(&bytes) != digest {
        return Err(damaged("its bytes are not those that were written".to_owned()));
    }
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
