//! Digests that name a base model: the server puts them in its plans, devices compare.

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// What a base model is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDigests {
    /// Over `config.json` and every weight file.
    pub base: Digest,
    /// Over `tokenizer.json`.
    pub tokenizer: Digest,
}

impl BaseDigests {
    /// Digests from those of the single files; the order of `weights` does not matter.
    #[must_use]
    pub fn new(config: Digest, mut weights: Vec<Digest>, tokenizer: Digest) -> Self {
        weights.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"floret v1 base").update(&config.0);
        for weight in &weights {
            hasher.update(&weight.0);
        }
        Self { base: Digest(*hasher.finalize().as_bytes()), tokenizer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_counts_and_shard_order_does_not() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        let digests = BaseDigests::new(a, vec![b, c], a);
        assert_eq!(digests, BaseDigests::new(a, vec![c, b], a));
        assert_ne!(digests.base, BaseDigests::new(b, vec![b, c], a).base);
        assert_ne!(digests.base, BaseDigests::new(a, vec![b], a).base);
    }
}
