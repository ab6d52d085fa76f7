//! The order and shapes of an adapter's tensors in its flat vector.

use std::ops::Range;

use crate::id::Digest;
use crate::lora::{InvalidLora, LoraConfig, TargetModule};
use crate::model_config::ModelConfig;

/// Which LoRA factor a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Factor {
    /// A, of shape \[rank, in\].
    A,
    /// B, of shape \[out, rank\].
    B,
}

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in `adapter_model.safetensors`.
    pub name: String,
    /// Block that it belongs to.
    pub layer: usize,
    /// Linear map that it adapts.
    pub target: TargetModule,
    /// A or B.
    pub factor: Factor,
    /// Rows and columns, row-major: \[rank, in\] for A, \[out, rank\] for B.
    pub shape: [usize; 2],
    /// Where its first value lies in the flat vector.
    pub offset: usize,
}

impl TensorSpec {
    /// Its values in the flat vector.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape[0] * self.shape[1]
    }

    /// Number of rank components: rows of A, columns of B.
    #[must_use]
    pub fn rank(&self) -> usize {
        match self.factor {
            Factor::A => self.shape[0],
            Factor::B => self.shape[1],
        }
    }

    /// The rank component of its value at `index`, row-major.
    #[must_use]
    pub fn component(&self, index: usize) -> usize {
        match self.factor {
            Factor::A => index / self.shape[1],
            Factor::B => index % self.shape[1],
        }
    }
}

/// PEFT tensor names in sorted order, their shapes, and a digest of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    len: usize,
    digest: Digest,
}

impl Layout {
    /// The layout of an adapter with settings `lora` for a model of shape `model`.
    ///
    /// # Errors
    /// Settings that [`LoraConfig::validate`] refuses.
    pub fn new(model: &ModelConfig, lora: &LoraConfig) -> Result<Self, InvalidLora> {
        lora.validate()?;
        let mut tensors = Vec::with_capacity(model.num_layers * lora.target_modules.len() * 2);
        for layer in 0..model.num_layers {
            for &target in &lora.target_modules {
                let [out, input] = model.linear_shape(target);
                for factor in [Factor::A, Factor::B] {
                    let (letter, shape) = match factor {
                        Factor::A => ("A", [lora.rank, input]),
                        Factor::B => ("B", [out, lora.rank]),
                    };
                    let path = target.path();
                    let name = format!(
                        "base_model.model.model.layers.{layer}.{path}.lora_{letter}.weight"
                    );
                    tensors.push(TensorSpec { name, layer, target, factor, shape, offset: 0 });
                }
            }
        }
        tensors.sort_by(|x, y| x.name.cmp(&y.name));
        let mut len = 0;
        let mut hasher = blake3::Hasher::new();
        for tensor in &mut tensors {
            tensor.offset = len;
            len += tensor.shape[0] * tensor.shape[1];
            hasher.update(format!("{} {:?}\n", tensor.name, tensor.shape).as_bytes());
        }
        Ok(Self { tensors, len, digest: Digest(*hasher.finalize().as_bytes()) })
    }

    /// The tensors, in the order of the flat vector.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// A and B of each linear map that is adapted: in sorted order they follow one another.
    pub fn pairs(&self) -> impl Iterator<Item = &[TensorSpec; 2]> {
        self.tensors.as_chunks::<2>().0.iter()
    }

    /// Number of rank components, of every tensor.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.tensors.first().map_or(0, TensorSpec::rank)
    }

    /// Number of values in the flat vector.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a layout always holds a tensor")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Size of the flat vector in f32, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len * size_of::<f32>()
    }

    /// Digest over names and shapes in order.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_of_one_linear_map_each() {
        let model = ModelConfig::from_json(
            r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
                "vocab_size": 16, "num_hidden_layers": 11, "num_attention_heads": 2}"#,
        )
        .unwrap();
        let target_modules = TargetModule::ALL.to_vec();
        let layout = Layout::new(&model, &LoraConfig { target_modules, ..LoraConfig::default() });
        let layout = layout.unwrap();
        assert_eq!(layout.pairs().count(), 11 * 7);
        for [a, b] in layout.pairs() {
            assert_eq!((a.layer, a.target, a.factor), (b.layer, b.target, Factor::A));
            assert_eq!((b.factor, b.rank()), (Factor::B, a.rank()));
        }
    }
}
