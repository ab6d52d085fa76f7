//! `floret-lab`, the researcher's program.

mod bench;
mod load;
mod pretrain;
mod shapes;
mod usage;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The researcher's side of Floret.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure how fast this machine trains, generates and compresses.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Put a server under the load of many devices, some of them slow, absent or broken.
    Load(load::Args),
    /// Train a small base model from texts, for trying things out without a download.
    Pretrain(pretrain::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(command) => bench::run(&command),
        Command::Load(args) => load::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
    }
}
