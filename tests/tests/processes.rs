//! The programs as people run them: separate processes, real files, a real `kill -9`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use floret_tests::processes::{
    Process, free_port, program, set_options, status, succeed, wait_for_version,
};
use floret_tests::quickstart;

/// The run's settings: short rounds, and fast answers.
fn settle(config: &Path, rounds: u32) {
    let options = [
        ("run", "rounds", i64::from(rounds).into()),
        ("cohort", "size", 2.into()),
        ("cohort", "quorum", 2.into()),
        ("training", "max_steps", 1.into()),
        ("training", "batch_size", 2.into()),
        ("training", "sequence_length", 32.into()),
        ("timing", "retry_min_s", 0.05.into()),
        ("timing", "retry_max_s", 0.1.into()),
    ];
    set_options(config, &options);
}

#[test]
fn a_run_goes_on_after_the_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.display().to_string();
    let (home, model) = (text(path("server")), text(quickstart().join("model")));
    let [listen, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let server = || program("floret-server");

    let init = ["init", &home, "--model", &model, "--listen", &listen, "--admin", &admin];
    succeed(server().args(init));
    settle(&path("server/server.toml"), 12);
    let log = path("server.log");
    let serve = || Process::start(server().args(["serve", "--config", &home]), &log);
    let running = serve();

    let devices = ["garden", "lighthouse"].map(|name| {
        let out = text(path(name));
        succeed(server().args(["enroll", name, "--config", &home, "--out", &out]));
        let data = path(name).join("data");
        std::fs::create_dir_all(&data).unwrap();
        for entry in std::fs::read_dir(quickstart().join("devices").join(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
        }
        let log = path(&format!("{name}.log"));
        let config = text(path(name).join("client.toml"));
        let mut run = program("floret-client");
        let device = Process::start(run.args(["run", "--config", &config]), &log);
        (device, log, config)
    });

    wait_for_version(&home, 2);
    running.kill();
    assert!(status(&home, "version").as_u64().unwrap() >= 2, "what was committed stays");
    let running = serve();
    let configs = devices.map(|(device, log, config)| {
        assert_eq!(device.wait(&log), 0, "{}", std::fs::read_to_string(&log).unwrap());
        config
    });
    assert_eq!(status(&home, "version"), 12);
    running.kill();

    let adapter = text(path("adapter"));
    succeed(server().args(["export", "--config", &home, "--out", &adapter]));
    // The device kept the run's last adapter: both write the same text with it.
    let generate = ["generate", "--prompt", "The lamp", "--temperature", "0", "--max-tokens", "12"];
    let own = succeed(program("floret-client").args(generate).args(["--config", &configs[1]]));
    let exported = ["--model", &model, "--adapter", &adapter];
    let exported = succeed(program("floret-client").args(generate).args(exported));
    assert_eq!(own.stdout, exported.stdout);
    assert!(own.stdout.starts_with(b"The lamp") && own.stdout.len() > "The lamp".len() + 1);
}
