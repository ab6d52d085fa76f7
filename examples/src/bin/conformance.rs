//! Compares Floret with transformers and PEFT on a fixture that they wrote.
//!
//!     cargo run --release -p floret-examples --bin conformance -- FIXTURE_DIR [--json] [--export DIR]
//!
//! FIXTURE_DIR has the layout that `crates/model/tests/fixtures/make_fixture.py` writes. The exit
//! status is 1 when a difference is above what is accepted, and 2 when the fixture cannot be used.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use floret_model::conformance::{Differences, Fixture, InvalidFixture};
use serde_json::json;

/// Compare Floret with transformers and PEFT.
#[derive(Debug, Parser)]
struct Args {
    /// Directory with base/, adapter/ and reference.safetensors.
    fixture: PathBuf,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
    /// Write the adapter that Floret trained, and its logits, to this directory.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(differences) => match print(&args, &differences) {
            Ok(()) if differences.accepted() => ExitCode::SUCCESS,
            _ => ExitCode::from(1),
        },
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<Differences, InvalidFixture> {
    let fixture = Fixture::open(&args.fixture)?;
    let differences = fixture.compare()?;
    if let Some(dir) = &args.export {
        fixture.export(dir)?;
    }
    Ok(differences)
}

fn print(args: &Args, differences: &Differences) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:<16} {:>12} {:>12}", "largest", "difference", "accepted")?;
    for (name, difference, accepted) in differences.rows() {
        let mark = if difference <= accepted { "" } else { "  TOO LARGE" };
        writeln!(out, "{name:<16} {difference:>12.3e} {accepted:>12.3e}{mark}")?;
    }
    if args.json {
        let fixture = args.fixture.display().to_string();
        let (accepted, tolerances) = (differences.accepted(), Differences::TOLERANCES);
        let line = json!({ "fixture": fixture, "accepted": accepted,
            "differences": differences, "tolerances": tolerances });
        writeln!(out, "{line}")?;
    }
    Ok(())
}
