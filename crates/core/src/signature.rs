//! Ed25519 signatures (RFC 8032) over what a server states: receipts and ledger entries.
//!
//! Signing draws no randomness: the same key and bytes give the same signature.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer;
use serde::{Deserialize, Serialize};

use crate::hex;

/// What a signature is for: one made for one purpose is not valid for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// A receipt for an update.
    Receipt,
    /// An entry of the ledger.
    LedgerEntry,
}

impl Statement {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Receipt => b"floret v1 receipt\n",
            Self::LedgerEntry => b"floret v1 ledger entry\n",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.prefix(), bytes].concat()
    }
}

/// A secret signing key. Its `Debug` form does not show it.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte secret.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(secret))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a statement.
    #[must_use]
    pub fn sign(&self, statement: Statement, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(&statement.message(bytes)).to_bytes())
    }

    /// A secret for another purpose, which says nothing about this key.
    #[must_use]
    pub fn derive_secret(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, self.0.as_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// A public key; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// A signature; written as 128 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature(pub [u8; 64]);

/// Text or bytes that are not a key or signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {digits} hexadecimal digits, in lower case")]
pub struct NotHex {
    what: &'static str,
    digits: usize,
}

impl PublicKey {
    /// Whether `signature` is this key's, over this statement.
    #[must_use]
    pub fn verifies(&self, statement: Statement, bytes: &[u8], signature: &Signature) -> bool {
        let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&self.0) else { return false };
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&statement.message(bytes), &signature).is_ok()
    }
}

macro_rules! hex_type {
    ($name:ident, $bytes:literal, $what:literal) => {
        impl FromStr for $name {
            type Err = NotHex;

            fn from_str(text: &str) -> Result<Self, NotHex> {
                hex::decode(text).map(Self).ok_or(NotHex { what: $what, digits: 2 * $bytes })
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotHex;

            fn try_from(text: String) -> Result<Self, NotHex> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}..)", stringify!($name), hex::encode(&self.0[..6]))
            }
        }
    };
}

hex_type!(PublicKey, 32, "a public key");
hex_type!(Signature, 64, "a signature");

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2: the public key of its secret.
    #[test]
    fn the_public_key_is_that_of_the_standard() {
        let secret: [u8; 32] =
            hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
                .unwrap();
        let public = SigningKey::from_secret(&secret).public();
        let want = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(public.to_string(), want);
        assert_eq!(want.parse::<PublicKey>().unwrap(), public);
    }

    #[test]
    fn a_signature_holds_for_its_key_its_bytes_and_its_statement_alone() {
        let key = SigningKey::from_secret(&[1; 32]);
        let signature = key.sign(Statement::Receipt, b"x");
        let public = key.public();
        assert!(public.verifies(Statement::Receipt, b"x", &signature));
        assert_eq!(signature, key.sign(Statement::Receipt, b"x"));
        assert!(!public.verifies(Statement::LedgerEntry, b"x", &signature));
        assert!(!public.verifies(Statement::Receipt, b"y", &signature));
        let other = SigningKey::from_secret(&[2; 32]).public();
        assert!(!other.verifies(Statement::Receipt, b"x", &signature));
        for byte in 0..64 {
            let mut damaged = signature;
            damaged.0[byte] ^= 1;
            assert!(!public.verifies(Statement::Receipt, b"x", &damaged), "{byte}");
        }
    }

    #[test]
    fn text_round_trips_and_secrets_are_not_shown() {
        let key = SigningKey::from_secret(&[7; 32]);
        assert_eq!(format!("{key:?}"), "SigningKey(..)");
        let signature = key.sign(Statement::LedgerEntry, b"");
        assert_eq!(signature.to_string().parse::<Signature>().unwrap(), signature);
        assert!("AB".repeat(64).parse::<Signature>().is_err());
        assert!("ab".parse::<PublicKey>().unwrap_err().to_string().contains("64"));
    }
}
