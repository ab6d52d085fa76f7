//! What people and programs see.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::campaign::{Campaign, Found, Result};
use crate::corpus;
use crate::minimise::minimise;

/// Writes a failing input and a smaller one down, and says how to repeat it. What cannot be written
/// is told beside it.
pub fn failure(found: &Found, seed: u64) {
    let Found { target, number, input, failure } = found;
    let smaller = minimise(target, input.clone(), failure);
    let path = |input: &[u8]| match corpus::write_crash(target, input) {
        Ok(path) => path.display().to_string(),
        Err(error) => format!("(not written: {error})"),
    };
    let name = target.name;
    let lines = format!(
        "\n{name}: {failure}\n\
         repeat it:  fuzz --target {name} --seed {seed} --input {number}\n\
         the input:  {} ({} bytes)\n\
         a smaller:  {} ({} bytes)\n\
         when it is mended, move the smaller to fuzz/regressions/{name}\n",
        path(input),
        input.len(),
        path(&smaller),
        smaller.len(),
    );
    let _ = io::stderr().write_all(lines.as_bytes());
}

/// Writes what a campaign did: a table, or one JSON object.
///
/// # Errors
/// An output that cannot be written.
pub fn result(campaign: &Campaign, result: &Result, took: Duration, json: bool) -> io::Result<()> {
    let total: u64 = result.tallies.iter().map(|tally| tally.inputs).sum();
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", as_json(campaign, result, total, took));
    }
    writeln!(
        out,
        "{:15} {:>10} {:>9} {:>10} {:>7} {:>11} {:>8}",
        "target", "inputs", "accepted", "peak", "of max", "slowest", "mean"
    )?;
    for (target, tally) in campaign.targets.iter().zip(&result.tallies) {
        let inputs = tally.inputs.max(1);
        writeln!(
            out,
            "{:15} {:>10} {:>8.1}% {:>8.1} k {:>6}% {:>8.2} ms {:>5.1} us",
            target.name,
            tally.inputs,
            100.0 * tally.accepted as f64 / inputs as f64,
            tally.peak as f64 / 1024.0,
            tally.of_limit,
            tally.slowest.as_secs_f64() * 1e3,
            tally.time.as_secs_f64() * 1e6 / inputs as f64,
        )?;
    }
    let failures = usize::from(result.found.is_some());
    let seconds = took.as_secs_f64();
    writeln!(out, "{total} inputs in {seconds:.1} s, seed {}, {failures} failures", campaign.seed)
}

fn as_json(campaign: &Campaign, result: &Result, total: u64, took: Duration) -> Value {
    let targets = campaign.targets.iter().zip(&result.tallies).map(|(target, tally)| {
        json!({
            "target": target.name,
            "inputs": tally.inputs,
            "accepted": tally.accepted,
            "peak_bytes": tally.peak,
            "percent_of_limit": tally.of_limit,
            "slowest_us": tally.slowest.as_micros() as u64,
        })
    });
    json!({
        "seed": campaign.seed,
        "threads": campaign.threads,
        "seconds": took.as_secs_f64(),
        "inputs": total,
        "targets": targets.collect::<Vec<_>>(),
        "failure": result.found.as_ref().map(|found| {
            json!({
                "target": found.target.name,
                "input": found.number,
                "what": found.failure.to_string(),
            })
        }),
    })
}
