//! Text files whose last lines a database holds too: they are appended once their transaction is
//! durable, and written again when a crash came between.

use std::io;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::log::Log;

/// What the last transaction appended, and where: it belongs into the transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Length of the file before, in bytes.
    from: u64,
    /// Lines, each with its line break.
    lines: String,
}

/// The file, and the lines of the transaction that is being made.
#[derive(Debug)]
pub struct Lines {
    log: Log,
    tail: Tail,
}

impl Lines {
    /// Opens the file that ends with `tail`, and completes it if a crash cut that off.
    ///
    /// # Errors
    /// A file that is shorter than what came before the tail, or whatever the disk says.
    pub fn open(disk: &dyn Disk, name: &str, tail: Tail) -> io::Result<Self> {
        let log = Log::open(disk, "", name, tail.from)?;
        let mut lines = Self { log, tail };
        lines.finish()?;
        Ok(lines)
    }

    /// Begins the lines of a new transaction.
    pub fn begin(&mut self) {
        self.tail = Tail { from: self.log.len(), lines: String::new() };
    }

    /// Adds a line, without its line break, to the transaction that is being made.
    pub fn push(&mut self, line: &str) {
        self.tail.lines += line;
        self.tail.lines.push('\n');
    }

    /// What the transaction must hold.
    #[must_use]
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Appends the lines of a transaction that is durable.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.tail.lines.is_empty() {
            return Ok(());
        }
        self.log.append(self.tail.lines.as_bytes())?;
        self.log.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob;
    use crate::simulated::{Fault, SimulatedDisk};

    fn text(disk: &SimulatedDisk) -> String {
        String::from_utf8(blob::read_all(disk, "x").unwrap()).unwrap()
    }

    #[test]
    fn a_line_whose_transaction_is_durable_is_there_after_any_crash() {
        for (at, fault) in (3..8)
            .flat_map(|at| [Fault::Fail, Fault::Tear(at), Fault::Lose].map(|fault| (at, fault)))
        {
            let disk = SimulatedDisk::default();
            let mut lines = Lines::open(&disk, "x", Tail::default()).unwrap();
            disk.fail_at(at, fault);
            let mut durable = Tail::default();
            let attempt = |lines: &mut Lines, durable: &mut Tail, line| {
                lines.begin();
                lines.push(line);
                *durable = lines.tail().clone();
                lines.finish()
            };
            let done = attempt(&mut lines, &mut durable, "one")
                .and_then(|()| attempt(&mut lines, &mut durable, "two"));
            disk.reboot();
            let again = Lines::open(&disk, "x", durable.clone());
            // Reopening may meet the fault in its turn.
            if again.is_err() {
                disk.reboot();
                Lines::open(&disk, "x", durable.clone()).unwrap();
            }
            let want = if durable.from == 0 { "one\n" } else { "one\ntwo\n" };
            assert_eq!(text(&disk), want, "{fault:?} at {at}, {done:?}");
        }
    }
}
