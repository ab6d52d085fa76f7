//! What outlives a crash of the device: the update that the server has not answered yet, and the
//! history of those that it has.
//!
//! ```text
//! device.redb     the pending update, and the end of the history
//! history.jsonl   what left this device: see [`crate::history`]
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use floret_core::chain::Head;
use floret_core::{ClientId, ClientUpdate, Digest, Payload, Round, RunId, Time, json};
use floret_device::session::{Outcome as Settled, Record};
use floret_store::lines::{Lines, Tail};
use floret_store::{Disk, open_database};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::history::{HISTORY, Outcome, Sent};

const DATABASE: &str = "device.redb";
/// `pending` (a [`Pending`]), `payload` (its bytes) and `history` (an [`End`]).
const DEVICE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("device");

/// State that cannot be used, or that cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process of this device runs.
    #[error("{} is in use by another floret-client: stop that one first", .0.display())]
    Locked(PathBuf),
    /// The disk refused.
    #[error("cannot use the device's state: {0}")]
    Disk(#[from] std::io::Error),
    /// The database refused.
    #[error("the database {DATABASE} of the device's state: {0}")]
    Database(#[from] redb::Error),
    /// A row that cannot be read.
    #[error("the database {DATABASE} of the device's state holds {0} that cannot be read")]
    Damaged(&'static str),
}

floret_store::from_redb!(StoreError);

/// The update that is not answered yet; its payload stands beside.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    run: RunId,
    round: Round,
    num_examples: u32,
    payload: Digest,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    head: Head,
    tail: Tail,
}

/// A device's state on a disk.
#[derive(Debug)]
pub struct DeviceStore {
    /// Held as long as the store is open.
    _disk: Box<dyn Disk>,
    client: ClientId,
    database: Database,
    history: Lines,
    head: Head,
    pending: Option<Arc<ClientUpdate>>,
}

impl DeviceStore {
    /// Opens the state on `disk`, and makes an empty one if there is none.
    ///
    /// # Errors
    /// A disk that fails, or a damaged database.
    pub fn open(disk: impl Disk, client: ClientId) -> Result<Self, StoreError> {
        let database = open_database(&disk, DATABASE)?;
        let transaction = database.begin_write()?;
        transaction.open_table(DEVICE)?;
        transaction.commit()?;
        let transaction = database.begin_read()?;
        let table = transaction.open_table(DEVICE)?;
        let row = |key| Ok::<_, StoreError>(table.get(key)?.map(|row| row.value().to_vec()));
        let end: End = parse(row("history")?, "an end of the history")?.unwrap_or_default();
        let pending: Option<Pending> = parse(row("pending")?, "an update")?;
        let pending = match (pending, row("payload")?) {
            (Some(pending), Some(bytes)) => Some(Arc::new(restore(pending, bytes)?)),
            (None, _) => None,
            (Some(_), None) => return Err(StoreError::Damaged("an update without its payload")),
        };
        drop((table, transaction));
        let history = Lines::open(&disk, HISTORY, end.tail)?;
        Ok(Self { _disk: Box::new(disk), client, database, history, head: end.head, pending })
    }

    /// The update is encoded: it is kept before its first byte leaves.
    fn keep(&mut self, update: &Arc<ClientUpdate>) -> Result<(), StoreError> {
        let pending = Pending {
            run: update.run.clone(),
            round: update.round,
            num_examples: update.num_examples,
            payload: update.payload.digest(),
        };
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(DEVICE)?;
            table.insert("pending", json::encode(&pending).as_slice())?;
            table.insert("payload", update.payload.bytes())?;
        }
        transaction.commit()?;
        self.pending = Some(Arc::clone(update));
        Ok(())
    }

    /// The server has answered: the update goes into the history.
    fn settle(&mut self, outcome: Outcome) -> Result<(), StoreError> {
        let Some(update) = &self.pending else { return Ok(()) };
        let sent = Sent {
            entry: self.head.entries + 1,
            previous: self.head.digest,
            at: now(),
            run: update.run.clone(),
            client: self.client.clone(),
            round: update.round,
            payload: update.payload.digest(),
            bytes: update.payload.bytes().len() as u64,
            examples: update.num_examples,
            outcome,
        };
        let (line, head) = sent.line();
        self.history.begin();
        self.history.push(&line);
        let end = End { head, tail: self.history.tail().clone() };
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(DEVICE)?;
            table.remove("pending")?;
            table.remove("payload")?;
            table.insert("history", json::encode(&end).as_slice())?;
        }
        transaction.commit()?;
        self.pending = None;
        self.head = head;
        Ok(self.history.finish()?)
    }
}

impl floret_device::Store for DeviceStore {
    type Error = StoreError;

    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        for record in records {
            match record {
                Record::Encoded(update) => self.keep(update)?,
                Record::Settled { outcome: Settled::Acknowledged(signed), .. } => {
                    let (weight, signature) = (signed.receipt.weight, signed.signature);
                    self.settle(Outcome::Counted { weight, signature })?;
                }
                Record::Settled { outcome: Settled::Refused(reason), .. } => {
                    self.settle(Outcome::Refused { reason: reason.clone() })?;
                }
                Record::Settled { outcome: Settled::Declined | Settled::Expired, .. }
                | Record::Waiting(_)
                | Record::Accepted { .. }
                | Record::Extended(_)
                | Record::Ready(_)
                | Record::Declined { .. }
                | Record::Ended(_) => {}
            }
        }
        Ok(())
    }

    fn load(&mut self) -> Result<Option<Arc<ClientUpdate>>, StoreError> {
        Ok(self.pending.clone())
    }
}

fn restore(pending: Pending, bytes: Vec<u8>) -> Result<ClientUpdate, StoreError> {
    let Pending { run, round, num_examples, payload: digest } = pending;
    let payload = Payload::from_bytes(bytes);
    if payload.digest() != digest {
        return Err(StoreError::Damaged("an update"));
    }
    Ok(ClientUpdate { run, round, num_examples, payload })
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::default().after(since)
}

fn parse<T: for<'de> Deserialize<'de>>(
    row: Option<Vec<u8>>,
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    let parse = |row: Vec<u8>| serde_json::from_slice(&row);
    row.map(parse).transpose().map_err(|_| StoreError::Damaged(what))
}
