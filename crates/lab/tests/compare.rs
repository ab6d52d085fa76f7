//! `floret-lab compare` on the quickstart's texts: the real program, and what its runs left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const SEEDS: [u64; 2] = [3, 4];

/// Two rounds with the quickstart's four devices and these settings besides.
fn experiment(path: &Path, settings: &str) -> PathBuf {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart");
    let text = format!(
        r#"
        version = 1
        model.dir = "{quickstart}/model"
        data.paths = ["{quickstart}/devices"]
        cohort = {{ size = 3, quorum = 3, min_population = 4 }}
        training = {{ max_steps = 2, batch_size = 2, sequence_length = 32 }}
        evaluation = {{ every = 1, clients = 2, personal_steps = 1 }}
        aggregation.measure_residual = true
        {settings}
        "#,
        quickstart = quickstart.canonicalize().unwrap().display()
    );
    fs::write(path, text).unwrap();
    path.to_owned()
}

fn compare(out: &Path, experiments: &[&Path], more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floret-lab"));
    command.args(["compare", "--threads", "1", "--seeds", "3,4", "--out"]).arg(out);
    command.args(more).args(experiments).output().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Equal but for the last digit, which reading a number can change.
fn near(got: &Value, want: f64) {
    assert!((number(got) - want).abs() <= 1e-9 * want.abs(), "{got}, not {want}");
}

#[test]
fn the_figures_are_those_of_the_runs_and_the_report_is_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let plain = experiment(&path("plain.toml"), "run = { rounds = 2 }");
    let small = "run = { rounds = 2, compression = \"bits1\" }\n\
                 aggregation.download_compression = \"int8\"";
    let small = experiment(&path("small & <low>.toml"), small);
    let out = path("out");
    let output = compare(&out, &[&plain, &small], &["--json"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");

    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(comparison, json(&out.join("comparison.json")));
    assert_eq!((&comparison["baseline"], &comparison["seeds"][1]), (&"plain".into(), &4.into()));
    for (at, name) in ["plain", "small & <low>"].into_iter().enumerate() {
        let entry = &comparison["experiments"][at];
        assert_eq!(entry["name"], name);
        let mut losses = Vec::new();
        for (run, seed) in SEEDS.into_iter().enumerate() {
            let summary = json(&out.join(name).join(format!("seed-{seed}/summary.json")));
            let run = &entry["runs"][run];
            assert_eq!((&run["seed"], &run["completed"]), (&seed.into(), &true.into()));
            let figures = &run["figures"];
            let loss = number(&summary["federated"]["pooled"]);
            near(&figures["final_loss"], loss);
            near(&figures["gain"], number(&summary["base"]["pooled"]) - loss);
            near(&figures["personal_loss"], number(&summary["personal"]["pooled"]));
            near(&figures["bytes_up"], number(&summary["bytes_up"]));
            near(&figures["bytes_down"], number(&summary["bytes_down"]));
            near(&figures["bytes_up_per_update"], number(&summary["bytes_up"]) / 6.0);
            losses.push(loss);
        }
        let over_seeds = &entry["over_seeds"]["final_loss"];
        near(&over_seeds["mean"], (losses[0] + losses[1]) / 2.0);
        near(&over_seeds["deviation"], (losses[0] - losses[1]).abs() / 2f64.sqrt());
    }
    let mean =
        |at: usize, name: &str| number(&comparison["experiments"][at]["over_seeds"][name]["mean"]);
    assert_eq!(mean(0, "baseline_over_bytes_to_target"), 1.0);
    assert!(mean(1, "f32_over_upload") > 3.0 * mean(0, "f32_over_upload"), "{comparison}");
    assert!(mean(1, "bytes_down") < mean(0, "bytes_down"), "{comparison}");

    let report = fs::read_to_string(out.join("report.html")).unwrap();
    let told = report.contains("small &amp; &lt;low&gt;") && !report.contains("<low>");
    assert!(told && report.contains("download_<wbr>compression"));
    for name in ["loss_by_round", "loss_by_upload", "loss_by_traffic", "client_losses", "residual"]
    {
        let svg = fs::read_to_string(out.join(format!("plots/{name}.svg"))).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
    }

    // Complete runs are not run again, and give the same page and the same figures as a table.
    let wall = fs::read(out.join("plain/seed-3/wall.json")).unwrap();
    let output = compare(&out, &[&plain, &small], &[]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    let loss = format!("{:.4} ± ", mean(1, "final_loss"));
    assert!(table.contains(&loss) && table.contains("small & <low>"), "{table}");
    assert_eq!(fs::read(out.join("plain/seed-3/wall.json")).unwrap(), wall);
    assert_eq!(fs::read_to_string(out.join("report.html")).unwrap(), report);

    // The folder of another experiment of that name is refused.
    experiment(&plain, "run = { rounds = 1 }");
    let output = compare(&out, &[&plain], &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("another experiment"), "{error}");
}
