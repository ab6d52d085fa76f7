//! What a process used, as Linux tells it, and how fast the disk makes bytes durable.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Ticks of the times in `/proc`, a second: the same on every Linux that Rust's std runs on.
const TICKS: f64 = 100.0;
const MIB: f64 = (1 << 20) as f64;

/// What a process used so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    /// Seconds of processor time, user and system.
    pub(crate) cpu_s: f64,
    /// Physical memory now.
    pub(crate) rss_mib: f64,
    /// The most that it ever held.
    pub(crate) peak_mib: f64,
}

impl Usage {
    /// Of the process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}: is this Linux?"))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        Self::parse(&stat, &status).context("this system's /proc is not understood")
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name, in parentheses, may hold blanks; utime and stime are fields 14 and 15.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks: f64 =
            [fields.next()?, fields.next()?].iter().map(|f| f.parse().unwrap_or(0.0)).sum();
        let mib = |key: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
        };
        Some(Self { cpu_s: ticks / TICKS, rss_mib: mib("VmRSS:")?, peak_mib: mib("VmHWM:")? })
    }
}

/// Fails when this process may not open `needed` files.
pub(crate) fn check_open_files(needed: u64) -> Result<()> {
    let limits = fs::read_to_string("/proc/self/limits").context("is this Linux?")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft = soft.and_then(|text| text.parse::<u64>().ok()).unwrap_or(u64::MAX);
    ensure!(needed <= soft, "{needed} open files are needed and {soft} permitted: use ulimit -n");
    Ok(())
}

/// MiB a second of 64 writes of 1 MiB in `dir`, each made durable before the next.
pub(crate) fn synced_write_rate(dir: &Path) -> Result<f64> {
    let path = dir.join("synced-writes");
    let block = vec![0x5a; 1 << 20];
    let attempt = || -> std::io::Result<f64> {
        let mut file = fs::File::create(&path)?;
        let begun = Instant::now();
        for _ in 0..64 {
            file.write_all(&block)?;
            file.sync_data()?;
        }
        let rate = 64.0 * block.len() as f64 / MIB / begun.elapsed().as_secs_f64();
        fs::remove_file(&path)?;
        Ok(rate)
    };
    attempt().with_context(|| format!("cannot write to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_and_parentheses_are_passed_over() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let want = Usage { cpu_s: 2.0, rss_mib: 1.0, peak_mib: 2.0 };
        assert_eq!(Usage::parse(stat, status), Some(want));
        assert_eq!(Usage::parse(stat, "Name:\tx\n"), None);
        assert!(Usage::of(std::process::id()).unwrap().rss_mib > 0.5);
    }

    #[test]
    fn too_many_open_files_are_an_error_that_says_what_to_do() {
        check_open_files(1).unwrap();
        assert!(check_open_files(u64::MAX - 1).unwrap_err().to_string().contains("ulimit -n"));
    }
}
