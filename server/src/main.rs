//! `floret-server`: the aggregator of a federated LoRA fine-tuning run.

mod cli;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            let code = cli::exit_code(&error);
            eprintln!("error: {error:#}");
            code
        }
    }
}
