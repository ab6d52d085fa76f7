//! `enroll`: what a device needs to take part.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use floret_core::ClientId;
use toml::Value;

use crate::authority::Authority;
use crate::config::Config;
use crate::error::CommandError;
use crate::files::{self, Access};
use crate::home::Home;

/// Threads that write the folders of several devices: each waits for the disk most of the time.
const WRITERS: usize = 8;

/// A device to enrol.
#[derive(Debug, Clone, Copy)]
pub struct Enrolment<'a> {
    /// Its name, which its certificate proves.
    pub name: &'a ClientId,
    /// Folder for its files.
    pub out: &'a Path,
    /// Where it finds the server, such as `https://127.0.0.1:7878`.
    pub server: &'a str,
    /// Replace an enrolment of this name: the way to renew a certificate. An existing
    /// `client.toml` is kept.
    pub force: bool,
}

/// Writes the folder of a device: `ca.pem`, `ledger.pub`, `cert.pem`, `key.pem` (readable by its
/// owner alone) and `client.toml`. The key exists nowhere else.
///
/// # Errors
/// A device or folder that is there already, unless forced; an authority whose files are missing
/// or damaged; a file that cannot be written.
pub fn enroll(home: &Home, config: &Config, enrolment: &Enrolment<'_>) -> Result<(), CommandError> {
    enroll_all(home, config, std::slice::from_ref(enrolment))
}

/// Enrols several devices of different names, as [`enroll`] does one, with the authority read once.
/// If one of them is refused, none is enrolled.
///
/// # Errors
/// See [`enroll`]. When a file cannot be written, some of the devices may be enrolled.
pub fn enroll_all(
    home: &Home,
    config: &Config,
    enrolments: &[Enrolment<'_>],
) -> Result<(), CommandError> {
    enrolments.iter().try_for_each(|enrolment| refuse_existing(home, enrolment))?;
    let issuer = Issuer {
        authority: Authority::load(home)?,
        ca: files::read(&home.ca_certificate())?,
        ledger_key: files::read(&home.ledger_public_key())?,
    };
    files::create_dir(&home.devices(), Access::Shared)?;
    let write_all = |some: &[Enrolment<'_>]| {
        some.iter().try_for_each(|enrolment| write(home, config, &issuer, enrolment))
    };
    std::thread::scope(|scope| {
        let share = enrolments.len().div_ceil(WRITERS).max(1);
        let writers = enrolments.chunks(share).map(|some| scope.spawn(move || write_all(some)));
        let writers: Vec<_> = writers.collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().unwrap_or_else(|p| resume_unwind(p)))
    })
}

/// What every enrolment needs, read once.
struct Issuer {
    authority: Authority,
    ca: Vec<u8>,
    ledger_key: Vec<u8>,
}

fn refuse_existing(home: &Home, enrolment: &Enrolment<'_>) -> Result<(), CommandError> {
    let Enrolment { name, out, force, .. } = *enrolment;
    let files = ["key.pem", "cert.pem", "client.toml"].map(|file| out.join(file));
    let found = [record(home, name)].into_iter().chain(files).find(|path| path.exists());
    match found {
        Some(path) if !force => {
            let hint = "the device is enrolled; add --force to give it a new key and certificate";
            Err(CommandError::Exists { path, hint })
        }
        _ => Ok(()),
    }
}

/// Where the server keeps a device's certificate.
fn record(home: &Home, name: &ClientId) -> PathBuf {
    home.devices().join(format!("{name}.pem"))
}

fn write(
    home: &Home,
    config: &Config,
    issuer: &Issuer,
    enrolment: &Enrolment<'_>,
) -> Result<(), CommandError> {
    let Enrolment { name, out, .. } = *enrolment;
    let credentials = issuer.authority.issue_device(name)?;
    let certificate = credentials.certificate.as_bytes();
    files::create_dir(out, Access::Shared)?;
    files::replace(&out.join("ca.pem"), Access::Shared, &issuer.ca)?;
    files::replace(&out.join("ledger.pub"), Access::Shared, &issuer.ledger_key)?;
    files::replace(&out.join("key.pem"), Access::Private, credentials.key.as_bytes())?;
    files::replace(&out.join("cert.pem"), Access::Shared, certificate)?;
    let settings = out.join("client.toml");
    if !settings.exists() {
        let text = client_settings(home, config, enrolment);
        files::replace(&settings, Access::Shared, text.as_bytes())?;
    }
    Ok(files::replace(&record(home, name), Access::Shared, certificate)?)
}

/// A `client.toml`. The base model's path is the server's, in case both share a machine.
fn client_settings(home: &Home, config: &Config, enrolment: &Enrolment<'_>) -> String {
    let quote = |text: &str| Value::String(text.to_owned());
    let model = config.model_dir(home);
    let model = fs::canonicalize(&model).unwrap_or(model);
    let (server, name) = (quote(enrolment.server), quote(enrolment.name.as_str()));
    let model = quote(&model.display().to_string());
    format!(
        "# Settings of a Floret device. Paths are relative to this file.\n\
         version = 1\n\
         # The server; its host must be one of those in the server's certificate.\n\
         server = {server}\n\
         # For people: what counts is the name in the certificate.\n\
         name = {name}\n\
         # The run's authority, and this device's certificate and private key.\n\
         ca = \"ca.pem\"\n\
         certificate = \"cert.pem\"\n\
         key = \"key.pem\"\n\
         # The server's public key: receipts for updates are checked with it.\n\
         ledger_key = \"ledger.pub\"\n\
         # Hugging Face directory of the base model, with the same files as the server's.\n\
         model = {model}\n\
         # Folder or file of .txt and .jsonl to train on; it never leaves the device.\n\
         data = \"data\"\n\
         # Folder for what must outlive a crash: an update that is not answered yet, and receipts.\n\
         # state = \"state\"\n\
         # Folder for the newest adapter, as a PEFT directory.\n\
         # adapter = \"adapter\"\n\
         # Part of the examples, the last ones, that is never trained on.\n\
         # holdout = 0.1\n\
         # Threads that train; 0 for one for each core.\n\
         # threads = 1\n\
         # The most memory that training may take; slower ways are taken if need be.\n\
         # memory_budget_mib = 512\n\
         # Keep less for the backward pass and compute it again.\n\
         # recompute = false\n\
         # How the base model is held: \"f32\", or \"int8\" for a quarter of the memory.\n\
         # base_precision = \"f32\"\n\
         # Who computes: \"cpu\", or \"wgpu\", \"wgpu:1\" or \"wgpu:cpu\" if built for it.\n\
         # device = \"cpu\"\n\
         \n\
         # What this device does in a round at most; other plans are declined.\n\
         # [limits]\n\
         # max_steps = 1000\n\
         # max_tokens = 4000000\n\
         # max_batch_tokens = 16384\n\
         # max_rank = 64\n\
         # max_adapter_bytes = 268435456\n"
    )
}
