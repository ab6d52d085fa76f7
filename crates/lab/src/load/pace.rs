//! How fast bytes may go over a slow link, in one direction.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A rate that is kept: after each piece comes the pause that it costs.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second.
    rate: u32,
    /// When the next piece may go.
    next: Instant,
    pause: Pin<Box<Sleep>>,
}

impl Pace {
    /// Must be made within a runtime with a clock.
    pub(super) fn new(rate: u32) -> Self {
        let next = Instant::now();
        Self { rate: rate.max(1), next, pause: Box::pin(sleep_until(next)) }
    }

    /// Waits until a piece may go, and tells its most bytes: what a tenth of a second carries.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        ready!(self.pause.as_mut().poll(cx));
        Poll::Ready((self.rate as usize / 10).max(1))
    }

    /// Notes that `bytes` went.
    pub(super) fn spend(&mut self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / f64::from(self.rate));
        self.next = self.next.max(Instant::now()) + cost;
        self.pause.as_mut().reset(self.next);
    }
}
