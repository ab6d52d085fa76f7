//! `floret-lab simulate` on the quickstart's texts: the real program, and the same files every time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use floret_lab::{Computing, Experiment, simulate as simulate_in_process};
use floret_simulation::{Attack, AttackKind};
use serde_json::Value;

fn experiment() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart.toml")
}

/// With one thread, clients train one after another; with more, side by side.
fn simulate(out: &Path, threads: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floret-lab"));
    let args = ["simulate", "--json", "--seed", "9", "--threads", threads, "--out"];
    command.args(args).arg(out).arg(experiment());
    command.args((threads == "1").then_some("--sequential"));
    command
}

fn run(out: &Path, threads: &str) -> Value {
    let output = simulate(out, threads).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every file by name but the one that tells of this machine.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(of, bytes)| (name.clone() + &of, bytes)));
        } else if name != "wall.json" {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn the_same_seed_gives_the_same_files_for_any_number_of_threads_and_after_kills() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, broken] = ["whole", "broken"].map(|name| folder.path().join(name));
    let summary = run(&whole, "1");
    let want = files(&whole);
    let names = ["rounds.jsonl", "rounds.csv", "updates.csv", "clients.csv", "experiment.toml"];
    assert!(names.iter().all(|name| want.contains_key(*name)), "{:?}", want.keys());
    assert!(want.contains_key("adapteradapter_config.json") && !want.contains_key("journal"));
    assert_eq!((&summary["completed"], &summary["version"]), (&true.into(), &4.into()));
    let loss = |name: &str| summary[name]["pooled"].as_f64().unwrap();
    assert!(loss("federated") < loss("base") && loss("personal") < loss("federated"), "{summary}");

    // Killed once the journal has grown, until it gets to its end.
    let journal = broken.join("journal");
    let mut kills = 0;
    for wanted in [20_000, 90_000, 180_000] {
        let mut child = simulate(&broken, "2").spawn().unwrap();
        while fs::metadata(&journal).map_or(0, |of| of.len()) < wanted {
            assert!(child.try_wait().unwrap().is_none(), "it was over before {wanted} bytes");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert_eq!((run(&broken, "2"), kills), (summary.clone(), 3));
    let got = files(&broken);
    for (name, bytes) in &want {
        assert!(got.get(name) == Some(bytes), "{name} differs");
    }
    assert_eq!(got.len(), want.len());
    // What came from the journal was not trained again.
    let wall: Value = serde_json::from_slice(&fs::read(broken.join("wall.json")).unwrap()).unwrap();
    assert!(wall["trainings"].as_u64().unwrap() < summary["updates"].as_u64().unwrap(), "{wall}");

    // A complete folder is only read; one of another experiment is refused.
    assert_eq!(run(&broken, "1"), summary);
    let other = simulate(&broken, "1").args(["--seed", "10"]).output().unwrap();
    assert!(!other.status.success());
}

/// What they send together depends on none of them, and on no order; nor does what several end in whose
/// batches have so few rows that they go through the base model as one.
#[test]
fn colluding_clients_end_in_the_same_files_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let mut experiment = Experiment::read(&experiment()).unwrap();
    experiment.run.rounds = 2;
    experiment.evaluation.personal_steps = 0;
    let kind = AttackKind::LittleIsEnough { z: Some(1.0) };
    experiment.attack = Some(Attack { share: 0.5, kind });
    (experiment.training.batch_size, experiment.training.sequence_length) = (1, 32);
    let run = |name: &str, computing| {
        let out = folder.path().join(name);
        simulate_in_process(&experiment, &out, computing).unwrap();
        files(&out)
    };
    let want = run("sequential", Computing { threads: 1, sequential: true });
    for threads in [1, 2, 4] {
        let got = run(&threads.to_string(), Computing { threads, sequential: false });
        assert!(got == want, "{threads} threads");
    }
}

#[test]
fn hostile_clients_do_what_the_experiment_says() {
    let folder = tempfile::tempdir().unwrap();
    let losses = |name: &str, attack: Option<Attack>, ranks: &[usize]| {
        let mut experiment = Experiment::read(&experiment()).unwrap();
        experiment.run.rounds = 2;
        experiment.evaluation.personal_steps = 0;
        experiment.attack = attack;
        experiment.population.ranks = ranks.to_vec();
        experiment.training.nested_ranks = !ranks.is_empty();
        let summary =
            simulate_in_process(&experiment, &folder.path().join(name), Computing::default())
                .unwrap();
        let rows = fs::read_to_string(folder.path().join(name).join("clients.jsonl")).unwrap();
        let hostile = rows.lines().filter(|row| row.contains("\"hostile\":true")).count();
        assert_eq!(hostile, summary.hostile, "{name}");
        (summary.hostile, summary.federated.unwrap().pooled, summary.base.unwrap().pooled)
    };
    let (nobody, honest, base) = losses("honest", None, &[]);
    assert!(nobody == 0 && honest < base, "{honest}, {base}");
    let attack = |share, kind| Some(Attack { share, kind });
    // Who learns flipped targets forgets the true ones.
    let (everyone, flipped, _) = losses("flipped", attack(1.0, AttackKind::LabelFlip {}), &[]);
    assert!(everyone == 4 && flipped > base, "{flipped}, {base}");
    let (half, away, _) = losses("away", attack(0.5, AttackKind::SignFlip { scale: None }), &[]);
    assert!(half == 2 && away > honest, "{away}, {honest}");
    // Devices of low ranks train less.
    let (_, low, _) = losses("low", None, &[1]);
    assert!(honest < low && low < base, "{honest}, {low}, {base}");
}
