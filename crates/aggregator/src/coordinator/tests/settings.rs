//! Which settings are refused.

use super::*;

#[test]
fn forbidden_settings_are_named() {
    let cohort = config().cohort;
    let timing = config().timing;
    let aggregation = config().aggregation;
    let sgd = aggregation.server_optimizer;
    let adaptive = |rule| {
        let server_optimizer = ServerOptimizer { adaptive: Some(rule), ..sgd };
        RunConfig { aggregation: Aggregation { server_optimizer, ..aggregation }, ..config() }
    };
    let trains = |training| RunConfig { training, ..config() };
    let robust = |rule| {
        let aggregation = Aggregation { combine: Some(rule), ..aggregation };
        RunConfig { cohort: CohortConfig { quorum: 3, ..cohort.clone() }, aggregation, ..config() }
    };
    let second = Duration::from_secs(1);
    let cases = [
        (RunConfig { rounds: 0, ..config() }, "run.rounds"),
        (
            RunConfig { cohort: CohortConfig { size: 0, ..cohort.clone() }, ..config() },
            "cohort.size",
        ),
        (
            RunConfig { cohort: CohortConfig { quorum: 4, ..cohort.clone() }, ..config() },
            "cohort.quorum",
        ),
        (
            RunConfig {
                cohort: CohortConfig { over_selection: 0.5, ..cohort.clone() },
                ..config()
            },
            "over_selection",
        ),
        (
            RunConfig { cohort: CohortConfig { min_population: 2, ..cohort.clone() }, ..config() },
            "min_population",
        ),
        (
            RunConfig { timing: Timing { report_deadline: Duration::ZERO, ..timing }, ..config() },
            "report_deadline_s",
        ),
        (
            RunConfig { timing: Timing { retry_min: 5 * second, ..timing }, ..config() },
            "retry_max_s",
        ),
        (
            RunConfig { aggregation: Aggregation { clip_norm: 0.0, ..aggregation }, ..config() },
            "clip_norm",
        ),
        (
            RunConfig {
                cohort: CohortConfig { size: 100_000, ..cohort.clone() },
                aggregation: Aggregation { max_examples: 100_000, ..aggregation },
                ..config()
            },
            "overflow",
        ),
        (
            RunConfig {
                aggregation: Aggregation {
                    server_optimizer: ServerOptimizer { momentum: 1.0, ..sgd },
                    ..aggregation
                },
                ..config()
            },
            "momentum",
        ),
        (adaptive(Adaptive::Adam { beta2: 1.0, tau: 1e-3 }), "server_optimizer.adaptive.beta2"),
        (adaptive(Adaptive::Adagrad { tau: 0.0 }), "server_optimizer.adaptive.tau"),
        (robust(Robust::TrimmedMean { trim: 2 }), "combine.trim"),
        (robust(Robust::Krum { byzantine: 1 }), "combine.byzantine"),
        (robust(Robust::Krum { byzantine: u32::MAX }), "combine.byzantine"),
        (robust(Robust::MultiKrum { byzantine: 0, keep: 4 }), "combine.keep"),
        (robust(Robust::MultiKrum { byzantine: 0, keep: 0 }), "combine.keep"),
        (robust(Robust::Dnc { byzantine: 2 }), "combine.byzantine"),
        (robust(Robust::Fltrust {}), "cohort.trusted"),
        (robust(Robust::GeometricMedian { iterations: 0 }), "combine.iterations"),
        (robust(Robust::CenteredClipping { radius: f64::NAN, iterations: 3 }), "combine.radius"),
        (
            RunConfig {
                mode: Mode::Buffered(BufferedConfig::default()),
                ..robust(Robust::Median {})
            },
            "run.mode is buffered",
        ),
        (
            RunConfig {
                mode: Mode::Buffered(BufferedConfig::default()),
                ..trains(TrainingConfig { freeze: Freeze::Alternate, ..TrainingConfig::default() })
            },
            "training.freeze",
        ),
        (
            RunConfig { aggregation: Aggregation { refactor: true, ..aggregation }, ..config() },
            "aggregation.refactor is true: use false, or training.freeze",
        ),
        (refactored(|config| config.error_feedback = 0.5), "run.error_feedback = 0"),
        (
            refactored(|config| config.aggregation.download_compression = Compression::Int8),
            "download_compression = \"none\"",
        ),
        (
            refactored(|config| config.aggregation.server_optimizer.momentum = 0.5),
            "aggregation.refactor is true: use false with a momentum",
        ),
        (
            refactored(|config| config.mode = Mode::Buffered(BufferedConfig::default())),
            "aggregation.refactor is true: use false with run.mode",
        ),
        (
            RunConfig {
                compression: "sparse5%".parse().unwrap(),
                ..trains(TrainingConfig { nested_ranks: true, ..TrainingConfig::default() })
            },
            "run.compression is \"sparse5%\"",
        ),
        (
            RunConfig {
                compression: "bits1".parse().unwrap(),
                ..trains(TrainingConfig { freeze: Freeze::A, ..TrainingConfig::default() })
            },
            "run.compression is \"bits1\"",
        ),
        (
            RunConfig {
                aggregation: Aggregation {
                    download_compression: "bits4".parse().unwrap(),
                    ..aggregation
                },
                ..trains(TrainingConfig { freeze: Freeze::A, ..TrainingConfig::default() })
            },
            "aggregation.download_compression is \"bits4\"",
        ),
        (
            RunConfig {
                aggregation: Aggregation {
                    download_compression: "linear8".parse().unwrap(),
                    ..aggregation
                },
                ..config()
            },
            "aggregation.download_compression is \"linear8\"",
        ),
        (linear("linear8", robust(Robust::Median {})), "need more than the sum"),
        (
            linear("linear8", trains(TrainingConfig { freeze: Freeze::A, ..Default::default() })),
            "need more than the sum",
        ),
        (linear("linear1/4", config()), "linear2 or more"),
    ];
    let buffered = |buffered| RunConfig { mode: Mode::Buffered(buffered), ..config() };
    let good = BufferedConfig::default();
    let cases = cases.into_iter().chain([
        (buffered(BufferedConfig { buffer: 0, ..good }), "buffered.buffer"),
        (buffered(BufferedConfig { concurrency: 0, ..good }), "buffered.concurrency"),
        (buffered(BufferedConfig { max_staleness: u32::MAX, ..good }), "buffered.max_staleness"),
        (buffered(BufferedConfig { buffer: 70_000, concurrency: 70_000, ..good }), "overflow"),
    ]);
    for (config, word) in cases {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(config().validate().is_ok() && buffered(good).validate().is_ok());
}

/// What looks at factors as factors goes together with little else: each is accepted, and refused after each change.
#[test]
fn rules_on_factors_name_what_they_do_not_go_together_with() {
    type Change = fn(&mut RunConfig);
    let check = |rule: Change, name: &str, changes: &[(Change, &str)]| {
        let mut config = RunConfig { error_feedback: 0.0, ..config() };
        rule(&mut config);
        config.validate().unwrap();
        for (change, word) in changes {
            let mut config = config.clone();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(word), "{name}, {word}: {error}");
        }
    };
    let buffered: Change = |config| config.mode = Mode::Buffered(BufferedConfig::default());
    let momentum: Change = |config| config.aggregation.server_optimizer.momentum = 0.5;
    let half: Change = |config| config.aggregation.server_optimizer.learning_rate = 0.5;
    let steps: Change = |config| config.aggregation.download_compression = Compression::Int8;
    let median: Change = |config| config.aggregation.combine = Some(Robust::Median {});
    let fold: Change = |config| config.aggregation.fold_residual = 1;
    let correct: Change = |config| config.aggregation.least_squares = true;
    let nested: Change = |config| config.training.nested_ranks = true;
    let flat: Change = |config| config.training.nested_ranks = false;
    let freeze: Change = |config| config.training.freeze = Freeze::A;
    let stacked: Change = |config| {
        config.training.nested_ranks = true;
        config.aggregation.mixed_ranks = MixedRanks::Stacked;
    };
    let hetlora: Change = |config| {
        config.training.nested_ranks = true;
        config.aggregation.mixed_ranks = MixedRanks::Hetlora;
    };
    check(
        nested,
        "nested_ranks",
        &[
            (buffered, "run.mode"),
            (median, "combine"),
            (fold, "fold_residual"),
            (correct, "least_squares"),
        ],
    );
    check(hetlora, "mixed_ranks is \"hetlora\"", &[(flat, "nested_ranks")]);
    check(
        stacked,
        "mixed_ranks is \"stacked\"",
        &[
            (flat, "nested_ranks"),
            (momentum, "momentum"),
            (half, "learning_rate"),
            (steps, "download_compression"),
            (freeze, "freeze"),
        ],
    );
    check(
        fold,
        "fold_residual",
        &[
            (|config| config.aggregation.fold_residual = config.lora.rank, "0 to 1"),
            (freeze, "training.freeze"),
            (median, "combine"),
            (correct, "least_squares"),
            (momentum, "server optimizer"),
            (half, "learning_rate = 1"),
            (steps, "download_compression"),
        ],
    );
    check(correct, "least_squares", &[(freeze, "training.freeze"), (median, "combine")]);
    check(
        |config| config.training.alignment = 0.5,
        "training.alignment",
        &[(freeze, "training.freeze"), (nested, "training.nested_ranks"), (fold, "fold_residual")],
    );
    check(
        |config| config.training.scaffold = true,
        "training.scaffold",
        &[
            (buffered, "run.mode"),
            (median, "weighted mean"),
            (momentum, "server optimizer"),
            (half, "server optimizer"),
            (nested, "nested_ranks"),
            (|config| config.training.freeze = Freeze::Alternate, "alternate"),
            (|config| config.training.personal_b = true, "personal_b"),
            (|config| config.training.max_epochs = 1, "max_epochs"),
            (|config| config.training.final_learning_rate = 0.1, "final_learning_rate"),
        ],
    );
    check(
        |config| config.training.personal_b = true,
        "training.personal_b",
        &[
            (freeze, "training.freeze"),
            (hetlora, "nested_ranks"),
            (|config| config.training.alignment = 0.5, "alignment"),
            (|config| config.aggregation.measure_residual = true, "measure_residual"),
            (|config| config.aggregation.combine = Some(Robust::Krum { byzantine: 0 }), "products"),
            (fold, "products"),
        ],
    );
    check(
        |config| config.aggregation.normalize_steps = true,
        "normalize_steps",
        &[
            (nested, "nested_ranks"),
            (median, "combine"),
            (fold, "fold_residual"),
            (buffered, "run.mode"),
            (|config| config.compression = "linear8".parse().unwrap(), "linear"),
        ],
    );
    // Weights are as many times larger as a plan has steps.
    let mut config = config();
    config.aggregation.max_examples = 1_000_000;
    config.training.max_steps = 1_000_000;
    config.validate().unwrap();
    config.aggregation.normalize_steps = true;
    assert!(config.validate().unwrap_err().to_string().contains("overflow"));
    // A rotation reaches where nothing changes.
    for part in [fold, freeze, (|config| config.training.personal_b = true) as Change] {
        for text in ["bits1", "linear8"] {
            let mut config = RunConfig { compression: text.parse().unwrap(), ..super::config() };
            part(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("run.compression"), "{text}: {error}");
        }
    }
    for rule in [fold, correct] {
        let mut config = super::config();
        rule(&mut config);
        buffered(&mut config);
        assert!(config.validate().unwrap_err().to_string().contains("run.mode"));
    }
}

/// FedSVD, and then what `change` makes of it.
fn refactored(change: impl FnOnce(&mut RunConfig)) -> RunConfig {
    let compression = "sparse5%".parse().unwrap();
    let mut config = RunConfig { compression, error_feedback: 0.0, ..config() };
    config.training.freeze = Freeze::A;
    config.aggregation.refactor = true;
    config.validate().unwrap();
    change(&mut config);
    config
}
