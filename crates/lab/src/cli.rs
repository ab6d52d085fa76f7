//! The command line of `floret-lab`.

use clap::{Parser, Subcommand};

use crate::{bench, compare, load, pretrain, simulate};

/// The researcher's side of Floret.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure how fast this machine trains and generates.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Run several experiments over several seeds, and report on them side by side.
    Compare(compare::Args),
    /// Put a server under the load of many devices, some of them slow, absent or broken.
    Load(load::Args),
    /// Train a small base model from texts, for trying things out without a download.
    Pretrain(pretrain::Args),
    /// Run an experiment in virtual time.
    Simulate(simulate::Args),
}

/// Runs the command that the program was called with.
///
/// # Errors
/// What the command says.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(command) => bench::run(&command),
        Command::Compare(args) => compare::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Simulate(args) => simulate::run(&args),
    }
}
