//! Links that break and devices that are late, over real mutual TLS.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floret_aggregator::config::CohortConfig;
use floret_client::{
    Backoff, ClientConfig, Connection, Credentials, Device, Event, TrainingThread,
};
use floret_core::Seed;
use floret_core::payload::Compression;
use floret_device::{
    Control, Limits, Progress, Session, TrainError, Trainer, TrainingOutcome, TrainingTask,
};
use floret_simulation::ToyTrainer;
use floret_tests::Stage;
use floret_tests::link::Link;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);
/// What a cut may cost beside the rest: handshakes, check-ins, a chunk on its way each time.
const SLACK: u64 = 64 * 1024;

/// A stage of one device and one round.
fn single(hidden: u32) -> Stage {
    let mut stage = Stage::with_toy_model_of(hidden);
    stage.config.run.rounds = 1;
    stage.config.run.compression = Compression::None.into();
    stage.config.cohort = CohortConfig { size: 1, quorum: 1, ..CohortConfig::default() };
    stage
}

fn device(
    stage: &Stage,
    config: &ClientConfig,
    connection: Connection,
    trainer: impl Trainer + Send + 'static,
    watch: impl Fn(Event) + Send + Sync + 'static,
) -> Device {
    let session = Session::new(config.name.clone(), stage.local_model(), Limits::default());
    let backoff = Backoff::new(Seed::from_number(3).stream());
    Device::new(session, connection, TrainingThread::spawn(trainer).unwrap(), backoff, watch)
}

fn credentials(config: &ClientConfig) -> Credentials {
    Credentials::read(&config.ca, &config.certificate, &config.key).unwrap()
}

/// What went over the link when something happened: up, and down.
type Marks = Arc<Mutex<Vec<(&'static str, u64, u64)>>>;

fn between(marks: &Marks, from: &str, to: &str) -> (u64, u64) {
    let marks = marks.lock().unwrap();
    let find = |name: &str| *marks.iter().find(|(mark, ..)| *mark == name).unwrap();
    let ((_, up, down), (_, later_up, later_down)) = (find(from), find(to));
    (later_up - up, later_down - down)
}

/// Runs one round over a link that is cut after `share` of the adapter, and again after `share` of
/// the update.
async fn a_round_with_cuts_at(share: f64) {
    let stage = single(4096);
    let server = stage.start("127.0.0.1:0").await;
    let (address, total) = (server.address(), server.adapter().bytes.len() as u64);
    let at = (total as f64 * share) as u64;
    let config = stage.enroll("phone", address);
    let (link, marks) = (Link::default(), Marks::default());
    let dialed = link.clone();
    let dial = move || dialed.dial(address);
    let connection = Connection::dialed(&config.server, &credentials(&config), dial).unwrap();
    let traffic = Arc::clone(connection.traffic());
    let (watched, noted) = (link.clone(), Arc::clone(&marks));
    let watch = move |event| {
        let name = match event {
            Event::Assigned { .. } => {
                watched.down.cut_after(at);
                "assigned"
            }
            Event::Adapter { .. } => "fetched",
            Event::Reporting { .. } => {
                watched.up.cut_after(at);
                "reporting"
            }
            Event::Counted(_) => "counted",
            Event::Retrying { .. } => "retrying",
            _ => return,
        };
        noted.lock().unwrap().push((name, watched.up.moved(), watched.down.moved()));
    };
    let device = device(&stage, &config, connection, ToyTrainer, watch);
    let end = tokio::time::timeout(LONG, device.run(CancellationToken::new())).await;
    assert!(end.unwrap().unwrap().completed);

    let (_, down) = between(&marks, "assigned", "fetched");
    assert!(down >= total && down < total + SLACK, "{down} bytes down for {total}, cut at {at}");
    let (up, _) = between(&marks, "reporting", "counted");
    assert!(up >= total && up < total + SLACK, "{up} bytes up for {total}, cut at {at}");
    let retries = marks.lock().unwrap().iter().filter(|(mark, ..)| *mark == "retrying").count();
    assert!(retries >= 2, "the link was not cut: {retries}");
    // Both sides count what moved: one update up, and the first and the last adapter down.
    assert!(traffic.up() < total + 2 * SLACK, "{}", traffic.up());
    assert!(traffic.down() < 2 * total + 2 * SLACK, "{}", traffic.down());
    println!("cut at {at} of {total}: {down} bytes down, {up} bytes up");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_costs_the_rest_alone() {
    for share in [0.1, 0.5, 0.9] {
        a_round_with_cuts_at(share).await;
    }
}

/// Takes its time, and counts how often it is asked.
struct Slow {
    takes: Duration,
    begun: Arc<AtomicUsize>,
}

impl Trainer for Slow {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let begun = std::time::Instant::now();
        while begun.elapsed() < self.takes {
            std::thread::sleep(Duration::from_millis(20));
            let step = Progress { task: 0, step: 0, steps: 1, loss: 0.0 };
            if progress(step) == Control::Cancel {
                return Err(TrainError::Cancelled);
            }
        }
        ToyTrainer.train(task, progress)
    }
}

/// Starts a device whose training takes `takes`; gives what it was told of its first round.
async fn late(
    stage: &Stage,
    config: &ClientConfig,
    takes: Duration,
) -> (Arc<AtomicUsize>, tokio::sync::mpsc::UnboundedReceiver<Event>, CancellationToken) {
    let begun = Arc::new(AtomicUsize::new(0));
    let (told, events) = tokio::sync::mpsc::unbounded_channel();
    let connection = Connection::new(&config.server, &credentials(config)).unwrap();
    let slow = Slow { takes, begun: Arc::clone(&begun) };
    let watch = move |event| {
        let _ = told.send(event);
    };
    let device = device(stage, config, connection, slow, watch);
    let stop = CancellationToken::new();
    tokio::spawn(device.run(stop.clone()));
    (begun, events, stop)
}

/// Waits for the end of a round.
async fn outcome(events: &mut tokio::sync::mpsc::UnboundedReceiver<Event>) -> Event {
    let end = async {
        loop {
            let event = events.recv().await.unwrap();
            if matches!(event, Event::Counted(_) | Event::NotCounted { .. }) {
                return event;
            }
        }
    };
    tokio::time::timeout(LONG, end).await.unwrap()
}

/// A server that restarts in mid-round gives its devices the whole time again: a device whose own
/// deadline passes asks, and goes on with the training that it has begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_device_goes_on_when_the_server_waits_longer() {
    let mut stage = single(16);
    stage.config.timing.report_deadline_s = 3.0;
    let server = stage.start("127.0.0.1:0").await;
    let config = stage.enroll("phone", server.address());
    let (begun, mut events, stop) = late(&stage, &config, Duration::from_secs(4)).await;
    while begun.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let address = server.address();
    drop(server);
    let server = stage.restart(address).await;
    let event = outcome(&mut events).await;
    assert!(matches!(event, Event::Counted(_)), "{event:?}");
    assert_eq!(begun.load(Ordering::SeqCst), 1, "it trained again");
    stop.cancel();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_device_stops_when_the_round_is_over() {
    let mut stage = single(16);
    stage.config.timing.report_deadline_s = 0.5;
    let server = stage.start("127.0.0.1:0").await;
    let config = stage.enroll("phone", server.address());
    let began = std::time::Instant::now();
    let (_, mut events, stop) = late(&stage, &config, Duration::from_secs(30)).await;
    let event = outcome(&mut events).await;
    assert!(
        matches!(&event, Event::NotCounted { reason, .. } if reason.contains("deadline")),
        "{event:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    stop.cancel();
    server.stop().await.unwrap();
}
