//! Check-ins that wait for their turn: a device that would be told to come back is held here until a
//! round opens or closes, so that it neither asks again and again nor learns of it late.

use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::{Input, Reply};
use floret_core::ClientId;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Service;
use super::refusal::Refusal;
use crate::driver::Turn;
use crate::metrics::Metrics;

/// Most check-ins that ask the driver at once when the run turns.
const ASKING: usize = 64;
/// Most check-ins that wait: of more devices, the others come back by themselves, spread over time.
const WAITING: usize = 256;

/// Where check-ins wait.
#[derive(Debug)]
pub(crate) struct Turnstile {
    turns: watch::Receiver<Turn>,
    /// All who wait are woken at once, and must not fill the driver's queue.
    asking: Semaphore,
    places: Semaphore,
    shutdown: CancellationToken,
    /// Longest wait.
    patience: Duration,
    metrics: Arc<Metrics>,
}

/// A check-in that waits, until it is dropped.
struct Waiting<'a>(&'a Metrics);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.check_ins_waiting.dec();
    }
}

impl Turnstile {
    /// Holds check-ins for `patience` at most; `queue_length` calls may wait for the driver.
    pub(crate) fn new(
        turns: watch::Receiver<Turn>,
        queue_length: usize,
        patience: Duration,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> Self {
        let asking = Semaphore::new((queue_length / 2).clamp(1, ASKING));
        let places = Semaphore::new(WAITING);
        Self { turns, asking, places, shutdown, patience, metrics }
    }

    /// Waits until the run has turned since `seen`; false if it has not by `until`, or will not.
    async fn turned(&self, seen: Turn, until: Instant) -> bool {
        let Ok(_place) = self.places.try_acquire() else { return false };
        self.metrics.check_ins_waiting.inc();
        let _waiting = Waiting(&self.metrics);
        let mut turns = self.turns.clone();
        tokio::select! {
            turned = timeout_at(until, turns.wait_for(|now| *now != seen)) => matches!(turned, Ok(Ok(_))),
            () = self.shutdown.cancelled() => false,
        }
    }
}

impl Service {
    /// Asks for work. A client that must come back is held for as long as it would stay away at least,
    /// and asks again whenever a round opens or closes meanwhile.
    pub(super) async fn find_work(&self, client: &ClientId) -> Result<Reply, Refusal> {
        let begun = Instant::now();
        let mut asking = None;
        loop {
            let seen = *self.turnstile.turns.borrow();
            let reply = self.ask(client.clone(), Input::CheckIn, None).await?;
            drop(asking);
            let Reply::ComeBack { earliest, latest } = reply else { return Ok(reply) };
            let until = begun + earliest.min(self.turnstile.patience);
            if !self.turnstile.turned(seen, until).await {
                let waited = begun.elapsed();
                let left = earliest.saturating_sub(waited);
                // It has waited its time here: it asks again at once.
                let latest = if left.is_zero() { left } else { latest.saturating_sub(waited) };
                return Ok(Reply::ComeBack { earliest: left, latest });
            }
            asking = self.turnstile.asking.acquire().await.ok();
        }
    }
}
