//! How the matrices of a base model are held.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::ops::Matrix;

/// How the matrices of a base model are held. Norms, biases, adapters and all computing stay f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// Four bytes for each value.
    #[default]
    F32,
    /// One byte for each value and one f32 scale for each row, as in LLM.int8()'s row-wise absmax
    /// quantisation (Dettmers et al. 2022, arXiv 2208.07339, section 2), of weights alone.
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

/// A name that is no precision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a precision: use f32 or int8")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        match name {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(UnknownPrecision(name.to_owned())),
        }
    }
}

/// Rows of 8-bit integers, each with its scale.
#[derive(Debug, Default)]
pub(crate) struct Quantized {
    values: Vec<i8>,
    scales: Vec<f32>,
}

impl Quantized {
    /// Appends rows of `columns` values each: the largest of a row becomes 127 of its scales.
    pub(crate) fn append(&mut self, rows: &[f32], columns: usize) {
        self.values.reserve_exact(rows.len());
        for row in rows.chunks_exact(columns) {
            let largest = row.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let scale = largest / 127.0;
            let inverse = if scale.is_normal() { scale.recip() } else { 0.0 };
            self.values.extend(row.iter().map(|value| (value * inverse).round() as i8));
            self.scales.push(scale);
        }
    }

    /// The matrix \[rows, columns\] on `device`.
    pub(crate) fn into_matrix(self, columns: usize, device: &Device) -> Matrix {
        let rows = self.scales.len();
        let values = TensorData::new(self.values, [rows, columns]);
        Matrix::Int8 {
            values: Tensor::from_data(values, (device, DType::I8)),
            scales: Tensor::from_data(TensorData::new(self.scales, [rows, 1]), device),
        }
    }
}
