//! Payloads of a round, one after the other in one file: many reports share one sync. Each stands
//! behind its length, so that the file can be read without the database.

use std::collections::BTreeMap;

use floret_core::{ClientId, Payload, Round};
use floret_store::{Disk, Log};

use super::StoreError;

/// Folder of the rounds' files.
pub(crate) const UPDATES: &str = "updates";
/// Bytes of a length.
const PREFIX: usize = 4;

pub(crate) fn file(round: Round) -> String {
    format!("round-{:08}.updates", round.0)
}

/// The payloads of one round.
#[derive(Debug)]
pub(super) struct Updates {
    pub(super) round: Round,
    /// Where each client's payload ends.
    pub(super) ends: BTreeMap<ClientId, u64>,
    log: Log,
}

impl Updates {
    /// Opens the file of `round`, of which `len` bytes count.
    pub(super) fn open(disk: &dyn Disk, round: Round, len: u64) -> Result<Self, StoreError> {
        let log = Log::open(disk, UPDATES, &file(round), len)
            .map_err(StoreError::disk("open", &file(round)))?;
        Ok(Self { round, ends: BTreeMap::new(), log })
    }

    /// Opens the file of a round whose updates are to be read.
    pub(super) fn reopen(disk: &dyn Disk, round: Round) -> Result<Self, StoreError> {
        let name = file(round);
        let failed = StoreError::disk("open", &name);
        let found = disk.open(&format!("{UPDATES}/{name}")).map_err(&failed)?;
        let len = found.len().map_err(&failed)?;
        Self::open(disk, round, len)
    }

    /// Appends a client's payload; gives the length of the file with it.
    pub(super) fn append(
        &mut self,
        client: &ClientId,
        payload: &Payload,
    ) -> Result<u64, StoreError> {
        let bytes = payload.bytes();
        let failed = StoreError::disk("write", &file(self.round));
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.log.append(&len.to_le_bytes()).map_err(&failed)?;
        self.log.append(bytes).map_err(&failed)?;
        self.ends.insert(client.clone(), self.log.len());
        Ok(self.log.len())
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.log.sync().map_err(StoreError::disk("sync", &file(self.round)))
    }

    /// The payload of `bytes` bytes that ends at `end`.
    pub(super) fn read(&self, end: u64, bytes: u64) -> Result<Payload, StoreError> {
        let name = file(self.round);
        let problem = || StoreError::damaged(&name, "an update is not where it was written");
        let start = end.checked_sub(bytes).ok_or_else(problem)?;
        let len = usize::try_from(bytes).map_err(|_| problem())?;
        let bytes = self.log.read(start, len).map_err(StoreError::disk("read", &name))?;
        Ok(Payload::from_bytes(bytes))
    }
}

/// Reads the payloads of a round that is over, one at a time.
pub(crate) fn read_all(
    disk: &dyn Disk,
    round: Round,
    mut each: impl FnMut(Payload),
) -> Result<(), StoreError> {
    let name = file(round);
    let failed = StoreError::disk("read", &name);
    let open = disk.open(&format!("{UPDATES}/{name}")).map_err(&failed)?;
    let len = open.len().map_err(&failed)?;
    let mut at = 0;
    while at < len {
        let mut prefix = [0; PREFIX];
        open.read(at, &mut prefix).map_err(&failed)?;
        let bytes = u64::from(u32::from_le_bytes(prefix));
        let start = at + PREFIX as u64;
        if bytes > len - start {
            return Err(StoreError::damaged(name, "an update reaches beyond its end"));
        }
        let mut payload = vec![0; bytes as usize];
        open.read(start, &mut payload).map_err(&failed)?;
        each(Payload::from_bytes(payload));
        at = start + bytes;
    }
    Ok(())
}
