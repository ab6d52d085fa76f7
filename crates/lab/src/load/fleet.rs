//! What all devices share.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use floret_client::TrainingThread;
use floret_core::Seed;
use floret_device::LocalModel;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Args;
use super::base::Base;
use super::link::{Link, Meter};
use super::mishap::Mishaps;
use super::tally::Tally;
use super::trainer::{Kept, NoiseTrainer};
use crate::usage::Usage;

/// Devices that open their first connection at once: more, and handshakes take too long.
const DOORS: usize = 64;

/// What all devices share.
pub(super) struct Fleet {
    /// What a plan is compared with.
    pub(super) model: LocalModel,
    pub(super) seed: Seed,
    pub(super) mishaps: Mishaps,
    pub(super) trainer: TrainingThread,
    /// Updates that are sent once more.
    pub(super) kept: Kept,
    pub(super) repeats: TaskTracker,
    pub(super) doors: Arc<Semaphore>,
    pub(super) tally: Tally,
    pub(super) moments: Moments,
    pub(super) meter: Arc<Meter>,
    /// Sends every device home.
    pub(super) stop: CancellationToken,
    server: SocketAddr,
    /// Bytes a second of a slow link.
    slow_rate: u32,
}

impl Fleet {
    /// A fleet for the server at `server`, whose process is `pid`.
    pub(super) fn new(args: &Args, base: &Base, server: SocketAddr, pid: u32) -> Result<Self> {
        let seed = Seed::from_number(args.seed);
        let mishaps = Mishaps::new(seed.clone(), args.chances());
        let kept = Kept::default();
        let trainer = NoiseTrainer::new(base.parameters, &seed, mishaps.clone(), kept.clone());
        let trainer = TrainingThread::spawn(trainer).context("no thread to train on")?;
        Ok(Self {
            model: base.local.clone(),
            seed,
            mishaps,
            trainer,
            kept,
            repeats: TaskTracker::new(),
            doors: Arc::new(Semaphore::new(DOORS)),
            tally: Tally::default(),
            moments: Moments::begin(pid)?,
            meter: Arc::default(),
            stop: CancellationToken::new(),
            server,
            slow_rate: args.slow_rate,
        })
    }

    /// A way to the server.
    pub(super) fn link(&self, slow: bool) -> Link {
        Link::new(self.server, slow.then_some(self.slow_rate), Arc::clone(&self.meter))
    }
}

/// What the two processes had used at the moments that matter.
#[derive(Debug)]
pub(super) struct Moments {
    server: u32,
    /// Before any device was there.
    pub(super) start: Both,
    first_assignment: OnceLock<Both>,
    end: OnceLock<Both>,
}

/// What the server's process and this one used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Both {
    pub(super) server: Usage,
    pub(super) client: Usage,
}

impl Both {
    fn of(server: u32) -> Result<Self> {
        Ok(Self { server: Usage::of(server)?, client: Usage::of(std::process::id())? })
    }
}

impl Moments {
    fn begin(server: u32) -> Result<Self> {
        let start = Both::of(server)?;
        Ok(Self { server, start, first_assignment: OnceLock::new(), end: OnceLock::new() })
    }

    /// A first device is assigned.
    pub(super) fn first_assignment(&self) {
        self.note(&self.first_assignment);
    }

    /// A first device heard that the run is over, or nobody will.
    pub(super) fn end(&self) {
        self.note(&self.end);
    }

    fn note(&self, moment: &OnceLock<Both>) {
        // A server that is gone is noticed elsewhere.
        if let Ok(both) = Both::of(self.server) {
            let _ = moment.set(both);
        }
    }

    /// At the first assignment, or at the start if there was none.
    pub(super) fn at_first_assignment(&self) -> Both {
        self.first_assignment.get().copied().unwrap_or(self.start)
    }

    /// At the end, or at the first assignment if there was none.
    pub(super) fn at_end(&self) -> Both {
        self.end.get().copied().unwrap_or_else(|| self.at_first_assignment())
    }
}
