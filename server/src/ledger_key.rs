//! The key that signs the ledger and receipts. Losing it ends the ledger: nobody can go on in its
//! name.

use floret_core::{PublicKey, SigningKey, hex};

use crate::error::CommandError;
use crate::files::{self, Access};
use crate::home::Home;

/// Makes a new key and writes both halves.
pub(crate) fn create(home: &Home) -> Result<(), CommandError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(CommandError::Random)?;
    let text = hex::encode(&secret) + "\n";
    files::replace(&home.ledger_key(), Access::Private, text.as_bytes())?;
    let text = SigningKey::from_secret(&secret).public().to_string() + "\n";
    Ok(files::replace(&home.ledger_public_key(), Access::Shared, text.as_bytes())?)
}

/// Reads the secret key.
///
/// # Errors
/// A file that is missing or damaged.
pub fn read(home: &Home) -> Result<SigningKey, CommandError> {
    let path = home.ledger_key();
    let text = files::read_text(&path)?;
    let secret = hex::decode(text.trim()).ok_or_else(|| CommandError::LedgerKey(path))?;
    Ok(SigningKey::from_secret(&secret))
}

/// Reads the public key.
///
/// # Errors
/// A file that is missing or damaged.
pub fn read_public(home: &Home) -> Result<PublicKey, CommandError> {
    let path = home.ledger_public_key();
    files::read_text(&path)?.trim().parse().map_err(|_| CommandError::LedgerKey(path))
}
