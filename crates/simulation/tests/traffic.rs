//! Bytes that devices move: what the server would send to each, and what comes in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::config::{Aggregation, CohortConfig};
use floret_aggregator::{Coordinator, RoundSummary, RunConfig, RunState};
use floret_core::payload::Compression;
use floret_core::{ClientId, Layout, Seed};
use floret_device::{Limits, Session};
use floret_simulation::{Behaviour, Nature, Population, ToyTrainer, Traffic, World};
use support::model;

const DEVICES: usize = 6;
const ROUNDS: u32 = 16;

struct Named;

fn name(index: usize) -> ClientId {
    format!("device-{index}").parse().unwrap()
}

impl Population for Named {
    fn size(&self) -> usize {
        DEVICES
    }

    fn client(&self, index: usize) -> ClientId {
        name(index)
    }

    fn session(&self, index: usize) -> Session {
        Session::new(name(index), model(), Limits::default())
    }

    fn nature(&self, _: usize) -> Option<Nature> {
        None
    }
}

/// Each round with what was moved in it, and the bytes of an adapter.
fn simulate(cohort: u32, download_compression: Compression) -> (Vec<(RoundSummary, Traffic)>, u64) {
    let min_population = DEVICES as u32;
    let cohort =
        CohortConfig { size: cohort, quorum: cohort, min_population, ..CohortConfig::default() };
    let aggregation = Aggregation { download_compression, ..Aggregation::default() };
    let config = RunConfig { rounds: ROUNDS, aggregation, ..support::config(cohort) };
    let layout = Arc::new(Layout::new(&model().config, &config.lora).unwrap());
    let (whole, state) = (layout.bytes() as u64, RunState::first(&config, Arc::clone(&layout)));
    let coordinator = Coordinator::new(config, layout, state).unwrap();
    let (behaviour, seed) = (Behaviour::default(), Seed::from_number(4));
    let mut world = World::populated(coordinator, Named, ToyTrainer, behaviour, &seed);
    let (mut rounds, mut before) = (Vec::new(), Traffic::default());
    while let Some(summary) = world.next_round(Duration::from_secs(1 << 20)).unwrap() {
        let now = world.traffic();
        rounds.push((summary, Traffic { up: now.up - before.up, down: now.down - before.down }));
        before = now;
    }
    assert_eq!(rounds.len(), ROUNDS as usize);
    (rounds, whole)
}

#[test]
fn whole_adapters_and_payloads_are_counted() {
    let (rounds, whole) = simulate(4, Compression::None);
    for (summary, moved) in &rounds {
        let payloads: u64 = summary.accepted.iter().map(|of| of.receipt.payload_bytes).sum();
        assert_eq!((moved.up, moved.down), (payloads, 4 * whole), "round {:?}", summary.round);
    }
}

/// A device pays for the steps that it lacks, or for the whole adapter if they are larger.
#[test]
fn a_device_that_sat_out_fetches_the_steps_that_it_lacks() {
    let (rounds, whole) = simulate(1, Compression::Int8);
    let mut last = BTreeMap::new();
    let mut by_lag: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for (at, (summary, moved)) in rounds.iter().enumerate() {
        match last.insert(summary.selected[0].clone(), at) {
            None => assert_eq!(moved.down, whole, "round {at}"),
            Some(before) => by_lag.entry(at - before).or_default().push(moved.down),
        }
    }
    let step = by_lag[&1][0] as f64;
    assert!(step < 0.5 * whole as f64 && by_lag.len() > 3, "{by_lag:?}");
    for (lag, moved) in by_lag {
        let steps = lag as f64 * step;
        let want = if steps > whole as f64 { whole as f64 } else { steps };
        let near = |bytes: &u64| (*bytes as f64 / want - 1.0).abs() < 0.1;
        assert!(moved.iter().all(near), "{lag} rounds: {moved:?}, expected about {want}");
    }
}
