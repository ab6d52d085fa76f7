//! The ledger: what happened in each round, one signed line for each, chained by digest.
//!
//! A line is JSON of one fixed form, `{"signature":"…","entry":{…}}`. The signature is over the
//! entry's bytes as they stand there; an entry names the digest of the line before it. So no byte
//! can change, and no line can go, without some entry saying so; that the end was cut off shows
//! against the version and the count that the store knows.

use floret_core::base::BaseDigests;
use floret_core::chain::{self, Form, Line};
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::signature::{Signature, Statement};
use floret_core::{
    ClientId, Digest, LoraConfig, PublicKey, Round, RunId, SigningKey, Time, Version, hex, json,
};
use serde::{Deserialize, Serialize};

pub use floret_core::chain::Head;

use crate::combine::normalized::Share;
use crate::combine::residual::Residual;
use crate::config::{Aggregation, CohortConfig, Mode, RunConfig};
use crate::message::{Counted, RoundSummary};

const FORM: Form = Form { opening: "{\"signature\":\"", middle: "\",\"entry\":" };

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1.
    pub entry: u64,
    /// Digest of the line before; zeros in the first.
    pub previous: Digest,
    /// When it was written, in milliseconds since 1970, by the server's clock.
    pub at: Time,
    /// What it states.
    pub fact: Fact,
}

/// What an entry states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The settings that rounds follow from here on.
    Settings(Box<Settings>),
    /// A round that is over.
    Round(Box<RoundEntry>),
}

/// The settings that a plan comes from. The seed is not among them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The run.
    pub run: RunId,
    /// Rounds to commit.
    pub rounds: u32,
    /// Digests of base model and tokenizer.
    pub base: BaseDigests,
    /// Digest of the adapter's layout.
    pub layout: Digest,
    /// LoRA settings.
    pub lora: LoraConfig,
    /// How devices train.
    pub training: TrainingConfig,
    /// How devices encode their deltas.
    pub compression: Compression,
    /// Their error feedback; left out where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_feedback: Option<f32>,
    /// When a round closes; left out when synchronous.
    #[serde(default, skip_serializing_if = "Mode::is_synchronous")]
    pub mode: Mode,
    /// Whom a synchronous round chooses, and how many it needs.
    pub cohort: CohortConfig,
    /// How updates become the next adapter.
    pub aggregation: Aggregation,
}

impl Settings {
    /// Those of a run whose adapter has this layout.
    #[must_use]
    pub fn of(config: &RunConfig, layout: Digest) -> Self {
        Self {
            run: config.run.clone(),
            rounds: config.rounds,
            base: config.base,
            layout,
            lora: config.lora.clone(),
            training: config.training.clone(),
            compression: config.compression,
            error_feedback: Some(config.feedback()).filter(|share| *share > 0.0),
            mode: config.mode,
            cohort: config.cohort.clone(),
            aggregation: config.aggregation,
        }
    }

    /// Digest of their JSON form: what round entries name as their plan.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&json::encode(self))
    }
}

/// A round that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundEntry {
    /// The round.
    pub round: Round,
    /// Digest of the settings that its plans came from.
    pub plan: Digest,
    /// Whether it gave a new adapter.
    pub committed: bool,
    /// Why it was committed or abandoned.
    pub decision: String,
    /// Version of the adapter that it began with.
    pub base_version: Version,
    /// Digest of that adapter.
    pub adapter_before: Digest,
    /// Digest of the adapter after it.
    pub adapter_after: Digest,
    /// Sum of the weights.
    pub weight: u64,
    /// Bytes of the payloads that count.
    #[serde(default)]
    pub bytes_up: u64,
    /// Bytes of adapters that went down for the updates that count.
    #[serde(default)]
    pub bytes_down: u64,
    /// How far the mean of factors is from that of their products, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Residual>,
    /// When it opened, in milliseconds since 1970.
    pub opened_at: Time,
    /// Clients chosen, or assigned, in it.
    pub selected: Vec<Pseudonym>,
    /// Updates that count.
    pub accepted: Vec<AcceptedEntry>,
    /// Updates that were refused.
    pub refused: Vec<RefusedEntry>,
    /// Clients that declined.
    pub declined: Vec<RefusedEntry>,
    /// Clients that never answered.
    pub dropped_out: Vec<Pseudonym>,
}

/// An update that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedEntry {
    /// Whose.
    pub client: Pseudonym,
    /// The round in which its client was assigned, if that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned: Option<Round>,
    /// Digest of its payload.
    pub payload: Digest,
    /// Length of its payload, in bytes.
    pub bytes: u64,
    /// Bytes of adapters that went down to its client since its update before.
    #[serde(default)]
    pub downloaded: u64,
    /// Training examples that the device said are behind it.
    pub examples: u32,
    /// Optimizer steps behind it, as the device said; 0 in entries of earlier builds.
    #[serde(default, skip_serializing_if = "json::is_default")]
    pub steps: u32,
    /// The weight that it got.
    pub weight: u32,
    /// Versions since the one that it started from.
    #[serde(default)]
    pub staleness: u64,
}

impl AcceptedEntry {
    /// What it says of its weight.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { examples: self.examples, steps: self.steps, weight: self.weight }
    }
}

/// A client that gave nothing that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedEntry {
    /// Which.
    pub client: Pseudonym,
    /// Why.
    pub reason: String,
}

/// A client's name in the ledger: keyed, so that only the key's holder can tell whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pseudonym(pub String);

/// Signs entries and names clients.
#[derive(Debug)]
pub struct Scribe {
    key: SigningKey,
    pseudonyms: PseudonymKey,
}

struct PseudonymKey([u8; 32]);

impl std::fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PseudonymKey(..)")
    }
}

impl Scribe {
    /// A scribe that signs with `key`.
    #[must_use]
    pub fn new(key: SigningKey) -> Self {
        let pseudonyms = PseudonymKey(key.derive_secret("floret v1 ledger pseudonyms"));
        Self { key, pseudonyms }
    }

    /// The key that its signatures are checked with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// The key that it signs with.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The name of a client in the ledger.
    #[must_use]
    pub fn pseudonym(&self, client: &ClientId) -> Pseudonym {
        let digest = blake3::keyed_hash(&self.pseudonyms.0, client.as_str().as_bytes());
        Pseudonym(hex::encode(&digest.as_bytes()[..16]))
    }

    /// The line that states `fact` after `head`, without a line break, and the new head.
    #[must_use]
    pub fn line(&self, head: Head, at: Time, fact: Fact) -> (String, Head) {
        let entry = Entry { entry: head.entries + 1, previous: head.digest, at, fact };
        let body = json::encode(&entry);
        let signature = self.key.sign(Statement::LedgerEntry, &body);
        let body = String::from_utf8_lossy(&body);
        let line = FORM.line(&signature.to_string(), &body);
        let head = Head { entries: entry.entry, digest: Digest::of(line.as_bytes()) };
        (line, head)
    }

    /// What the ledger says of a round that is over.
    #[must_use]
    pub fn round(&self, summary: &RoundSummary, plan: Digest, adapter_after: Digest) -> Fact {
        let name = |client: &ClientId| self.pseudonym(client);
        let refused = |(client, reason): &(ClientId, String)| RefusedEntry {
            client: name(client),
            reason: reason.clone(),
        };
        let accepted = summary.accepted.iter().map(|Counted { client, receipt, staleness }| {
            let elsewhere = receipt.round != summary.round;
            AcceptedEntry {
                client: name(client),
                assigned: elsewhere.then_some(receipt.round),
                payload: receipt.payload_digest,
                bytes: receipt.payload_bytes,
                downloaded: receipt.downloaded_bytes,
                examples: receipt.num_examples,
                steps: receipt.num_steps,
                weight: receipt.weight,
                staleness: *staleness,
            }
        });
        Fact::Round(Box::new(RoundEntry {
            round: summary.round,
            plan,
            committed: summary.committed,
            decision: summary.reason.clone(),
            base_version: summary.base_version,
            adapter_before: summary.adapter_before,
            adapter_after,
            weight: summary.weight,
            bytes_up: summary.bytes_up(),
            bytes_down: summary.bytes_down(),
            residual: summary.residual,
            opened_at: summary.opened_at,
            selected: summary.selected.iter().map(name).collect(),
            accepted: accepted.collect(),
            refused: summary.refused.iter().map(refused).collect(),
            declined: summary.declined.iter().map(refused).collect(),
            dropped_out: summary.dropped_out.iter().map(name).collect(),
        }))
    }
}

/// A ledger that does not hold together, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ledger entry {entry}: {problem}")]
pub struct BrokenLedger {
    /// The entry, counted from 1.
    pub entry: u64,
    /// What is wrong.
    pub problem: String,
}

/// Reads a ledger and checks every signature and the chain.
///
/// # Errors
/// The first entry that does not hold.
pub fn verify(text: &[u8], key: &PublicKey) -> Result<(Vec<Entry>, Head), BrokenLedger> {
    let read = |line: &[u8]| {
        let content = read_line(line, key)?;
        let (entry, previous) = (content.entry, content.previous);
        Ok(Line { content, entry, previous, digest: Digest::of(line) })
    };
    chain::read(text, read)
        .map_err(|broken| BrokenLedger { entry: broken.entry, problem: broken.problem.to_owned() })
}

/// Reads one line, without its line break, and checks its signature.
///
/// # Errors
/// What is wrong with it.
pub fn read_line(line: &[u8], key: &PublicKey) -> Result<Entry, &'static str> {
    let form = "it is not a line of a ledger";
    let (signature, body) = FORM.split(line).ok_or(form)?;
    let signature: Signature = signature.parse().map_err(|_| form)?;
    if !key.verifies(Statement::LedgerEntry, body.as_bytes(), &signature) {
        return Err("its signature is not that of this key over these bytes");
    }
    serde_json::from_str(body).map_err(|_| "it is signed, and states nothing that is known")
}

#[cfg(test)]
mod tests;
