//! The program, as people and scripts call it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::*;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floret-server"));
    command.args(args).env("FLORET_LOG", "info");
    command
}

fn run(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes a quick run's settings into a site's `server.toml`.
fn settings(site: &Site, admin: u16) {
    let path = site.home.config();
    let mut text = std::fs::read_to_string(path).unwrap();
    let admin = format!("\"127.0.0.1:{admin}\"");
    for (old, new) in [
        ("\nlisten = \"127.0.0.1:7878\"", "\nlisten = \"127.0.0.1:0\""),
        ("\nadmin = \"127.0.0.1:7879\"", &format!("\nadmin = {admin}")),
        ("\nsize = 4", "\nsize = 1"),
        ("\nquorum = 3", "\nquorum = 1"),
        ("\nreport_deadline_s = 600.0", "\nreport_deadline_s = 0.2"),
        ("\nretry_max_s = 5.0", "\nretry_max_s = 1.0"),
    ] {
        assert!(text.contains(old), "{old}");
        text = text.replace(old, new);
    }
    std::fs::write(path, text).unwrap();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait(mut child: Child) -> Output {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("the program did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn usage_and_settings_errors_are_one_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let missing = run(&["serve", "--config", path]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("floret-server init"), "{}", text(&missing.stderr));

    std::fs::write(dir.path().join("server.toml"), "version = 1\n[cohort]\nsise = 3\n").unwrap();
    let typo = run(&["status", "--config", path]);
    assert_eq!(typo.status.code(), Some(2));
    assert!(text(&typo.stderr).contains("did you mean `size`?"), "{}", text(&typo.stderr));
    assert_eq!(run(&["enroll", "Not A Name", "--out", path]).status.code(), Some(2));
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn init_enroll_and_status_work_from_the_shell() {
    let site = Site::new(8);
    let dir = site.dir.path().join("fresh");
    let model = site.dir.path().join("model");
    let [dir, model] = [&dir, &model].map(|path| path.to_str().unwrap());
    let init = run(&["init", dir, "--model", model, "--host", "localhost"]);
    assert!(init.status.success(), "{}", text(&init.stderr));
    let again = run(&["init", dir, "--model", model]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("a server's already"));

    let out = format!("{dir}/phone-1");
    let enroll = ["enroll", "phone-1", "--config", dir, "--out", &out];
    assert!(run(&enroll).status.success());
    let again = run(&enroll);
    assert!(text(&again.stderr).contains("--force"), "{}", text(&again.stderr));
    check_enrolment(Path::new(&out), model);
    let key = std::fs::read(format!("{out}/key.pem")).unwrap();
    let forced = run(&[&enroll[..], &["--force"]].concat());
    assert!(forced.status.success(), "{}", text(&forced.stderr));
    assert_ne!(std::fs::read(format!("{out}/key.pem")).unwrap(), key);

    let status = run(&["export", "--config", dir, "--out", &format!("{dir}/peft")]);
    assert!(text(&status.stderr).contains("holds no run yet"), "{}", text(&status.stderr));
}

#[test]
fn several_devices_are_enrolled_at_once_or_none() {
    let site = Site::new(8);
    let dir = site.home.dir().to_str().unwrap();
    let out = site.dir.path().join("fleet");
    let second = out.join("phone-2");
    let [fleet, file] = [&out, &second].map(|path| path.to_str().unwrap());
    let options = ["--config", dir, "--out", fleet];
    let enroll = |names: &[&str]| run(&[&["enroll"], names, &options[..]].concat());

    let twice = enroll(&["phone-1", "phone-1"]);
    assert!(text(&twice.stderr).contains("named twice"), "{}", text(&twice.stderr));
    let single = run(&["enroll", "phone-2", "--config", dir, "--out", file]);
    assert!(single.status.success(), "{}", text(&single.stderr));
    let refused = enroll(&["phone-1", "phone-2", "phone-3"]);
    assert!(text(&refused.stderr).contains("phone-2.pem"), "{}", text(&refused.stderr));
    assert!(!out.join("phone-1").exists(), "one that cannot be enrolled holds the others back");

    let names: Vec<String> = (10..31).map(|i| format!("phone-{i}")).collect();
    let many = enroll(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(text(&many.stdout).starts_with("21 devices are enrolled"), "{many:?}");
    let mut keys = std::collections::BTreeSet::new();
    for name in &names {
        let client = std::fs::read_to_string(out.join(name).join("client.toml")).unwrap();
        assert!(client.contains(&format!("name = \"{name}\"")), "{client}");
        keys.insert(std::fs::read(out.join(name).join("key.pem")).unwrap());
        let record = site.home.devices().join(format!("{name}.pem"));
        let certificate = std::fs::read(out.join(name).join("cert.pem")).unwrap();
        assert_eq!(std::fs::read(record).unwrap(), certificate);
    }
    assert_eq!(keys.len(), names.len());
}

fn check_enrolment(out: &Path, model: &str) {
    let client = std::fs::read_to_string(out.join("client.toml")).unwrap();
    let client: toml::Table = client.parse().unwrap();
    let model = std::fs::canonicalize(model).unwrap();
    for (key, value) in [
        ("server", "https://localhost:7878"),
        ("name", "phone-1"),
        ("ca", "ca.pem"),
        ("certificate", "cert.pem"),
        ("key", "key.pem"),
        ("ledger_key", "ledger.pub"),
        ("model", model.to_str().unwrap()),
        ("data", "data"),
    ] {
        assert_eq!(client[key].as_str(), Some(value), "{key}");
    }
    assert_eq!((client["version"].as_integer(), client.len()), (Some(1), 9));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(out.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[cfg(unix)]
#[test]
fn serve_answers_status_and_stops_on_sigterm() {
    let site = Site::new(8);
    let admin = free_port();
    settings(&site, admin);
    let dir = site.home.dir().to_str().unwrap();
    let serve = ["serve", "--config", dir, "--log-format", "json"];
    let child = program(&serve).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let status = loop {
        let status = run(&["status", "--config", dir]);
        if text(&status.stdout).contains("selecting: 0 of 1 devices") {
            break text(&status.stdout);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{status:?}");
        std::thread::sleep(Duration::from_millis(30));
    };
    assert!(status.contains("version   0 of 10"), "{status}");
    let second = run(&["serve", "--config", dir]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second.stderr));
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    let output = wait(child);
    assert!(output.status.success(), "{output:?}");
    for line in text(&output.stderr).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string(), "{line}");
    }

    let status = run(&["status", "--config", dir]);
    assert!(text(&status.stdout).contains("not running"), "{status:?}");
    let json = run(&["status", "--config", dir, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["version"], 0);
    let out = site.dir.path().join("peft");
    let export = run(&["export", "--config", dir, "--out", out.to_str().unwrap()]);
    assert!(export.status.success(), "{export:?}");
    assert!(out.join("adapter_model.safetensors").exists());
}
