//! What LoRA adapts and how strongly (Hu et al. 2021, arXiv 2106.09685, section 4.1).

use serde::{Deserialize, Serialize};

/// A linear map of a transformer block that LoRA may adapt, by its Hugging Face name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetModule {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Output of attention.
    OProj,
    /// Gate of the feed-forward layer.
    GateProj,
    /// Up projection of the feed-forward layer.
    UpProj,
    /// Down projection of the feed-forward layer.
    DownProj,
}

impl TargetModule {
    /// Every target, in the order of a block's forward pass.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The name in a checkpoint, such as `q_proj`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The name within a block, such as `self_attn.q_proj`.
    #[must_use]
    pub fn path(self) -> String {
        let parent = match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
        };
        format!("{parent}.{}", self.name())
    }

    /// The target of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }
}

/// Settings of a LoRA adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank r of the factors A \[r, in\] and B \[out, r\].
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Scale by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732, theorem 3.2) instead of alpha / rank.
    pub use_rslora: bool,
    /// The linear maps that get an adapter, in every block.
    pub target_modules: Vec<TargetModule>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = vec![TargetModule::QProj, TargetModule::VProj];
        Self { rank: 8, alpha: 16.0, use_rslora: false, target_modules }
    }
}

impl LoraConfig {
    /// Largest rank that is accepted.
    pub const RANK_MAX: usize = 1024;

    /// The factor on B A x.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn validate(&self) -> Result<(), InvalidLora> {
        if !(1..=Self::RANK_MAX).contains(&self.rank) {
            return Err(InvalidLora::Rank(self.rank));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(InvalidLora::Alpha(self.alpha));
        }
        if self.target_modules.is_empty() {
            return Err(InvalidLora::NoTarget);
        }
        let mut seen = self.target_modules.clone();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(InvalidLora::Repeated(pair[0].name())),
            None => Ok(()),
        }
    }
}

/// A LoRA setting that is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidLora {
    /// Rank zero or too large.
    #[error("LoRA rank is {0}: use 1 to {max}", max = LoraConfig::RANK_MAX)]
    Rank(usize),
    /// Alpha that is not a positive number.
    #[error("LoRA alpha is {0}: use a positive number")]
    Alpha(f32),
    /// Nothing to adapt.
    #[error("LoRA target_modules is empty: name at least one, such as \"q_proj\"")]
    NoTarget,
    /// The same target twice.
    #[error("LoRA target_modules names {0:?} twice: name each once")]
    Repeated(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LoraConfig {
        LoraConfig {
            rank: 4,
            alpha: 8.0,
            use_rslora: false,
            target_modules: vec![TargetModule::QProj, TargetModule::VProj],
        }
    }

    #[test]
    fn scale_is_alpha_over_rank_or_its_root() {
        assert_eq!(config().scale(), 2.0);
        assert_eq!(LoraConfig { use_rslora: true, ..config() }.scale(), 4.0);
    }

    #[test]
    fn each_bad_field_is_named() {
        use TargetModule::QProj;
        assert!(config().validate().is_ok());
        let bad = [
            (LoraConfig { rank: 0, ..config() }, "rank"),
            (LoraConfig { rank: 5000, ..config() }, "rank"),
            (LoraConfig { alpha: f32::NAN, ..config() }, "alpha"),
            (LoraConfig { target_modules: vec![], ..config() }, "empty"),
            (LoraConfig { target_modules: vec![QProj, QProj], ..config() }, "q_proj"),
        ];
        for (config, word) in bad {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
