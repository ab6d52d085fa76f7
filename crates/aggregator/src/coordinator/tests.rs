use std::ops::Range;
use std::time::Duration;

use floret_core::base::BaseDigests;
use floret_core::lora::TargetModule;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::scope::Freeze;
use floret_core::{ClientUpdate, LoraConfig, ModelConfig, Payload, Receipt, Seed, Version};

use super::*;
use crate::clipped::ClippedDelta;
use crate::combine::Robust;
use crate::config::{Aggregation, BufferedConfig, CohortConfig, MixedRanks, Mode, Timing};
use crate::server_optimizer::{Adaptive, ServerOptimizer};
use crate::store::{MemoryStore, Store as _};

pub(crate) fn layout() -> Arc<Layout> {
    let model = ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2}"#,
    )
    .unwrap();
    Arc::new(Layout::new(&model, &config().lora).unwrap())
}

pub(crate) fn payload(value: impl Fn(usize) -> f32) -> Payload {
    let values: Vec<f32> = (0..layout().len()).map(value).collect();
    let mut rng = Seed::from_number(0).stream();
    Payload::encode(Compression::None, &layout(), &values, &mut rng).unwrap()
}

pub(crate) fn config() -> RunConfig {
    let digest = Digest::of(b"base");
    RunConfig {
        run: "test".parse().unwrap(),
        rounds: 2,
        max_abandoned: 2,
        seed: Seed::from_number(4),
        base: BaseDigests { base: digest, tokenizer: digest },
        lora: LoraConfig {
            rank: 2,
            alpha: 2.0,
            use_rslora: false,
            target_modules: vec![TargetModule::VProj],
        },
        training: TrainingConfig::default(),
        compression: Compression::None,
        error_feedback: 0.95,
        mode: Mode::Synchronous,
        cohort: CohortConfig { size: 3, quorum: 2, ..CohortConfig::default() },
        timing: Timing {
            report_deadline: Duration::from_secs(60),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(2),
        },
        aggregation: Aggregation { clip_norm: 1.0, max_examples: 10, ..Aggregation::default() },
    }
}

/// A coordinator with its shell: records are applied at once, timeouts follow.
struct Run {
    coordinator: Coordinator,
    now: Time,
    store: MemoryStore,
    /// What a store would keep.
    records: Vec<Record>,
}

fn report(update: ClientUpdate, payload_digest: Digest) -> Input {
    Input::Report(Report { update, payload_digest, downloaded_bytes: 300 })
}

impl Run {
    fn new(config: RunConfig) -> Self {
        let state = RunState::first(&config, layout());
        Self::of(Coordinator::new(config, layout(), state).unwrap())
    }

    fn of(coordinator: Coordinator) -> Self {
        let store = MemoryStore::new(&coordinator);
        Self { coordinator, now: Time(1_000), store, records: Vec::new() }
    }

    /// A run of three clients, a, b and c, whose first round is open.
    fn open() -> Self {
        let mut run = Self::new(config());
        for client in ["a", "b", "c"] {
            let reply = run.check_in(client).unwrap();
            assert!(matches!(reply, Reply::ComeBack { .. }));
        }
        run
    }

    fn send(&mut self, client: &str, input: Input) -> Result<Reply, Rejection> {
        let client = client.parse().unwrap();
        let step = self.coordinator.handle(self.now, &client, input);
        self.apply(step.records);
        self.tick();
        step.reply
    }

    fn tick(&mut self) {
        while self.coordinator.poll_timeout(self.now).is_some_and(|due| due <= self.now) {
            let records = self.coordinator.handle_timeout(self.now, &self.store).unwrap();
            assert!(!records.is_empty(), "a timeout that is due must do something");
            self.apply(records);
        }
    }

    fn apply(&mut self, records: Vec<Record>) {
        self.store.commit(&records, self.coordinator.state()).unwrap();
        for record in records {
            self.coordinator.apply(&record);
            self.records.extend(record.is_durable().then_some(record));
        }
    }

    /// Clients a, b and c check in.
    fn gather(&mut self) {
        for client in ["a", "b", "c"] {
            self.check_in(client).unwrap();
        }
    }

    fn check_in(&mut self, client: &str) -> Result<Reply, Rejection> {
        self.send(client, Input::CheckIn)
    }

    fn plan(&mut self, client: &str) -> Plan {
        match self.check_in(client) {
            Ok(Reply::Train(plan)) => *plan,
            other => panic!("{client} is not in the cohort: {other:?}"),
        }
    }

    fn report(&mut self, client: &str, round: u32, payload: Payload) -> Result<Reply, Rejection> {
        let payload_digest = payload.digest();
        let update = ClientUpdate {
            run: config().run,
            round: Round(round),
            num_examples: 4,
            num_steps: 1,
            payload,
        };
        self.send(client, report(update, payload_digest))
    }

    fn status(&self) -> Status {
        self.coordinator.status(self.now)
    }
}

fn small() -> Payload {
    payload(|_| 0.01)
}

fn linear(text: &str, config: RunConfig) -> RunConfig {
    RunConfig { compression: text.parse().unwrap(), ..config }
}

fn code(result: Result<Reply, Rejection>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn a_run_of_two_rounds_ends_with_the_mean_of_its_deltas() {
    let mut run = Run::open();
    let before = run.coordinator.state().adapter.clone();
    for round in 1..=2 {
        for client in ["a", "b", "c"] {
            assert_eq!(run.plan(client).round, Round(round));
        }
        for (client, value) in [("b", 0.02), ("a", 0.01), ("c", 0.03)] {
            run.report(client, round, payload(|_| value)).unwrap();
        }
        run.gather();
    }
    assert_eq!(run.status().version, 2);
    assert!(matches!(run.check_in("a"), Ok(Reply::RunEnded(RunEnd { completed: true, .. }))));
    let after = run.coordinator.state().adapter.values();
    let moved = before.values().iter().zip(after).map(|(before, after)| after - before);
    assert!(moved.into_iter().all(|change| (change - 0.04).abs() < 1e-6));
    assert_eq!(code(run.report("a", 3, small())), "run-ended");
}

#[test]
fn plans_name_everything_and_their_seeds_differ_by_client_and_round() {
    let mut run = Run::open();
    let (a, b) = (run.plan("a"), run.plan("b"));
    assert_eq!(a, run.plan("a"));
    assert_ne!(a.seed, b.seed);
    assert_ne!(a.seed, run.coordinator.config().seed);
    assert_eq!(a.adapter_digest, run.coordinator.state().adapter.digest());
    assert_eq!(a.report_within, Duration::from_secs(60));
    run.now = Time(11_000);
    assert_eq!(run.plan("a").report_within, Duration::from_secs(50));
}

#[test]
fn each_bad_report_is_refused_with_its_own_reason_and_the_round_goes_on() {
    let raw = |bytes: Vec<u8>| Payload::from_bytes(bytes);
    let mut nan = small().bytes().to_vec();
    nan[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut infinite = small().bytes().to_vec();
    infinite[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let long = [small().bytes(), &[0; 4]].concat();
    let cases = [
        (raw(nan), "not-finite"),
        (raw(infinite), "not-finite"),
        (raw(long), "wrong-length"),
        (raw(b"FP\x01\x07".to_vec()), "damaged-payload"),
        (raw(Vec::new()), "damaged-payload"),
    ];
    for (bad, want) in cases {
        let mut run = Run::open();
        assert_eq!(code(run.report("b", 1, bad)), want);
        assert_eq!(code(run.report("b", 1, small())), "out-of-round");
        run.report("a", 1, small()).unwrap();
        run.report("c", 1, small()).unwrap();
        let status = run.status();
        assert_eq!((status.version, status.totals.updates_refused), (1, 1), "{want}");
    }
}

#[test]
fn other_refusals_leave_the_client_in_the_round() {
    let mut run = Run::open();
    assert_eq!(code(run.report("z", 1, small())), "not-in-cohort");
    assert_eq!(code(run.report("a", 7, small())), "unknown-round");
    let update = ClientUpdate {
        run: config().run,
        round: Round(1),
        num_examples: 4,
        num_steps: 1,
        payload: small(),
    };
    let payload_digest = Digest::of(b"other");
    assert_eq!(code(run.send("a", report(update, payload_digest))), "wrong-digest");
    let run_of = |name: &str| name.parse().unwrap();
    let update = ClientUpdate {
        run: run_of("other"),
        round: Round(1),
        num_examples: 4,
        num_steps: 1,
        payload: small(),
    };
    let payload_digest = small().digest();
    assert_eq!(code(run.send("a", report(update, payload_digest))), "other-run");
    run.report("a", 1, small()).unwrap();
    let update = ClientUpdate {
        run: config().run,
        round: Round(1),
        num_examples: 0,
        num_steps: 1,
        payload: small(),
    };
    let payload_digest = small().digest();
    assert_eq!(code(run.send("b", report(update, payload_digest))), "zero-examples");
}

#[test]
fn repeats_get_the_same_answer_and_different_reports_are_refused() {
    let mut run = Run::open();
    let first = run.report("a", 1, small()).unwrap();
    // Other bytes under the first one's digest are no repeat.
    let update = ClientUpdate {
        run: config().run,
        round: Round(1),
        num_examples: 4,
        num_steps: 1,
        payload: payload(|_| 0.5),
    };
    let payload_digest = small().digest();
    assert_eq!(code(run.send("a", report(update, payload_digest))), "wrong-digest");
    assert_eq!(run.report("a", 1, small()).unwrap(), first);
    assert_eq!(code(run.report("a", 1, payload(|_| 0.5))), "different-report");
    run.report("b", 1, small()).unwrap();
    run.report("c", 1, small()).unwrap();
    // The round is closed; the answer to its report is still the same.
    assert_eq!(run.status().version, 1);
    assert_eq!(run.report("a", 1, small()).unwrap(), first);
    assert_eq!(code(run.report("a", 1, payload(|_| 0.5))), "different-report");
    assert_eq!(run.status().totals.updates_accepted, 3);
}

#[test]
fn a_client_learns_in_one_call_whether_its_work_counts() {
    let mut run = Run::open();
    let ask = |run: &Run, client: &str, round, payload_digest| {
        let name: RunId = "test".parse().unwrap();
        let question = Input::Standing { run: name, round, payload_digest };
        let step = run.coordinator.handle(run.now, &client.parse().unwrap(), question);
        assert!(step.records.is_empty());
        step.reply
    };
    let digest = Some(small().digest());
    assert_eq!(ask(&run, "a", Round(1), digest), Ok(Reply::Awaited(Duration::from_secs(60))));
    assert_eq!(code(ask(&run, "z", Round(1), None)), "not-in-cohort");
    assert_eq!(code(ask(&run, "a", Round(2), None)), "unknown-round");
    let receipt = run.report("a", 1, small()).unwrap();
    for digest in [digest, None] {
        assert_eq!(ask(&run, "a", Round(1), digest).as_ref(), Ok(&receipt));
    }
    let other = Some(Digest::of(b"other"));
    assert_eq!(code(ask(&run, "a", Round(1), other)), "different-report");
    run.report("b", 1, small()).unwrap();
    run.report("c", 1, small()).unwrap();
    // The round is over, and its receipts are kept.
    assert_eq!(ask(&run, "a", Round(1), digest), Ok(receipt));
    let question =
        Input::Standing { run: "other".parse().unwrap(), round: Round(1), payload_digest: None };
    let step = run.coordinator.handle(run.now, &"a".parse().unwrap(), question);
    assert_eq!(code(step.reply), "other-run");
}

#[test]
fn weights_are_capped() {
    let mut run = Run::open();
    let payload_digest = small().digest();
    let update = ClientUpdate {
        run: config().run,
        round: Round(1),
        num_examples: u32::MAX,
        num_steps: 3,
        payload: small(),
    };
    let reply = run.send("a", report(update, payload_digest)).unwrap();
    assert!(matches!(reply, Reply::Accepted(Receipt { weight: 10, .. })));
}

#[test]
fn a_deadline_commits_with_a_quorum_and_abandons_without() {
    let mut run = Run::open();
    run.report("a", 1, small()).unwrap();
    run.report("b", 1, small()).unwrap();
    assert_eq!(run.status().phase, "training");
    run.now = Time(61_000);
    run.tick();
    let status = run.status();
    assert_eq!((status.version, status.totals.drop_outs), (1, 1));

    let mut run = Run::open();
    run.report("a", 1, small()).unwrap();
    run.now = Time(61_000);
    run.tick();
    let status = run.status();
    assert_eq!((status.version, status.totals.rounds_abandoned), (0, 1));
    assert_eq!(code(run.report("b", 1, small())), "unknown-round");
}

#[test]
fn a_round_that_cannot_reach_its_quorum_ends_at_once_and_too_many_end_the_run() {
    let mut run = Run::open();
    for round in 1..=2 {
        for client in ["a", "b"] {
            let reason = "battery low".to_owned();
            run.send(client, Input::Decline { round: Round(round), reason }).unwrap();
        }
        if round == 1 {
            assert_eq!(run.status().totals.rounds_abandoned, 1);
            run.now = run.now.after(run.coordinator.config().timing.retry_max);
            run.gather();
        }
    }
    let end = run.status().end.unwrap();
    assert!(!end.completed && end.message.contains("2 rounds in a row"), "{end:?}");
    assert!(end.message.contains("quorum"), "{end:?}");
}

#[test]
fn over_selection_closes_at_the_wanted_number() {
    let cohort =
        CohortConfig { size: 2, over_selection: 1.5, quorum: 2, min_population: 0, trusted: None };
    let mut run = Run::new(RunConfig { cohort, ..config() });
    run.gather();
    assert_eq!(run.status().cohort, Some(3));
    run.report("c", 1, small()).unwrap();
    run.report("a", 1, small()).unwrap();
    assert_eq!(run.status().version, 1);
    assert_eq!(code(run.report("b", 1, small())), "unknown-round");
}

#[test]
fn clients_that_went_away_are_not_chosen() {
    let mut run = Run::new(config());
    run.check_in("a").unwrap();
    run.check_in("b").unwrap();
    run.now = Time(20_000);
    run.check_in("c").unwrap();
    assert_eq!((run.status().phase, run.status().population), ("selecting", Some(1)));
    run.check_in("a").unwrap();
    run.check_in("b").unwrap();
    assert_eq!(run.status().phase, "training");
}

/// A run that was restarted with what a store would have kept.
fn restarted(run: &Run, first: &RunState, now: Time) -> Run {
    let coordinator = Coordinator::new(config(), layout(), first.clone()).unwrap();
    let store = MemoryStore::new(&coordinator);
    let mut restarted = Run { coordinator, now, store, records: run.records.clone() };
    run.records.iter().for_each(|record| restarted.coordinator.apply(record));
    restarted
}

#[test]
fn applying_the_same_records_restores_an_open_round() {
    let mut run = Run::open();
    let first = RunState::first(&config(), layout());
    let receipt = run.report("a", 1, small()).unwrap();
    let mut again = restarted(&run, &first, Time(500_000));
    assert!(again.coordinator.resume(again.now, None).is_empty());
    assert_eq!(again.plan("b").report_within, Duration::from_secs(60));
    assert_eq!(again.report("a", 1, small()).unwrap(), receipt);
    for run in [&mut run, &mut again] {
        run.report("c", 1, small()).unwrap();
        run.report("b", 1, small()).unwrap();
    }
    assert_eq!(run.coordinator.state(), again.coordinator.state());
    // Records that come twice change nothing.
    let twice = restarted(&again, run.coordinator.state(), again.now);
    assert_eq!(twice.coordinator.state(), run.coordinator.state());
}

#[test]
fn a_round_that_cannot_go_on_after_a_restart_is_abandoned_and_its_number_not_used_again() {
    let run = Run::open();
    let mut run = restarted(&run, &RunState::first(&config(), layout()), Time(2_000));
    let records = run.coordinator.resume(run.now, Some("the settings changed"));
    let [Record::RoundAbandoned { summary }] = &records[..] else { panic!("{records:?}") };
    assert!(summary.reason == "the settings changed" && summary.dropped_out.len() == 3);
    records.iter().for_each(|record| run.coordinator.apply(record));
    assert_eq!(code(run.report("b", 1, small())), "unknown-round");
    run.gather();
    assert_eq!(run.plan("a").round, Round(2));
}

#[test]
fn a_completed_run_goes_on_when_more_rounds_are_asked_for() {
    let mut state = RunState::first(&config(), layout());
    state.version = Version(2);
    state.end = Some(RunEnd { completed: true, version: Version(2), message: String::new() });
    let more = RunConfig { rounds: 3, ..config() };
    let phase =
        |config, state| Coordinator::new(config, layout(), state).unwrap().status(Time(0)).phase;
    assert_eq!(phase(config(), state.clone()), "ended");
    assert_eq!(phase(more.clone(), state.clone()), "selecting");
    assert_eq!(phase(RunConfig { rounds: 1, ..config() }, state.clone()), "ended");
    state.end = Some(RunEnd { completed: false, version: Version(2), message: String::new() });
    state.abandoned_in_a_row = 2;
    let resumed = Coordinator::new(more, layout(), state).unwrap();
    assert_eq!(resumed.status(Time(0)).phase, "selecting");
    assert_eq!(resumed.state().abandoned_in_a_row, 0);
}

#[test]
fn clients_that_gave_nothing_let_the_others_go_first() {
    let mut run = Run::open();
    for client in ["a", "b"] {
        run.send(client, Input::Decline { round: Round(1), reason: "limits".to_owned() }).unwrap();
    }
    // a and b are back at once and do not count yet; c, d and e make a cohort without them.
    for client in ["a", "b", "c", "d"] {
        run.check_in(client).unwrap();
    }
    assert_eq!((run.status().phase, run.status().population), ("selecting", Some(2)));
    run.check_in("e").unwrap();
    assert_eq!(run.plan("d").round, Round(2));
    assert!(matches!(run.check_in("a"), Ok(Reply::ComeBack { .. })));
}

mod buffered;
mod rules;
mod settings;
mod trusted;
