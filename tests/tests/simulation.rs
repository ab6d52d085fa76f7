//! A simulated experiment beside the same one over loopback mutual TLS.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use floret_client::setup::{Base, BaseOptions};
use floret_client::{Backoff, Device, TrainingThread};
use floret_core::{ClientId, Digest, Round, Seed};
use floret_device::{
    Control, Limits, Progress, Session, TrainError, Trainer, TrainingOutcome, TrainingTask,
};
use floret_lab::corpus::Corpus;
use floret_lab::people::People;
use floret_lab::{Computing, Experiment, simulate};
use floret_model::{LocalTrainer, TrainerOptions};
use floret_server::Config;
use floret_server::config::FixedSeed;
use floret_tests::{Stage, connect, quickstart};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const ROUNDS: u32 = 5;

/// Six clients who share the quickstart's texts, four of them in each round, some of which drop out.
fn experiment(folder: &Path) -> Experiment {
    let text = format!(
        r#"
        version = 1
        model.dir = "{quickstart}/model"
        data.paths = ["{quickstart}/devices"]
        [run]
        rounds = {ROUNDS}
        seed = 21
        [population]
        partition = "iid"
        clients = 6
        [cohort]
        size = 4
        quorum = 1
        min_population = 6
        [timing]
        report_deadline_s = 6.0
        retry_min_s = 0.02
        retry_max_s = 0.05
        [training]
        max_steps = 2
        batch_size = 2
        sequence_length = 32
        [behaviour]
        drop_out = 0.3
        training_s = {{ uniform = [0.0, 1.0] }}
        "#,
        quickstart = quickstart().canonicalize().unwrap().display()
    );
    let path = folder.join("experiment.toml");
    fs::write(&path, text).unwrap();
    Experiment::read(&path).unwrap()
}

/// Whether `client` drops out of `round`, as the experiment's seed has it.
fn drops_out(experiment: &Experiment, round: Round, client: &ClientId) -> bool {
    let seed = experiment.seed();
    experiment.behaviour.nature(&seed, client).lot(&seed, round, client).drops_out
}

/// Trains, but not in rounds that its device drops out of: there it is at it until it is cancelled.
struct Unsteady {
    experiment: Experiment,
    trainer: LocalTrainer,
}

impl Trainer for Unsteady {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        if drops_out(&self.experiment, task.plan.round, &task.client) {
            let step = Progress { task: 0, step: 0, steps: 1, loss: 0.0 };
            while progress(step) == Control::Continue {
                std::thread::sleep(Duration::from_millis(5));
            }
            return Err(TrainError::Cancelled);
        }
        self.trainer.train(task, progress)
    }
}

fn people(experiment: &Experiment, base: &Base) -> People {
    People::new(experiment, Corpus::read(&experiment.data, base).unwrap()).unwrap()
}

/// A device of the network with a client's texts.
fn device(
    stage: &Stage,
    address: std::net::SocketAddr,
    experiment: &Experiment,
    base: &Base,
    (client, data): (ClientId, floret_model::LocalData),
) -> Device {
    let options = TrainerOptions { threads: 1, ..TrainerOptions::default() };
    let mut trainer = LocalTrainer::new(Arc::clone(&base.model), options).unwrap();
    trainer.insert(client.clone(), data);
    let trainer = Unsteady { experiment: experiment.clone(), trainer };
    let config = stage.enroll(client.as_str(), address);
    let session = Session::new(client, base.local.clone(), Limits::default());
    let backoff = Backoff::new(Seed::from_number(3).stream());
    let thread = TrainingThread::spawn(trainer).unwrap();
    Device::new(session, connect(&config), thread, backoff, |_| {})
}

async fn network(experiment: &Experiment) -> Digest {
    let mut stage = Stage::with_quickstart_model();
    let base = Base::open(&experiment.model.dir, BaseOptions::default()).unwrap();
    let Experiment { lora, training, cohort, timing, aggregation, .. } = experiment.clone();
    let mut run = stage.config.run.clone();
    (run.rounds, run.seed) = (experiment.run.rounds, Some(FixedSeed(experiment.run.seed)));
    let own = stage.config.clone();
    stage.config = Config { run, lora, training, cohort, timing, aggregation, ..own };
    let server = stage.start("127.0.0.1:0").await;
    let people = people(experiment, &base);
    let mut running = JoinSet::new();
    for index in 0..people.len() {
        let who = (people.client(index), people.data(index));
        let device = device(&stage, server.address(), experiment, &base, who);
        running.spawn(device.run(CancellationToken::new()));
    }
    let everyone = async {
        while let Some(end) = running.join_next().await {
            assert!(end.unwrap().unwrap().completed);
        }
    };
    tokio::time::timeout(Duration::from_secs(240), everyone).await.unwrap();
    let totals = server.status().totals;
    println!("over the network: {totals:?}");
    assert!(totals.drop_outs > 0 && totals.rounds_committed == u64::from(ROUNDS));
    let digest = server.adapter().digest;
    server.stop().await.unwrap();
    digest
}

/// Drop-outs are scheduled by seed, and nobody else misses the deadline: the network and the
/// simulation take the same updates, and end in the same adapter, bit for bit.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_with_scheduled_drop_outs_and_its_simulation_end_in_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = experiment(folder.path());
    let [side_by_side, sequential] =
        [false, true].map(|sequential| Computing { threads: 2, sequential });
    let simulated = simulate(&experiment, &folder.path().join("results"), side_by_side).unwrap();
    assert!(simulated.completed && simulated.drop_outs > 0, "{simulated:?}");
    println!("simulated: {} updates, {} drop-outs", simulated.updates, simulated.drop_outs);
    assert_eq!(network(&experiment).await, simulated.adapter);
    let again = simulate(&experiment, &folder.path().join("sequential"), sequential).unwrap();
    assert_eq!(again, simulated);
    let other =
        simulate(&experiment.with_seed(22), &folder.path().join("other"), sequential).unwrap();
    assert_ne!(other.adapter, simulated.adapter);
}
