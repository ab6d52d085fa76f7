//! Records of the open round as rows of the database.

use floret_aggregator::{Assignment, Record};
use floret_core::{ClientId, Receipt, Round, Time};
use serde::{Deserialize, Serialize};

/// A record of the open round; payloads lie in the round's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Row {
    Opened {
        round: Round,
        cohort: Vec<ClientId>,
        at: Time,
    },
    Assigned {
        client: ClientId,
        assignment: Assignment,
    },
    DroppedOut {
        client: ClientId,
    },
    /// `end` is where the payload ends in the round's file.
    Accepted {
        client: ClientId,
        receipt: Receipt,
        end: u64,
    },
    Refused {
        client: ClientId,
        code: String,
        reason: String,
    },
    Declined {
        client: ClientId,
        reason: String,
    },
}

impl Row {
    /// The row of a record that belongs to an open round and has no payload.
    pub(super) fn plain(record: &Record) -> Option<Self> {
        // A closing record holds whole vectors: only what a row needs is copied.
        Some(match record {
            Record::RoundOpened { round, cohort, at } => {
                Self::Opened { round: *round, cohort: cohort.clone(), at: *at }
            }
            Record::Assigned { client, assignment } => {
                Self::Assigned { client: client.clone(), assignment: *assignment }
            }
            Record::DroppedOut { client } => Self::DroppedOut { client: client.clone() },
            Record::Refused { client, code, reason } => {
                Self::Refused { client: client.clone(), code: code.clone(), reason: reason.clone() }
            }
            Record::Declined { client, reason } => {
                Self::Declined { client: client.clone(), reason: reason.clone() }
            }
            Record::CheckedIn { .. }
            | Record::Accepted { .. }
            | Record::RoundCommitted { .. }
            | Record::RoundAbandoned { .. }
            | Record::RunEnded(_) => return None,
        })
    }
}
