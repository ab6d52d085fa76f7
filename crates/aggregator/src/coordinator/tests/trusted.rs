//! A client that the operator trusts (FLTrust).

use super::*;

/// Cohorts of two of three, of whom c is trusted.
fn run() -> Run {
    let trusted = Some("c".parse().unwrap());
    let cohort = CohortConfig { size: 2, quorum: 1, trusted, ..CohortConfig::default() };
    let combine = Some(Robust::Fltrust {});
    let aggregation = Aggregation { combine, ..config().aggregation };
    Run::new(RunConfig { cohort, aggregation, rounds: 20, ..config() })
}

fn cohort(run: &Run) -> Vec<String> {
    let opened = run.records.iter().rev().find_map(|record| match record {
        Record::RoundOpened { cohort, .. } => Some(cohort),
        _ => None,
    });
    opened.unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn it_is_awaited_and_in_every_cohort_and_the_others_take_turns() {
    let mut run = run();
    let mut beside = [0, 0];
    for round in 1..=20 {
        run.check_in("a").unwrap();
        run.check_in("b").unwrap();
        assert!(run.records.len() < 200 && matches!(run.status().phase, "selecting"));
        assert_eq!(run.coordinator.misses(run.now).map(ToString::to_string).as_deref(), Some("c"));
        run.check_in("c").unwrap();
        let cohort = cohort(&run);
        assert!(cohort.contains(&"c".to_owned()), "{cohort:?}");
        beside[usize::from(cohort.contains(&"b".to_owned()))] += 1;
        for (client, weight) in [(&*cohort[0], 0), ("c", 1)] {
            let Ok(Reply::Accepted(receipt)) = run.report(client, round, small()) else { panic!() };
            assert_eq!(receipt.weight, weight, "{client}");
        }
    }
    assert!(beside.iter().all(|times| *times > 3), "{beside:?}");
    assert!(matches!(run.check_in("a"), Ok(Reply::RunEnded(RunEnd { completed: true, .. }))));
}

#[test]
fn a_round_without_its_update_is_abandoned_however_many_others_came() {
    for declines in [true, false] {
        let mut run = run();
        run.gather();
        let other = cohort(&run)[0].clone();
        run.report(&other, 1, small()).unwrap();
        assert_eq!(run.status().version, 0, "the quorum alone does not close a round");
        if declines {
            run.send("c", Input::Decline { round: Round(1), reason: "busy".into() }).unwrap();
        } else {
            run.now = Time(100_000);
            run.tick();
        }
        let reason = run.records.iter().find_map(|record| match record {
            Record::RoundAbandoned { summary } => Some(summary.reason.clone()),
            _ => None,
        });
        let reason = reason.unwrap();
        assert!(reason.contains("the trusted client c"), "{reason}");
        assert!(reason.contains("gives nothing") == declines, "{reason}");
    }
}

#[test]
fn it_is_named_for_its_rule_alone() {
    let refused = |change: fn(&mut RunConfig)| {
        let mut config = run().coordinator.config().clone();
        config.validate().unwrap();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(refused(|config| config.cohort.trusted = None).contains("cohort.trusted"));
    assert!(refused(|config| config.aggregation.combine = None).contains("fltrust"));
    assert!(refused(|config| config.aggregation.measure_residual = true).contains("residual"));
    let buffered = refused(|config| config.mode = Mode::Buffered(BufferedConfig::default()));
    assert!(buffered.contains("run.mode"), "{buffered}");
}

/// It was there and went: it is missed, and after a while people hear of it.
#[test]
fn it_is_missed_when_it_is_not_connected() {
    let mut run = run();
    run.check_in("c").unwrap();
    assert_eq!(run.coordinator.misses(run.now), None);
    run.now = Time(run.now.0 + 100_000);
    run.check_in("a").unwrap();
    run.check_in("b").unwrap();
    assert_eq!(run.status().phase, "selecting");
    assert!(run.coordinator.misses(run.now).is_some());
    let concerns = run.status().concerns;
    assert!(concerns.iter().any(|of| of.kind == "trusted-awaited" && of.message.contains(" c,")));
    run.check_in("c").unwrap();
    assert_eq!(cohort(&run).last().map(String::as_str), Some("c"));
    assert!(run.coordinator.misses(run.now).is_none());
}
