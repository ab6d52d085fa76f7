//! A run in a child process. An input that uses up the stack or the memory kills the process, so a
//! parent runs the campaign in a child; if that dies, the inputs it was at are halved until one is
//! left.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::campaign::Found;
use crate::check::Failure;
use crate::mutate::Inputs;
use crate::{Target, corpus, targets};

/// A thread's notes of the inputs that it takes.
#[derive(Debug)]
pub struct Trace {
    file: Option<File>,
}

impl Trace {
    /// The notes of a thread in the folder `dir`.
    #[must_use]
    pub fn new(dir: &Path, thread: usize) -> Self {
        Self { file: File::create(dir.join(thread.to_string())).ok() }
    }

    /// Notes that these inputs come next. A note that cannot be written is a death that cannot be
    /// explained, and no more.
    pub(crate) fn note(&mut self, target: &Target, numbers: &Range<u64>) {
        let Some(file) = &mut self.file else { return };
        let line = format!("{} {} {}", target.name, numbers.start, numbers.end);
        let _ = file.rewind().and_then(|()| writeln!(file, "{line:100}"));
    }
}

/// Runs this program once more with `arguments` and `--trace DIR`.
///
/// # Errors
/// A program that cannot be started.
pub fn child(trace: &Path, arguments: impl Iterator<Item: AsRef<OsStr>>) -> io::Result<ExitStatus> {
    fs::create_dir_all(trace)?;
    Command::new(std::env::current_exe()?).args(arguments).arg("--trace").arg(trace).status()
}

/// The input that killed a child which left notes in the folder `trace`, if it kills again.
///
/// # Errors
/// Notes or a corpus that cannot be read.
pub fn find_killer(trace: &Path, seed: u64) -> io::Result<Option<Found>> {
    let again = trace.join("again");
    for entry in fs::read_dir(trace)? {
        let path = entry?.path();
        let Ok(note) = fs::read_to_string(&path) else { continue };
        let words: Vec<&str> = note.split_whitespace().collect();
        let [target, first, end] = words[..] else { continue };
        let (Some(target), Ok(first), Ok(end)) =
            (targets::find(target), first.parse(), end.parse())
        else {
            continue;
        };
        if let Some(number) = halve(&again, target, seed, first..end)? {
            let seeds = corpus::read_dir(&corpus::seeds_dir(target))?;
            let input = Inputs::new(target, seeds, seed).get(number);
            return Ok(Some(Found { target, number, input, failure: Failure::Death }));
        }
    }
    Ok(None)
}

/// The first of `numbers` that kills a process.
fn halve(
    trace: &Path,
    target: &Target,
    seed: u64,
    mut numbers: Range<u64>,
) -> io::Result<Option<u64>> {
    if !kills(trace, target, seed, &numbers)? {
        return Ok(None);
    }
    while numbers.end - numbers.start > 1 {
        let middle = numbers.start + (numbers.end - numbers.start) / 2;
        let first = numbers.start..middle;
        numbers = if kills(trace, target, seed, &first)? { first } else { middle..numbers.end };
    }
    Ok(Some(numbers.start))
}

fn kills(trace: &Path, target: &Target, seed: u64, numbers: &Range<u64>) -> io::Result<bool> {
    fs::create_dir_all(trace)?;
    let count = numbers.end - numbers.start;
    let options = [("--seed", seed), ("--from", numbers.start), ("--inputs", count), ("--jobs", 1)];
    let status = Command::new(std::env::current_exe()?)
        .args(["--target", target.name])
        .args(options.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]))
        .arg("--trace")
        .arg(trace)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.code().is_none())
}
