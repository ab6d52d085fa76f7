//! The model against transformers and PEFT.

use std::path::{Path, PathBuf};

use floret_model::conformance::{Differences, Fixture};

fn check(dir: &Path) -> Differences {
    let fixture = Fixture::open(dir).unwrap_or_else(|error| panic!("{error}"));
    let differences = fixture.compare().unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{}: {differences:?}", dir.display());
    assert!(differences.accepted(), "{}: {differences:?}", dir.display());
    differences
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn committed_fixtures_agree() {
    for name in ["tiny_llama", "tiny_qwen2"] {
        check(&committed().join(name));
    }
}

#[test]
fn larger_fixtures_agree() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/hf");
    if !shared.exists() {
        eprintln!("skipped: there is no ../shared/hf beside this repository");
        return;
    }
    for name in ["llama", "qwen2", "smollm2"] {
        check(&shared.join(name));
    }
}
