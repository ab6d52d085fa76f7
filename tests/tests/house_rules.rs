//! Who may import whom, as ARCHITECTURE.md says it. Each rule that is broken fails with a sentence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names of all packages that `package` is built from, itself left out.
fn dependencies(package: &str) -> BTreeSet<String> {
    let with_gpu =
        ["floret-model", "floret-client", "floret-lab", "floret-examples", "floret-tests"];
    let gpu = with_gpu.iter().find(|name| **name == package);
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--offline", "--locked", "-e", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "-p", package])
        // The GPU's packages need not be downloaded where nobody asks for them.
        .args(gpu.is_none().then_some("--all-features"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree -p {package}: {error}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
    names.filter(|name| name != package && !name.is_empty()).collect()
}

/// Whether `name` is `stem` or one of its parts, as burn-flex is one of burn.
fn is(name: &str, stem: &str) -> bool {
    name == stem || name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('-'))
}

#[test]
fn a_broken_rule_would_be_seen() {
    // The rules read what cargo says: the server is built from tokio, the client from Burn's parts.
    assert!(dependencies("floret-server").iter().any(|name| is(name, "tokio")));
    assert!(dependencies("floret-client").iter().any(|name| is(name, "burn") && name != "burn"));
    assert!(!is("burnt", "burn"));
}

#[test]
fn packages_import_only_what_the_plan_permits() {
    let io = [
        "tokio",
        "tonic",
        "hyper",
        "burn",
        "getrandom",
        "rustls",
        "axum",
        "tempfile",
        "redb",
        "floret-store",
    ];
    let pure = ["core", "privacy", "device", "aggregator", "simulation"];
    let mut rules: Vec<(&str, &str, &str)> = vec![
        ("server", "burn", "the server needs no tensors: layouts and adapters live in core"),
        (
            "server",
            "floret-model",
            "the server needs no tensors: layouts and adapters live in core",
        ),
        ("server", "floret-device", "the two sides of a round meet on the wire alone"),
        ("server", "floret-client", "the two sides of a round meet on the wire alone"),
        ("client", "floret-aggregator", "the two sides of a round meet on the wire alone"),
        ("client", "floret-server", "the two sides of a round meet on the wire alone"),
        ("device", "floret-aggregator", "the two sides of a round meet on the wire alone"),
        ("aggregator", "floret-device", "the two sides of a round meet on the wire alone"),
        ("proto", "floret-device", "the wire contract speaks core types alone"),
        ("proto", "floret-aggregator", "the wire contract speaks core types alone"),
        ("proto", "floret-model", "the wire contract speaks core types alone"),
        ("device", "floret-model", "a device's side of a round trains through the Trainer seam"),
        ("simulation", "floret-model", "a simulation takes any Trainer"),
        ("device", "floret-proto", "the state machines are below the wire"),
        ("aggregator", "floret-proto", "the state machines are below the wire"),
        ("model", "floret-proto", "the model is below the wire"),
        ("model", "floret-client", "shells stand on the model, never the other way"),
        ("model", "floret-aggregator", "the two sides of a round meet on the wire alone"),
        ("lab", "floret-server", "the lab runs the aggregator itself, not the server's shell"),
        ("core", "floret-proto", "core is below the wire"),
        ("store", "floret-core", "the store knows bytes; the schema belongs to its owners"),
        ("model", "floret-store", "shells keep things, the model does not"),
        ("privacy", "floret-core", "privacy works on flat vectors alone"),
    ];
    for package in pure {
        for name in io {
            rules.push((package, name, "the rules below do no I/O; shells do"));
        }
    }
    let mut broken = Vec::new();
    let packages: BTreeSet<&str> = rules.iter().map(|(package, ..)| *package).collect();
    for package in packages {
        let built_from = dependencies(&format!("floret-{package}"));
        for (_, forbidden, why) in rules.iter().filter(|(of, ..)| *of == package) {
            if let Some(name) = built_from.iter().find(|name| is(name, forbidden)) {
                broken.push(format!("floret-{package} must not be built from {name}: {why}."));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_rules_below_touch_no_file_socket_clock_or_environment() {
    let forbidden = [
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "Instant::now",
        "SystemTime",
        "std::thread",
    ];
    let mut broken = Vec::new();
    for package in ["core", "privacy", "device", "aggregator", "simulation"] {
        for file in sources(&root().join("crates").join(package).join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            for name in forbidden.iter().filter(|name| text.contains(**name)) {
                broken.push(format!("{} uses {name}: let the shell do it.", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for folder in ["client/src", "server/src", "proto/src", "crates", "examples/src", "fuzz/src"] {
        for file in sources(&root().join(folder)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let production = text.split("#[cfg(test)]").next().unwrap_or_default();
            let lines = production.lines().count();
            if lines > 500 && !file.ends_with("tests.rs") {
                long.push(format!("{} has {lines} lines: make it two rooms.", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

#[test]
fn unsafe_code_stays_in_the_kernels() {
    let kernels = root().join("crates/model/src/kernels");
    let mut inside = 0;
    for folder in ["client/src", "server/src", "proto/src", "crates", "examples/src", "fuzz/src"] {
        for file in sources(&root().join(folder)) {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.contains("allow(unsafe_code") {
                assert!(file.starts_with(&kernels), "{}: unsafe outside kernels", file.display());
                inside += 1;
            }
        }
    }
    assert!(inside > 0, "the kernels have moved");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
