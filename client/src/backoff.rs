//! How long to wait before trying again: exponential, with full jitter, so that devices which lost
//! the same server do not return together.

use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use floret_core::seed::uniform_f32;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// Waiting times between failed tries.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    rng: ChaCha20Rng,
}

impl Backoff {
    /// No failure yet; `rng` gives the jitter.
    #[must_use]
    pub fn new(rng: ChaCha20Rng) -> Self {
        Self { failures: 0, rng }
    }

    /// A try succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// A try failed: how long to wait, and not less than `at_least` if the server named a time.
    pub fn failed(&mut self, at_least: Option<Duration>) -> Duration {
        let ceiling = LONGEST.min(FIRST * 2u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let floor = at_least.unwrap_or_default().min(LONGEST);
        self.draw(floor + ceiling / 10, floor + ceiling)
    }

    /// A moment of a window.
    pub fn draw(&mut self, earliest: Duration, latest: Duration) -> Duration {
        let width = latest.saturating_sub(earliest);
        earliest + width.mul_f32(uniform_f32(self.rng.next_u32()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floret_core::Seed;

    #[test]
    fn waits_grow_stay_bounded_and_start_over() {
        let mut backoff = Backoff::new(Seed::from_number(1).stream());
        let waits: Vec<Duration> = (0..40).map(|_| backoff.failed(None)).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 10);
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[20..].iter().any(|wait| *wait > LONGEST / 4));
        backoff.reset();
        assert!(backoff.failed(None) <= FIRST);
        let named = Duration::from_secs(9);
        assert!(backoff.failed(Some(named)) >= named);
        // A server that names an absurd time does not silence the device for good.
        assert!(backoff.failed(Some(Duration::MAX)) <= LONGEST * 2);
    }

    #[test]
    fn windows_are_kept() {
        let mut backoff = Backoff::new(Seed::from_number(2).stream());
        let (low, high) = (Duration::from_millis(100), Duration::from_millis(300));
        for _ in 0..100 {
            assert!((low..=high).contains(&backoff.draw(low, high)));
        }
        assert_eq!(backoff.draw(high, low), high);
    }
}
