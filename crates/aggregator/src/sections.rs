//! What a settings file says in place of a [`Mode`] and a [`Timing`]: a name, and seconds. Servers
//! and experiments are described by the same sections.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Timing;
use crate::mode::{BufferedConfig, Mode};

/// When a round closes; the section of that name has the settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeName {
    /// `[cohort]`.
    #[default]
    Synchronous,
    /// `[buffered]`.
    Buffered,
}

impl ModeName {
    /// The mode of this name, with these settings if its rounds are buffered.
    #[must_use]
    pub fn with(self, buffered: BufferedConfig) -> Mode {
        match self {
            Self::Synchronous => Mode::Synchronous,
            Self::Buffered => Mode::Buffered(buffered),
        }
    }
}

/// Deadlines and retry windows, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingSection {
    /// From the opening of a synchronous round, or from a buffered assignment, to its deadline.
    pub report_deadline_s: f64,
    /// Earliest return of a device without work.
    pub retry_min_s: f64,
    /// Latest return of a device without work.
    pub retry_max_s: f64,
}

impl Default for TimingSection {
    fn default() -> Self {
        Self { report_deadline_s: 600.0, retry_min_s: 1.0, retry_max_s: 5.0 }
    }
}

impl TimingSection {
    /// The same as durations. One that no duration can be is zero, which
    /// [`crate::RunConfig::validate`] refuses.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Timing {
            report_deadline: seconds(self.report_deadline_s),
            retry_min: seconds(self.retry_min_s),
            retry_max: seconds(self.retry_max_s),
        }
    }
}
