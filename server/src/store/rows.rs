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
        match record.clone() {
            Record::RoundOpened { round, cohort, at } => Some(Self::Opened { round, cohort, at }),
            Record::Assigned { client, assignment } => Some(Self::Assigned { client, assignment }),
            Record::DroppedOut { client } => Some(Self::DroppedOut { client }),
            Record::Refused { client, code, reason } => {
                Some(Self::Refused { client, code, reason })
            }
            Record::Declined { client, reason } => Some(Self::Declined { client, reason }),
            Record::CheckedIn { .. }
            | Record::Accepted { .. }
            | Record::RoundCommitted { .. }
            | Record::RoundAbandoned { .. }
            | Record::RunEnded(_) => None,
        }
    }
}
