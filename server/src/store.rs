//! What outlives a restart, and when: every record is durable before a device hears of it.
//!
//! ```text
//! run.redb      the truth: the run between two rounds, and the records of the open round
//! updates/      payloads of the open round, and of rounds whose updates are retained
//! adapters/     adapters, moments and what steps left out as files of f32, named by the database with their digests
//! ledger.jsonl  the signed ledger
//! run.json      a copy for programs that read beside a running server
//! ```
//!
//! A commit writes payloads and adapters first, under names that nothing refers to yet, then one
//! transaction of the database that refers to them, then the lines of the ledger, which the
//! transaction holds too. A crash between any two leaves the run as before the transaction or after.

mod error;
mod rows;
mod saved;
pub(crate) mod updates;

use std::collections::BTreeMap;
use std::sync::Arc;

use floret_aggregator::advance::After;
use floret_aggregator::ledger::{Fact, Head, Scribe, Settings};
use floret_aggregator::{Admitted, Moments, Record, RoundSummary, RunState, UpdateSource};
use floret_core::{Adapter, ClientId, Digest, Layout, Receipt, Round, Time, Version, json};
use floret_store::lines::{Lines, Tail};
use floret_store::{Disk, open_database};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;

pub use error::StoreError;
use rows::Row;
use saved::{
    ADAPTERS, FORMAT, adapter_file, momentum_file, second_moment_file, unsent_file, write_values,
};
pub use saved::{Kept, SavedRun};
use updates::{UPDATES, Updates};

/// Name of the ledger.
pub(crate) const LEDGER: &str = "ledger.jsonl";
const DATABASE: &str = "run.redb";
/// `run`, a [`SavedRun`], and `ledger_tail`.
const RUN: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("run");
/// Records of the open round, in order.
const OPEN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("open");
/// Receipts of the last rounds.
const RECEIPTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("receipts");

/// What a store is for, and how much it keeps.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The run's settings.
    pub settings: Settings,
    /// Layout of its adapter.
    pub layout: Arc<Layout>,
    /// Adapter versions to keep; at least 1.
    pub keep_versions: usize,
    /// Rounds whose updates are kept after they closed.
    pub retain_updates_rounds: u32,
}

/// A run's state on a disk.
#[derive(Debug)]
pub struct RunStore {
    disk: Arc<dyn Disk>,
    options: StoreOptions,
    scribe: Arc<Scribe>,
    database: Database,
    ledger: Lines,
    head: Head,
    /// What is durable.
    saved: Option<SavedRun>,
    /// The open round's payloads, and its number of rows.
    updates: Option<Updates>,
    rows: u64,
}

/// What one commit adds to the database.
#[derive(Debug, Default)]
struct Transaction {
    rows: Vec<Row>,
    /// Rows of rounds that closed are removed before `rows` are added.
    clear: bool,
    saved: Option<SavedRun>,
}

impl RunStore {
    /// Opens the state on `disk`, and makes an empty one if there is none.
    ///
    /// # Errors
    /// A disk that fails, damaged files, or the state of another run.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        scribe: Arc<Scribe>,
    ) -> Result<Self, StoreError> {
        let database = open_database(&*disk, DATABASE)?;
        let (saved, tail) = {
            let transaction = database.begin_write()?;
            let (saved, tail);
            {
                let table = transaction.open_table(RUN)?;
                saved = match table.get("run")? {
                    Some(text) => Some(SavedRun::parse(DATABASE, text.value())?),
                    None => None,
                };
                tail =
                    read_row::<Tail>(table.get("ledger_tail")?.map(|text| text.value().to_vec()))?;
                transaction.open_table(OPEN)?;
                transaction.open_table(RECEIPTS)?;
            }
            transaction.commit()?;
            (saved, tail.unwrap_or_default())
        };
        if let Some(saved) = &saved {
            expect_same_run(saved, &options.settings)?;
        }
        let head = saved.as_ref().map(|saved| saved.ledger).unwrap_or_default();
        let ledger = Lines::open(&*disk, LEDGER, tail).map_err(StoreError::disk("open", LEDGER))?;
        Ok(Self { disk, options, scribe, database, ledger, head, saved, updates: None, rows: 0 })
    }

    /// The run as far as it is durable.
    #[must_use]
    pub fn saved(&self) -> Option<&SavedRun> {
        self.saved.as_ref()
    }

    /// Whether the settings are others than those that the run followed last.
    #[must_use]
    pub fn settings_changed(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.plan != self.options.settings.digest())
    }

    /// States the settings in the ledger, if they are new, and makes `state` durable, if nothing is
    /// yet. To be called before the first commit under these settings.
    ///
    /// # Errors
    /// The disk failed.
    pub fn adopt_settings(&mut self, state: &RunState, now: Time) -> Result<(), StoreError> {
        if self.saved.is_some() && !self.settings_changed() {
            return Ok(());
        }
        self.ledger.begin();
        let settings = self.options.settings.clone();
        self.state_fact(now, Fact::Settings(Box::new(settings)));
        let adapters = match &self.saved {
            Some(saved) => saved.adapters.clone(),
            None => {
                let RunState { version, adapter, moments, .. } = state;
                let unsent = state.unsent.as_deref();
                let kept = self.write_adapter(*version, adapter, moments, unsent)?;
                BTreeMap::from([(state.version, kept)])
            }
        };
        let plan = self.options.settings.digest();
        let saved = SavedRun { plan, ..self.saved_run(state, state.round, adapters) };
        self.write(Transaction { saved: Some(saved), ..Transaction::default() }, state)?;
        self.finish_ledger()
    }

    /// States a fact in the ledger, with the transaction that is being made.
    fn state_fact(&mut self, at: Time, fact: Fact) {
        let (line, head) = self.scribe.line(self.head, at, fact);
        self.ledger.push(&line);
        self.head = head;
    }

    fn finish_ledger(&mut self) -> Result<(), StoreError> {
        self.ledger.finish().map_err(StoreError::disk("write", LEDGER))
    }

    /// Digest of the settings that the ledger stated last.
    fn plan(&self) -> Digest {
        self.saved.as_ref().map_or_else(|| self.options.settings.digest(), |saved| saved.plan)
    }

    fn saved_run(
        &self,
        state: &RunState,
        round: Round,
        adapters: BTreeMap<Version, Kept>,
    ) -> SavedRun {
        let settings = &self.options.settings;
        SavedRun {
            format: FORMAT,
            run: settings.run.clone(),
            base: settings.base,
            lora: settings.lora.clone(),
            layout: settings.layout,
            version: state.version,
            round,
            adapters,
            abandoned_in_a_row: state.abandoned_in_a_row,
            totals: state.totals,
            concerns: state.concerns.clone(),
            assignments: state.assignments.clone(),
            end: state.end.clone(),
            plan: self.plan(),
            ledger: self.head,
        }
    }

    fn write_adapter(
        &self,
        version: Version,
        adapter: &Adapter,
        moments: &Moments,
        unsent: Option<&[f32]>,
    ) -> Result<Kept, StoreError> {
        let write = |name: String, values: &[f32]| write_values(&*self.disk, &name, values);
        let second = moments.second.as_deref();
        let second = second.map(|second| write(second_moment_file(version), second));
        let unsent = unsent.map(|unsent| write(unsent_file(version), unsent));
        Ok(Kept {
            adapter: write(adapter_file(version), adapter.values())?,
            momentum: write(momentum_file(version), &moments.first)?,
            second_moment: second.transpose()?,
            unsent: unsent.transpose()?,
        })
    }

    /// The updates of the open round.
    fn open_updates(&mut self) -> Result<&mut Updates, StoreError> {
        let problem = "an update came while no round was open";
        self.updates.as_mut().ok_or_else(|| StoreError::damaged(DATABASE, problem))
    }

    /// Adds one record to a transaction, with the files that it refers to.
    fn add(
        &mut self,
        record: &Record,
        state: &RunState,
        transaction: &mut Transaction,
    ) -> Result<(), StoreError> {
        match record {
            Record::RoundOpened { round, .. } => {
                self.updates = Some(Updates::open(&*self.disk, *round, 0)?);
            }
            Record::Accepted { client, receipt, update } => {
                let end = self.open_updates()?.append(client, update.payload())?;
                let (client, receipt) = (client.clone(), receipt.clone());
                transaction.rows.push(Row::Accepted { client, receipt, end });
            }
            Record::RoundCommitted { summary, after } => {
                let After { adapter, moments, unsent, .. } = &**after;
                let version = summary.base_version.next();
                let kept = self.write_adapter(version, adapter, moments, unsent.as_deref())?;
                self.close(summary, Some(kept), state, transaction)?;
            }
            Record::RoundAbandoned { summary } => self.close(summary, None, state, transaction)?,
            Record::RunEnded(end) => {
                let saved = transaction.saved.take().or_else(|| self.saved.clone());
                transaction.saved = saved.map(|saved| SavedRun { end: Some(end.clone()), ..saved });
            }
            Record::CheckedIn { .. }
            | Record::Assigned { .. }
            | Record::DroppedOut { .. }
            | Record::Refused { .. }
            | Record::Declined { .. } => {}
        }
        transaction.rows.extend(Row::plain(record));
        Ok(())
    }

    fn close(
        &mut self,
        summary: &RoundSummary,
        new: Option<Kept>,
        state: &RunState,
        transaction: &mut Transaction,
    ) -> Result<(), StoreError> {
        if let Some(updates) = self.updates.take()
            && self.options.retain_updates_rounds > 0
        {
            updates.sync()?;
        }
        let after = new.map_or(summary.adapter_before, |kept| kept.adapter);
        let fact = self.scribe.round(summary, self.plan(), after);
        self.state_fact(summary.closed_at, fact);
        let before = transaction.saved.as_ref().or(self.saved.as_ref());
        let mut adapters = before.map(|saved| saved.adapters.clone()).unwrap_or_default();
        if let Some(kept) = new {
            adapters.insert(summary.base_version.next(), kept);
        }
        while adapters.len() > self.options.keep_versions {
            adapters.pop_first();
        }
        transaction.saved = Some(self.saved_run(state, summary.round, adapters));
        transaction.rows.clear();
        transaction.clear = true;
        Ok(())
    }

    /// Makes a transaction durable.
    fn write(&mut self, changes: Transaction, state: &RunState) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        let mut rows = if changes.clear { 0 } else { self.rows };
        {
            let mut open = transaction.open_table(OPEN)?;
            if changes.clear {
                open.retain(|_, _| false)?;
            }
            for row in &changes.rows {
                open.insert(rows, json::encode(row).as_slice())?;
                rows += 1;
            }
            if let Some(saved) = &changes.saved {
                let mut run = transaction.open_table(RUN)?;
                run.insert("run", json::encode(saved).as_slice())?;
                run.insert("ledger_tail", json::encode(self.ledger.tail()).as_slice())?;
                let mut receipts = transaction.open_table(RECEIPTS)?;
                receipts.retain(|round, _| state.receipts.contains_key(&Round(round)))?;
                for (round, of) in &state.receipts {
                    if receipts.get(round.0)?.is_none() {
                        receipts.insert(round.0, json::encode(of).as_slice())?;
                    }
                }
            }
        }
        transaction.commit()?;
        self.rows = rows;
        if changes.saved.is_some() {
            self.saved = changes.saved;
        }
        Ok(())
    }

    /// Removes files that nothing refers to any more. One that stays for now does no harm.
    fn prune(&self) -> Result<(), StoreError> {
        let Some(saved) = &self.saved else { return Ok(()) };
        let kept: Vec<String> = saved.files().collect();
        let retained = saved.round.0.saturating_sub(self.options.retain_updates_rounds);
        let retained = (retained + 1..=saved.round.0).map(|round| updates::file(Round(round)));
        let open = self.updates.as_ref().map(|open| updates::file(open.round));
        let retained: Vec<String> = retained.chain(open).collect();
        for (folder, kept) in [(ADAPTERS, &kept), (UPDATES, &retained)] {
            let failed = StoreError::disk("tidy", folder);
            for name in self.disk.list(folder).map_err(&failed)? {
                if !kept.contains(&name) {
                    self.disk.remove(&format!("{folder}/{name}")).map_err(&failed)?;
                }
            }
        }
        Ok(())
    }

    fn restore(&self, row: Row) -> Result<Record, StoreError> {
        Ok(match row {
            Row::Opened { round, cohort, at } => Record::RoundOpened { round, cohort, at },
            Row::Assigned { client, assignment } => Record::Assigned { client, assignment },
            Row::DroppedOut { client } => Record::DroppedOut { client },
            Row::Refused { client, code, reason } => Record::Refused { client, code, reason },
            Row::Declined { client, reason } => Record::Declined { client, reason },
            Row::Accepted { client, receipt, end } => {
                let update = self.restore_update(&receipt, end)?;
                Record::Accepted { client, receipt, update }
            }
        })
    }

    fn restore_update(&self, receipt: &Receipt, end: u64) -> Result<Admitted, StoreError> {
        let Some(updates) = &self.updates else {
            return Err(StoreError::damaged(DATABASE, "an update stands before its round"));
        };
        let damaged = |problem: &dyn ToString| {
            StoreError::damaged(updates::file(updates.round), problem.to_string())
        };
        let payload = updates.read(end, receipt.payload_bytes)?;
        if payload.digest() != receipt.payload_digest {
            return Err(damaged(&"an update's bytes are not those that were written"));
        }
        let (layout, clip) = (&self.options.layout, self.options.settings.aggregation.clip_norm);
        Admitted::new(payload, layout, clip).map_err(|error| damaged(&error))
    }
}

impl UpdateSource for RunStore {
    type Error = StoreError;

    fn update(&self, client: &ClientId, receipt: &Receipt) -> Result<Admitted, StoreError> {
        let ends = self.updates.as_ref().map(|updates| &updates.ends);
        let end = ends.and_then(|ends| ends.get(client)).copied().ok_or_else(|| {
            StoreError::damaged(DATABASE, format!("the update of {client} is not there"))
        })?;
        self.restore_update(receipt, end)
    }
}

impl floret_aggregator::Store for RunStore {
    fn commit(&mut self, records: &[Record], state: &RunState) -> Result<(), StoreError> {
        if !records.iter().any(Record::is_durable) {
            return Ok(());
        }
        self.ledger.begin();
        let mut transaction = Transaction::default();
        for record in records {
            self.add(record, state, &mut transaction)?;
        }
        // Updates of a round that closes here are in its adapter already.
        if transaction.rows.iter().any(|row| matches!(row, Row::Accepted { .. })) {
            self.open_updates()?.sync()?;
        }
        let closed = transaction.clear;
        self.write(transaction, state)?;
        self.finish_ledger()?;
        if closed { self.prune() } else { Ok(()) }
    }

    fn load(&mut self) -> Result<Option<RunState>, StoreError> {
        let Some(saved) = &self.saved else { return Ok(None) };
        let layout = &self.options.layout;
        let mut receipts = BTreeMap::new();
        let transaction = self.database.begin_read()?;
        for row in transaction.open_table(RECEIPTS)?.iter()? {
            let (round, of) = row?;
            let of: Option<BTreeMap<ClientId, Receipt>> = read_row(Some(of.value().to_vec()))?;
            receipts.insert(Round(round.value()), of.unwrap_or_default());
        }
        Ok(Some(RunState {
            version: saved.version,
            round: saved.round,
            adapter: saved.adapter(&*self.disk, layout, None)?,
            moments: saved.moments(&*self.disk, layout, saved.version)?,
            unsent: saved.unsent(&*self.disk, layout, saved.version)?,
            abandoned_in_a_row: saved.abandoned_in_a_row,
            totals: saved.totals,
            concerns: saved.concerns.clone(),
            end: saved.end.clone(),
            receipts,
            assignments: saved.assignments.clone(),
        }))
    }

    fn replay(&mut self, apply: &mut dyn FnMut(Record)) -> Result<(), StoreError> {
        self.rows = 0;
        let transaction = self.database.begin_read()?;
        let rows = transaction.open_table(OPEN)?;
        let mut end_of_updates = 0;
        for row in rows.iter()? {
            let row: Option<Row> = read_row(Some(row?.1.value().to_vec()))?;
            let Some(row) = row else { continue };
            match &row {
                Row::Opened { round, .. } => {
                    self.updates = Some(Updates::reopen(&*self.disk, *round)?);
                }
                Row::Accepted { client, end, .. } => {
                    self.open_updates()?.ends.insert(client.clone(), *end);
                    end_of_updates = *end;
                }
                Row::Assigned { .. }
                | Row::DroppedOut { .. }
                | Row::Refused { .. }
                | Row::Declined { .. } => {}
            }
            apply(self.restore(row)?);
            self.rows += 1;
        }
        // What a crash left behind the last update that counts is cut off.
        if let Some(Updates { round, ends, .. }) = self.updates.take() {
            let mut cut = Updates::open(&*self.disk, round, end_of_updates)?;
            cut.ends = ends;
            self.updates = Some(cut);
        }
        self.prune()
    }
}

fn expect_same_run(saved: &SavedRun, settings: &Settings) -> Result<(), StoreError> {
    let lora = |settings| serde_json::to_string(settings).unwrap_or_default();
    let pairs: [(&'static str, [String; 2]); 5] = [
        ("name", [&saved.run, &settings.run].map(ToString::to_string)),
        ("base model", [saved.base.base, settings.base.base].map(|digest| digest.to_string())),
        ("tokenizer", [saved.base.tokenizer, settings.base.tokenizer].map(|d| d.to_string())),
        ("set of LoRA settings", [&saved.lora, &settings.lora].map(lora)),
        ("adapter layout", [saved.layout, settings.layout].map(|digest| digest.to_string())),
    ];
    for (what, [saved, configured]) in pairs {
        if saved != configured {
            return Err(StoreError::OtherRun { what, saved, configured });
        }
    }
    Ok(())
}

fn read_row<T: DeserializeOwned>(row: Option<Vec<u8>>) -> Result<Option<T>, StoreError> {
    let parse = |row: Vec<u8>| serde_json::from_slice(&row);
    row.map(parse).transpose().map_err(|error| StoreError::damaged(DATABASE, error))
}

#[cfg(test)]
mod tests;
