use floret_aggregator::combine::Robust;
use floret_aggregator::config::{MixedRanks, Mode};
use toml::{Table, Value};

use super::*;

fn parse(text: &str) -> Result<Config, InvalidConfigFile> {
    from_toml("server.toml", text)
}

fn keys(prefix: &str, table: &Table, found: &mut Vec<String>) {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            Value::Table(table) => keys(&format!("{path}."), table, found),
            _ => found.push(path),
        }
    }
}

#[test]
fn the_sample_is_the_defaults_and_names_every_option() {
    assert_eq!(parse(SAMPLE).unwrap(), Config::default());
    let uncommented = SAMPLE.replace("# seed", "seed");
    assert_eq!(parse(&uncommented).unwrap().run.seed, Some(FixedSeed(42)));
    let mut strategies = SAMPLE.to_owned();
    for option in [
        "adaptive",
        "combine",
        "measure_residual",
        "max_buffered_bytes",
        "freeze",
        "nested_ranks",
        "proximal",
        "final_learning_rate",
        "mixed_ranks",
    ] {
        strategies = strategies.replace(&format!("\n# {option} ="), &format!("\n{option} ="));
    }
    let strategy = parse(&strategies).unwrap();
    assert!(strategy.training.freeze.is_none() && strategy.training.nested_ranks);
    assert_eq!(strategy.training.proximal, 0.01);
    assert_eq!(strategy.training.final_learning_rate, 0.0005);
    let strategy = strategy.aggregation;
    let adam = strategy.server_optimizer.adaptive.unwrap();
    assert_eq!((adam.beta2(), adam.tau()), (Some(0.99), 0.001));
    assert_eq!(strategy.combine, Some(Robust::TrimmedMean { trim: 1 }));
    assert!(strategy.measure_residual);
    assert_eq!(strategy.mixed_ranks, MixedRanks::Nested);
    assert_eq!(strategy.max_buffered_bytes, Aggregation::default().max_buffered_bytes);
    let bare: Vec<&str> = SAMPLE.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(parse(&bare.join("\n")).unwrap(), Config::default());

    let run = RunSection { seed: Some(FixedSeed(42)), ..RunSection::default() };
    let mut all = Config { run, ..Config::default() };
    all.aggregation.download_compression = Compression::Int8;
    let all = toml::to_string(&all).unwrap();
    let [all, sample] = [all.as_str(), uncommented.as_str()].map(|text| {
        let mut found = Vec::new();
        keys("", &text.parse().unwrap(), &mut found);
        found.sort();
        found
    });
    assert_eq!(all, sample, "an option is missing from sample.toml");
}

#[test]
fn every_option_may_be_left_out() {
    assert_eq!(parse("version = 1").unwrap(), Config::default());
    assert!(Config::default().validate().is_ok());
}

#[test]
fn unknown_keys_name_the_nearest() {
    for (known, typo) in [("quorum", "quorun"), ("max_connections", "max_conections")] {
        let error = parse(&SAMPLE.replace(&format!("\n{known}"), &format!("\n{typo}")));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("did you mean `{known}`?")), "{error}");
    }
}

#[test]
fn values_out_of_range_are_named() {
    type Break = fn(&mut Config);
    let breaks: [(Break, &str); 7] = [
        (|config| config.limits.max_connections = 0, "limits.max_connections"),
        (|config| config.limits.max_transfer_bytes = 4096, "limits.max_transfer_bytes"),
        (|config| config.limits.stall_timeout_s = 0.0, "limits.stall_timeout_s"),
        (|config| config.limits.min_bytes_per_s = 0, "limits.min_bytes_per_s"),
        (|config| config.limits.request_timeout_s = f64::NAN, "limits.request_timeout_s"),
        (|config| config.timing.retry_max_s = -1.0, "timing.retry_max_s"),
        (|config| config.server.hosts.clear(), "server.hosts"),
    ];
    for (break_it, key) in breaks {
        let mut config = Config::default();
        break_it(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
}

#[test]
fn seeds_come_from_the_number_or_the_file_and_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path());
    let digest = floret_core::Digest::of(b"");
    let base = BaseDigests { base: digest, tokenizer: digest };
    let mut config = Config::default();
    let error = config.run_config(&home, base, 9).unwrap_err().to_string();
    assert!(error.contains("run.seed") && error.contains("missing"), "{error}");

    let seed = Seed([7; 32]);
    files::create_dir(&dir.path().join("secrets"), files::Access::Private).unwrap();
    files::replace(&home.seed(), files::Access::Private, String::from(seed.clone()).as_bytes())
        .unwrap();
    assert_eq!(config.run_config(&home, base, 9).unwrap().0.seed, seed);

    assert_eq!(config.run_config(&home, base, 9).unwrap().0.mode, Mode::Synchronous);
    config.run.mode = ModeName::Buffered;
    assert_eq!(config.run_config(&home, base, 9).unwrap().0.mode, Mode::Buffered(config.buffered));

    config.run.seed = Some(FixedSeed(123_456));
    assert_eq!(config.run_config(&home, base, 9).unwrap().0.seed, Seed::from_number(123_456));
    assert!(!format!("{config:?}").contains("123456"));
}

#[test]
fn urls_use_the_first_host() {
    let mut config = Config::default();
    assert_eq!(config.url(), "https://localhost:7878");
    config.server.hosts = vec!["::1".into()];
    assert_eq!(config.url(), "https://[::1]:7878");
}
