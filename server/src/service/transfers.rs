//! What is in flight at once, bounded in bytes and in number; whoever finds no room waits, and is then
//! told when to come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::refusal::Refusal;

/// Bytes are counted in units of this many, so that a semaphore can count any memory.
const UNIT: usize = 1024;
/// What a device that finds no room is told, at least and at most.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Room for transfers.
#[derive(Debug)]
pub(crate) struct Transfers {
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    units: u32,
    queue: Queue,
    patience: Duration,
}

/// Room that a transfer has taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _count: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Transfers {
    /// At most `count` transfers of at most `bytes` together; nobody waits longer than `patience`.
    pub(crate) fn new(count: usize, bytes: usize, patience: Duration) -> Self {
        let units = units(bytes);
        Self {
            count: Arc::new(Semaphore::new(count)),
            bytes: Arc::new(Semaphore::new(units as usize)),
            units,
            queue: Queue::default(),
            patience,
        }
    }

    /// Waits for room for `bytes`. A transfer larger than all room gets it alone.
    pub(super) async fn room(&self, bytes: usize) -> Result<Room, Refusal> {
        let waiting = self.queue.wait();
        let wanted = units(bytes).min(self.units);
        let room = async {
            let count = Arc::clone(&self.count).acquire_owned().await?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(wanted).await?;
            Ok::<_, tokio::sync::AcquireError>(Room { _count: count, _bytes: bytes })
        };
        match timeout(self.patience, room).await {
            Ok(Ok(room)) => {
                waiting.served();
                Ok(room)
            }
            Ok(Err(_)) => Err(Refusal::Stopped),
            Err(_) => Err(self.busy()),
        }
    }

    /// Whether anyone waits for room.
    pub(super) fn are_awaited(&self) -> bool {
        self.queue.waiting.load(Ordering::Relaxed) > 0
    }

    /// The answer to a transfer that must come back.
    pub(super) fn busy(&self) -> Refusal {
        Refusal::Busy(self.queue.retry_after())
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

/// How many wait, and how fast they are served.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: AtomicUsize,
    pace: Mutex<QueuePace>,
}

#[derive(Debug, Default)]
struct QueuePace {
    /// When someone was served last while others waited.
    last: Option<Instant>,
    /// Typical time from one to the next.
    interval: Duration,
}

/// One that waits, until it is dropped.
pub(crate) struct Waiting<'a>(&'a Queue);

impl Queue {
    pub(crate) fn wait(&self) -> Waiting<'_> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.lock().last = Some(Instant::now());
        }
        Waiting(self)
    }

    /// How long it takes to serve those who wait now, at the rate of late.
    pub(crate) fn retry_after(&self) -> Duration {
        let waiting = u32::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let pace = self.lock();
        let silent = pace.last.map_or(Duration::ZERO, |last| last.elapsed());
        let [least, most] = RETRY_AFTER;
        pace.interval.max(silent).saturating_mul(waiting).clamp(least, most)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, QueuePace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// Its turn has come.
    pub(crate) fn served(self) {
        let now = Instant::now();
        let mut pace = self.0.lock();
        if let Some(last) = pace.last.replace(now) {
            pace.interval = (pace.interval * 7 + (now - last)) / 8;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_to_come_back_follows_the_load() {
        let queue = Queue::default();
        assert_eq!(queue.retry_after(), Duration::from_secs(1));
        let mut waiting: Vec<_> = (0..20).map(|_| queue.wait()).collect();
        // One every 2 s.
        for _ in 0..10 {
            advance(Duration::from_secs(2)).await;
            waiting.pop().unwrap().served();
        }
        let long = queue.retry_after();
        assert!((10..=20).contains(&long.as_secs()), "{long:?}");
        waiting.truncate(2);
        let short = queue.retry_after();
        assert!(short < long / 3, "{short:?} of {long:?}");
        // Nobody is served any more.
        advance(Duration::from_secs(1000)).await;
        assert_eq!(queue.retry_after(), Duration::from_secs(60));
        waiting.clear();
        assert_eq!(queue.retry_after(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_bounded_in_bytes_and_in_number() {
        let transfers = Transfers::new(3, 10_000 * UNIT, Duration::from_secs(5));
        let large = transfers.room(9_000 * UNIT).await.unwrap();
        let small = transfers.room(900 * UNIT).await.unwrap();
        // No room in bytes; then too many.
        let full = transfers.room(200 * UNIT).await.unwrap_err();
        assert!(matches!(full, Refusal::Busy(after) if after >= Duration::from_secs(1)), "{full}");
        let _third = transfers.room(50 * UNIT).await.unwrap();
        assert!(matches!(transfers.room(1).await, Err(Refusal::Busy(_))));
        drop((large, small));
        // Larger than all there is: alone.
        drop(_third);
        let _alone = transfers.room(1 << 40).await.unwrap();
        assert!(matches!(transfers.room(1).await, Err(Refusal::Busy(_))));
    }
}
