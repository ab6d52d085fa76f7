//! The server's ledger and a device's history, as whoever checks them reads them.

use floret_aggregator::ledger::{self, Fact, Head, Scribe, Settings};
use floret_client::history;
use floret_core::{SigningKey, Time};

use super::{Target, choice};

pub(super) const TARGET: Target =
    Target { name: "ledger", run, limit, seeds, share: 1, longest: 4096 };

fn scribe() -> Scribe {
    Scribe::new(SigningKey::from_secret(&[1; 32]))
}

fn run(data: &[u8]) -> bool {
    let (kind, bytes) = choice(data, 2);
    match kind {
        0 => ledger::verify(bytes, &scribe().public()).is_ok_and(|(entries, head)| {
            assert_eq!(entries.len() as u64, head.entries);
            head.entries > 0
        }),
        _ => history::parse(bytes).is_ok_and(|history| !history.is_empty()),
    }
}

/// A line is held as text, as its parts, and in a list that doubles.
fn limit(data: &[u8]) -> usize {
    16 * data.len() + 16 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let settings: Settings = serde_json::from_str(SETTINGS)
        .unwrap_or_else(|error| unreachable!("the settings below are valid: {error}"));
    let fact = || Fact::Settings(Box::new(settings.clone()));
    let (first, head) = scribe().line(Head::default(), Time(1), fact());
    let (second, _) = scribe().line(head, Time(2), fact());
    let sent: history::Sent = serde_json::from_str(SENT)
        .unwrap_or_else(|error| unreachable!("the entry below is valid: {error}"));
    let with = |kind: u8, text: String| [vec![kind], text.into_bytes()].concat();
    vec![
        ("ledger", with(0, format!("{first}\n{second}\n"))),
        ("ledger-cut", with(0, format!("{first}\n{}", &second[..40]))),
        ("history", with(1, format!("{}\n", sent.line().0))),
    ]
}

const SETTINGS: &str = r#"{"run": "run", "rounds": 3,
    "base": {"base": "0000000000000000000000000000000000000000000000000000000000000000",
        "tokenizer": "0000000000000000000000000000000000000000000000000000000000000000"},
    "layout": "0000000000000000000000000000000000000000000000000000000000000000",
    "lora": {}, "training": {}, "compression": "int8", "cohort": {}, "aggregation": {}}"#;

const SENT: &str = r#"{"entry": 1,
    "previous": "0000000000000000000000000000000000000000000000000000000000000000",
    "at": 1700000000000, "run": "run", "client": "phone", "round": 1,
    "payload": "0000000000000000000000000000000000000000000000000000000000000000",
    "bytes": 10, "examples": 4, "outcome": {"refused": {"reason": "late"}}}"#;
