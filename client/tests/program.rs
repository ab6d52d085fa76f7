//! The program itself: what it says when it is used wrongly.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> (Output, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_floret-client")).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, error)
}

const CONFIG: &str = r#"version = 1
server = "https://127.0.0.1:1"
name = "phone"
ca = "ca.pem"
certificate = "cert.pem"
key = "key.pem"
model = "model"
data = "data"
"#;

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("client.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn settings_that_cannot_be_used_exit_with_2_and_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), &CONFIG.replace("certificate", "certifikate"));
    let (output, error) = run(&["run", "--config", &config]);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("line 5") && error.contains("did you mean `certificate`?"), "{error}");
    let (output, error) = run(&["run", "--config", "/nowhere/client.toml"]);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("/nowhere/client.toml"), "{error}");
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), CONFIG);
    let (output, error) = run(&["run", "--config", &config]);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("config.json"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    let (output, error) = run(&["generate", "--prompt", "x", "--model", "/nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn a_reader_that_goes_away_ends_generation_quietly() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart/model");
    let mut child = Command::new(env!("CARGO_BIN_EXE_floret-client"))
        .args(["generate", "--prompt", "The lamp", "--temperature", "1", "--top-p", "0.9"])
        .arg("--model")
        .arg(model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !error.contains("error"), "{error}");
}

#[test]
fn a_device_that_cannot_be_had_is_told() {
    let generate = ["generate", "--prompt", "x", "--model", "/nowhere", "--device"];
    let (output, error) = run(&[&generate[..], &["gpu"]].concat());
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("wgpu:cpu"), "{error}");
    let (output, error) = run(&[&generate[..], &["wgpu:1000"]].concat());
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("device wgpu:1000"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), &format!("{CONFIG}base_precision = \"int8\"\n"));
    let (output, error) = run(&["run", "--config", &config, "--device", "wgpu"]);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("int8") && error.contains("device cpu"), "{error}");
}
