//! The programs as people run them: separate processes, real files, a real `kill -9`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(180);

/// A program of this workspace, built beside the tests by `cargo test --workspace`.
///
/// # Panics
/// It is not built.
#[must_use]
pub fn program(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is not built: use cargo test --workspace", path.display());
    let mut command = Command::new(path);
    command.env("FLORET_LOG", "info");
    command
}

/// What a command that must succeed put out.
///
/// # Panics
/// It does not succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output
}

/// A process that is killed when its test ends.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command whose log goes to the end of `log`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// It cannot be killed.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its exit code.
    ///
    /// # Panics
    /// It does not end in time.
    #[must_use]
    pub fn wait(mut self, log: &Path) -> i32 {
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

/// A port that nobody listens on.
///
/// # Panics
/// There is none.
#[must_use]
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What `status --json` says under `key`.
///
/// # Panics
/// There is no status.
#[must_use]
pub fn status(home: &str, key: &str) -> serde_json::Value {
    let output = succeed(program("floret-server").args(["status", "--json", "--config", home]));
    let mut value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    value[key].take()
}

/// Waits until the run has come to a version.
///
/// # Panics
/// It does not in time.
pub fn wait_for_version(home: &str, version: u64) {
    let begun = Instant::now();
    while status(home, "version").as_u64().unwrap() < version {
        assert!(begun.elapsed() < LONG, "version {version} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sets options of a `server.toml`: section, key, value.
///
/// # Panics
/// The file cannot be read or written.
pub fn set_options(config: &Path, options: &[(&str, &str, toml::Value)]) {
    let text = std::fs::read_to_string(config).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    for (section, key, value) in options {
        let section = table.entry(*section).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().unwrap().insert((*key).to_owned(), value.clone());
    }
    std::fs::write(config, table.to_string()).unwrap();
}
