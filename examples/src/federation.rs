//! A server and its devices in one process: real mutual TLS on loopback, real certificates, real
//! files. Only the processes are not separate.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use floret_client::setup::{Base, BaseOptions, device, spawn_training};
use floret_client::{ClientConfig, Event, TrainingThread};
use floret_core::peft::{CONFIG_FILE, WEIGHTS_FILE, from_peft};
use floret_core::{Adapter, ClientId, Digest, LoraConfig};
use floret_device::session::RunEnd;
use floret_model::evaluate::Evaluation;
use floret_model::{DeviceChoice, LocalData, Lora, TrainerOptions, evaluate};
use floret_server::config::Config;
use floret_server::{Enrolment, Home, Server, ServerSection};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Sequences that are evaluated at once.
const EVALUATION_BATCH: usize = 8;

/// One device and its private data.
#[derive(Debug, Clone)]
pub struct Participant {
    /// Its name.
    pub name: ClientId,
    /// Folder or file of its examples.
    pub data: PathBuf,
}

/// What one device saw.
#[derive(Debug, Clone)]
pub struct DeviceResult {
    /// Its name.
    pub name: ClientId,
    /// Examples that it trained on.
    pub examples: usize,
    /// Loss on its held-out examples with the base model alone.
    pub before: Evaluation,
    /// The same with the exported adapter.
    pub after: Evaluation,
    /// Updates of its own that count.
    pub updates: u64,
    /// Bytes of gRPC messages that it sent, before TLS.
    pub bytes_up: u64,
    /// Bytes of gRPC messages that it received, before TLS.
    pub bytes_down: u64,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the server said.
    pub end: RunEnd,
    /// Every device, in the order given.
    pub devices: Vec<DeviceResult>,
    /// Updates that counted.
    pub updates_accepted: u64,
    /// Updates that were refused.
    pub updates_rejected: u64,
    /// Digest of the last adapter.
    pub adapter_digest: Digest,
    /// From the start of the server to the end of the run.
    pub duration: Duration,
}

/// Runs a whole federation: `home` becomes the server's directory, the devices hold the base model
/// as `options` say, `adjust` changes the server's settings, the adapter is exported as a PEFT
/// directory to `export` and read back from there.
///
/// # Errors
/// A model, text or setting that cannot be used, or a run that fails.
pub async fn run(
    home: &Path,
    model: &Path,
    options: BaseOptions,
    participants: &[Participant],
    adjust: impl FnOnce(&mut Config),
    export: &Path,
) -> Result<Outcome> {
    let exported = export.join(CONFIG_FILE);
    ensure!(!exported.exists(), "{} exists already: choose another folder", exported.display());
    let base = Base::open(model, options)?;
    let home = floret_server::init(home, model, &ServerSection::default())?;
    let mut config = Config::load(&home)?;
    adjust(&mut config);
    let length = config.training.sequence_length as usize;

    let mut data = Vec::new();
    for participant in participants {
        let holdout = ClientSettings::HOLDOUT;
        let (local, _) = base.read_data(&participant.data, holdout)?;
        data.push((participant.name.clone(), local));
    }
    let before = evaluate_all(&base, None, &data, length)?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let admin = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
    let begun = Instant::now();
    let server = Server::start(&home, &config, listener, admin).await?;
    let settings = ClientSettings { home: &home, config: &config, url: &url, model };
    let trainers = spawn_trainers(&base, options.device, &data)?;
    let devices = run_devices(&settings, &base, participants, &trainers).await?;
    let end = server.wait_for_end().await?;
    let duration = begun.elapsed();
    let status = server.status();
    server.stop().await?;
    ensure!(end.completed, "the run failed: {}", end.message);

    floret_server::export(&home, &config, export, Some(end.version), false)?;
    let (lora, adapter) = read_export(export, &base)?;
    let after = evaluate_all(&base, Some((&lora, &adapter)), &data, length)?;
    let results = devices.into_iter().zip(&data).zip(before.into_iter().zip(after));
    let devices = results
        .map(|(((updates, bytes_up, bytes_down), (name, local)), (before, after))| DeviceResult {
            name: name.clone(),
            examples: local.num_examples(),
            before,
            after,
            updates,
            bytes_up,
            bytes_down,
        })
        .collect();
    let end = RunEnd {
        completed: end.completed,
        version: end.version,
        adapter_digest: Some(adapter.digest()),
        message: end.message,
    };
    Ok(Outcome {
        end,
        devices,
        updates_accepted: status.totals.updates_accepted,
        updates_rejected: status.totals.updates_refused,
        adapter_digest: adapter.digest(),
        duration,
    })
}

/// One training thread for each core, or one for a GPU, each with the data of every device: devices
/// train by turns.
fn spawn_trainers(
    base: &Base,
    on: DeviceChoice,
    data: &[(ClientId, LocalData)],
) -> Result<Vec<TrainingThread>> {
    let trainers = match on {
        DeviceChoice::Cpu => std::thread::available_parallelism().map_or(1, usize::from),
        DeviceChoice::Wgpu(_) => 1,
    };
    let options = TrainerOptions { threads: 1, ..TrainerOptions::default() };
    let spawn = |_| Ok(spawn_training(base, data.iter().cloned(), options.clone())?);
    (0..trainers.min(data.len())).map(spawn).collect()
}

/// What is needed to enrol a device as a person would.
struct ClientSettings<'a> {
    home: &'a Home,
    config: &'a Config,
    url: &'a str,
    model: &'a Path,
}

impl ClientSettings<'_> {
    /// Part of a device's examples that is never trained on.
    const HOLDOUT: f64 = 0.1;

    fn enroll(&self, participant: &Participant) -> Result<ClientConfig> {
        let out = self.home.devices().join(participant.name.as_str());
        let enrolment =
            Enrolment { name: &participant.name, out: &out, server: self.url, force: false };
        floret_server::enroll(self.home, self.config, &enrolment)?;
        let config = ClientConfig::read(&out.join("client.toml"))?;
        let (model, data) = (self.model.to_owned(), participant.data.clone());
        Ok(ClientConfig { model, data, holdout: Self::HOLDOUT, ..config })
    }
}

/// Runs every device to the end of the run; gives updates that count, bytes up and bytes down.
async fn run_devices(
    settings: &ClientSettings<'_>,
    base: &Base,
    participants: &[Participant],
    trainers: &[TrainingThread],
) -> Result<Vec<(u64, u64, u64)>> {
    let mut running = JoinSet::new();
    for (index, (participant, trainer)) in
        participants.iter().zip(trainers.iter().cycle()).enumerate()
    {
        let config = settings.enroll(participant)?;
        let name = participant.name.clone();
        let (counted, updates) = tokio::sync::watch::channel(0);
        let watch = move |event| match event {
            Event::Counted(_) => counted.send_modify(|count| *count += 1),
            Event::NotCounted { round, reason } => {
                tracing::warn!(device = %name, %round, reason, "a round did not count");
            }
            Event::Retrying { message, .. } => tracing::warn!(device = %name, message, "retrying"),
            _ => {}
        };
        let (device, connection) = device(&config, base, trainer.clone(), watch)?;
        running.spawn(async move {
            device.run(CancellationToken::new()).await?;
            let (up, down) = (connection.traffic().up(), connection.traffic().down());
            let updates: u64 = *updates.borrow();
            anyhow::Ok((index, (updates, up, down)))
        });
    }
    let mut results = vec![(0, 0, 0); participants.len()];
    while let Some(joined) = running.join_next().await {
        let (index, result) = joined??;
        results[index] = result;
    }
    Ok(results)
}

fn evaluate_all(
    base: &Base,
    adapter: Option<(&LoraConfig, &Adapter)>,
    data: &[(ClientId, LocalData)],
    length: usize,
) -> Result<Vec<Evaluation>> {
    let (model, on) = (&base.model, base.model.device());
    let lora = adapter
        .map(|(lora, adapter)| Lora::frozen(adapter, model.config(), lora, &on))
        .transpose()?;
    let evaluate = |(_, local): &(ClientId, LocalData)| {
        Ok(evaluate(model, lora.as_ref(), &local.holdout(length), EVALUATION_BATCH)?)
    };
    data.iter().map(evaluate).collect()
}

fn read_export(dir: &Path, base: &Base) -> Result<(LoraConfig, Adapter)> {
    let config = std::fs::read_to_string(dir.join(CONFIG_FILE));
    let weights = std::fs::read(dir.join(WEIGHTS_FILE));
    let reading = || format!("cannot read the adapter exported to {}", dir.display());
    let (config, weights) = (config.with_context(reading)?, weights.with_context(reading)?);
    Ok(from_peft(&config, &weights, &base.local.config)?)
}

/// Loss over all devices: summed negative log-likelihood over summed tokens, in nats.
#[must_use]
pub fn pooled(evaluations: impl Iterator<Item = Evaluation>) -> f64 {
    let mut pool = Evaluation::default();
    evaluations.for_each(|one| pool += one);
    pool.loss().unwrap_or(f64::NAN)
}
