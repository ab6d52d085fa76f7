//! Which part of an adapter a client trains in a round.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::id::Version;
use crate::layout::{Factor, Layout};

/// Which factor stays as it is, so that the mean of factors is the mean of their products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// Both train.
    #[default]
    None,
    /// A stays as it began (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313, section 4).
    A,
    /// Versions take turns (RoLoRA, Chen et al. 2025, arXiv 2502.01755, algorithm 1): B trains from even
    /// ones, first of all since A has no gradient while B is zero, and A from odd ones.
    Alternate,
}

impl Freeze {
    /// Whether nothing is frozen.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// The factor that stays as it is in training that starts from `version`.
    #[must_use]
    pub fn frozen(self, version: Version) -> Option<Factor> {
        match self {
            Self::None => None,
            Self::A => Some(Factor::A),
            Self::Alternate if version.0.is_multiple_of(2) => Some(Factor::A),
            Self::Alternate => Some(Factor::B),
        }
    }
}

/// The part of an adapter that trains: of each factor that is not frozen the first rank components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The factor that stays as it is.
    pub frozen: Option<Factor>,
    /// Rank components that train: rows of A, columns of B.
    pub rank: usize,
}

impl Scope {
    /// Places of the flat vector that do not train, in order.
    #[must_use]
    pub fn outside(&self, layout: &Layout) -> Vec<Range<usize>> {
        let mut places = Vec::new();
        for tensor in layout.tensors() {
            let ([rows, columns], Range { start, end }) = (tensor.shape, tensor.range());
            let rank = self.rank.min(tensor.rank());
            match tensor.factor {
                factor if self.frozen == Some(factor) => places.push(start..end),
                _ if rank == tensor.rank() => {}
                Factor::A => places.push(start + rank * columns..end),
                Factor::B => places.extend((0..rows).map(|row| {
                    let row = start + row * columns;
                    row + rank..row + columns
                })),
            }
        }
        places
    }

    /// Whether a delta changes nothing outside.
    #[must_use]
    pub fn holds(&self, layout: &Layout, delta: &[f32]) -> bool {
        let unchanged = |places: Range<usize>| delta[places].iter().all(|value| *value == 0.0);
        self.outside(layout).into_iter().all(unchanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoraConfig, ModelConfig};

    fn layout() -> Layout {
        let model = ModelConfig::from_json(
            r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "vocab_size": 16,
                "num_hidden_layers": 2, "num_attention_heads": 2}"#,
        );
        let lora = LoraConfig { rank: 3, ..LoraConfig::default() };
        Layout::new(&model.unwrap(), &lora).unwrap()
    }

    #[test]
    fn outside_is_what_factor_and_rank_leave_out() {
        let layout = layout();
        for frozen in [None, Some(Factor::A), Some(Factor::B)] {
            for rank in 0..=4 {
                let scope = Scope { frozen, rank };
                let mut want = vec![false; layout.len()];
                for tensor in layout.tensors() {
                    let beyond: Vec<bool> = (0..tensor.rank()).map(|at| at >= rank).collect();
                    for (place, beyond) in tensor.range().zip(tensor.spread(&beyond)) {
                        want[place] = frozen == Some(tensor.factor) || beyond;
                    }
                }
                let mut got = vec![false; layout.len()];
                for places in scope.outside(&layout) {
                    got[places].fill(true);
                }
                assert_eq!(got, want, "{scope:?}");
                for (place, outside) in want.into_iter().enumerate() {
                    let mut delta = vec![0.0; layout.len()];
                    assert!(scope.holds(&layout, &delta));
                    delta[place] = 0.5;
                    assert_eq!(scope.holds(&layout, &delta), !outside, "{scope:?}, {place}");
                }
            }
        }
    }

    #[test]
    fn factors_take_turns_and_b_is_first() {
        let frozen = |freeze: Freeze| [0, 1, 2, 3].map(|version| freeze.frozen(Version(version)));
        let (a, b) = (Some(Factor::A), Some(Factor::B));
        assert_eq!(frozen(Freeze::None), [None; 4]);
        assert_eq!(frozen(Freeze::A), [a; 4]);
        assert_eq!(frozen(Freeze::Alternate), [a, b, a, b]);
    }
}
