//! `kill -9` of a real server at random times: the run ends as if nothing had happened, and the record
//! of it holds.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use floret_client::{ClientConfig, history};
use floret_core::Seed;
use floret_core::seed::uniform_f32;
use floret_device::{
    Control, LocalModel, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask,
};
use floret_server::model_dir::BaseModel;
use floret_simulation::ToyTrainer;
use floret_tests::processes::{Process, free_port, program, set_options, status, succeed};
use floret_tests::{toy_device, write_shape};
use rand_chacha::rand_core::Rng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEVICES: usize = 8;
const ROUNDS: u64 = 20;
const KILLS: usize = 50;
/// A kill comes after this long at most, counted from when a device is served; while the run is ahead of
/// its kills, [`SOON`] after the server is there.
const LONGEST_LIFE: Duration = Duration::from_millis(250);
/// A kill comes this long at most after the run is ahead of its kills.
const SOON: Duration = Duration::from_millis(50);
/// What training takes where the server is killed: longer than a life in which the run is ahead of its kills, so that
/// it outlives them all.
const TRAINING: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(300);

/// Takes its time.
struct Unhurried(Duration);

impl Trainer for Unhurried {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        std::thread::sleep(self.0);
        ToyTrainer.train(task, progress)
    }
}

/// A server's directory with eight enrolled devices; every one is in every cohort.
struct Site {
    folder: tempfile::TempDir,
    home: String,
    admin: String,
    devices: Vec<ClientConfig>,
    model: LocalModel,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = |path: PathBuf| path.display().to_string();
        let model = folder.path().join("model");
        let shape = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 16,
            "vocab_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}"#;
        write_shape(&model, shape);
        let home = text(folder.path().join("server"));
        let [listen, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let init = ["init", &home, "--listen", &listen, "--admin", &admin, "--model"];
        succeed(program("floret-server").args(init).arg(&model));
        settle(&folder.path().join("server/server.toml"));
        let enroll = |index: usize| {
            let name = format!("device-{index}");
            let out = folder.path().join(&name);
            let enroll = ["enroll", &name, "--config", &home, "--out"];
            succeed(program("floret-server").args(enroll).arg(&out));
            ClientConfig::read(&out.join("client.toml")).unwrap()
        };
        let devices = (0..DEVICES).map(enroll).collect();
        let base = BaseModel::read(&model).unwrap();
        let model = LocalModel { config: base.config, digests: base.digests };
        Self { home, admin, devices, model, folder }
    }

    fn serve(&self) -> Process {
        let mut command = program("floret-server");
        command.args(["serve", "--config", &self.home]).env("FLORET_LOG", "warn");
        Process::start(&mut command, &self.folder.path().join("server.log"))
    }

    /// The metrics of the server that runs; nothing while none does.
    fn metrics(&self) -> String {
        let page = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&self.admin)?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        page().unwrap_or_default()
    }

    /// Whether the server that runs has taken a check-in: one that it answered, or holds.
    fn has_served(&self) -> bool {
        let metrics = self.metrics();
        let waiting =
            |line: &str| line.starts_with("floret_check_ins_waiting ") && !line.ends_with(" 0");
        metrics.contains("floret_calls_total{call=\"check-in\"}") || metrics.lines().any(waiting)
    }

    /// The version that the run has come to.
    fn version(&self) -> u64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix("floret_version "));
        line.and_then(|version| version.parse().ok()).unwrap_or(0)
    }

    /// Whether there is time for a round before the next kill: the run must outlive them all.
    fn is_behind(&self, kill: usize) -> bool {
        self.version() * KILLS as u64 <= (ROUNDS - 2) * kill as u64
    }

    /// Runs to the end, killing the server `kills` times; gives the adapter's digest, and how long
    /// each start that was waited for took to its first accepted check-in.
    async fn run(&self, kills: usize, seed: u64) -> (String, Vec<Duration>) {
        let stop = CancellationToken::new();
        let devices = self.devices.iter().map(|config| {
            let trainer = Unhurried(if kills > 0 { TRAINING } else { Duration::ZERO });
            let (device, _) = toy_device(config, self.model.clone(), trainer);
            tokio::spawn(device.run(stop.clone()))
        });
        let devices: Vec<_> = devices.collect();
        let mut times = Seed::from_number(seed).stream();
        let mut recoveries = Vec::new();
        for kill in 0..=kills {
            let begun = Instant::now();
            let server = self.serve();
            let until = async |holds: fn(&Self) -> bool| {
                while !holds(self) {
                    let over = devices.iter().all(JoinHandle::is_finished);
                    assert!(
                        !over || kill == kills,
                        "the run was over after {kill} kills: let it take longer"
                    );
                    if over {
                        // Between the last kill and this start nobody had anything left to ask.
                        return;
                    }
                    assert!(begun.elapsed() < LONG, "it does not serve: {}", self.log());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            until(|site| !site.metrics().is_empty()).await;
            if kill == kills || self.is_behind(kill) {
                until(Self::has_served).await;
                if self.has_served() {
                    recoveries.push(begun.elapsed());
                }
            }
            if kill < kills {
                let mut up_to = |longest: Duration| longest.mul_f32(uniform_f32(times.next_u32()));
                let (life, rest) = (up_to(LONGEST_LIFE), up_to(SOON));
                let served = Instant::now();
                while self.is_behind(kill) && served.elapsed() < life {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // Anywhere in a round.
                tokio::time::sleep(rest).await;
                server.kill();
                continue;
            }
            for device in devices {
                let end = tokio::time::timeout(LONG, device).await;
                let end = end.unwrap_or_else(|_| panic!("no end: {}", self.log()));
                assert!(end.unwrap().unwrap().completed);
            }
            let digest = status(&self.home, "adapter_digest");
            assert_eq!(status(&self.home, "version"), ROUNDS);
            assert_eq!(status(&self.home, "totals")["updates_accepted"], DEVICES as u64 * ROUNDS);
            drop(server);
            return (digest.as_str().unwrap().to_owned(), recoveries);
        }
        unreachable!("the last life of the server ends the run");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    fn verify(&self) -> std::process::Output {
        program("floret-server").args(["verify", "--config", &self.home]).output().unwrap()
    }

    fn state(&self, name: &str) -> PathBuf {
        Path::new(&self.home).join("state").join(name)
    }
}

fn settle(config: &Path) {
    let options = [
        ("run", "rounds", (ROUNDS as i64).into()),
        ("run", "seed", 21.into()),
        ("run", "retain_updates_rounds", 3.into()),
        ("cohort", "size", (DEVICES as i64).into()),
        ("cohort", "quorum", (DEVICES as i64).into()),
        ("training", "sequence_length", 32.into()),
        ("timing", "retry_min_s", 0.05.into()),
        ("timing", "retry_max_s", 0.2.into()),
    ];
    set_options(config, &options);
}

fn client(config: &ClientConfig) -> Command {
    let folder = config.ca.parent().unwrap();
    let mut command = program("floret-client");
    command.args(["history", "--verify", "--config"]).arg(folder.join("client.toml"));
    command
}

fn error(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_fifty_times_ends_with_the_same_adapter() {
    let seed = 5;
    println!("seed {seed}");
    let (want, _) = Site::new().run(0, seed).await;
    let site = Site::new();
    let (adapter, mut recoveries) = site.run(KILLS, seed).await;
    assert_eq!(adapter, want);
    recoveries.sort();
    let median = recoveries[recoveries.len() / 2];
    println!(
        "{KILLS} kills; recovery, {} times: median {median:?}, longest {:?}",
        recoveries.len(),
        recoveries.last().unwrap()
    );

    let key = site.folder.path().join("device-0/ledger.pub");
    let verify = ["verify", "--json", "--config", &site.home, "--public-key"];
    let verified = succeed(program("floret-server").args(verify).arg(key)).stdout;
    let verified: serde_json::Value = serde_json::from_slice(&verified).unwrap();
    println!("{verified}");
    let figures = ["entries", "rounds", "recomputed"].map(|key| verified[key].as_u64().unwrap());
    assert_eq!(figures, [ROUNDS + 1, ROUNDS, 3]);
    for config in &site.devices {
        assert_eq!(history::read(&config.state).unwrap().len() as u64, ROUNDS);
        succeed(&mut client(config));
    }
    what_is_tampered_with_is_named(&site);
}

/// One byte of each file that matters, at several places, and a cut end.
fn what_is_tampered_with_is_named(site: &Site) {
    let adapter = format!("adapters/adapter-{ROUNDS:08}.f32");
    let updates = format!("updates/round-{ROUNDS:08}.updates");
    for (file, places) in [("ledger.jsonl", 40), (adapter.as_str(), 5), (updates.as_str(), 5)] {
        let path = site.state(file);
        let whole = std::fs::read(&path).unwrap();
        for place in 0..places {
            let mut bytes = whole.clone();
            bytes[place * (whole.len() - 1) / places] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let output = site.verify();
            assert!(
                !output.status.success() && error(&output).contains("ledger entry"),
                "{}",
                error(&output)
            );
        }
        std::fs::write(&path, &whole).unwrap();
        succeed(program("floret-server").args(["verify", "--config", &site.home]));
    }
    let path = site.state("ledger.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
    std::fs::write(&path, &whole[..=last]).unwrap();
    let cut = error(&site.verify());
    assert!(cut.contains("ledger entry 21: the ledger ends before it"), "{cut}");
    std::fs::write(&path, &whole).unwrap();

    let config = &site.devices[3];
    let path = config.state.join(history::HISTORY);
    let whole = std::fs::read(&path).unwrap();
    for place in 0..40 {
        let mut bytes = whole.clone();
        bytes[place * (whole.len() - 1) / 40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let output = client(config).output().unwrap();
        let told = error(&output);
        assert!(!output.status.success() && told.contains("history entry"), "{told}");
    }
}
