//! One device under load: the client's own driver, over a link to which things happen.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use floret_client::{
    Backoff, Call, CallError, ClientConfig, Connection, Credentials, Device, DriverError, Event,
};
use floret_core::seed::Purpose;
use floret_core::{ClientId, Receipt, Round};
use floret_device::Session;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;
use super::link::{Damage, Link};
use super::mishap::{Fault, Nature};
use super::tally::describe;

/// Longest time that a device which vanished stays away.
const ABSENCE: Duration = Duration::from_secs(2);
/// What a handshake may take while others shake hands too.
const HANDSHAKE: Duration = Duration::from_millis(100);
/// Tries of a report that is sent once more: its connection may be lost meanwhile.
const REPEAT_TRIES: u32 = 3;

/// A device, through all its lives.
pub(super) struct LoadDevice {
    fleet: Arc<Fleet>,
    name: ClientId,
    config: ClientConfig,
    credentials: Credentials,
    link: Link,
    slow: bool,
    state: Mutex<State>,
}

struct State {
    nature: Nature,
    /// Ends this life.
    life: CancellationToken,
    /// Held until the first call of a life is done, or for [`HANDSHAKE`].
    door: Option<OwnedSemaphorePermit>,
    /// The mishap that explains errors until it has struck and a call succeeds.
    excuse: Option<&'static str>,
    /// Connections that the link had when the last call ended.
    opened: u64,
    /// The last round of which it dropped out: once in a round is enough.
    dropped_out: Option<Round>,
    /// The last round whose report was damaged: the next try goes through.
    damaged: Option<Round>,
    /// How long it stays away when it vanishes.
    absence: Duration,
}

impl LoadDevice {
    /// The device that `config` describes.
    pub(super) fn new(fleet: Arc<Fleet>, config: ClientConfig) -> Result<Self> {
        let credentials = Credentials::read(&config.ca, &config.certificate, &config.key)?;
        let (name, nature) = (config.name.clone(), fleet.mishaps.nature(&config.name));
        let (slow, link) = (nature.slow, fleet.link(nature.slow));
        let state = State {
            nature,
            life: CancellationToken::new(),
            door: None,
            excuse: None,
            opened: 0,
            dropped_out: None,
            damaged: None,
            absence: Duration::ZERO,
        };
        Ok(Self { fleet, name, config, credentials, link, slow, state: Mutex::new(state) })
    }

    /// Takes part until the run is over, vanishing and coming back on the way.
    pub(super) async fn live(self: Arc<Self>) {
        let stop = &self.fleet.stop;
        loop {
            let Ok(door) = Arc::clone(&self.fleet.doors).acquire_owned().await else { return };
            let life = self.begin_life(door);
            self.fleet.repeats.spawn(Arc::clone(&self).open_door());
            let ended = match self.driver() {
                Ok(driver) => driver.run(life).await,
                Err(error) => {
                    return self.fleet.tally.error("not set up", &error.to_string(), None);
                }
            };
            self.link.hang_up();
            match ended {
                Ok(_) => return,
                Err(DriverError::Stopped) if stop.is_cancelled() => return,
                Err(DriverError::Stopped) => {}
                // Whatever happens to its link, a device goes on.
                Err(error) => return self.fleet.tally.error("gave up", &error.to_string(), None),
            }
            tokio::time::sleep(self.end_life()).await;
        }
    }

    fn begin_life(&self, door: OwnedSemaphorePermit) -> CancellationToken {
        let mut state = self.lock();
        state.life = self.fleet.stop.child_token();
        state.door = Some(door);
        state.life.clone()
    }

    /// Lets the next device in: a check-in may wait at the server for long.
    async fn open_door(self: Arc<Self>) {
        tokio::time::sleep(HANDSHAKE).await;
        self.lock().door = None;
    }

    /// How long it stays away.
    fn end_life(&self) -> Duration {
        let mut state = self.lock();
        state.door = None;
        state.absence
    }

    /// The client's driver for one life.
    fn driver(self: &Arc<Self>) -> Result<Device> {
        let (link, fleet) = (self.link.clone(), &self.fleet);
        let (of_calls, of_events) = (Arc::clone(self), Arc::clone(self));
        let (server, credentials) = (&self.config.server, &self.credentials);
        let connection = Connection::dialed(server, credentials, move || link.dial())?;
        let unwatched = connection.clone();
        let connection = connection.watched(move |call| of_calls.called(call));
        let limits = self.config.limits.clone();
        let session = Session::new(self.name.clone(), fleet.model.clone(), limits);
        let seed = fleet.seed.derive(Purpose::RetryJitter, Round(0), Some(&self.name));
        let (trainer, backoff) = (fleet.trainer.clone(), Backoff::new(seed.stream()));
        let watch = move |event| of_events.happened(&event, &unwatched);
        Ok(Device::new(session, connection, trainer, backoff, watch))
    }

    /// Hears of a call that ended.
    fn called(&self, call: &Call<'_>) {
        let (tally, opened) = (&self.fleet.tally, self.link.opened());
        let mut state = self.lock();
        state.door = None;
        let connecting = std::mem::replace(&mut state.opened, opened) != opened;
        match call.error {
            None => {
                // What waits for its byte will break a later call.
                if !self.link.is_armed() {
                    state.excuse = None;
                }
                tally.answered(call.kind, call.lasted, connecting);
            }
            Some(error) => {
                let excuse = state.excuse.or_else(|| self.slowness(error));
                tally.error(&describe(call.kind, error), &error.to_string(), excuse);
            }
        }
        if state.nature.churns() {
            state.excuse = Some("churn");
            tally.mishap("churn");
            self.link.hang_up();
        }
    }

    /// What slow links explain: their own errors, and that others wait for them.
    fn slowness(&self, error: &CallError) -> Option<&'static str> {
        let put_off = matches!(error, CallError::Unavailable { after: Some(_), .. });
        let others = put_off && self.fleet.mishaps.some_are_slow();
        (self.slow || others).then_some("slow links")
    }

    /// Hears what the device does.
    fn happened(self: &Arc<Self>, event: &Event, connection: &Connection) {
        let tally = &self.fleet.tally;
        match event {
            Event::Assigned { round, .. } => {
                if tally.assigned(*round) {
                    self.fleet.moments.first_assignment();
                }
                self.drop_out(*round);
            }
            Event::Reporting { round, bytes } => self.damage(*round, *bytes),
            Event::Counted(receipt) => {
                tally.receipt(&self.name, receipt.round);
                let fate = self.fleet.mishaps.fate(receipt.round, &self.name);
                if fate.fault == Some(Fault::Repeat) {
                    let again = Arc::clone(self).repeat(connection.clone(), receipt.clone());
                    self.fleet.repeats.spawn(again);
                }
            }
            Event::NotCounted { round, reason } => {
                let fate = self.fleet.mishaps.fate(*round, &self.name);
                let excuse = match fate.drops_out || fate.fault.is_some() {
                    true => Some("mishap in the round"),
                    false => self.slow.then_some("slow links"),
                };
                tally.error("update not counted", reason, excuse);
            }
            Event::Ended(_) => {
                if tally.told(&self.name) {
                    self.fleet.moments.end();
                }
            }
            Event::NoLastAdapter { reason } => tally.error("no last adapter", reason, None),
            Event::Retrying { .. } | Event::Adapter { .. } | Event::Training { .. } => {}
        }
    }

    /// Vanishes from a round, if that is its fate.
    fn drop_out(&self, round: Round) {
        let fate = self.fleet.mishaps.fate(round, &self.name);
        let mut state = self.lock();
        if fate.drops_out && state.dropped_out != Some(round) {
            state.dropped_out = Some(round);
            state.excuse = Some("drop-out");
            state.absence = ABSENCE.mul_f32(fate.absence);
            state.life.cancel();
            self.fleet.tally.mishap("drop-out");
        }
    }

    /// Damages a report of `bytes` that is about to be sent, if that is its fate.
    fn damage(&self, round: Round, bytes: usize) {
        let fate = self.fleet.mishaps.fate(round, &self.name);
        let at = 1 + (fate.at as f64 * bytes as f64) as u64;
        let (kind, damage) = match fate.fault {
            Some(Fault::Cut) => ("cut", Damage::Cut(at)),
            Some(Fault::Flip) => ("flip", Damage::Flip(at)),
            Some(Fault::Repeat) | None => return,
        };
        let mut state = self.lock();
        if state.damaged.replace(round) != Some(round) {
            state.excuse = Some(kind);
            self.fleet.tally.mishap(kind);
            self.link.arm(damage);
        }
    }

    /// Sends the update that `receipt` is for once more: it must get the same receipt.
    async fn repeat(self: Arc<Self>, mut connection: Connection, receipt: Receipt) {
        let tally = &self.fleet.tally;
        let Some(update) = self.fleet.kept.take(&self.name, receipt.round) else { return };
        tally.mishap("repeat");
        for tries_left in (0..REPEAT_TRIES).rev() {
            match connection.report(&update).await {
                Ok(again) if again.receipt == receipt => return,
                Ok(_) => return tally.error("another receipt", "for the same report", None),
                Err(CallError::Refused { code, .. })
                    if ["unknown-round", "run-ended"].contains(&code.as_str()) =>
                {
                    let excuse = Some("two rounds later");
                    return tally.error("repeat refused", &code, excuse);
                }
                Err(CallError::Unavailable { .. }) if tries_left > 0 => {}
                Err(error) => {
                    let excuse = self.lock().excuse.or_else(|| self.slowness(&error));
                    return tally.error("repeat failed", &error.to_string(), excuse);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
