//! Whole runs over loopback mutual TLS.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::config::{BufferedConfig, CohortConfig, Timing};
use floret_aggregator::{Coordinator, RunConfig, RunState};
use floret_client::connection::CheckIn;
use floret_client::setup::{BaseOptions, spawn_training};
use floret_client::{CallError, Connection, DriverError, Event};
use floret_core::payload::Compression;
use floret_core::{ClientUpdate, Digest, Layout, Payload, Plan, Seed};
use floret_device::{Input, Limits, Session};
use floret_examples::federation::{self, Participant};
use floret_server::Server;
use floret_server::config::ModeName;
use floret_simulation::{Behaviour, ToyTrainer, World};
use floret_tests::{Events, Stage, connect, quickstart};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(120);

fn counted(event: &Event) -> bool {
    matches!(event, Event::Counted(_))
}

/// Checks in until there is work; `None` once the run is over.
async fn next_plan(connection: &mut Connection) -> Option<Plan> {
    loop {
        match connection.check_in().await.unwrap() {
            CheckIn::Answer(Input::Assigned(plan)) => return Some(*plan),
            CheckIn::Answer(_) => return None,
            CheckIn::ComeBack { earliest, .. } => tokio::time::sleep(earliest).await,
        }
    }
}

/// A device that takes every assignment and never answers it.
async fn drops_out(mut connection: Connection) {
    while next_plan(&mut connection).await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A device that reports NaN in every round; gives the refusals' codes.
async fn sends_nan(mut connection: Connection, values: usize) -> Vec<String> {
    let mut codes = Vec::new();
    let mut last = None;
    while let Some(plan) = next_plan(&mut connection).await {
        if last.replace(plan.round) == Some(plan.round) {
            continue;
        }
        let nan: Vec<u8> = f32::NAN.to_le_bytes().repeat(values);
        let payload = Payload::from_bytes([b"FP\x01\x00".as_slice(), &nan].concat());
        let update = ClientUpdate {
            run: plan.run.clone(),
            round: plan.round,
            num_examples: 5,
            num_steps: 1,
            payload,
        };
        match connection.report(&update).await {
            Err(CallError::Refused { code, .. }) => codes.push(code),
            other => panic!("NaN was not refused: {other:?}"),
        }
    }
    codes
}

/// Four devices: one trains, one drops out, one sends NaN, and one has a certificate from another
/// authority. The run completes, and every one of them hears what became of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_completes_among_devices_that_fail() {
    let mut stage = Stage::with_quickstart_model();
    stage.config.run.rounds = 2;
    stage.config.cohort = CohortConfig { size: 3, quorum: 1, ..CohortConfig::default() };
    stage.config.timing.report_deadline_s = 8.0;
    stage.config.training.max_steps = 2;
    stage.config.training.batch_size = 2;
    let server = stage.start("127.0.0.1:0").await;
    let enroll = |name| stage.enroll(name, server.address());

    let base = stage.base();
    let good = enroll("good");
    let (data, _) = base.read_data(&quickstart().join("devices/workshop"), 0.1).unwrap();
    let clients = [(good.name.clone(), data)];
    let trainer = spawn_training(&base, clients, good.trainer_options()).unwrap();
    let (told, mut events) = tokio::sync::mpsc::unbounded_channel();
    let watch = move |event| told.send(event).unwrap();
    let (device, _) = floret_client::setup::device(&good, &base, trainer, watch).unwrap();

    let stranger_stage = Stage::with_quickstart_model();
    let mut stranger = stranger_stage.enroll("stranger", server.address());
    // It knows whom to trust, and is itself unknown.
    stranger.ca = good.ca.clone();
    let (stranger, _) = stranger_stage.toy_device(&stranger);

    let values = server.status().parameters;
    let dropper = tokio::spawn(drops_out(connect(&enroll("dropper"))));
    let nan = tokio::spawn(sends_nan(connect(&enroll("nan")), values));
    let stranger = tokio::spawn(stranger.run(CancellationToken::new()));
    let good = tokio::spawn(device.run(CancellationToken::new()));

    let end = tokio::time::timeout(LONG, server.wait_for_end()).await.unwrap().unwrap();
    assert!(end.completed, "{}", end.message);
    assert!(good.await.unwrap().unwrap().completed);
    assert_eq!(nan.await.unwrap(), ["not-finite", "not-finite"]);
    dropper.await.unwrap();
    let error = stranger.await.unwrap().unwrap_err();
    assert!(matches!(error, DriverError::Call(CallError::NotTrusted(_))), "{error}");

    let totals = server.status().totals;
    assert_eq!((totals.rounds_committed, totals.updates_accepted), (2, 2));
    assert_eq!((totals.updates_refused, totals.drop_outs), (2, 2));
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    assert_eq!(seen.iter().filter(|event| counted(event)).count(), 2);
    let adapters = seen.iter().filter(|event| matches!(event, Event::Adapter { .. }));
    assert_eq!(adapters.count(), 3, "one for each round and the last");
    server.stop().await.unwrap();
}

fn toy_settings(stage: &mut Stage, rounds: u32, devices: u32) {
    stage.config.run.rounds = rounds;
    stage.config.aggregation.download_compression = Compression::Int8;
    stage.config.cohort =
        CohortConfig { size: devices, quorum: devices, ..CohortConfig::default() };
}

/// Runs toy devices against `server` until the run is over.
async fn run_toys(stage: &Stage, server: &Server, names: &[&str]) -> Vec<Events> {
    let mut running = JoinSet::new();
    let mut all = Vec::new();
    for name in names {
        let (device, events) = stage.toy_device(&stage.enroll(name, server.address()));
        running.spawn(device.run(CancellationToken::new()));
        all.push(events);
    }
    let everyone = async {
        while let Some(end) = running.join_next().await {
            assert!(end.unwrap().unwrap().completed);
        }
    };
    tokio::time::timeout(LONG, everyone).await.unwrap();
    all
}

/// Six devices in a buffered run: every version has its three updates, each device hears the end, and
/// every version can be computed again from what the ledger says.
#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_run_completes() {
    let mut stage = Stage::with_toy_model();
    stage.config.run.rounds = 5;
    stage.config.run.mode = ModeName::Buffered;
    stage.config.run.retain_updates_rounds = 5;
    stage.config.aggregation.download_compression = Compression::Int8;
    stage.config.buffered = BufferedConfig { buffer: 3, max_staleness: 4, concurrency: 5 };
    let server = stage.start("127.0.0.1:0").await;
    while server.status().phase != "buffering" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = server.status();
    assert_eq!((status.mode, status.buffer, status.at_work), ("buffered", Some(3), Some(0)));
    let all = run_toys(&stage, &server, &["a", "b", "c", "d", "e", "f"]).await;
    let counted: usize = all.iter().map(|events| events.count(counted)).sum();
    let totals = server.status().totals;
    assert_eq!((totals.rounds_committed, totals.updates_accepted, counted), (5, 15, 15));
    server.stop().await.unwrap();
    let key = floret_server::ledger_key::read_public(stage.home()).unwrap();
    let verified = floret_server::verify(stage.home(), &stage.config, &key).unwrap();
    assert_eq!((verified.rounds, verified.adapters, verified.recomputed), (5, 6, 5));
}

async fn network_digest(names: &[&str]) -> Digest {
    let mut stage = Stage::with_toy_model();
    toy_settings(&mut stage, 3, 4);
    let server = stage.start("127.0.0.1:0").await;
    for events in run_toys(&stage, &server, names).await {
        assert_eq!(events.count(counted), 3);
    }
    let digest = server.adapter().digest;
    server.stop().await.unwrap();
    digest
}

fn simulated_digest(names: &[&str]) -> Digest {
    let mut stage = Stage::with_toy_model();
    toy_settings(&mut stage, 3, 4);
    let local = stage.local_model();
    let layout = Arc::new(Layout::new(&local.config, &stage.config.lora).unwrap());
    let (config, _) = stage.config.run_config(stage.home(), local.digests, layout.len()).unwrap();
    let config = RunConfig {
        timing: Timing {
            report_deadline: LONG,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(2),
        },
        ..config
    };
    let state = RunState::first(&config, Arc::clone(&layout));
    let coordinator = Coordinator::new(config, layout, state).unwrap();
    let session =
        |name: &&str| Session::new(name.parse().unwrap(), local.clone(), Limits::default());
    let sessions = names.iter().map(session).collect();
    let seed = Seed::from_number(77);
    let world = World::new(coordinator, sessions, ToyTrainer, Behaviour::default(), &seed);
    world.run(LONG * 100).unwrap().coordinator.state().adapter.digest()
}

/// The conditions of the plan's ninth idea hold here: the connected population is the cohort,
/// quorum = cohort, and no deadline is missed. Then two runs over the network, in which devices
/// come in another order, and a simulation end in the same adapter, bit for bit.
#[tokio::test(flavor = "multi_thread")]
async fn network_and_simulation_end_in_the_same_bits() {
    let forwards = network_digest(&["a", "b", "c", "d"]).await;
    assert_eq!(network_digest(&["d", "b", "a", "c"]).await, forwards);
    assert_eq!(simulated_digest(&["a", "b", "c", "d"]), forwards);
    assert_ne!(simulated_digest(&["a", "b", "c", "e"]), forwards);
}

/// The same with real training on text, from the seed to the exported adapter.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_trains_the_same_adapter() {
    async fn train(seed: u64) -> federation::Outcome {
        let folder = tempfile::tempdir().unwrap();
        let participant = |name: &str| Participant {
            name: name.parse().unwrap(),
            data: quickstart().join("devices").join(name),
        };
        let participants = ["garden", "kitchen"].map(participant);
        let adjust = |config: &mut floret_server::Config| {
            config.run.rounds = 2;
            config.run.seed = Some(floret_server::config::FixedSeed(seed));
            config.cohort = CohortConfig { size: 2, quorum: 2, ..CohortConfig::default() };
            config.training.max_steps = 3;
            config.training.sequence_length = 32;
            config.timing.retry_min_s = 0.02;
            config.timing.retry_max_s = 0.05;
        };
        let (home, export) = (folder.path().join("server"), folder.path().join("adapter"));
        let (model, options) = (quickstart().join("model"), BaseOptions::default());
        federation::run(&home, &model, options, &participants, adjust, &export).await.unwrap()
    }
    let first = train(5).await;
    assert_eq!(train(5).await.adapter_digest, first.adapter_digest);
    assert_ne!(train(6).await.adapter_digest, first.adapter_digest);
    assert_eq!((first.updates_accepted, first.updates_rejected), (4, 0));
    let loss = |after: bool| {
        let pick =
            |device: &federation::DeviceResult| if after { device.after } else { device.before };
        federation::pooled(first.devices.iter().map(pick))
    };
    assert!(loss(true) < loss(false), "{} -> {}", loss(false), loss(true));
}

/// A server that goes away without a word abandons its open round; its devices come back to the
/// next one by themselves, and what was committed stays.
#[tokio::test(flavor = "multi_thread")]
async fn devices_survive_a_restart_of_the_server() {
    let mut stage = Stage::with_toy_model();
    toy_settings(&mut stage, 40, 3);
    let server = stage.start("127.0.0.1:0").await;
    let address = server.address();
    let mut running = JoinSet::new();
    for name in ["a", "b", "c"] {
        let (device, _) = stage.toy_device(&stage.enroll(name, address));
        running.spawn(device.run(CancellationToken::new()));
    }
    while server.status().version < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = server.status();
    drop(server);
    let server = stage.restart(address).await;
    assert!(server.status().version >= before.version);
    assert!(server.status().version < 40, "the run was not interrupted");
    let everyone = async {
        while let Some(end) = running.join_next().await {
            assert!(end.unwrap().unwrap().completed);
        }
    };
    tokio::time::timeout(LONG, everyone).await.unwrap();
    assert_eq!(server.status().version, 40);
    server.stop().await.unwrap();
}

/// A second report, a repeat and a wrong round get their own answers over the wire too.
#[tokio::test(flavor = "multi_thread")]
async fn repeats_get_the_same_receipt_and_other_reports_their_own_refusal() {
    let mut stage = Stage::with_toy_model();
    toy_settings(&mut stage, 1, 2);
    let server = stage.start("127.0.0.1:0").await;
    let mut a = connect(&stage.enroll("a", server.address()));
    let mut b = connect(&stage.enroll("b", server.address()));
    let waiting = tokio::spawn(async move {
        next_plan(&mut b).await;
        b
    });
    let plan = next_plan(&mut a).await.unwrap();
    let layout = Arc::new(Layout::new(&stage.local_model().config, &plan.lora).unwrap());
    let adapter = a.fetch_adapter(plan.version, Arc::clone(&layout)).await.unwrap();
    assert_eq!(adapter.digest(), plan.adapter_digest);

    let update = |value: f32, round| {
        let mut rng = Seed::from_number(1).stream();
        let delta = vec![value; layout.len()];
        let payload = Payload::encode(Compression::Int8, &layout, &delta, &mut rng).unwrap();
        ClientUpdate { run: "run".parse().unwrap(), round, num_examples: 3, num_steps: 1, payload }
    };
    let first = a.report(&update(0.1, plan.round)).await.unwrap();
    assert_eq!(a.report(&update(0.1, plan.round)).await.unwrap(), first);
    let refused = |result: Result<_, CallError>| match result {
        Err(CallError::Refused { code, .. }) => code,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(a.report(&update(0.2, plan.round)).await), "different-report");
    assert_eq!(refused(a.report(&update(0.2, plan.round.next())).await), "unknown-round");
    let empty = ClientUpdate { num_examples: 0, num_steps: 1, ..update(0.1, plan.round) };
    let mut b = waiting.await.unwrap();
    assert_eq!(refused(b.report(&empty).await), "zero-examples");
    server.stop().await.unwrap();
}
