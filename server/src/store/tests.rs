use floret_aggregator::advance::After;
use floret_aggregator::concerns::Concerns;
use floret_aggregator::config::{Aggregation, CohortConfig, Mode};
use floret_aggregator::{Assignment, Assignments, RunEnd, Store as _, Totals, ledger};
use floret_core::base::BaseDigests;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{Digest, LoraConfig, ModelConfig, Payload, Seed, SigningKey};
use floret_store::{Folder, ReadFolder, SimulatedDisk, blob};

use super::*;

fn options() -> StoreOptions {
    let model = ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2}"#,
    );
    let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
    let layout = Arc::new(Layout::new(&model.unwrap(), &lora).unwrap());
    let digest = Digest::of(b"base");
    let settings = Settings {
        run: "test".parse().unwrap(),
        rounds: 3,
        base: BaseDigests { base: digest, tokenizer: digest },
        layout: layout.digest(),
        lora,
        training: TrainingConfig::default(),
        compression: Compression::None,
        error_feedback: None,
        mode: Mode::Synchronous,
        cohort: CohortConfig::default(),
        aggregation: Aggregation::default(),
    };
    StoreOptions { settings, layout, keep_versions: 2, retain_updates_rounds: 0 }
}

fn state(version: u64) -> RunState {
    let layout = options().layout;
    RunState {
        version: Version(version),
        round: Round(version as u32),
        moments: moments(version, layout.len()),
        unsent: (version > 1).then(|| vec![0.5 * version as f32; layout.len()]),
        adapter: Adapter::init(layout, &Seed::from_number(version)),
        abandoned_in_a_row: 0,
        totals: Totals { rounds_committed: version, ..Totals::default() },
        concerns: Concerns::default(),
        end: None,
        receipts: BTreeMap::new(),
        assignments: Assignments::new(),
    }
}

/// The server optimizer is adaptive from version 2 on.
fn moments(version: u64, len: usize) -> Moments {
    let second = (version > 1).then(|| vec![2.0 * version as f32; len]);
    Moments { first: vec![version as f32; len], second }
}

fn scribe() -> Arc<Scribe> {
    Arc::new(Scribe::new(SigningKey::from_secret(&[8; 32])))
}

fn open_with(disk: impl Disk, options: StoreOptions) -> Result<RunStore, StoreError> {
    RunStore::open(Arc::new(disk), options, scribe())
}

fn open(disk: impl Disk) -> RunStore {
    open_with(disk, options()).unwrap()
}

fn summary(round: u32) -> RoundSummary {
    let before = Version(u64::from(round) - 1);
    RoundSummary {
        round: Round(round),
        committed: true,
        base_version: before,
        adapter_before: state(before.0).adapter.digest(),
        opened_at: Time(1),
        closed_at: Time(2),
        selected: Vec::new(),
        accepted: Vec::new(),
        weight: 0,
        residual: None,
        refused: Vec::new(),
        declined: Vec::new(),
        dropped_out: Vec::new(),
        reason: "all came".into(),
    }
}

fn committed(round: u32) -> Record {
    let RunState { adapter, moments, unsent, .. } = state(round.into());
    let after = Box::new(After { adapter, moments, unsent, step: None });
    Record::RoundCommitted { summary: summary(round), after }
}

fn opened(round: u32) -> Record {
    Record::RoundOpened { round: Round(round), cohort: vec![client("a")], at: Time(5) }
}

fn client(name: &str) -> ClientId {
    name.parse().unwrap()
}

fn accepted(name: &str, round: u32) -> Record {
    let layout = options().layout;
    let values = vec![0.25; layout.len()];
    let mut rng = Seed::from_number(0).stream();
    let payload = Payload::encode(Compression::None, &layout, &values, &mut rng).unwrap();
    let receipt = Receipt {
        round: Round(round),
        payload_digest: payload.digest(),
        payload_bytes: payload.bytes().len() as u64,
        num_examples: 3,
        num_steps: 1,
        weight: 3,
        downloaded_bytes: 0,
    };
    let update = Admitted::new(payload, &layout, 10.0).unwrap();
    Record::Accepted { client: client(name), receipt, update }
}

/// A folder with a run of which `rounds` rounds were committed.
fn saved(rounds: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Folder::hold(dir.path()).unwrap());
    assert!(store.load().unwrap().is_none());
    store.adopt_settings(&state(0), Time(1)).unwrap();
    for round in 1..=rounds {
        store.commit(&[opened(round)], &state(u64::from(round) - 1)).unwrap();
        store.commit(&[committed(round)], &state(round.into())).unwrap();
    }
    store.saved().unwrap().publish(dir.path()).unwrap();
    dir
}

fn replayed(store: &mut RunStore) -> Vec<Record> {
    let mut records = Vec::new();
    store.replay(&mut |record| records.push(record)).unwrap();
    records
}

#[test]
fn what_is_committed_is_loaded() {
    let dir = saved(1);
    let mut store = open(Folder::hold(dir.path()).unwrap());
    assert_eq!(store.load().unwrap().unwrap(), state(1));
    let end = RunEnd { completed: true, version: Version(2), message: "done".into() };
    let ended = RunState { end: Some(end.clone()), ..state(2) };
    store.commit(&[opened(2), committed(2), Record::RunEnded(end)], &ended).unwrap();
    drop(store);
    let mut store = open(Folder::hold(dir.path()).unwrap());
    assert_eq!(store.load().unwrap().unwrap(), ended);
    assert!(replayed(&mut store).is_empty());
}

#[test]
fn an_open_round_is_replayed_in_order_and_goes_on() {
    let dir = saved(0);
    let records = [
        opened(1),
        accepted("b", 1),
        Record::Refused { client: client("c"), code: "not-finite".into(), reason: "NaN".into() },
        Record::Declined { client: client("d"), reason: "battery".into() },
        accepted("a", 1),
    ];
    let mut store = open(Folder::hold(dir.path()).unwrap());
    store.commit(&records[..2], &state(0)).unwrap();
    store.commit(&records[2..4], &state(0)).unwrap();
    drop(store);
    let mut store = open(Folder::hold(dir.path()).unwrap());
    let debug = |records: &[Record]| format!("{records:?}");
    assert_eq!(debug(&replayed(&mut store)), debug(&records[..4]));
    store.commit(&records[4..], &state(0)).unwrap();
    drop(store);
    let mut store = open(Folder::hold(dir.path()).unwrap());
    let again = replayed(&mut store);
    assert_eq!(debug(&again), debug(&records));
    let (Record::Accepted { update: x, .. }, Record::Accepted { update: y, .. }) =
        (&again[4], &records[4])
    else {
        panic!("not updates")
    };
    assert_eq!(x, y);
    // Once the round is over, its updates are gone.
    store.commit(&[committed(1)], &state(1)).unwrap();
    assert!(ReadFolder::new(dir.path()).list(UPDATES).unwrap().is_empty());
}

#[test]
fn buffered_work_outlives_its_round() {
    let dir = saved(0);
    let opened = |round| Record::RoundOpened { round, cohort: Vec::new(), at: Time(5) };
    let work = |round| Assignment { round, version: Version(0), at: Time(6) };
    let assigned = |name, round| Record::Assigned { client: client(name), assignment: work(round) };
    let mut store = open(Folder::hold(dir.path()).unwrap());
    let first = [opened(Round(1)), assigned("a", Round(1)), assigned("b", Round(1))];
    store.commit(&first, &state(0)).unwrap();
    // As one batch: what was given out up to the close is saved, and the rest stands in the rows.
    let after = RunState { assignments: [(client("a"), work(Round(1)))].into(), ..state(1) };
    let dropped = Record::DroppedOut { client: client("b") };
    let rest = [opened(Round(2)), assigned("c", Round(2)), dropped.clone()];
    let batch = [&[accepted("b", 1), committed(1)], &rest[..]].concat();
    store.commit(&batch, &after).unwrap();
    drop(store);
    let mut store = open(Folder::hold(dir.path()).unwrap());
    assert_eq!(store.load().unwrap().unwrap(), after);
    assert_eq!(format!("{:?}", replayed(&mut store)), format!("{rest:?}"));
}

#[test]
fn old_versions_are_removed_and_kept_ones_can_be_read() {
    let dir = saved(3);
    let run = SavedRun::read(dir.path()).unwrap().unwrap();
    assert_eq!(run.adapters.keys().copied().collect::<Vec<_>>(), [Version(2), Version(3)]);
    let disk = ReadFolder::new(dir.path());
    assert_eq!(disk.list(ADAPTERS).unwrap().len(), 8);
    let layout = options().layout;
    assert_eq!(run.adapter(&disk, &layout, Some(Version(2))).unwrap(), state(2).adapter);
    let error = run.adapter(&disk, &layout, Some(Version(1))).unwrap_err().to_string();
    assert!(error.contains("version 1 is not kept: choose one of 2, 3"), "{error}");
}

#[test]
fn updates_are_retained_for_as_many_rounds_as_asked() {
    let disk = SimulatedDisk::default();
    let options = StoreOptions { retain_updates_rounds: 2, ..options() };
    let mut store = open_with(disk.clone(), options).unwrap();
    store.adopt_settings(&state(0), Time(1)).unwrap();
    for round in 1..=3 {
        let before = state(u64::from(round) - 1);
        store.commit(&[opened(round), accepted("a", round)], &before).unwrap();
        store.commit(&[accepted("b", round), committed(round)], &state(round.into())).unwrap();
    }
    let mut kept = disk.list(UPDATES).unwrap();
    kept.sort();
    assert_eq!(kept, [2, 3].map(|round| updates::file(Round(round))));
    let mut digests = Vec::new();
    updates::read_all(&disk, Round(3), |payload| digests.push(payload.digest())).unwrap();
    assert_eq!(digests.len(), 2);
}

#[test]
fn damage_is_named() {
    type Damage = fn(&std::path::Path);
    let adapter = |dir: &std::path::Path| dir.join(ADAPTERS).join(adapter_file(Version(2)));
    let damages: [(Damage, &str); 4] = [
        (|dir| std::fs::remove_file(dir.join("adapters/adapter-00000002.f32")).unwrap(), "missing"),
        (
            |dir| std::fs::write(dir.join("adapters/adapter-00000002.f32"), [0; 5]).unwrap(),
            "it has 5 bytes",
        ),
        (
            |dir| {
                let path = dir.join("adapters/momentum-00000002.f32");
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[9] ^= 1;
                std::fs::write(path, bytes).unwrap();
            },
            "momentum-00000002.f32 of the run's state: its bytes are not those that were written",
        ),
        (
            |dir| std::fs::remove_file(dir.join("adapters/second-moment-00000002.f32")).unwrap(),
            "second-moment-00000002.f32",
        ),
    ];
    for (damage, word) in damages {
        let dir = saved(2);
        assert!(adapter(dir.path()).exists());
        damage(dir.path());
        let mut store = open(Folder::hold(dir.path()).unwrap());
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("restore"), "{error}");
    }
    let dir = saved(1);
    std::fs::write(dir.path().join("run.redb"), b"not a database at all, and longer").unwrap();
    let held = Folder::hold(dir.path()).unwrap();
    let error = open_with(held, options()).unwrap_err().to_string();
    assert!(error.contains("run.redb"), "{error}");
    let dir = saved(2);
    std::fs::write(dir.path().join(LEDGER), b"").unwrap();
    let held = Folder::hold(dir.path()).unwrap();
    let error = open_with(held, options()).unwrap_err().to_string();
    assert!(error.contains("ledger.jsonl") && error.contains("restore"), "{error}");
}

#[test]
fn state_of_another_run_is_refused() {
    let dir = saved(0);
    type Change = fn(&mut Settings);
    let changes: [(Change, &str); 4] = [
        (|settings| settings.run = "other".parse().unwrap(), "another name (test)"),
        (|settings| settings.base.base = Digest::of(b"x"), "another base model"),
        (|settings| settings.base.tokenizer = Digest::of(b"x"), "another tokenizer"),
        (|settings| settings.lora.alpha = 99.0, "another set of LoRA settings"),
    ];
    for (change, word) in changes {
        let mut other = options();
        change(&mut other.settings);
        let held = Folder::hold(dir.path()).unwrap();
        let error = open_with(held, other).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    // The format before had no database.
    let old = r#"{"format": 1, "run": "test"}"#;
    std::fs::write(dir.path().join("run.json"), old).unwrap();
    let error = SavedRun::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("format 1 is not 2"), "{error}");
}

#[test]
fn new_settings_are_stated_in_the_ledger_once() {
    let disk = SimulatedDisk::default();
    let mut store = open(disk.clone());
    store.adopt_settings(&state(0), Time(1)).unwrap();
    store.adopt_settings(&state(0), Time(2)).unwrap();
    drop(store);
    let mut changed = options();
    changed.settings.rounds = 9;
    let mut store = open_with(disk.clone(), changed).unwrap();
    assert!(store.settings_changed());
    store.adopt_settings(&state(0), Time(3)).unwrap();
    assert!(!store.settings_changed());
    let text = blob::read_all(&disk, LEDGER).unwrap();
    let (entries, head) = ledger::verify(&text, &scribe().public()).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.at).collect::<Vec<_>>(), [Time(1), Time(3)]);
    assert_eq!(store.saved().unwrap().ledger, head);
}

#[test]
fn a_run_that_is_given_up_at_a_change_of_settings_still_states_the_new_ones() {
    let disk = SimulatedDisk::default();
    let mut store = open(disk.clone());
    store.adopt_settings(&state(0), Time(1)).unwrap();
    store.commit(&[opened(1)], &state(0)).unwrap();
    drop(store);
    let mut changed = options();
    changed.settings.rounds = 9;
    let mut store = open_with(disk, changed).unwrap();
    let end = RunEnd { completed: false, version: Version(0), message: "given up".into() };
    let summary = RoundSummary { committed: false, ..summary(1) };
    let ended = RunState { end: Some(end.clone()), round: Round(1), ..state(0) };
    store.commit(&[Record::RoundAbandoned { summary }, Record::RunEnded(end)], &ended).unwrap();
    assert!(store.settings_changed());
    assert_eq!(store.load().unwrap().unwrap(), ended);
    store.adopt_settings(&ended, Time(3)).unwrap();
    assert!(!store.settings_changed());
}
