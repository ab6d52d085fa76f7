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

    /// For each of its values, in order, what `of_components` has for the rank component of it.
    #[must_use]
    pub fn spread<T: Copy>(&self, of_components: &[T]) -> Vec<T> {
        let [rows, columns] = self.shape;
        match self.factor {
            Factor::A => {
                let mut values = Vec::with_capacity(rows * columns);
                for of_component in of_components {
                    values.resize(values.len() + columns, *of_component);
                }
                values
            }
            Factor::B => of_components.repeat(rows),
        }
    }

    /// For each rank component, what `fold` makes of its values in order, beginning with `first`.
    pub fn fold<T: Copy>(&self, values: &[f32], first: T, fold: impl Fn(T, f32) -> T) -> Vec<T> {
        let mut folded = vec![first; self.rank()];
        for (row, values) in values.chunks_exact(self.shape[1]).enumerate() {
            match self.factor {
                Factor::A => {
                    folded[row] = values.iter().fold(first, |so_far, value| fold(so_far, *value));
                }
                Factor::B => {
                    for (folded, value) in folded.iter_mut().zip(values) {
                        *folded = fold(*folded, *value);
                    }
                }
            }
        }
        folded
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

    #[test]
    fn components_are_rows_of_a_and_columns_of_b() {
        let spec = |factor, shape| TensorSpec {
            name: String::new(),
            layer: 0,
            target: TargetModule::QProj,
            factor,
            shape,
            offset: 0,
        };
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let a = spec(Factor::A, [2, 3]);
        assert_eq!(a.spread(&['x', 'y']), ['x', 'x', 'x', 'y', 'y', 'y']);
        assert_eq!(a.fold(&values, 0.5, |sum, value| sum + value), [6.5, 15.5]);
        let b = spec(Factor::B, [3, 2]);
        assert_eq!(b.spread(&['x', 'y']), ['x', 'y', 'x', 'y', 'x', 'y']);
        assert_eq!(b.fold(&values, 0.5, |sum, value| sum + value), [9.5, 12.5]);
    }
}
