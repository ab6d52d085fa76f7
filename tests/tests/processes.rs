//! The programs as people run them: separate processes, real files, a real `kill -9`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use floret_tests::quickstart;

const LONG: Duration = Duration::from_secs(180);

/// A program of this workspace, built beside the tests by `cargo test --workspace`.
fn program(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is not built: use cargo test --workspace", path.display());
    let mut command = Command::new(path);
    command.env("FLORET_LOG", "info");
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output
}

/// A process that is killed when its test ends.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn wait(mut self, log: &Path) -> i32 {
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not done in time: {}", std::fs::read_to_string(log).unwrap());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What `status --json` says under `key`.
fn status(home: &str, key: &str) -> serde_json::Value {
    let output = succeed(program("floret-server").args(["status", "--json", "--config", home]));
    let mut value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    value[key].take()
}

fn wait_for_version(home: &str, version: u64) {
    let begun = Instant::now();
    while status(home, "version").as_u64().unwrap() < version {
        assert!(begun.elapsed() < LONG, "version {version} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The run's settings: short rounds, and fast answers.
fn settle(config: &Path, rounds: u32) {
    let text = std::fs::read_to_string(config).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    let mut set = |section: &str, key: &str, value: toml::Value| {
        let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().unwrap().insert(key.to_owned(), value);
    };
    set("run", "rounds", i64::from(rounds).into());
    set("cohort", "size", 2.into());
    set("cohort", "quorum", 2.into());
    set("training", "max_steps", 1.into());
    set("training", "batch_size", 2.into());
    set("training", "sequence_length", 32.into());
    set("timing", "retry_min_s", 0.05.into());
    set("timing", "retry_max_s", 0.1.into());
    std::fs::write(config, table.to_string()).unwrap();
}

#[test]
fn a_run_goes_on_after_the_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.display().to_string();
    let (home, model) = (text(path("server")), text(quickstart().join("model")));
    let [listen, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let server = || program("floret-server");

    let init = ["init", &home, "--model", &model, "--listen", &listen, "--admin", &admin];
    succeed(server().args(init));
    settle(&path("server/server.toml"), 12);
    let log = path("server.log");
    let serve = || Process::start(server().args(["serve", "--config", &home]), &log);
    let running = serve();

    let devices = ["garden", "lighthouse"].map(|name| {
        let out = text(path(name));
        succeed(server().args(["enroll", name, "--config", &home, "--out", &out]));
        let data = path(name).join("data");
        std::fs::create_dir_all(&data).unwrap();
        for entry in std::fs::read_dir(quickstart().join("devices").join(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
        }
        let log = path(&format!("{name}.log"));
        let config = text(path(name).join("client.toml"));
        let mut run = program("floret-client");
        let device = Process::start(run.args(["run", "--config", &config]), &log);
        (device, log, config)
    });

    wait_for_version(&home, 2);
    running.kill();
    assert!(status(&home, "version").as_u64().unwrap() >= 2, "what was committed stays");
    let running = serve();
    let configs = devices.map(|(device, log, config)| {
        assert_eq!(device.wait(&log), 0, "{}", std::fs::read_to_string(&log).unwrap());
        config
    });
    assert_eq!(status(&home, "version"), 12);
    running.kill();

    let adapter = text(path("adapter"));
    succeed(server().args(["export", "--config", &home, "--out", &adapter]));
    // The device kept the run's last adapter: both write the same text with it.
    let generate = ["generate", "--prompt", "The lamp", "--temperature", "0", "--max-tokens", "12"];
    let own = succeed(program("floret-client").args(generate).args(["--config", &configs[1]]));
    let exported = ["--model", &model, "--adapter", &adapter];
    let exported = succeed(program("floret-client").args(generate).args(exported));
    assert_eq!(own.stdout, exported.stdout);
    assert!(own.stdout.starts_with(b"The lamp") && own.stdout.len() > "The lamp".len() + 1);
}
