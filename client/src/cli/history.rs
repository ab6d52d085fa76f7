//! `floret-client history`.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use floret_client::history::{self, Outcome, Sent};
use floret_client::{ClientConfig, setup};
use serde_json::json;

use super::HistoryArgs;

pub(super) fn show(args: &HistoryArgs) -> Result<()> {
    let config = ClientConfig::read(&args.config)?;
    let history = history::read(&config.state)?;
    if args.verify {
        let key = config.ledger_key.as_ref();
        let key = key.context("--verify needs ledger_key in the configuration")?;
        history::verify(&history, &setup::read_key(key)?)?;
    }
    let text =
        if args.json { as_json(&history, args.verify) } else { as_text(&history, args.verify) };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Who reads it has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn as_json(history: &[Sent], verified: bool) -> String {
    format!("{:#}\n", json!({ "sent": history, "verified": verified }))
}

fn as_text(history: &[Sent], verified: bool) -> String {
    let mut text = String::new();
    for sent in history {
        let outcome = match &sent.outcome {
            Outcome::Counted { weight, downloaded, .. } => {
                format!("counted, weight {weight}, {downloaded} bytes came down for it")
            }
            Outcome::Refused { reason } => format!("refused: {reason}"),
        };
        let (round, bytes, payload) = (sent.round, sent.bytes, sent.payload.short());
        let at = utc(sent.at.0);
        text += &format!("{at}  round {round:>4}  {bytes:>10} bytes  {payload}  {outcome}\n");
    }
    let bytes: u64 = history.iter().map(|sent| sent.bytes).sum();
    let checked = if verified { "; every receipt is signed by the server" } else { "" };
    text + &format!("{} updates, {bytes} bytes{checked}\n", history.len())
}

/// Milliseconds since 1970 as `YYYY-MM-DD HH:MM:SSZ` (the civil calendar, by days of 400-year eras).
fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // From `date -u -d @SECONDS`.
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_704_067_199, "2023-12-31 23:59:59Z"),
            (1_795_000_000, "2026-11-18 11:06:40Z"),
        ] {
            assert_eq!(utc(seconds * 1000), want);
        }
    }
}
