//! `server.toml`, and the run that follows from it.

use std::path::Path;

use floret_core::Digest;
use floret_core::base::BaseDigests;
use floret_server::config::FixedSeed;
use floret_server::{Config, Home};

use super::Target;

pub(super) const TARGET: Target =
    Target { name: "server-config", run, limit, seeds, share: 8, longest: 2500 };

const SAMPLE: &str = include_str!("../../../server/src/sample.toml");

fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(mut config) = Config::from_text("server.toml", text) else { return false };
    // Without, the seed's file would be read.
    config.run.seed.get_or_insert(FixedSeed(1));
    let home = Home::new(Path::new("/nowhere"));
    let base = BaseDigests { base: Digest::of(b"b"), tokenizer: Digest::of(b"t") };
    let Ok((run, _)) = config.run_config(&home, base, 100_000) else { panic!("a seed is there") };
    assert!(config.url().starts_with("https://"));
    if run.validate().is_err() {
        return false;
    }
    assert!(run.cohort.selected() >= run.cohort.size && run.cohort.awaited() > 0);
    assert!(run.timing.presence() >= run.timing.retry_max);
    assert!(run.lora.scale().is_finite());
    true
}

/// The parser's events and values, and a message that quotes the line. A dot of a dotted key takes
/// more than a kilobyte.
fn limit(data: &[u8]) -> usize {
    1500 * data.len() + 32 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let bare: Vec<&str> =
        SAMPLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let section = |name: &str| -> Vec<u8> {
        let lines = bare.iter().skip_while(|line| **line != name);
        let lines = lines.enumerate().take_while(|(i, line)| *i == 0 || !line.starts_with('['));
        let lines: Vec<&str> = lines.map(|(_, line)| *line).collect();
        format!("version = 1\n{}\n", lines.join("\n")).into_bytes()
    };
    vec![
        ("sample", bare.join("\n").into_bytes()),
        ("version", b"version = 1\n".to_vec()),
        ("run", [&section("[run]")[..], b"seed = 42\n"].concat()),
        ("lora", section("[lora]")),
        ("training", section("[training]")),
        ("cohort", section("[cohort]")),
        ("timing", section("[timing]")),
        ("limits", section("[limits]")),
        ("server", section("[server]")),
        ("inline", b"version=1\ntiming={report_deadline_s=1e1,retry_max_s=0b1}#\xc3\xa4".to_vec()),
        ("typo", b"version = 1\n[cohort]\nsizes = 3\n".to_vec()),
    ]
}
