//! Devices that come out of a population and go, over seeds that are printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::combine::Robust;
use floret_aggregator::config::{Aggregation, BufferedConfig, CohortConfig, Mode, Timing};
use floret_aggregator::{Coordinator, RoundSummary, RunConfig, RunState};
use floret_core::{ClientId, Layout, Seed};
use floret_device::{Limits, Session};
use floret_simulation::behaviour::{Availability, Battery};
use floret_simulation::{Behaviour, Distribution, Nature, Population, ToyTrainer, World};
use support::model;

const DAYS: Duration = Duration::from_secs(30 * 24 * 3600);

/// Devices with nothing but a name, and how often one was asked for anything.
struct Named {
    size: usize,
    asked: Rc<Cell<usize>>,
}

fn name(index: usize) -> ClientId {
    format!("device-{index}").parse().unwrap()
}

impl Population for Named {
    fn size(&self) -> usize {
        self.size
    }

    fn client(&self, index: usize) -> ClientId {
        self.asked.set(self.asked.get() + 1);
        name(index)
    }

    fn session(&self, index: usize) -> Session {
        self.asked.set(self.asked.get() + 1);
        Session::new(name(index), model(), Limits::default())
    }

    fn nature(&self, _: usize) -> Option<Nature> {
        None
    }
}

fn coordinator(config: RunConfig) -> Coordinator {
    let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
    let state = RunState::first(&config, Arc::clone(&layout));
    Coordinator::new(config, layout, state).unwrap()
}

fn config(size: u32, quorum: u32, rounds: u32) -> RunConfig {
    let cohort = CohortConfig { size, quorum, ..CohortConfig::default() };
    RunConfig { rounds, max_abandoned: 100, ..support::config(cohort) }
}

/// The world, its rounds, and how often a device was asked for anything.
fn simulate(
    config: RunConfig,
    size: usize,
    behaviour: Behaviour,
    seed: u64,
) -> (World<ToyTrainer>, Vec<RoundSummary>, usize) {
    let asked = Rc::default();
    let population = Named { size, asked: Rc::clone(&asked) };
    let (coordinator, seed) = (coordinator(config), Seed::from_number(seed));
    let mut world = World::populated(coordinator, population, ToyTrainer, behaviour, &seed);
    let mut rounds = Vec::new();
    while let Some(summary) = world.next_round(DAYS).unwrap() {
        rounds.push(summary);
    }
    assert!(world.coordinator().state().end.as_ref().unwrap().completed);
    (world, rounds, asked.get())
}

#[test]
fn a_round_costs_the_same_in_any_population() {
    let run = |size| simulate(config(50, 50, 10), size, Behaviour::default(), 3);
    let (_, few, asked_of_few) = run(2_000);
    let (_, many, asked_of_many) = run(1_000_000);
    assert_eq!((few.len(), many.len()), (10, 10));
    println!("{asked_of_few} questions among 2,000 devices, {asked_of_many} among 1,000,000");
    // 500 devices come, each is asked for its name and its session, and its nature needs the name.
    assert!(asked_of_few <= 2_000 && asked_of_many <= 2_000);
    let chosen: BTreeSet<&ClientId> = many.iter().flat_map(|round| &round.selected).collect();
    assert!(chosen.len() > 490, "{} different devices in 500 places", chosen.len());
}

/// A population that is as large as the coordinator waits for is there as a whole: the cohorts and
/// the adapter are those of devices that are always there.
#[test]
fn a_population_that_is_wanted_as_a_whole_is_there_as_a_whole() {
    let config = || {
        let config = config(4, 4, 6);
        let cohort = CohortConfig { min_population: 9, ..config.cohort };
        RunConfig { cohort, ..config }
    };
    for seed in 1..6 {
        let (world, ..) = simulate(config(), 9, Behaviour::default(), seed);
        let session = |index| Session::new(name(index), model(), Limits::default());
        let sessions = (0..9).map(session).collect();
        let (behaviour, other) = (Behaviour::default(), Seed::from_number(seed + 100));
        let residents = World::new(coordinator(config()), sessions, ToyTrainer, behaviour, &other);
        let want = residents.run(DAYS).unwrap().coordinator.state().adapter.digest();
        assert_eq!(world.coordinator().state().adapter.digest(), want, "seed {seed}");
    }
}

/// The trusted client comes in each round, of any number of devices, also where it is not always there.
#[test]
fn the_trusted_client_comes_and_the_population_does_not() {
    let trusted = name(777);
    let config = || {
        let config = config(4, 4, 8);
        let cohort = CohortConfig { trusted: Some(trusted.clone()), ..config.cohort };
        let combine = Some(Robust::Fltrust {});
        let aggregation = Aggregation { combine, ..config.aggregation };
        RunConfig { cohort, aggregation, ..config }
    };
    // A training of ten steps takes most of a charge, so that it is away for hours.
    let battery = Battery { minutes: Distribution::Constant(0.2), charge_h: 2.0, least: 0.9 };
    for battery in [None, Some(battery)] {
        let behaviour = Behaviour { battery, ..Behaviour::default() };
        let (_, rounds, asked) = simulate(config(), 2_000, behaviour, 1);
        assert!(rounds.iter().all(|round| round.selected.contains(&trusted)));
        // All names are read once, to find it.
        assert!(asked < 4_000, "{asked}");
    }
}

#[test]
fn scheduled_drop_outs_and_failures_are_those_of_the_lots() {
    let behaviour = Behaviour { drop_out: 0.2, failure: 0.1, ..Behaviour::default() };
    let (mut dropped, mut failed) = (0, 0);
    for seed in 0..10 {
        let (_, rounds, _) = simulate(config(10, 1, 8), 5_000, behaviour, seed);
        let root = Seed::from_number(seed);
        for round in &rounds {
            let declined: BTreeSet<_> = round.declined.iter().map(|(client, _)| client).collect();
            for client in &round.selected {
                let lot = behaviour.nature(&root, client).lot(&root, round.round, client);
                assert_eq!(round.dropped_out.contains(client), lot.drops_out, "seed {seed}");
                let fails = lot.fails && !lot.drops_out;
                assert_eq!(declined.contains(client), fails, "seed {seed}");
            }
            dropped += round.dropped_out.len();
            failed += declined.len();
        }
    }
    // 160 and 64 of 800 on average, with deviations 11.3 and 7.7.
    assert!((110..210).contains(&dropped) && (30..98).contains(&failed), "{dropped}, {failed}");
}

#[test]
fn devices_come_at_their_time_of_day_and_with_enough_charge() {
    let availability = Availability {
        from_h: Distribution::Uniform([20.0, 23.0]),
        hours: Distribution::Uniform([2.0, 8.0]),
    };
    let battery = Battery { minutes: Distribution::Constant(10.0), charge_h: 24.0, least: 0.9 };
    let behaviour = Behaviour {
        availability: Some(availability),
        battery: Some(battery),
        step_s: Distribution::Constant(30.0),
        training_s: Distribution::Constant(0.0),
        ..Behaviour::default()
    };
    for seed in 1..4 {
        let timing = Timing { report_deadline: Duration::from_secs(900), ..config(1, 1, 1).timing };
        // Ten steps of 30 s are half a charge: whoever worked is not back within 9.6 hours.
        let config = RunConfig { timing, ..config(40, 40, 12) };
        let (_, rounds, _) = simulate(config, 3_000, behaviour, seed);
        let root = Seed::from_number(seed);
        let mut worked = std::collections::BTreeMap::new();
        for round in &rounds {
            for client in &round.selected {
                let nature = behaviour.nature(&root, client);
                assert!(nature.may_come(round.opened_at), "seed {seed}, {client}");
                if let Some(at) = worked.insert(client.clone(), round.opened_at) {
                    let rest = floret_core::Time::until(at, round.opened_at).as_secs_f64() / 3600.0;
                    assert!(rest > 9.0, "seed {seed}, {client} is back after {rest} hours");
                }
            }
        }
        // The first midnight is within the time of day of nearly all; 12 rounds of 5 minutes fit.
        assert!(rounds.iter().all(|round| round.accepted.len() == 40), "seed {seed}");
    }
}

#[test]
fn buffered_rounds_keep_as_many_at_work_as_they_may() {
    let mode = BufferedConfig { buffer: 10, concurrency: 30, ..BufferedConfig::default() };
    let config = RunConfig { mode: Mode::Buffered(mode), ..config(1, 1, 20) };
    for seed in 1..4 {
        let behaviour = Behaviour { straggler: 0.1, ..Behaviour::default() };
        let (world, rounds, asked) = simulate(config.clone(), 100_000, behaviour, seed);
        assert!(rounds.iter().all(|round| round.accepted.len() == 10), "seed {seed}");
        assert!(asked < 3_000, "seed {seed}: {asked} questions");
        let given: usize = rounds.iter().map(|round| round.selected.len()).sum();
        let totals = world.coordinator().state().totals;
        assert!(given as u64 >= totals.updates_accepted, "seed {seed}");
    }
}
