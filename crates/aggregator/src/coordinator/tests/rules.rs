//! Rounds that combine otherwise than by the plain mean of all values.

use super::*;

#[test]
fn linear_payloads_weigh_the_same() {
    let config = linear("linear8/2", config());
    config.validate().unwrap();
    let update = ClientUpdate {
        run: config.run.clone(),
        round: Round(1),
        num_examples: 7,
        num_steps: 1,
        payload: small(),
    };
    assert_eq!(
        (config.weight(&"a".parse().unwrap(), &update), config.summands()),
        (1, config.cohort.selected())
    );
    let mut run = Run::new(config);
    run.gather();
    assert_eq!(run.plan("a").summands, run.coordinator.config().summands());
    let Ok(Reply::Accepted(receipt)) = run.report("a", 1, small()) else { panic!() };
    assert_eq!((receipt.num_examples, receipt.weight, receipt.downloaded_bytes), (4, 1, 300));
}

/// Three clients report; the middle one of each value counts, whatever numbers of examples they claim.
#[test]
fn a_robust_rule_reads_the_updates_of_the_round_again() {
    let combine = Some(Robust::Median {});
    let aggregation = Aggregation { combine, measure_residual: true, ..config().aggregation };
    let mut run = Run::new(RunConfig { aggregation, ..config() });
    run.gather();
    let before = run.coordinator.state().adapter.clone();
    for (client, value) in [("c", 0.01), ("a", -0.2), ("b", 0.02)] {
        let reply = run.report(client, 1, payload(|_| value)).unwrap();
        assert!(matches!(reply, Reply::Accepted(Receipt { weight: 1, .. })));
    }
    let after = run.coordinator.state().adapter.values();
    let moved = before.values().iter().zip(after).map(|(before, after)| after - before);
    assert!(moved.into_iter().all(|change| (change - 0.01).abs() < 1e-6));
    let Some(Record::RoundCommitted { summary, .. }) = run.records.last() else { panic!() };
    assert!(summary.residual.is_some_and(|residual| residual.norm > 0.0), "{summary:?}");
}

/// Keeps the update of the heaviest, by what it says.
#[derive(Debug)]
struct Heaviest;

impl Combine for Heaviest {
    fn combine(
        &self,
        _: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
        weights: &[u32],
    ) -> Vec<f32> {
        assert_eq!((before.len(), deltas.len()), (layout().len(), weights.len()));
        let heaviest = deltas.iter().zip(weights).max_by_key(|(_, weight)| **weight);
        heaviest.unwrap().0.values().to_vec()
    }
}

#[test]
fn a_rule_of_ones_own_combines_what_it_is_given() {
    let coordinator = |config: RunConfig| {
        let state = RunState::first(&config, layout());
        Coordinator::new(config, layout(), state).unwrap().with_rule(Box::new(Heaviest))
    };
    let mut run = Run::of(coordinator(config()).unwrap());
    run.gather();
    let before = run.coordinator.state().adapter.clone();
    for (client, examples, value) in [("c", 3, 0.01), ("a", 7, -0.02), ("b", 5, 0.03)] {
        let update = ClientUpdate {
            run: config().run,
            round: Round(1),
            num_examples: examples,
            num_steps: 3,
            payload: payload(|_| value),
        };
        let payload_digest = update.payload.digest();
        run.send(client, report(update, payload_digest)).unwrap();
    }
    let after = run.coordinator.state().adapter.values();
    let moved = before.values().iter().zip(after).map(|(before, after)| after - before);
    assert!(moved.into_iter().all(|change| (change + 0.02).abs() < 1e-6));

    let with = |aggregation| RunConfig { aggregation, ..config() };
    let combine = Some(Robust::Median {});
    let mode = Mode::Buffered(BufferedConfig::default());
    for (config, word) in [
        (with(Aggregation { combine, ..config().aggregation }), "one's own"),
        (with(Aggregation { max_buffered_bytes: 1, ..config().aggregation }), "max_buffered_bytes"),
        (RunConfig { mode, ..config() }, "run.mode"),
    ] {
        let error = coordinator(config).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

/// B trains in the first round and A in the second: what changes the other factor is refused, and the
/// momentum of a factor waits until its turn.
#[test]
fn factors_take_turns() {
    let training = TrainingConfig { freeze: Freeze::Alternate, ..TrainingConfig::default() };
    let server_optimizer = ServerOptimizer { momentum: 0.9, ..ServerOptimizer::default() };
    let aggregation = Aggregation { server_optimizer, ..config().aggregation };
    let mut run = Run::new(RunConfig { training, aggregation, ..config() });
    run.gather();
    let [a, b] = layout().pairs().next().unwrap().clone().map(|tensor| tensor.range());
    let part =
        |places: &Range<usize>| payload(|place| if places.contains(&place) { 0.01 } else { 0.0 });
    for (round, trains, stays) in [(1, &b, &a), (2, &a, &b)] {
        let before = run.coordinator.state().adapter.clone();
        assert_eq!(code(run.report("c", round, part(stays))), "frozen-factor");
        run.report("a", round, part(trains)).unwrap();
        run.report("b", round, part(trains)).unwrap();
        let after = run.coordinator.state().adapter.values();
        assert_eq!(after[stays.clone()], before.values()[stays.clone()]);
        let moved = trains.clone().map(|place| after[place] - before.values()[place]);
        assert!(moved.into_iter().all(|change| (change - 0.01).abs() < 1e-6));
        run.now = run.now.after(run.coordinator.config().timing.retry_max);
        run.gather();
    }
}

#[test]
fn updates_that_do_not_fit_in_memory_are_refused_with_the_bytes_that_they_need() {
    let needed = 3 * layout().bytes() as u64;
    let with = |max_buffered_bytes, measure_residual| {
        let aggregation =
            Aggregation { measure_residual, max_buffered_bytes, ..config().aggregation };
        let config = RunConfig { aggregation, ..config() };
        let state = RunState::first(&config, layout());
        Coordinator::new(config, layout(), state).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!((with(needed, true), with(1, false)), (Ok(()), Ok(())));
    let error = with(needed - 1, true).unwrap_err();
    assert!(error.contains("max_buffered_bytes") && error.contains(&needed.to_string()), "{error}");
}
