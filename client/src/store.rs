//! What outlives a crash of the device: the update that the server has not answered yet, what updates
//! left out (error feedback), and the history of those that are answered.
//!
//! ```text
//! device.redb     the pending update, the residual, a personal factor, control variates, and the end of the history
//! history.jsonl   what left this device: see [`crate::history`]
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use floret_core::chain::Head;
use floret_core::{
    ClientId, ClientUpdate, Digest, Payload, Round, RunId, SignedReceipt, Time, Version, json,
};
use floret_device::session::{Outcome as Settled, Record};
use floret_device::{ControlVariate, Kept, Own, Pending, Personal, Residual};
use floret_store::lines::{Lines, Tail};
use floret_store::{Disk, open_database};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::history::{HISTORY, Outcome, Sent};

const DATABASE: &str = "device.redb";
/// `pending` (an [`Unanswered`]), `payload` (its bytes), `left` (what it leaves out), `stays` (the factor that stays
/// with it), `residual` (a [`Left`]), `values` (those of the residual), `personal` (a [`Stays`]), `factor` (its values),
/// `control` (a [`Steers`]), `course` (its values; `steers` of the pending update's) and `history` (an [`End`]).
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

/// The update that is not answered yet; its payload stands beside, and the values that it leaves out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unanswered {
    run: RunId,
    round: Round,
    num_examples: u32,
    /// 0 in files of earlier builds.
    #[serde(default)]
    num_steps: u32,
    payload: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<Left>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stays: Option<Stays>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    steers: Option<Steers>,
}

/// A factor that stays on this device; its values stand beside, as f32, little-endian.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stays {
    run: RunId,
    layout: Digest,
    values: Digest,
}

/// A control variate; the values that its round began with, and then those of its change, stand beside, as f32,
/// little-endian.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Steers {
    run: RunId,
    layout: Digest,
    version: Version,
    values: Digest,
}

/// A residual; its values stand beside, as f32, little-endian.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {
    run: RunId,
    layout: Digest,
    version: Version,
    turn: u32,
    values: Digest,
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
    kept: Kept,
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
        let pending: Option<Unanswered> = parse(row("pending")?, "an update")?;
        let pending = match (pending, row("payload")?) {
            (Some(pending), Some(bytes)) => {
                Some(restore(pending, bytes, [row("left")?, row("stays")?, row("steers")?])?)
            }
            (None, _) => None,
            (Some(_), None) => return Err(StoreError::Damaged("an update without its payload")),
        };
        let residual: Option<Left> = parse(row("residual")?, "a residual")?;
        let residual = residual.map(|left| left.restore(row("values")?)).transpose()?;
        let personal: Option<Stays> = parse(row("personal")?, "a personal factor")?;
        let personal = personal.map(|stays| stays.restore(row("factor")?)).transpose()?;
        let control: Option<Steers> = parse(row("control")?, "a control variate")?;
        let control = control.map(|steers| steers.restore(row("course")?)).transpose()?;
        let kept = Kept { pending, own: Own { residual, personal, control } };
        drop((table, transaction));
        let history = Lines::open(&disk, HISTORY, end.tail)?;
        Ok(Self { _disk: Box::new(disk), client, database, history, head: end.head, kept })
    }

    /// The update is encoded: it is kept before its first byte leaves, with what it leaves out.
    fn keep(&mut self, pending: &Pending) -> Result<(), StoreError> {
        let Pending { update, next: Own { residual, personal, control } } = pending;
        let left = residual.as_deref().map(Left::of);
        let stays = personal.as_deref().map(Stays::of);
        let steers = control.as_deref().map(Steers::of);
        let unanswered = Unanswered {
            run: update.run.clone(),
            round: update.round,
            num_examples: update.num_examples,
            num_steps: update.num_steps,
            payload: update.payload.digest(),
            left: left.as_ref().map(|(left, _)| left.clone()),
            stays: stays.as_ref().map(|(stays, _)| stays.clone()),
            steers: steers.as_ref().map(|(steers, _)| steers.clone()),
        };
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(DEVICE)?;
            table.insert("pending", json::encode(&unanswered).as_slice())?;
            table.insert("payload", update.payload.bytes())?;
            if let Some((_, values)) = &left {
                table.insert("left", values.as_slice())?;
            }
            if let Some((_, values)) = &stays {
                table.insert("stays", values.as_slice())?;
            }
            if let Some((_, values)) = &steers {
                table.insert("steers", values.as_slice())?;
            }
        }
        transaction.commit()?;
        self.kept.pending = Some(pending.clone());
        Ok(())
    }

    /// The server has answered: the update goes into the history. What follows from it becomes the device's own if it
    /// counts, and is forgotten if not.
    fn settle(&mut self, outcome: Outcome, steps: Option<u32>) -> Result<(), StoreError> {
        let Some(Pending { update, next }) = &self.kept.pending else { return Ok(()) };
        let counts = matches!(outcome, Outcome::Counted { .. });
        let next = if counts { next.clone() } else { Own::default() };
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
            steps: steps.unwrap_or(update.num_steps),
            outcome,
        };
        let (line, head) = sent.line();
        self.history.begin();
        self.history.push(&line);
        let end = End { head, tail: self.history.tail().clone() };
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(DEVICE)?;
            for row in ["pending", "payload", "left", "stays", "steers"] {
                table.remove(row)?;
            }
            if let Some((stays, values)) = next.personal.as_deref().map(Stays::of) {
                table.insert("personal", json::encode(&stays).as_slice())?;
                table.insert("factor", values.as_slice())?;
            }
            if let Some((steers, values)) = next.control.as_deref().map(Steers::of) {
                table.insert("control", json::encode(&steers).as_slice())?;
                table.insert("course", values.as_slice())?;
            }
            if let Some((left, values)) = next.residual.as_deref().map(Left::of) {
                table.insert("residual", json::encode(&left).as_slice())?;
                table.insert("values", values.as_slice())?;
            }
            table.insert("history", json::encode(&end).as_slice())?;
        }
        transaction.commit()?;
        self.kept.pending = None;
        self.kept.own = std::mem::take(&mut self.kept.own).then(&next);
        self.head = head;
        Ok(self.history.finish()?)
    }
}

impl floret_device::Store for DeviceStore {
    type Error = StoreError;

    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        for record in records {
            match record {
                Record::Encoded(pending) => self.keep(pending)?,
                Record::Settled { outcome: Settled::Acknowledged(signed), .. } => {
                    let SignedReceipt { receipt, signature } = signed;
                    let (weight, downloaded) = (receipt.weight, receipt.downloaded_bytes);
                    // What was signed: a server of an earlier build heard of no steps.
                    let steps = Some(receipt.num_steps);
                    let counted = Outcome::Counted { weight, downloaded, signature: *signature };
                    self.settle(counted, steps)?;
                }
                Record::Settled { outcome: Settled::Refused(reason), .. } => {
                    self.settle(Outcome::Refused { reason: reason.clone() }, None)?;
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

    fn load(&mut self) -> Result<Kept, StoreError> {
        Ok(self.kept.clone())
    }
}

fn restore(
    unanswered: Unanswered,
    bytes: Vec<u8>,
    [values, factor, course]: [Option<Vec<u8>>; 3],
) -> Result<Pending, StoreError> {
    let Unanswered { run, round, num_examples, num_steps, payload: digest, left, stays, steers } =
        unanswered;
    let payload = Payload::from_bytes(bytes);
    if payload.digest() != digest {
        return Err(StoreError::Damaged("an update"));
    }
    let update = Arc::new(ClientUpdate { run, round, num_examples, num_steps, payload });
    let residual = left.map(|left| left.restore(values)).transpose()?;
    let personal = stays.map(|stays| stays.restore(factor)).transpose()?;
    let control = steers.map(|steers| steers.restore(course)).transpose()?;
    Ok(Pending { update, next: Own { residual, personal, control } })
}

impl Stays {
    /// The two rows of a personal factor.
    fn of(personal: &Personal) -> (Self, Vec<u8>) {
        let bytes = to_bytes(&personal.values);
        let (run, layout, values) = (personal.run.clone(), personal.layout, Digest::of(&bytes));
        (Self { run, layout, values }, bytes)
    }

    fn restore(self, bytes: Option<Vec<u8>>) -> Result<Arc<Personal>, StoreError> {
        let Self { run, layout, values } = self;
        let values = from_bytes(bytes, values).ok_or(StoreError::Damaged("a personal factor"))?;
        Ok(Arc::new(Personal { run, layout, values }))
    }
}

impl Steers {
    /// The two rows of a control variate.
    fn of(control: &ControlVariate) -> (Self, Vec<u8>) {
        let ControlVariate { run, layout, version, start, change } = control;
        let bytes = to_bytes(&[&start[..], change].concat());
        let (run, values) = (run.clone(), Digest::of(&bytes));
        (Self { run, layout: *layout, version: *version, values }, bytes)
    }

    fn restore(self, bytes: Option<Vec<u8>>) -> Result<Arc<ControlVariate>, StoreError> {
        let Self { run, layout, version, values } = self;
        let values = from_bytes(bytes, values).ok_or(StoreError::Damaged("a control variate"))?;
        let (start, change) = values.split_at(values.len() / 2);
        let (start, change) = (start.to_vec(), change.to_vec());
        Ok(Arc::new(ControlVariate { run, layout, version, start, change }))
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The values, if they are those of this digest.
fn from_bytes(bytes: Option<Vec<u8>>, digest: Digest) -> Option<Vec<f32>> {
    let bytes = bytes.filter(|bytes| Digest::of(bytes) == digest)?;
    Some(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

impl Left {
    /// The two rows of a residual.
    fn of(residual: &Residual) -> (Self, Vec<u8>) {
        let Residual { run, layout, version, turn, values } = residual;
        let bytes = to_bytes(values);
        let (run, values) = (run.clone(), Digest::of(&bytes));
        (Self { run, layout: *layout, version: *version, turn: *turn, values }, bytes)
    }

    fn restore(self, bytes: Option<Vec<u8>>) -> Result<Arc<Residual>, StoreError> {
        let Self { run, layout, version, turn, values } = self;
        let values = from_bytes(bytes, values).ok_or(StoreError::Damaged("a residual"))?;
        Ok(Arc::new(Residual { run, layout, version, turn, values }))
    }
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
