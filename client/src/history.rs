//! What left this device, when, how large, and what came of it: one line for each update, chained by
//! digest, with the server's signed receipt.
//!
//! A line is JSON of one fixed form, `{"digest":"…","sent":{…}}`: the digest is over the bytes of
//! what follows, which names the digest before it.

use std::io;
use std::path::Path;

use floret_core::chain::{self, BrokenLine, Form, Head, Line};
use floret_core::{ClientId, Digest, PublicKey, Receipt, Round, RunId, Signature, Time, json};
use serde::{Deserialize, Serialize};

/// Name of the file, within the device's state folder.
pub const HISTORY: &str = "history.jsonl";
const FORM: Form = Form { opening: "{\"digest\":\"", middle: "\",\"sent\":" };

/// An update that left the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// Counted from 1.
    pub entry: u64,
    /// Digest of the entry before; zeros in the first.
    pub previous: Digest,
    /// When the server answered, in milliseconds since 1970, by this device's clock.
    pub at: Time,
    /// The run.
    pub run: RunId,
    /// This device's name in it.
    pub client: ClientId,
    /// The round.
    pub round: Round,
    /// Digest of the payload.
    pub payload: Digest,
    /// Length of the payload, in bytes.
    pub bytes: u64,
    /// Training examples that the update says are behind it.
    pub examples: u32,
    /// Optimizer steps that the update says are behind it; 0 in entries of earlier builds.
    #[serde(default, skip_serializing_if = "json::is_default")]
    pub steps: u32,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// It counts.
    Counted {
        /// The weight that it got.
        weight: u32,
        /// Bytes of adapters that the server says it sent here since the update before.
        downloaded: u64,
        /// The server's signature of the receipt.
        signature: Signature,
    },
    /// It does not.
    Refused {
        /// The server's reason.
        reason: String,
    },
}

impl Sent {
    /// Its line, without a line break, and the new head.
    #[must_use]
    pub fn line(&self) -> (String, Head) {
        let body = json::encode(self);
        let digest = Digest::of(&body);
        let line = FORM.line(&digest.to_string(), &String::from_utf8_lossy(&body));
        (line, Head { entries: self.entry, digest })
    }

    /// The receipt that it was given, if it counts.
    #[must_use]
    pub fn receipt(&self) -> Option<(Receipt, Signature)> {
        let Outcome::Counted { weight, downloaded, signature } = &self.outcome else {
            return None;
        };
        let receipt = Receipt {
            round: self.round,
            payload_digest: self.payload,
            payload_bytes: self.bytes,
            num_examples: self.examples,
            num_steps: self.steps,
            weight: *weight,
            downloaded_bytes: *downloaded,
        };
        Some((receipt, *signature))
    }
}

/// A history that does not hold, and where.
#[derive(Debug, thiserror::Error)]
pub enum BrokenHistory {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// An entry that does not hold.
    #[error("history {0}")]
    Entry(#[from] BrokenLine),
}

/// Reads the history in a device's state folder and checks its chain; one that is not there is empty.
///
/// # Errors
/// A file that cannot be read, or the first entry that does not hold.
pub fn read(state: &Path) -> Result<Vec<Sent>, BrokenHistory> {
    let path = state.join(HISTORY);
    match std::fs::read(&path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(BrokenHistory::Unreadable { path: path.display().to_string(), source }),
    }
}

/// Parses a history and checks its chain.
///
/// # Errors
/// The first entry that does not hold.
pub fn parse(text: &[u8]) -> Result<Vec<Sent>, BrokenHistory> {
    Ok(chain::read(text, parse_line)?.0)
}

fn parse_line(line: &[u8]) -> Result<Line<Sent>, &'static str> {
    let form = "it is not a line of a history";
    let (told, body) = FORM.split(line).ok_or(form)?;
    let digest = Digest::of(body.as_bytes());
    if told != digest.to_string() {
        return Err("its digest is not that of its bytes");
    }
    let content: Sent = serde_json::from_str(body).map_err(|_| form)?;
    let (entry, previous) = (content.entry, content.previous);
    Ok(Line { content, entry, previous, digest })
}

/// Checks the signature of every receipt.
///
/// # Errors
/// The first entry whose receipt is not signed by the server with this key.
pub fn verify(history: &[Sent], key: &PublicKey) -> Result<(), BrokenHistory> {
    for sent in history {
        if let Some((receipt, signature)) = sent.receipt()
            && !receipt.verify(&sent.run, &sent.client, key, &signature)
        {
            let problem = "its receipt is not signed by the server with this key";
            return Err(BrokenLine { entry: sent.entry, problem }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use floret_core::SigningKey;

    fn history() -> String {
        let key = SigningKey::from_secret(&[4; 32]);
        let mut head = Head::default();
        let mut text = String::new();
        for round in 1..=3 {
            let mut sent = Sent {
                entry: head.entries + 1,
                previous: head.digest,
                at: Time(1_700_000_000_000),
                run: "run".parse().unwrap(),
                client: "phone".parse().unwrap(),
                round: Round(round),
                payload: Digest::of(&[round as u8]),
                bytes: 100,
                examples: 7,
                steps: 3,
                outcome: Outcome::Refused { reason: "late".into() },
            };
            if round != 2 {
                let signature = Signature([0; 64]);
                sent.outcome = Outcome::Counted { weight: 7, downloaded: 800, signature };
                let receipt = sent.receipt().unwrap().0;
                let signature = receipt.sign(&sent.run, &sent.client, &key);
                sent.outcome = Outcome::Counted { weight: 7, downloaded: 800, signature };
            }
            let (line, next) = sent.line();
            text += &(line + "\n");
            head = next;
        }
        text
    }

    #[test]
    fn a_history_holds_with_the_servers_key_alone() {
        let history = parse(history().as_bytes()).unwrap();
        verify(&history, &SigningKey::from_secret(&[4; 32]).public()).unwrap();
        let error = verify(&history, &SigningKey::from_secret(&[5; 32]).public()).unwrap_err();
        assert!(error.to_string().contains("entry 1"), "{error}");
    }

    #[test]
    fn any_changed_byte_names_its_entry() {
        let text = history();
        let starts: Vec<usize> = text.match_indices(FORM.opening).map(|(at, _)| at).collect();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let error = parse(&bytes).unwrap_err().to_string();
            let entry = starts.iter().filter(|start| **start <= at).count();
            assert!(error.contains(&format!("entry {entry}:")), "byte {at}: {error}");
        }
    }
}
