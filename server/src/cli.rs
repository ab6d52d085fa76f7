//! The command line.

mod serve;
mod status;
mod verify;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::{Args, Parser, Subcommand, ValueEnum};
use floret_core::{ClientId, Version};
use floret_server::{CommandError, Config, Enrolment, Home, ServerError, ServerSection};

/// The aggregator of a federated LoRA fine-tuning run.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, \
    3 the run failed, 4 it completed with concerns (serve --exit-when-done)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a directory a server's: certificates, seed, and a server.toml that explains itself.
    Init(InitArgs),
    /// Run the server until Ctrl-C or SIGTERM.
    Serve(serve::ServeArgs),
    /// Write the folder that a device needs to take part; several devices at once, if you like.
    Enroll(EnrollArgs),
    /// Show where the run stands.
    Status(status::StatusArgs),
    /// Write an adapter as a PEFT directory.
    Export(ExportArgs),
    /// Check the ledger, and that the state is what it says.
    Verify(verify::VerifyArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The server's directory.
    dir: PathBuf,
    /// Hugging Face directory of the base model.
    #[arg(long, value_name = "MODEL_DIR")]
    model: PathBuf,
    /// DNS name or address by which devices reach this server; may be repeated.
    #[arg(long = "host", value_name = "NAME|IP")]
    hosts: Vec<String>,
    /// Where devices connect.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where /metrics and /status answer.
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
}

/// Which server.
#[derive(Debug, Args)]
struct ConfigArg {
    /// The server's directory, or its server.toml.
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
}

impl ConfigArg {
    fn load(&self) -> Result<(Home, Config), CommandError> {
        let home = Home::new(&self.config);
        let config = Config::load(&home)?;
        Ok((home, config))
    }
}

#[derive(Debug, Args)]
struct EnrollArgs {
    /// Name of the device: 1 to 63 lowercase letters, digits or '-'.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ClientId>,
    #[command(flatten)]
    config: ConfigArg,
    /// Folder for the device's files; with several names, for a folder of each name.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where the device finds the server, if not at the first host of server.toml.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Give an enrolled device a new key and certificate.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct ExportArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Folder for the adapter.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Version of the adapter; the current one by default.
    #[arg(long)]
    version: Option<u64>,
    /// Replace an adapter that is there already.
    #[arg(long)]
    force: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Init(args) => init(args),
        Command::Serve(args) => serve::run(&args),
        Command::Enroll(args) => enroll(&args),
        Command::Status(args) => status::run(&args),
        Command::Export(args) => export(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

/// 2 for settings that the user can mend, 1 for everything else.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    let settings = match error.downcast_ref::<CommandError>() {
        Some(error) => matches!(error, CommandError::Config(_) | CommandError::Lora(_)),
        None => matches!(
            error.downcast_ref::<ServerError>(),
            Some(ServerError::Config(_) | ServerError::Run(_))
        ),
    };
    ExitCode::from(if settings { 2 } else { 1 })
}

/// A line for the user. A closed pipe is no error.
fn say(line: impl std::fmt::Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn init(args: InitArgs) -> anyhow::Result<ExitCode> {
    let defaults = ServerSection::default();
    let hosts = if args.hosts.is_empty() { defaults.hosts } else { args.hosts };
    let server = ServerSection {
        listen: args.listen.unwrap_or(defaults.listen),
        admin: args.admin.unwrap_or(defaults.admin),
        hosts,
    };
    let home = floret_server::init(&args.dir, &args.model, &server)?;
    let (dir, config) = (args.dir.display(), home.config().display());
    say(format_args!("settings, each explained: {config}"))?;
    say(format_args!(
        "enrol devices:            floret-server enroll NAME --config {dir} --out NAME"
    ))?;
    say(format_args!("start:                    floret-server serve --config {dir}"))?;
    Ok(ExitCode::SUCCESS)
}

fn enroll(args: &EnrollArgs) -> anyhow::Result<ExitCode> {
    let (home, config) = args.config.load()?;
    let url = config.url();
    let server = args.server.as_deref().unwrap_or(&url);
    let unique: BTreeSet<&ClientId> = args.names.iter().collect();
    ensure!(unique.len() == args.names.len(), "a device is named twice: name each once");
    let folder = |name: &ClientId| match args.names.len() {
        1 => args.out.clone(),
        _ => args.out.join(name.as_str()),
    };
    let folders: Vec<PathBuf> = args.names.iter().map(folder).collect();
    let devices = args.names.iter().zip(&folders);
    let devices = devices.map(|(name, out)| Enrolment { name, out, server, force: args.force });
    floret_server::enroll_all(&home, &config, &devices.collect::<Vec<_>>())?;
    let out = args.out.display();
    match args.names.as_slice() {
        [name] => say(format_args!(
            "{name} is enrolled: move {out} to the device by a safe way, and check its client.toml"
        ))?,
        names => say(format_args!(
            "{} devices are enrolled: move each folder in {out} to its device by a safe way, and \
             check its client.toml",
            names.len()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let (home, config) = args.config.load()?;
    let version = args.version.map(Version);
    let exported = floret_server::export(&home, &config, &args.out, version, args.force)?;
    let (version, digest, out) = (exported.version, exported.digest.short(), args.out.display());
    say(format_args!("version {version} ({digest}) is in {out}"))?;
    if config.training.personal_b {
        say(format_args!(
            "B stays with each device (training.personal_b): it is zero here, and this adapter changes nothing; \
             each device has its own"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
