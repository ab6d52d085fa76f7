//! The server's process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::usage::Usage;

const START_WITHIN: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where `floret-server` is: `given`, or beside this program.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name("floret-server"),
    };
    let hint = || format!("there is no {}: build it, or name it with --server-bin", path.display());
    path.canonicalize().with_context(hint)
}

/// Runs a command of `floret-server` to its end.
pub(super) fn run(program: &Path, args: impl IntoIterator<Item = String>) -> Result<Output> {
    let mut command = Command::new(program);
    let output = command.args(args).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", program.display(), error.trim());
    }
    Ok(output)
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts the server of the directory `home`, and waits until `admin` says that it is well.
    pub(super) fn start(
        program: &Path,
        home: &Path,
        admin: SocketAddr,
        log: &Path,
    ) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(program)
            .args(["serve", "--exit-when-done", "--config"])
            .arg(home)
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut server = Self { child, log: log.to_owned() };
        let begun = Instant::now();
        while !is_well(admin) {
            if let Some(status) = server.ended()? {
                bail!("the server did not start ({status}): {}", server.last_words());
            }
            if begun.elapsed() > START_WITHIN {
                bail!("{admin} does not answer: {}", server.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid())
    }

    /// How the process ended, if it did.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("the server's process cannot be watched")
    }

    /// The last lines of its log.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_well(admin: SocketAddr) -> bool {
    let mut answer = String::new();
    let mut ask = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(())
    };
    ask().is_ok() && answer.ends_with("ok")
}
