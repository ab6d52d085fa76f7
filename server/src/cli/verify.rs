//! `floret-server verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use floret_core::PublicKey;
use floret_server::ledger_key;
use serde_json::json;

use super::{ConfigArg, say};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// File with the public key that the ledger must be signed with: a copy of ledger.pub that was
    /// kept elsewhere. By default the server's own.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let (home, config) = args.config.load()?;
    let key = match &args.public_key {
        Some(path) => read_key(path)?,
        None => ledger_key::read_public(&home)?,
    };
    let verified = floret_server::verify(&home, &config, &key)?;
    let floret_server::Verified { entries, rounds, adapters, recomputed } = verified;
    if args.json {
        say(json!({
            "entries": entries, "rounds": rounds, "adapters": adapters, "recomputed": recomputed,
            "public_key": key.to_string(),
        }))?;
    } else {
        say(format_args!(
            "the ledger holds: {entries} entries, {rounds} rounds; {adapters} adapters are as it \
             says, {recomputed} computed again from their updates"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_key(path: &std::path::Path) -> anyhow::Result<PublicKey> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    text.trim().parse().with_context(|| format!("{name} holds no public key"))
}
