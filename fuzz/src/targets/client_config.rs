//! `client.toml`.

use std::path::Path;

use floret_client::ClientConfig;

use super::Target;

pub(super) const TARGET: Target =
    Target { name: "client-config", run, limit, seeds, share: 8, longest: 1200 };

const MINIMAL: &str = r#"version = 1
server = "https://127.0.0.1:7878"
name = "phone-1"
ca = "ca.pem"
certificate = "cert.pem"
key = "key.pem"
model = "/models/base"
data = "data"
"#;

const FULL: &str = r#"adapter = "adapter"
holdout = 0.25
threads = 2
base_precision = "int8"
device = "wgpu:1"
memory_budget_mib = 900
[limits]
max_steps = 5
max_tokens = 100_000
max_batch_tokens = 0x4000
max_rank = 8
max_adapter_bytes = 1_000_000
"#;

fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let path = Path::new("devices/client.toml");
    let Ok(config) = ClientConfig::from_text(path, text) else { return false };
    assert!((0.0..1.0).contains(&config.holdout));
    let options = config.trainer_options();
    assert!(!(options.recompute && options.memory_budget.is_some()));
    let _ = config.base_options();
    true
}

/// The parser's events and values, and a message that quotes the line. A dot of a dotted key takes
/// more than a kilobyte.
fn limit(data: &[u8]) -> usize {
    1500 * data.len() + 32 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with = |rest: &str| format!("{MINIMAL}{rest}").into_bytes();
    vec![
        ("minimal", with("")),
        ("full", with(FULL)),
        ("recompute", with("recompute = true\nlimits = { max_rank = 4 }\n")),
        ("device", with("device = \"wgpu:cpu\"\nbase_precision = \"f32\"\n")),
        ("typo", with("memory_budget = 9\n")),
        ("escapes", MINIMAL.replace("data\"\n", "d\\u00e4ta\\t\"\n").into_bytes()),
    ]
}
