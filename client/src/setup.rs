//! From a configuration to a device that is ready to run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use floret_core::{ClientId, PublicKey, Seed};
use floret_device::{LocalModel, Session};
use floret_model::{
    Checkpoint, DeviceChoice, InvalidCheckpoint, InvalidTokenizer, LocalData, LocalTrainer,
    NoDevice, NotTokenizable, Precision, Tokenizer, TrainerOptions, Transformer,
};
use floret_store::{Folder, Locked};

use crate::backoff::Backoff;
use crate::config::ClientConfig;
use crate::connection::{Connection, Credentials, UnreadableCredentials};
use crate::data::{NoData, PrivateData, read_examples};
use crate::driver::{Device, Event};
use crate::store::{DeviceStore, StoreError};
use crate::training_thread::TrainingThread;

/// A base model on this device; devices in one process share it.
#[derive(Debug, Clone)]
pub struct Base {
    /// The transformer.
    pub model: Arc<Transformer>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What a plan is compared with.
    pub local: LocalModel,
}

/// How a base model is held, and who computes: the choice of the device's owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BaseOptions {
    /// How its matrices are held.
    pub precision: Precision,
    /// Who computes.
    pub device: DeviceChoice,
}

/// A device that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Who should compute.
    #[error(transparent)]
    Device(#[from] NoDevice),
    /// An 8-bit base model on a GPU.
    #[error(
        "an int8 base model needs the CPU, and device is {0}: use base_precision f32 or device cpu"
    )]
    Int8(DeviceChoice),
    /// The base model.
    #[error(transparent)]
    Checkpoint(#[from] InvalidCheckpoint),
    /// Its tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] InvalidTokenizer),
    /// The private data.
    #[error(transparent)]
    Data(#[from] NoData),
    /// An example that the tokenizer has no rule for.
    #[error(transparent)]
    NotTokenizable(#[from] NotTokenizable),
    /// Certificates or key.
    #[error(transparent)]
    Credentials(#[from] UnreadableCredentials),
    /// An address or PEM that cannot be used.
    #[error("cannot use server, ca, certificate or key: {0}")]
    Connection(#[from] tonic::transport::Error),
    /// The server's public key.
    #[error("{}: {problem}: it is the ledger.pub that came with the enrolment", path.display())]
    LedgerKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What must outlive a crash.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread, or no randomness from the operating system.
    #[error("the operating system gave no {what}: {reason}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

fn system(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> SetupError {
    move |reason| SetupError::System { what, reason: reason.to_string() }
}

impl Base {
    /// Loads the Hugging Face directory `dir` as `options` say.
    ///
    /// # Errors
    /// A device that cannot be had or that cannot hold the model so, or a checkpoint or tokenizer
    /// that cannot be used.
    pub fn open(dir: &Path, options: BaseOptions) -> Result<Self, SetupError> {
        let BaseOptions { precision, device } = options;
        if precision == Precision::Int8 && device != DeviceChoice::Cpu {
            return Err(SetupError::Int8(device));
        }
        let device = device.open()?;
        let checkpoint = Checkpoint::open(dir)?;
        let config = checkpoint.config().clone();
        let tokenizer = Tokenizer::open(&dir.join("tokenizer.json"), &config)?;
        let digests = checkpoint.digests()?;
        let model = checkpoint.load(precision, &device)?;
        let local = LocalModel { config, digests };
        Ok(Self { model: Arc::new(model), tokenizer: Arc::new(tokenizer), local })
    }

    /// Reads and tokenizes the examples at `path`.
    ///
    /// # Errors
    /// No example, or one that the tokenizer has no rule for.
    pub fn read_data(
        &self,
        path: &Path,
        holdout: f64,
    ) -> Result<(LocalData, PrivateData), SetupError> {
        let found = read_examples(path)?;
        let (examples, config) = (&found.examples, &self.local.config);
        let data = LocalData::new(examples, holdout, &self.tokenizer, config)?;
        Ok((data, found))
    }
}

/// A thread that trains `clients` on `base`.
///
/// # Errors
/// The operating system gave no thread.
pub fn spawn_training(
    base: &Base,
    clients: impl IntoIterator<Item = (ClientId, LocalData)>,
    options: TrainerOptions,
) -> Result<TrainingThread, SetupError> {
    let trainer = LocalTrainer::new(Arc::clone(&base.model), options);
    let mut trainer = trainer.map_err(|error| system("thread")(&error))?;
    for (client, data) in clients {
        trainer.insert(client, data);
    }
    TrainingThread::spawn(trainer).map_err(|error| system("thread")(&error))
}

/// The device that `config` describes, trained by `trainer`; `watch` hears what it does.
///
/// # Errors
/// Credentials or an address that cannot be used.
pub fn device(
    config: &ClientConfig,
    base: &Base,
    trainer: TrainingThread,
    watch: impl Fn(Event) + Send + Sync + 'static,
) -> Result<(Device, Connection), SetupError> {
    let credentials = Credentials::read(&config.ca, &config.certificate, &config.key)?;
    let connection = Connection::new(&config.server, &credentials)?;
    let session = Session::new(config.name.clone(), base.local.clone(), config.limits.clone());
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| system("randomness")(&error))?;
    let backoff = Backoff::new(Seed(seed).stream());
    let mut device = Device::new(session, connection.clone(), trainer, backoff, watch);
    if let Some(path) = &config.ledger_key {
        device = device.with_ledger_key(read_key(path)?);
    }
    let folder = Folder::hold(&config.state).map_err(|error| match error {
        Locked::ByAnother => StoreError::Locked(config.state.clone()),
        Locked::System(error) => error.into(),
    })?;
    let device = device.with_store(DeviceStore::open(folder, config.name.clone())?)?;
    Ok((device, connection))
}

/// Reads the server's public key.
///
/// # Errors
/// A file that cannot be read, or that holds no key.
pub fn read_key(path: &Path) -> Result<PublicKey, SetupError> {
    let wrong = |problem: String| SetupError::LedgerKey { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    text.trim().parse().map_err(|_| wrong("it holds no public key".to_owned()))
}
