//! A run in the in-process world whose server and devices keep their state on simulated disks.

#![allow(clippy::unwrap_used, reason = "a stage that cannot be set fails its test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::config::{Aggregation, BufferedConfig, CohortConfig, Mode, Timing};
use floret_aggregator::ledger::{self, Entry, Fact, Scribe, Settings};
use floret_aggregator::{Coordinator, RunConfig};
use floret_client::history::{self, Sent};
use floret_core::base::BaseDigests;
use floret_core::lora::TargetModule;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{ClientId, Digest, Layout, LoraConfig, ModelConfig, Seed, SigningKey, Time};
use floret_device::{Limits, LocalModel, Session};
use floret_server::{RunStore, StoreOptions, Verified, recover};
use floret_simulation::{Behaviour, DeviceStore, Ending, ToyTrainer, World};
use floret_store::{Disk, SimulatedDisk, blob};

/// A run, the disk of its server and those of its devices.
pub struct Durable {
    /// The run's settings.
    pub config: RunConfig,
    /// The server's disk.
    pub disk: SimulatedDisk,
    /// The devices' disks.
    pub device_disks: Vec<SimulatedDisk>,
    /// Rounds whose updates are kept.
    pub retain: u32,
    /// Adapter versions that are kept.
    pub keep_versions: usize,
}

/// Starts something on a disk that may have halted, and once more if a fault comes just then.
fn start_again<T>(disk: &SimulatedDisk, start: impl Fn() -> Result<T, String>) -> T {
    disk.reboot();
    let started = start().or_else(|_| {
        disk.reboot();
        start()
    });
    started.unwrap_or_else(|error| panic!("no start after a fault: {error}"))
}

fn model() -> LocalModel {
    let config = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
        "vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}"#;
    let digest = Digest::of(b"base");
    LocalModel {
        config: ModelConfig::from_json(config).unwrap(),
        digests: BaseDigests { base: digest, tokenizer: digest },
    }
}

/// Settings of a small buffered run.
#[must_use]
pub fn buffered(buffer: u32, concurrency: u32, rounds: u32) -> RunConfig {
    let mode = BufferedConfig { buffer, concurrency, ..BufferedConfig::default() };
    RunConfig { mode: Mode::Buffered(mode), ..everyone(1, rounds) }
}

/// Settings of a small run in which every device is in every cohort.
#[must_use]
pub fn everyone(devices: u32, rounds: u32) -> RunConfig {
    RunConfig {
        run: "durable".parse().unwrap(),
        rounds,
        max_abandoned: 3,
        seed: Seed::from_number(21),
        base: model().digests,
        lora: LoraConfig {
            rank: 2,
            alpha: 4.0,
            use_rslora: false,
            target_modules: vec![TargetModule::VProj],
        },
        training: TrainingConfig { sequence_length: 64, ..TrainingConfig::default() },
        compression: Compression::Int8,
        error_feedback: 0.95,
        mode: Mode::Synchronous,
        cohort: CohortConfig {
            size: devices,
            over_selection: 1.0,
            quorum: devices,
            min_population: 0,
            trusted: None,
        },
        timing: Timing {
            report_deadline: Duration::from_secs(600),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(3),
        },
        aggregation: Aggregation {
            download_compression: Compression::Int8,
            ..Aggregation::default()
        },
    }
}

impl Durable {
    /// A run of `devices` devices.
    #[must_use]
    pub fn new(config: RunConfig, devices: usize) -> Self {
        let device_disks = (0..devices).map(|_| SimulatedDisk::default()).collect();
        Self { config, disk: SimulatedDisk::default(), device_disks, retain: 0, keep_versions: 2 }
    }

    fn layout(&self) -> Arc<Layout> {
        Arc::new(Layout::new(&model().config, &self.config.lora).unwrap())
    }

    fn options(&self) -> StoreOptions {
        let layout = self.layout();
        StoreOptions {
            settings: Settings::of(&self.config, layout.digest()),
            layout,
            keep_versions: self.keep_versions,
            retain_updates_rounds: self.retain,
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_secret(&[9; 32])
    }

    /// Who signs the ledger.
    #[must_use]
    pub fn scribe() -> Scribe {
        Scribe::new(Self::key())
    }

    /// Runs to the end; devices and network behave as told, by seed.
    ///
    /// # Panics
    /// The run does not end within a year of virtual time.
    #[must_use]
    pub fn run(&self, behaviour: Behaviour, seed: u64) -> Ending {
        let (disk, config, layout) = (self.disk.clone(), self.config.clone(), self.layout());
        let options = self.options();
        let start = move |now: Time| -> Result<(Coordinator, RunStore), String> {
            let held: Arc<dyn Disk> = Arc::new(disk.clone());
            let store = RunStore::open(held, options.clone(), Arc::new(Self::scribe()));
            let store = store.map_err(|error| error.to_string())?;
            recover(config.clone(), Arc::clone(&layout), store, now).map_err(|e| e.to_string())
        };
        let disk = self.disk.clone();
        let restart = move |now| start_again(&disk, || start(now));
        let devices = self.device_disks.iter().enumerate().map(|(index, disk)| {
            let client: ClientId = format!("device-{index}").parse().unwrap();
            let (disk, name) = (disk.clone(), client.clone());
            let open = move || {
                let open = || floret_client::DeviceStore::open(disk.clone(), name.clone());
                start_again(&disk, || open().map_err(|error| error.to_string()))
            };
            let session = Session::new(client, model(), Limits::default());
            (session, DeviceStore::opened_by(open))
        });
        let devices = devices.collect();
        let seed = Seed::from_number(seed);
        let world = World::durable(Box::new(restart), devices, ToyTrainer, behaviour, &seed)
            .signed_with(Self::key());
        world.run(Duration::from_secs(365 * 24 * 3600)).unwrap()
    }

    /// The server's ledger, checked.
    ///
    /// # Panics
    /// The ledger does not hold.
    #[must_use]
    pub fn ledger(&self) -> Vec<Entry> {
        ledger::verify(
            &blob::read_all(&self.disk, "ledger.jsonl").unwrap(),
            &Self::scribe().public(),
        )
        .unwrap()
        .0
    }

    /// Checks the ledger, the adapters and what gives them, as `floret-server verify` does.
    ///
    /// # Panics
    /// Something does not hold.
    #[must_use]
    pub fn verify(&self) -> Verified {
        // A fault may have come when the server had done its work and closed its database.
        self.disk.reboot();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let store = RunStore::open(Arc::clone(&disk), self.options(), Arc::new(Self::scribe()));
        let saved = store.unwrap().saved().cloned().unwrap();
        let key = Self::scribe().public();
        floret_server::verify_run(&*disk, &saved, &self.layout(), &key).unwrap()
    }

    /// What the devices' histories say, with each receipt checked.
    ///
    /// # Panics
    /// A history does not hold.
    #[must_use]
    pub fn histories(&self) -> Vec<Sent> {
        let history = |disk: &SimulatedDisk| {
            let history = history::parse(&blob::read_all(disk, history::HISTORY).unwrap()).unwrap();
            history::verify(&history, &Self::scribe().public()).unwrap();
            history
        };
        self.device_disks.iter().flat_map(history).collect()
    }

    /// Checks that what devices were told and what the ledger says agree: each receipt stands for
    /// one update that the ledger has once, with the same weight.
    ///
    /// # Panics
    /// They do not agree.
    #[must_use]
    pub fn account_for(&self) -> Accounts {
        let mut recorded = BTreeMap::new();
        for entry in self.ledger() {
            let Fact::Round(round) = entry.fact else { continue };
            for accepted in round.accepted {
                let key = (accepted.assigned.unwrap_or(round.round), accepted.client);
                let twice = recorded.insert(key, (accepted.payload, accepted.weight));
                assert!(twice.is_none(), "an update counts twice, in round {}", round.round);
            }
        }
        let mut receipts = 0;
        for sent in self.histories() {
            let Some((receipt, _)) = sent.receipt() else { continue };
            let told = recorded.get(&(receipt.round, Self::scribe().pseudonym(&sent.client)));
            let (client, want) = (&sent.client, (receipt.payload_digest, receipt.weight));
            assert_eq!(told, Some(&want), "{client}'s update of round {} is lost", receipt.round);
            receipts += 1;
        }
        Accounts { recorded: recorded.len(), receipts }
    }
}

/// Updates that count, by the ledger and by the devices' histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounts {
    /// In the ledger.
    pub recorded: usize,
    /// In the histories.
    pub receipts: usize,
}
