//! Buffered rounds beside synchronous ones, over seeds that are printed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floret_aggregator::config::{BufferedConfig, CohortConfig, Mode, Timing};
use floret_aggregator::{Admitted, Coordinator, Record, RunConfig, RunState, Store, UpdateSource};
use floret_core::{ClientId, Layout, Receipt, Seed};
use floret_device::{Limits, Session};
use floret_simulation::{Behaviour, DeviceStore, Ending, ToyTrainer, World};
use support::model;

fn config(mode: Mode, cohort: CohortConfig, rounds: u32) -> RunConfig {
    let config = support::config(cohort);
    let timing = Timing { report_deadline: Duration::from_secs(600), ..config.timing };
    RunConfig { rounds, mode, timing, ..config }
}

fn buffered(buffer: u32, concurrency: u32, rounds: u32) -> RunConfig {
    let mode = BufferedConfig { buffer, concurrency, ..BufferedConfig::default() };
    config(Mode::Buffered(mode), CohortConfig::default(), rounds)
}

fn layout(config: &RunConfig) -> Arc<Layout> {
    Arc::new(Layout::new(&model().config, &config.lora).unwrap())
}

fn fresh(config: &RunConfig) -> Coordinator {
    let state = RunState::first(config, layout(config));
    Coordinator::new(config.clone(), layout(config), state).unwrap()
}

/// Keeps every record of a run, for a replay.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Vec<Record>>>);

impl UpdateSource for Tape {
    type Error = Infallible;

    fn update(&self, client: &ClientId, _: &Receipt) -> Result<Admitted, Infallible> {
        panic!("no rule of these runs reads the update of {client} again")
    }
}

impl Store for Tape {
    fn commit(&mut self, records: &[Record], _: &RunState) -> Result<(), Infallible> {
        let durable = records.iter().filter(|record| record.is_durable());
        self.0.lock().unwrap().extend(durable.cloned());
        Ok(())
    }

    fn load(&mut self) -> Result<Option<RunState>, Infallible> {
        Ok(None)
    }

    fn replay(&mut self, _: &mut dyn FnMut(Record)) -> Result<(), Infallible> {
        Ok(())
    }
}

fn simulate(config: &RunConfig, devices: u32, behaviour: Behaviour, seed: u64) -> (Ending, Tape) {
    let session = |index| {
        let client = format!("device-{index}").parse().unwrap();
        (Session::new(client, model(), Limits::default()), DeviceStore::none())
    };
    let (tape, config) = (Tape::default(), config.clone());
    let kept = tape.clone();
    let start = Box::new(move |_| (fresh(&config), kept.clone()));
    let (devices, seed) = ((0..devices).map(session).collect(), Seed::from_number(seed));
    let world = World::durable(start, devices, ToyTrainer, behaviour, &seed);
    (world.run(Duration::from_secs(24 * 3600)).unwrap(), tape)
}

/// Seconds to the commit of the last round; the devices that are told of it later do not count.
fn seconds(ending: &Ending) -> f64 {
    assert!(ending.coordinator.state().end.as_ref().unwrap().completed);
    ending.rounds.last().unwrap().closed_at.0 as f64 / 1e3
}

fn stragglers() -> Behaviour {
    Behaviour { straggler: 0.2, ..Behaviour::default() }
}

/// 300 updates from 100 devices, as many at work as a synchronous cohort has, when every fifth
/// training takes 20 times as long. FedBuff reports 3.3 to 3.8 times the speed of synchronous rounds.
/// Over-selection narrows that by throwing away the work of those who are slow.
#[test]
fn buffered_rounds_are_three_times_as_fast_among_stragglers() {
    for over_selection in [1.0, 1.3] {
        let size = 10;
        let cohort =
            CohortConfig { size, over_selection, quorum: size, min_population: 0, trusted: None };
        let at_work = cohort.selected();
        for seed in 1..=3 {
            let synchronous = config(Mode::Synchronous, cohort.clone(), 30);
            let slow = seconds(&simulate(&synchronous, 100, stragglers(), seed).0);
            let (ending, _) = simulate(&buffered(size, at_work, 30), 100, stragglers(), seed);
            let fast = seconds(&ending);
            assert_eq!(ending.coordinator.state().totals.updates_accepted, 300);
            let ratio = slow / fast;
            println!(
                "seed {seed}, {at_work} at work: synchronous {slow:.0} s, buffered {fast:.0} s, \
                 {ratio:.2} times as fast"
            );
            assert!(ratio >= if over_selection > 1.0 { 1.0 } else { 3.0 }, "seed {seed}: {ratio}");
        }
    }
}

#[test]
fn the_recorded_order_gives_the_same_bits() {
    for seed in 1..=5 {
        let config = buffered(4, 8, 12);
        let behaviour =
            Behaviour { drop_out: 0.1, duplicate: 0.1, lost_answer: 0.1, ..stragglers() };
        let (ending, tape) = simulate(&config, 12, behaviour, seed);
        let mut replayed = fresh(&config);
        tape.0.lock().unwrap().iter().for_each(|record| replayed.apply(record));
        assert_eq!(replayed.state(), ending.coordinator.state(), "seed {seed}");
        let stale = ending.rounds.iter().flat_map(|round| &round.accepted);
        let stale = stale.map(|of| of.staleness).max().unwrap();
        println!("seed {seed}: {} records, staleness up to {stale}", tape.0.lock().unwrap().len());
        assert!(stale > 1, "seed {seed}");
    }
}

#[test]
fn every_assignment_is_accounted_for_and_none_is_given_twice() {
    for seed in 0..20 {
        let behaviour = Behaviour {
            drop_out: (seed % 5) as f32 / 10.0,
            duplicate: 0.05,
            lost_answer: 0.05,
            truncate: 0.05,
            ..stragglers()
        };
        let (ending, _) = simulate(&buffered(3, 6, 10), 12, behaviour, seed);
        let (mut given, mut settled) = (BTreeSet::new(), BTreeSet::new());
        for round in &ending.rounds {
            for client in &round.selected {
                assert!(given.insert((round.round, client.clone())), "seed {seed}");
            }
            for counted in &round.accepted {
                let key = (counted.receipt.round, counted.client.clone());
                assert!(given.contains(&key) && settled.insert(key), "seed {seed}");
            }
        }
        let state = ending.coordinator.state();
        let out = state.totals.drop_outs + state.totals.updates_refused;
        let all = settled.len() + usize::try_from(out).unwrap() + state.assignments.len();
        assert_eq!(given.len(), all, "seed {seed}");
        assert_eq!(state.totals.updates_accepted as usize, settled.len(), "seed {seed}");
    }
}
