//! Tensors of a fixture's `reference.safetensors`.

use std::fs;
use std::path::{Path, PathBuf};

use floret_core::tensor_bytes::to_f32;
use safetensors::tensor::{Dtype, SafeTensors};

use super::{InvalidFixture, io};
use crate::tokens::Sequence;

/// The file's bytes, and the tensors that everything needs.
#[derive(Debug)]
pub(super) struct Reference {
    path: PathBuf,
    bytes: Vec<u8>,
    ids: Vec<u32>,
    length: usize,
    mask: Vec<bool>,
}

pub(super) fn wrong(path: &Path, problem: impl Into<String>) -> InvalidFixture {
    InvalidFixture::Reference { path: path.to_owned(), problem: problem.into() }
}

impl Reference {
    pub(super) fn open(path: &Path) -> Result<Self, InvalidFixture> {
        let bytes = fs::read(path).map_err(|source| io(path, source))?;
        let path = path.to_owned();
        let mut reference = Self { path, bytes, ids: vec![], length: 0, mask: vec![] };
        let (shape, mask) = reference.integers("attention_mask")?;
        reference.length = match *shape {
            [_, length] if length > 0 => length,
            _ => return Err(wrong(&reference.path, "attention_mask needs shape [batch, length]")),
        };
        reference.mask = mask.into_iter().map(|value| value == 1).collect();
        reference.ids = reference.ids("input_ids")?;
        if reference.ids.len() != reference.mask.len() {
            return Err(wrong(&reference.path, "input_ids is not of the shape of attention_mask"));
        }
        Ok(reference)
    }

    /// The token ids, row by row, padding included.
    pub(super) fn rows(&self) -> Vec<&[u32]> {
        self.ids.chunks(self.length).collect()
    }

    /// Whether each token is none of the padding.
    pub(super) fn mask(&self) -> impl Iterator<Item = bool> {
        self.mask.iter().copied()
    }

    /// The rows without padding, with the loss that `labels` ask for.
    pub(super) fn sequences(&self) -> Result<Vec<Sequence>, InvalidFixture> {
        let (_, labels) = self.integers("labels")?;
        let counted = |(&id, label): (&u32, &i64)| match *label {
            -100 => Ok((id, false)),
            label if label == i64::from(id) => Ok((id, true)),
            _ => Err(wrong(&self.path, "labels must be input_ids or -100")),
        };
        let all = self.ids.iter().zip(&labels).map(counted).collect::<Result<Vec<_>, _>>()?;
        let rows = all.chunks(self.length).zip(self.mask.chunks(self.length));
        rows.map(|(row, mask)| {
            let length = mask.iter().take_while(|counts| **counts).count();
            Sequence::new(row.iter().take(length).copied())
                .ok_or_else(|| wrong(&self.path, "labels ignore a whole row"))
        })
        .collect()
    }

    /// A tensor of token ids, row by row.
    pub(super) fn ids(&self, name: &str) -> Result<Vec<u32>, InvalidFixture> {
        let (_, values) = self.integers(name)?;
        let ids = values.into_iter().map(u32::try_from).collect::<Result<_, _>>();
        ids.map_err(|_| wrong(&self.path, format!("{name} holds what is no token id")))
    }

    /// A tensor of `len` float values.
    pub(super) fn floats(&self, name: &str, len: usize) -> Result<Vec<f32>, InvalidFixture> {
        let values = self.all_floats(name)?;
        if values.len() == len {
            return Ok(values);
        }
        let problem = format!("{name} has {} values where {len} are needed", values.len());
        Err(wrong(&self.path, problem))
    }

    /// A tensor of float values.
    pub(super) fn all_floats(&self, name: &str) -> Result<Vec<f32>, InvalidFixture> {
        let (_, dtype, bytes) = self.tensor(name)?;
        to_f32(dtype, bytes).ok_or_else(|| wrong(&self.path, format!("{name} is not of floats")))
    }

    fn integers(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>), InvalidFixture> {
        let (shape, dtype, bytes) = self.tensor(name)?;
        if dtype != Dtype::I64 {
            return Err(wrong(&self.path, format!("{name} is not of 64-bit integers")));
        }
        let words = bytes.as_chunks::<8>().0.iter();
        Ok((shape, words.map(|word| i64::from_le_bytes(*word)).collect()))
    }

    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Dtype, &[u8]), InvalidFixture> {
        let file = SafeTensors::deserialize(&self.bytes)
            .map_err(|error| wrong(&self.path, format!("it is not a safetensors file: {error}")))?;
        let view = file.tensor(name);
        let view = view.map_err(|_| wrong(&self.path, format!("tensor {name} is missing")))?;
        Ok((view.shape().to_vec(), view.dtype(), view.data()))
    }
}
