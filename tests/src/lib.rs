//! A stage for end-to-end tests: a real server on loopback with its own authority, devices with
//! real certificates, and a trainer that needs no model.

#![allow(clippy::unwrap_used, reason = "a stage that cannot be set fails its test")]

pub mod durable;
pub mod link;
pub mod processes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floret_client::setup::{Base, BaseOptions, read_key};
use floret_client::{
    Backoff, ClientConfig, Connection, Credentials, Device, DeviceStore, Event, TrainingThread,
};
use floret_core::{ClientId, Seed};
use floret_device::{Limits, LocalModel, Session, Trainer};
use floret_server::config::{Config, FixedSeed};
use floret_server::model_dir::BaseModel;
use floret_server::{Enrolment, Home, Server, ServerSection};
use floret_simulation::ToyTrainer;
use floret_store::Folder;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// The quickstart's folder, with its base model and texts.
#[must_use]
pub fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart")
}

/// A folder that a server accepts as a base model: it reads the shape and hashes the rest.
///
/// # Panics
/// The folder cannot be written.
pub fn write_shape(dir: &Path, config: &str) {
    std::fs::create_dir_all(dir).unwrap();
    for (name, text) in
        [("config.json", config), ("model.safetensors", "weights"), ("tokenizer.json", "{}")]
    {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

/// A server's directory and settings, and the folder that all of a test's files are in.
#[derive(Debug)]
pub struct Stage {
    /// Settings that the next start uses.
    pub config: Config,
    home: Home,
    model: PathBuf,
    folder: TempDir,
}

impl Stage {
    /// A stage whose base model is a small shape without weights.
    ///
    /// # Panics
    /// Files cannot be written.
    #[must_use]
    pub fn with_toy_model() -> Self {
        Self::with_toy_model_of(16)
    }

    /// The same, of another width.
    ///
    /// # Panics
    /// Files cannot be written.
    #[must_use]
    pub fn with_toy_model_of(hidden: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        let shape = format!(
            r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": 16,
            "vocab_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}}"#
        );
        write_shape(&model, &shape);
        Self::new(folder, model)
    }

    /// A stage whose base model is the quickstart's.
    ///
    /// # Panics
    /// Files cannot be written.
    #[must_use]
    pub fn with_quickstart_model() -> Self {
        Self::new(tempfile::tempdir().unwrap(), quickstart().join("model"))
    }

    fn new(folder: TempDir, model: PathBuf) -> Self {
        let section = ServerSection::default();
        let home = floret_server::init(&folder.path().join("server"), &model, &section).unwrap();
        let mut config = Config::load(&home).unwrap();
        config.run.seed = Some(FixedSeed(21));
        config.timing.retry_min_s = 0.02;
        config.timing.retry_max_s = 0.05;
        config.training.sequence_length = 32;
        Self { config, home, model, folder }
    }

    /// Where the test may put its own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's directory.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Starts the server on `address`; port 0 takes a free one.
    ///
    /// # Panics
    /// The server does not start.
    pub async fn start(&self, address: &str) -> Server {
        let listener = TcpListener::bind(address).await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::start(&self.home, &self.config, listener, admin).await.unwrap()
    }

    /// Starts the server again on `address`, once the one before has let go of its directory.
    ///
    /// # Panics
    /// That does not happen within 30 seconds.
    pub async fn restart(&self, address: SocketAddr) -> Server {
        let begun = std::time::Instant::now();
        loop {
            let listener = TcpListener::bind(address).await;
            let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(listener) = listener
                && let Ok(server) = Server::start(&self.home, &self.config, listener, admin).await
            {
                return server;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the server does not start again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Enrols a device that talks to the server at `address`.
    ///
    /// # Panics
    /// The enrolment fails.
    #[must_use]
    pub fn enroll(&self, name: &str, address: SocketAddr) -> ClientConfig {
        let out = self.folder().join(name);
        let server = format!("https://{address}");
        let name: ClientId = name.parse().unwrap();
        let enrolment = Enrolment { name: &name, out: &out, server: &server, force: false };
        floret_server::enroll(&self.home, &self.config, &enrolment).unwrap();
        ClientConfig::read(&out.join("client.toml")).unwrap()
    }

    /// The base model as a device knows it.
    ///
    /// # Panics
    /// The model cannot be read.
    #[must_use]
    pub fn local_model(&self) -> LocalModel {
        let base = BaseModel::read(&self.model).unwrap();
        LocalModel { config: base.config, digests: base.digests }
    }

    /// The base model with its weights and tokenizer.
    ///
    /// # Panics
    /// The model cannot be read.
    #[must_use]
    pub fn base(&self) -> Base {
        Base::open(&self.model, BaseOptions::default()).unwrap()
    }

    /// A device with the toy trainer, and what it tells.
    ///
    /// # Panics
    /// Its configuration cannot be used.
    #[must_use]
    pub fn toy_device(&self, config: &ClientConfig) -> (Device, Events) {
        toy_device(config, self.local_model(), ToyTrainer)
    }
}

/// A device that trains with `trainer` and keeps its state, and what it tells.
///
/// # Panics
/// Its configuration cannot be used.
#[must_use]
pub fn toy_device(
    config: &ClientConfig,
    model: LocalModel,
    trainer: impl Trainer + Send + 'static,
) -> (Device, Events) {
    let events = Events::default();
    let told = events.clone();
    let session = Session::new(config.name.clone(), model, Limits::default());
    let trainer = TrainingThread::spawn(trainer).unwrap();
    let backoff = Backoff::new(Seed::from_number(3).stream());
    let connection = connect(config);
    let device = Device::new(session, connection, trainer, backoff, move |event| told.push(event));
    let store = DeviceStore::open(Folder::hold(&config.state).unwrap(), config.name.clone());
    let key = read_key(config.ledger_key.as_ref().unwrap()).unwrap();
    let device = device.with_store(store.unwrap()).unwrap().with_ledger_key(key);
    (device, events)
}

/// A device's connection, for tests that speak the contract by hand.
///
/// # Panics
/// Credentials or address cannot be used.
#[must_use]
pub fn connect(config: &ClientConfig) -> Connection {
    let credentials = Credentials::read(&config.ca, &config.certificate, &config.key).unwrap();
    Connection::new(&config.server, &credentials).unwrap()
}

/// What a device told so far.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    /// How many events are like this.
    ///
    /// # Panics
    /// The device panicked while it told one.
    #[must_use]
    pub fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| is(event)).count()
    }
}
