//! Plain data as JSON bytes.

use serde::Serialize;

/// Whether a value is the one that a reader takes where it is left out: what
/// `#[serde(skip_serializing_if = ...)]` asks of fields that came later.
#[must_use]
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The JSON of a value whose maps have texts as keys, and that refuses nothing: structures of ids,
/// numbers, texts and lists.
///
/// # Panics
/// The value is of another kind.
#[must_use]
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| unreachable!("plain data becomes JSON"))
}
