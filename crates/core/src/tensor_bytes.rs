//! Tensor bytes of safetensors files as f32 values.

use half::{bf16, f16};
use safetensors::Dtype;

/// The f32 values of little-endian `bytes` of an f32, f16 or bf16 tensor; `None` for other types.
#[must_use]
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
        }
        Dtype::F16 => Some(halves().map(|half| f16::from_le_bytes(*half).to_f32()).collect()),
        Dtype::BF16 => Some(halves().map(|half| bf16::from_le_bytes(*half).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_float_types_and_no_other() {
        assert_eq!(to_f32(Dtype::F32, &1.5f32.to_le_bytes()), Some(vec![1.5]));
        assert_eq!(to_f32(Dtype::F16, &f16::from_f32(-2.0).to_le_bytes()), Some(vec![-2.0]));
        assert_eq!(to_f32(Dtype::BF16, &bf16::from_f32(0.5).to_le_bytes()), Some(vec![0.5]));
        assert_eq!(to_f32(Dtype::I64, &[0; 8]), None);
    }
}
