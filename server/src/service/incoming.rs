//! What came of uploads that broke: the bytes wait in files until the device goes on with them.
//!
//! A device has one upload at a time. What it sent before is set aside when it begins another or asks
//! where it stands, even if the server has not noticed yet that the old connection is gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use floret_core::{ClientId, Digest, Round};
use floret_proto::convert::ReportHeader;
use floret_proto::gather::{BrokenReport, ReportGather};
use floret_proto::v1;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Which update an upload brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) client: ClientId,
    pub(crate) round: Round,
    pub(crate) payload_digest: Digest,
}

/// Bounds on what is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) uploads: usize,
    pub(crate) bytes: u64,
}

/// The uploads of all devices that are not done.
#[derive(Debug)]
pub(crate) struct Incoming {
    dir: PathBuf,
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: BTreeMap<ClientId, Kept>,
    running: BTreeMap<ClientId, Running>,
    /// The round that is open: bytes of others are worth nothing.
    round: Option<Round>,
    /// Names files, and tells which was kept first.
    count: u64,
}

#[derive(Debug)]
struct Kept {
    key: Key,
    bytes: usize,
    number: u64,
}

#[derive(Debug, Clone)]
struct Running {
    key: Key,
    gather: Shared,
    superseded: CancellationToken,
}

/// The bytes of an upload that runs; none once they are set aside.
type Shared = Arc<Mutex<Option<ReportGather>>>;

/// An upload that runs. Dropping it keeps what came.
#[derive(Debug)]
pub(crate) struct Upload {
    incoming: Arc<Incoming>,
    running: Running,
}

impl Incoming {
    /// Keeps bytes in `dir`. Those of an earlier start are gone.
    pub(crate) fn open(dir: PathBuf, bounds: Bounds) -> io::Result<Self> {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&dir)?,
        }
        Ok(Self { dir, bounds, state: Mutex::default() })
    }

    /// Begins an upload at the header's offset, with what was kept before it. Another of the same
    /// device was set aside before.
    pub(crate) fn begin(
        self: &Arc<Self>,
        client: ClientId,
        header: &ReportHeader,
    ) -> Result<Upload, BrokenReport> {
        let key = Key { client, round: header.round, payload_digest: header.payload_digest };
        let mut state = self.lock();
        let kept = match state.kept.remove(&key.client) {
            Some(kept) => self.take(kept, &key, header.offset > 0),
            None => Vec::new(),
        };
        let gather = Arc::new(Mutex::new(Some(ReportGather::new(header, kept)?)));
        let running = Running { key: key.clone(), gather, superseded: CancellationToken::new() };
        state.running.insert(key.client, running.clone());
        drop(state);
        Ok(Upload { incoming: Arc::clone(self), running })
    }

    /// How many bytes of an update are kept.
    pub(crate) fn received(&self, key: &Key) -> usize {
        self.set_aside(&key.client);
        let state = self.lock();
        let kept = state.kept.get(&key.client).filter(|kept| kept.key == *key);
        kept.map_or(0, |kept| kept.bytes)
    }

    /// Keeps bytes of an update that cannot be decided now.
    pub(crate) fn keep(&self, key: Key, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some(before) = state.kept.remove(&key.client) {
            self.remove(&before);
        }
        let fits = self.bounds.uploads > 0 && bytes.len() as u64 <= self.bounds.bytes;
        if bytes.is_empty() || !fits || state.round != Some(key.round) {
            return;
        }
        let total = |state: &State| state.kept.values().map(|kept| kept.bytes as u64).sum::<u64>();
        while state.kept.len() >= self.bounds.uploads
            || total(&state) + bytes.len() as u64 > self.bounds.bytes
        {
            let oldest = state.kept.values().min_by_key(|kept| kept.number);
            let Some(client) = oldest.map(|kept| kept.key.client.clone()) else { break };
            state.kept.remove(&client).iter().for_each(|kept| self.remove(kept));
        }
        state.count += 1;
        let kept = Kept { key, bytes: bytes.len(), number: state.count };
        match fs::write(self.path(&kept), bytes) {
            Ok(()) => {
                state.kept.insert(kept.key.client.clone(), kept);
            }
            // The device sends the whole again.
            Err(error) => warn!(%error, "what came of a broken upload cannot be kept"),
        }
    }

    /// From now on `round` is open, and bytes of others are forgotten.
    pub(crate) fn round_is(&self, round: Option<Round>) {
        let mut state = self.lock();
        if state.round == round {
            return;
        }
        state.round = round;
        state.kept.retain(|_, kept| {
            let stays = Some(kept.key.round) == round;
            if !stays {
                self.remove(kept);
            }
            stays
        });
    }

    /// Ends the upload of `client` that runs, and keeps its bytes.
    pub(crate) fn set_aside(&self, client: &ClientId) {
        let running = self.lock().running.remove(client);
        if let Some(running) = running {
            running.superseded.cancel();
            self.keep_rest(&running);
        }
    }

    fn keep_rest(&self, running: &Running) {
        if let Some(gather) = lock(&running.gather).take() {
            self.keep(running.key.clone(), &gather.into_received());
        }
    }

    /// The bytes of `kept`, if they are wanted and another update has not taken its place.
    fn take(&self, kept: Kept, key: &Key, wanted: bool) -> Vec<u8> {
        let bytes = match wanted && kept.key == *key {
            true => fs::read(self.path(&kept)).unwrap_or_default(),
            false => Vec::new(),
        };
        self.remove(&kept);
        bytes
    }

    fn remove(&self, kept: &Kept) {
        if let Err(error) = fs::remove_file(self.path(kept)) {
            warn!(%error, "a part of an upload cannot be removed");
        }
    }

    fn path(&self, kept: &Kept) -> PathBuf {
        self.dir.join(format!("{}.part", kept.number))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Upload {
    /// Takes the next chunk.
    pub(crate) fn push(&self, chunk: &v1::ReportChunk) -> Result<(), BrokenReport> {
        match lock(&self.running.gather).as_mut() {
            Some(gather) => gather.push(chunk),
            // Its device has begun another: nobody reads the answer.
            None => Ok(()),
        }
    }

    /// Waits until the device has begun another upload or asked where it stands.
    pub(crate) async fn superseded(&self) {
        self.running.superseded.cancelled().await;
    }

    /// Keeps nothing of it.
    pub(crate) fn discard(self) {
        lock(&self.running.gather).take();
    }

    /// The payload, of which nothing is kept any more; none if it was set aside. One that is too short
    /// is kept: a call that its device gave up ends like this.
    pub(crate) fn finish(self) -> Option<Result<Vec<u8>, BrokenReport>> {
        let mut gather = lock(&self.running.gather);
        if let Err(short) = gather.as_ref()?.check() {
            return Some(Err(short));
        }
        gather.take().map(|gather| Ok(gather.into_received()))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut state = self.incoming.lock();
        let mine = state.running.get(&self.running.key.client);
        if mine.is_some_and(|running| Arc::ptr_eq(&running.gather, &self.running.gather)) {
            state.running.remove(&self.running.key.client);
        }
        drop(state);
        self.incoming.keep_rest(&self.running);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
