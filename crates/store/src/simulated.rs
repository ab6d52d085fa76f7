//! A disk in memory that fails, tears or loses unsynced data at its n-th operation: what a store
//! says is durable must be there whatever happens.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::disk::{Disk, DiskFile};

/// What happens at the chosen operation. From then on every operation fails, until the disk is
/// [rebooted](SimulatedDisk::reboot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and does nothing; what was written before stays, as when a process is killed.
    Fail,
    /// Power is lost in the middle of it: a write is done by half, and of everything that was not
    /// synced some is there and some is not, as the seed has it.
    Tear(u64),
    /// Power is lost before it, and nothing is left that was not synced.
    Lose,
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<File>,
    /// Which files there are, as programs see it.
    names: BTreeMap<String, usize>,
    /// Which there would be after a loss of power.
    durable_names: BTreeMap<String, usize>,
    /// Names that changed since their folder was synced: old and new.
    renames: Vec<(String, String)>,
    /// Operations that changed something or made it durable.
    operations: u64,
    fault: Option<(u64, Fault)>,
    halted: bool,
    /// Files that were opened before a reboot are closed.
    boots: u32,
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

/// Whether an operation is done in full, or by half before it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Full,
    Half,
}

impl SimulatedDisk {
    /// Operations so far that changed something or made it durable.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Lets `fault` happen at operation number `at`, counted from 1 over the disk's whole life.
    pub fn fail_at(&self, at: u64, fault: Fault) {
        self.state().fault = Some((at, fault));
    }

    /// Whether the fault has happened and the disk was not rebooted since.
    #[must_use]
    pub fn halted(&self) -> bool {
        self.state().halted
    }

    /// Starts the disk again with what the fault left; a second fault does not happen by itself.
    /// Without a fault, it is as if the process had been killed.
    pub fn reboot(&self) {
        let mut state = self.state();
        let happened = if state.halted { state.fault.take() } else { None };
        match happened {
            Some((_, Fault::Lose)) => state.keep_unsynced(|| false),
            Some((_, Fault::Tear(seed))) => {
                let mut rng = ChaCha20Rng::seed_from_u64(seed);
                state.keep_unsynced(|| rng.next_u32() & 1 == 0);
            }
            Some((_, Fault::Fail)) | None => {}
        }
        state.halted = false;
        state.boots += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts an operation and says how much of it is done.
    fn operate(&mut self) -> io::Result<Extent> {
        if self.halted {
            return Err(io::Error::other("the simulated disk has halted"));
        }
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == self.operations => {
                self.halted = true;
                match fault {
                    Fault::Tear(_) => Ok(Extent::Half),
                    Fault::Fail | Fault::Lose => Err(torn()),
                }
            }
            _ => Ok(Extent::Full),
        }
    }

    fn keep_unsynced(&mut self, mut keep: impl FnMut() -> bool) {
        for file in &mut self.files {
            file.bytes.clone_from(&file.durable);
            for change in std::mem::take(&mut file.unsynced) {
                if keep() {
                    change.apply(&mut file.bytes);
                }
            }
            file.durable.clone_from(&file.bytes);
        }
        // A rename is done or not done; no other mixture is possible.
        for (from, to) in std::mem::take(&mut self.renames) {
            let done = keep();
            let durable = self.durable_names.remove(&from);
            match (durable, done) {
                (Some(file), true) => drop(self.durable_names.insert(to, file)),
                (Some(file), false) => {
                    self.durable_names.insert(from.clone(), file);
                    self.names.insert(from, file);
                    self.names.remove(&to);
                }
                (None, _) => {}
            }
        }
        for (name, file) in &self.names {
            if !self.durable_names.contains_key(name) && keep() {
                self.durable_names.insert(name.clone(), *file);
            }
        }
        let names = &self.names;
        self.durable_names.retain(|name, _| names.contains_key(name) || !keep());
        self.names.clone_from(&self.durable_names);
    }
}

fn torn() -> io::Error {
    io::Error::other("the simulated disk fails here")
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        {
            let mut state = self.state();
            if !state.names.contains_key(name) {
                // A file that is half created does not exist.
                if state.operate()? == Extent::Half {
                    return Err(torn());
                }
                state.files.push(File::default());
                let index = state.files.len() - 1;
                state.names.insert(name.to_owned(), index);
            }
        }
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        let index = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), index, boots: state.boots }))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let state = self.state();
        let inside = state.names.keys().filter_map(|name| {
            let (of, file) = name.rsplit_once('/').unwrap_or(("", name));
            (of == folder).then(|| file.to_owned())
        });
        Ok(inside.collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.operate()? == Extent::Half {
            return Err(torn());
        }
        state.names.remove(name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.operate()? == Extent::Half {
            return Err(torn());
        }
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        state.renames.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.operate()? == Extent::Half {
            return Err(torn());
        }
        let of = |name: &str| name.rsplit_once('/').map_or("", |(of, _)| of) == folder;
        state.renames.retain(|(from, _)| !of(from));
        state.durable_names.retain(|name, _| !of(name));
        let names = state.names.iter().filter(|(name, _)| of(name));
        let names: Vec<_> = names.map(|(name, file)| (name.clone(), *file)).collect();
        state.durable_names.extend(names);
        Ok(())
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    index: usize,
    boots: u32,
}

impl SimulatedFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.boots != self.boots {
            return Err(io::Error::other("the file was opened before the simulated reboot"));
        }
        Ok(state)
    }

    fn change(&self, full: Change, half: Option<Change>) -> io::Result<()> {
        let mut state = self.state()?;
        let extent = state.operate()?;
        let file = &mut state.files[self.index];
        match (extent, half) {
            (Extent::Full, _) => {
                full.apply(&mut file.bytes);
                file.unsynced.push(full);
                Ok(())
            }
            (Extent::Half, half) => {
                file.unsynced.extend(half);
                Err(torn())
            }
        }
    }
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.files[self.index].bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = &state.files[self.index].bytes;
        let found = bytes.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let half = Change::Write(offset, data[..data.len() / 2].to_vec());
        self.change(Change::Write(offset, data.to_vec()), Some(half))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.change(Change::SetLen(len), None)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state()?;
        if state.operate()? == Extent::Half {
            return Err(torn());
        }
        let file = &mut state.files[self.index];
        file.durable.clone_from(&file.bytes);
        file.unsynced.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(disk: &SimulatedDisk) -> io::Result<()> {
        let file = disk.create("a/x")?;
        file.write(0, b"old!")?;
        file.sync()?;
        disk.sync_folder("a")?;
        file.write(0, b"new!")?;
        disk.create("a/y")?;
        Ok(())
    }

    fn content(disk: &SimulatedDisk, name: &str) -> Vec<u8> {
        crate::blob::read_all(disk, name).unwrap()
    }

    #[test]
    fn a_kill_keeps_what_was_written_and_a_loss_of_power_what_was_synced() {
        let disk = SimulatedDisk::default();
        written(&disk).unwrap();
        assert_eq!(disk.operations(), 6);
        disk.reboot();
        assert_eq!(content(&disk, "a/x"), b"new!");

        let disk = SimulatedDisk::default();
        disk.fail_at(6, Fault::Lose);
        assert!(written(&disk).is_err() && disk.halted());
        assert!(disk.remove("a/x").is_err());
        disk.reboot();
        assert_eq!(content(&disk, "a/x"), b"old!");
        assert_eq!(disk.list("a").unwrap(), ["x"]);
    }

    #[test]
    fn a_torn_write_is_there_by_half_or_not_at_all() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let disk = SimulatedDisk::default();
            disk.fail_at(5, Fault::Tear(seed));
            assert!(written(&disk).is_err());
            disk.reboot();
            seen.insert(content(&disk, "a/x"));
        }
        let seen: Vec<_> = seen.into_iter().collect();
        assert_eq!(seen, [b"ned!", b"old!"]);
    }

    #[test]
    fn files_opened_before_a_reboot_are_closed() {
        let disk = SimulatedDisk::default();
        let file = disk.create("x").unwrap();
        disk.reboot();
        assert!(file.write(0, b"1").is_err());
    }
}
