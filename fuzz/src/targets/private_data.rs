//! Texts of a device's owner: the first byte chooses between lines of JSON and paragraphs.

use std::path::Path;

use floret_client::PrivateData;

use super::{Target, choice};

pub(super) const TARGET: Target =
    Target { name: "private-data", run, limit, seeds, share: 12, longest: 800 };

const FILES: [&str; 2] = ["rows.jsonl", "texts.txt"];

fn run(data: &[u8]) -> bool {
    let (which, bytes) = choice(data, FILES.len());
    let mut found = PrivateData::default();
    found.add(Path::new(FILES[which]), bytes);
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(found.skipped.len() <= lines && found.examples.len() <= lines);
    assert!(found.skipped.iter().all(|skipped| (1..=lines).contains(&skipped.line)));
    !found.examples.is_empty()
}

/// Texts, and for each line of a few bytes that is left out, its file and number.
fn limit(data: &[u8]) -> usize {
    200 * data.len() + 8 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let rows =
        b"\0{\"text\": \"one\", \"user\": 3}\n\n{\"prompt\": \"p\", \"response\": \"r\\u00e4\"}\n";
    let bad = b"\0words\n{\"text\": 5}\n{\"text\": \"\"}\n\xff\xfe\n{\"prompt\": \"p\"}\n";
    let nested = b"\0{\"text\": \"a\", \"meta\": {\"tags\": [[1, 2], [\"x\"]], \"n\": null}}\r\n";
    vec![
        ("rows", rows.to_vec()),
        ("bad-rows", bad.to_vec()),
        ("nested", nested.to_vec()),
        ("texts", b"\x01\xef\xbb\xbfone\n  two \n\n\n  \nthree\r\n\r\nfo\xc3\xbcr".to_vec()),
        ("not-utf8", b"\x01one\n\xff\xff\ntwo".to_vec()),
    ]
}
