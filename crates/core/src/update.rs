//! What a device returns, and what it gets for it.

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Round};
use crate::payload::Payload;

/// A client's encoded delta of one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientUpdate {
    /// The round that it belongs to.
    pub round: Round,
    /// Training examples behind it: the device's claim, capped by the server.
    pub num_examples: u32,
    /// The encoded delta.
    pub payload: Payload,
}

/// The server's word that an update counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The round.
    pub round: Round,
    /// Digest of the payload's bytes.
    pub payload_digest: Digest,
    /// The weight that the update got.
    pub weight: u32,
}
