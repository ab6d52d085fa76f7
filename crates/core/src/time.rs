//! Time as a value: the rules below never read a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment, in milliseconds since an origin that the shell chooses.
///
/// It is never sent: deadlines cross the wire as durations.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// This moment plus `duration`, in whole milliseconds.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }

    /// How long until `later`; zero if that has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_and_subtracts_without_wrapping() {
        let noon = Time(1_000);
        assert_eq!(noon.after(Duration::from_millis(5)), Time(1_005));
        assert_eq!(noon.until(Time(1_250)), Duration::from_millis(250));
        assert_eq!(noon.until(Time(1)), Duration::ZERO);
        assert_eq!(Time(u64::MAX).after(Duration::MAX), Time(u64::MAX));
    }
}
