//! When a round closes: synchronous, or buffered (FedBuff, Nguyen et al. 2022, arXiv 2106.06639).

use serde::{Deserialize, Serialize};

/// When a round closes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A cohort is drawn, and all its members start from the same version.
    #[default]
    Synchronous,
    /// Clients start whenever they come; each so many updates make a version.
    Buffered(BufferedConfig),
}

/// Settings of buffered rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BufferedConfig {
    /// K: updates that make a version.
    pub buffer: u32,
    /// Versions that an update may be behind.
    pub max_staleness: u32,
    /// Clients that may be at work at once.
    pub concurrency: u32,
}

impl BufferedConfig {
    /// Largest `max_staleness`.
    pub const STALENESS_MAX: u32 = 10_000;

    /// By what the sum of a buffer is divided: by K x 2^16 (FedBuff, algorithm 1), so that stale updates
    /// move the adapter less.
    #[must_use]
    pub fn divisor(&self) -> u64 {
        u64::from(self.buffer) * u64::from(FRESH_WEIGHT)
    }
}

impl Default for BufferedConfig {
    fn default() -> Self {
        Self { buffer: 10, max_staleness: 20, concurrency: 32 }
    }
}

/// The weight of an update that is not stale.
pub const FRESH_WEIGHT: u32 = 1 << 16;

/// round(2^16 / sqrt(1 + staleness)): the polynomial (1 + staleness)^-a with a = 1/2, which FedBuff
/// takes over from FedAsync (Xie et al. 2019, arXiv 1903.03934), as a whole number.
#[must_use]
pub fn staleness_weight(staleness: u64) -> u32 {
    // With x = 2^17 / sqrt(1 + staleness), that is floor((floor(x) + 1) / 2).
    let doubled = ((1u64 << 34) / staleness.saturating_add(1)).isqrt();
    doubled.div_ceil(2) as u32
}

impl Mode {
    /// Whether a cohort is drawn for each round.
    #[must_use]
    pub fn is_synchronous(&self) -> bool {
        matches!(self, Self::Synchronous)
    }

    /// The settings of buffered rounds, if the rounds are buffered.
    #[must_use]
    pub fn buffered(&self) -> Option<BufferedConfig> {
        match self {
            Self::Synchronous => None,
            Self::Buffered(config) => Some(*config),
        }
    }

    /// Its name, as `server.toml` has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Synchronous => "synchronous",
            Self::Buffered(_) => "buffered",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_weights_are_the_nearest_whole_numbers() {
        // Computed with 50 decimal digits.
        let exact = [
            (0, 65536),
            (1, 46341),
            (2, 37837),
            (3, 32768),
            (4, 29309),
            (5, 26755),
            (6, 24770),
            (7, 23170),
            (8, 21845),
            (15, 16384),
            (20, 14301),
            (99, 6554),
            (1000, 2071),
        ];
        for (staleness, weight) in exact {
            assert_eq!(staleness_weight(staleness), weight, "staleness {staleness}");
        }
        assert_eq!((staleness_weight(u32::MAX.into()), staleness_weight(u64::MAX)), (1, 0));
    }

    /// w is nearest to x = 2^16 / sqrt(n) when 2w - 1 <= 2x < 2w + 1, squared to stay exact.
    #[test]
    fn no_whole_number_is_nearer() {
        for staleness in 0..200_000 {
            let (weight, n) = (u64::from(staleness_weight(staleness)), staleness + 1);
            assert!((2 * weight - 1).pow(2) * n <= 1 << 34, "staleness {staleness}");
            assert!((2 * weight + 1).pow(2) * n > 1 << 34, "staleness {staleness}");
        }
    }
}
