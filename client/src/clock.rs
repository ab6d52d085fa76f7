//! Time for a session, which passes while the device sleeps.

use std::time::{Duration, Instant, SystemTime};

use floret_core::Time;

/// A clock that starts at zero and never goes back. The system's steady clock may stand still while the
/// device sleeps, and its wall clock may be set: whichever went further since the last look counts.
#[derive(Debug)]
pub(crate) struct Clock {
    steady: Instant,
    wall: SystemTime,
    passed: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now(), passed: Duration::ZERO }
    }

    pub(crate) fn now(&mut self) -> Time {
        self.look(Instant::now(), SystemTime::now())
    }

    fn look(&mut self, steady: Instant, wall: SystemTime) -> Time {
        let by_wall = wall.duration_since(self.wall).unwrap_or_default();
        self.passed += by_wall.max(steady.saturating_duration_since(self.steady));
        (self.steady, self.wall) = (steady, wall);
        Time::default().after(self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_counts_and_a_clock_that_is_set_back_does_not() {
        let second = Duration::from_secs(1);
        let mut clock = Clock::start();
        let (steady, wall) = (clock.steady, clock.wall);
        assert_eq!(clock.look(steady + second, wall + second), Time(1000));
        // An hour asleep.
        assert_eq!(clock.look(steady + 2 * second, wall + 3601 * second), Time(3_601_000));
        // Somebody sets the wall clock back; time goes on.
        assert_eq!(clock.look(steady + 3 * second, wall), Time(3_602_000));
        assert_eq!(clock.look(steady + 4 * second, wall + second), Time(3_603_000));
    }
}
