//! How long a transfer may take: as long as its bytes move.

use std::time::Duration;

use tokio::time::Instant;

/// The rule for every transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Longest silence.
    pub(crate) stall: Duration,
    /// Least rate, once that time has passed.
    pub(crate) min_bytes_per_s: u32,
}

/// One transfer, from its first byte on.
#[derive(Debug)]
pub(crate) struct Pace {
    patience: Patience,
    began: Instant,
    last: Instant,
    moved: u64,
}

impl Patience {
    /// A transfer begins now.
    pub(crate) fn begin(self) -> Pace {
        let now = Instant::now();
        Pace { patience: self, began: now, last: now, moved: 0 }
    }
}

impl Pace {
    /// Bytes moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.last = Instant::now();
        self.moved += bytes as u64;
    }

    /// When the transfer has been silent for too long, or has trickled.
    pub(crate) fn deadline(&self) -> Instant {
        let Patience { stall, min_bytes_per_s } = self.patience;
        let earned = Duration::from_secs_f64(self.moved as f64 / f64::from(min_bytes_per_s));
        (self.last + stall).min(self.began + stall + earned)
    }

    /// Since its beginning.
    pub(crate) fn lasted(&self) -> Duration {
        self.began.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// How long a transfer lasts that moves `bytes` at each `pause`, for at most a minute.
    async fn lasts(bytes: usize, pause: Duration) -> Duration {
        let stall = Duration::from_secs(4);
        let mut pace = Patience { stall, min_bytes_per_s: 100 }.begin();
        while pace.lasted() < Duration::from_secs(60) {
            let next = Instant::now() + pause;
            if pace.deadline() < next {
                return pace.deadline() - pace.began;
            }
            advance(pause).await;
            pace.moved(bytes);
        }
        pace.lasted()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_steady_lasts_and_silence_or_a_trickle_does_not() {
        let second = Duration::from_secs(1);
        assert_eq!(lasts(100, second).await, 60 * second);
        assert_eq!(lasts(400, 4 * second).await, 60 * second);
        // A byte now and then is too little.
        assert!(lasts(1, second).await <= 5 * second);
        assert!(lasts(50, second).await <= 8 * second);
        // What went fast before buys no silence.
        assert_eq!(lasts(1 << 20, 5 * second).await, 4 * second);
    }
}
