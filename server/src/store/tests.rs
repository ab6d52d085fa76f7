use floret_core::{LoraConfig, ModelConfig, Seed};

use super::*;

fn identity() -> Identity {
    let model = ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2}"#,
    );
    let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
    let digest = Digest::of(b"base");
    Identity {
        run: "test".parse().unwrap(),
        base: BaseDigests { base: digest, tokenizer: digest },
        layout: Arc::new(Layout::new(&model.unwrap(), &lora).unwrap()),
        lora,
    }
}

fn state(version: u64) -> RunState {
    let layout = identity().layout;
    RunState {
        version: Version(version),
        round: Round(7),
        momentum: vec![version as f32; layout.len()],
        adapter: Adapter::init(layout, &Seed::from_number(version)),
        abandoned_in_a_row: 2,
        totals: Totals { rounds_committed: version, ..Totals::default() },
        end: None,
    }
}

fn open(dir: &Path) -> Result<(Store, Option<RunState>), StoreError> {
    Store::open(dir, identity(), 2)
}

fn saved(versions: &[u64]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, none) = open(dir.path()).unwrap();
    assert!(none.is_none());
    versions.iter().for_each(|version| store.save(&state(*version)).unwrap());
    dir
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = saved(&[0]);
    let (mut store, loaded) = open(dir.path()).unwrap();
    assert_eq!(loaded.unwrap(), state(0));
    // The next round opens: the number is durable, the adapter is not written again.
    let opened = RunState { round: Round(8), ..state(0) };
    store.save(&opened).unwrap();
    let end = RunEnd { completed: true, version: Version(1), message: "done".into() };
    let ended = RunState { end: Some(end), ..state(1) };
    drop(store);
    let (mut store, loaded) = open(dir.path()).unwrap();
    assert_eq!(loaded.unwrap(), opened);
    store.save(&ended).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).unwrap().1.unwrap(), ended);
}

#[test]
fn old_versions_are_removed_and_kept_ones_can_be_read() {
    let dir = saved(&[0, 1, 2, 3]);
    let run = SavedRun::read(dir.path()).unwrap().unwrap();
    assert_eq!(run.adapters.keys().copied().collect::<Vec<_>>(), [Version(2), Version(3)]);
    assert_eq!(fs::read_dir(dir.path().join("adapters")).unwrap().count(), 3);
    let layout = identity().layout;
    let adapter = run.adapter(dir.path(), &layout, Some(Version(2))).unwrap();
    assert_eq!(adapter, state(2).adapter);
    let error = run.adapter(dir.path(), &layout, Some(Version(1))).unwrap_err().to_string();
    assert!(error.contains("version 1 is not kept: choose one of 2, 3"), "{error}");
}

#[test]
fn a_crash_before_the_manifest_leaves_the_old_state() {
    let dir = saved(&[0]);
    // Version 1 was being written: one file whole, one in part, run.json still the old one.
    values::write(&adapter_path(dir.path(), Version(1)), state(1).adapter.values()).unwrap();
    fs::write(momentum_path(dir.path(), Version(1)), [1, 2, 3]).unwrap();
    fs::write(dir.path().join(".run.json.new"), "{\"form").unwrap();
    let (mut store, loaded) = open(dir.path()).unwrap();
    assert_eq!(loaded.unwrap(), state(0));
    store.save(&state(1)).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).unwrap().1.unwrap(), state(1));
}

#[test]
fn damage_is_named_and_nothing_is_overwritten() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 5] = [
        (|dir| fs::write(dir.join(MANIFEST), "{}").unwrap(), "run.json: missing field"),
        (|dir| fs::remove_file(adapter_path(dir, Version(1))).unwrap(), "it is missing"),
        (|dir| fs::write(adapter_path(dir, Version(1)), [0; 5]).unwrap(), "it has 5 bytes"),
        (
            |dir| {
                let path = momentum_path(dir, Version(1));
                let mut bytes = fs::read(&path).unwrap();
                bytes[9] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            "momentum-00000001.f32: its bytes are not those that were written",
        ),
        (
            |dir| {
                let path = dir.join(MANIFEST);
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
            },
            "format 9",
        ),
    ];
    for (damage, word) in damages {
        let dir = saved(&[0, 1]);
        damage(dir.path());
        let before = fs::read(dir.path().join(MANIFEST)).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("restore"), "{error}");
        assert_eq!(fs::read(dir.path().join(MANIFEST)).unwrap(), before);
    }
}

#[test]
fn state_of_another_run_is_refused() {
    let dir = saved(&[0]);
    type Change = fn(&mut Identity);
    let changes: [(Change, &str); 3] = [
        (|identity| identity.run = "other".parse().unwrap(), "another name (test)"),
        (|identity| identity.base.base = Digest::of(b"x"), "another base model"),
        (|identity| identity.base.tokenizer = Digest::of(b"x"), "another tokenizer"),
    ];
    for (change, word) in changes {
        let mut other = identity();
        change(&mut other);
        let error = Store::open(dir.path(), other, 2).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn two_servers_cannot_share_a_directory() {
    let dir = saved(&[0]);
    let held = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("in use by another floret-server"), "{error}");
    drop(held);
    open(dir.path()).unwrap();
}
