//! What a device returns, and what it gets for it.

use serde::{Deserialize, Serialize};

use crate::id::{ClientId, Digest, Round, RunId};
use crate::payload::Payload;
use crate::signature::{PublicKey, Signature, SigningKey, Statement};

/// A client's encoded delta of one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientUpdate {
    /// The run that it belongs to.
    pub run: RunId,
    /// The round that it belongs to.
    pub round: Round,
    /// Training examples behind it: the device's claim, capped by the server.
    pub num_examples: u32,
    /// Optimizer steps behind it: the device's claim, too.
    pub num_steps: u32,
    /// The encoded delta.
    pub payload: Payload,
}

/// The server's word that an update counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The round.
    pub round: Round,
    /// Digest of the payload's bytes.
    pub payload_digest: Digest,
    /// Length of the payload, in bytes.
    pub payload_bytes: u64,
    /// Training examples that the device said are behind it.
    pub num_examples: u32,
    /// Optimizer steps that the device said are behind it; 0 in receipts of earlier builds.
    #[serde(default)]
    pub num_steps: u32,
    /// The weight that the update got.
    pub weight: u32,
    /// Bytes of adapters that the server sent to the client since its update before.
    pub downloaded_bytes: u64,
}

/// A receipt with the server's signature: what a device keeps of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReceipt {
    /// The receipt.
    pub receipt: Receipt,
    /// [`Receipt::sign`] of it.
    pub signature: Signature,
}

impl Receipt {
    /// The server's signature that `client`'s update counts in `run`.
    #[must_use]
    pub fn sign(&self, run: &RunId, client: &ClientId, key: &SigningKey) -> Signature {
        key.sign(Statement::Receipt, &self.statement(run, client))
    }

    /// Whether `signature` is that of the server with this key.
    #[must_use]
    pub fn verify(
        &self,
        run: &RunId,
        client: &ClientId,
        key: &PublicKey,
        signature: &Signature,
    ) -> bool {
        key.verifies(Statement::Receipt, &self.statement(run, client), signature)
    }

    /// What is signed: names hold no line break, so that no two receipts read alike.
    fn statement(&self, run: &RunId, client: &ClientId) -> Vec<u8> {
        let Self {
            round,
            payload_digest,
            payload_bytes,
            num_examples,
            num_steps,
            weight,
            downloaded_bytes,
        } = self;
        let mut statement = format!(
            "{run}\n{client}\n{round}\n{payload_digest}\n{payload_bytes}\n{num_examples}\n{weight}\n\
             {downloaded_bytes}\n"
        );
        // Earlier builds did not sign steps.
        if *num_steps > 0 {
            statement.push_str(&format!("{num_steps}\n"));
        }
        statement.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_signed() {
        let [run, other_run]: [RunId; 2] = ["run", "other"].map(|name| name.parse().unwrap());
        let [client, other]: [ClientId; 2] = ["phone", "watch"].map(|name| name.parse().unwrap());
        let key = SigningKey::from_secret(&[3; 32]);
        let digest = Digest::of(b"payload");
        let receipt = Receipt {
            round: Round(1),
            payload_digest: digest,
            payload_bytes: 9,
            num_examples: 5,
            num_steps: 7,
            weight: 4,
            downloaded_bytes: 70,
        };
        let signature = receipt.sign(&run, &client, &key);
        let holds =
            |receipt: &Receipt, run, client| receipt.verify(run, client, &key.public(), &signature);
        assert!(holds(&receipt, &run, &client));
        assert!(!holds(&receipt, &other_run, &client) && !holds(&receipt, &run, &other));
        for changed in [
            Receipt { round: Round(2), ..receipt.clone() },
            Receipt { payload_digest: Digest::of(b"other"), ..receipt.clone() },
            Receipt { payload_bytes: 8, ..receipt.clone() },
            Receipt { num_examples: 6, ..receipt.clone() },
            Receipt { num_steps: 3, ..receipt.clone() },
            Receipt { num_steps: 0, ..receipt.clone() },
            Receipt { weight: 5, ..receipt.clone() },
            Receipt { downloaded_bytes: 0, ..receipt.clone() },
        ] {
            assert!(!holds(&changed, &run, &client), "{changed:?}");
        }
    }
}
