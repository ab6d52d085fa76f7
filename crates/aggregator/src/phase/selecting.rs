//! Selecting: clients gather until enough are connected, then a cohort is drawn.
//!
//! The cohort is a function of (seed, round, connected population), never of the order of arrival.

use std::collections::{BTreeMap, BTreeSet};

use floret_core::seed::Purpose;
use floret_core::{ClientId, Round, Seed, Time};

use crate::config::RunConfig;

#[derive(Debug, Default)]
pub(crate) struct Selecting {
    /// When each client was last seen.
    present: BTreeMap<ClientId, Time>,
    /// Clients that gave nothing in the last round, and are only counted from this time on.
    sidelined: (BTreeSet<ClientId>, Time),
    /// When clients began to gather.
    pub(crate) since: Time,
}

impl Selecting {
    /// Clients gather after a round in which those of `gave_nothing` declined or were refused.
    /// Until `others_first` they are passed over, so that a few of them, back at once, do not
    /// fill every cohort.
    pub(crate) fn after(since: Time, gave_nothing: BTreeSet<ClientId>, others_first: Time) -> Self {
        Self { present: BTreeMap::new(), sidelined: (gave_nothing, others_first), since }
    }

    pub(crate) fn checked_in(&mut self, client: ClientId, at: Time) {
        let (sidelined, others_first) = &self.sidelined;
        if at >= *others_first || !sidelined.contains(&client) {
            self.present.insert(client, at);
        }
    }

    /// Whether `client` is connected.
    pub(crate) fn is_connected(&self, config: &RunConfig, client: &ClientId, now: Time) -> bool {
        let presence = config.timing.presence();
        self.present.get(client).is_some_and(|seen| seen.after(presence) >= now)
    }

    /// How many clients are connected.
    pub(crate) fn population(&self, config: &RunConfig, now: Time) -> usize {
        self.connected(config, now).count()
    }

    /// The cohort of `round`, if enough clients are connected, and the trusted one if there is one.
    pub(crate) fn draw(
        &self,
        config: &RunConfig,
        round: Round,
        now: Time,
    ) -> Option<Vec<ClientId>> {
        let population: Vec<&ClientId> = self.connected(config, now).collect();
        let size = config.cohort.selected() as usize;
        if population.len() < config.cohort.awaited() as usize {
            return None;
        }
        let Some(trusted) = &config.cohort.trusted else {
            return Some(draw_cohort(&config.seed, round, population, size));
        };
        let (of_trusted, others) =
            population.into_iter().partition::<Vec<_>, _>(|of| *of == trusted);
        let mut cohort = draw_cohort(&config.seed, round, others, size - of_trusted.len());
        cohort.push((*of_trusted.first()?).clone());
        cohort.sort_unstable();
        Some(cohort)
    }

    fn connected<'a>(
        &'a self,
        config: &RunConfig,
        now: Time,
    ) -> impl Iterator<Item = &'a ClientId> {
        let presence = config.timing.presence();
        self.present
            .iter()
            .filter(move |(_, seen)| seen.after(presence) >= now)
            .map(|(client, _)| client)
    }
}

/// The `size` clients whose keyed digests are smallest, in ClientId order: a uniform sample without
/// replacement for whoever does not know the seed.
fn draw_cohort(seed: &Seed, round: Round, clients: Vec<&ClientId>, size: usize) -> Vec<ClientId> {
    let mut ranked: Vec<_> = clients
        .into_iter()
        .map(|client| (seed.derive(Purpose::CohortSampling, round, Some(client)).0, client))
        .collect();
    ranked.sort_unstable();
    let mut cohort: Vec<_> =
        ranked.into_iter().take(size).map(|(_, client)| client.clone()).collect();
    cohort.sort_unstable();
    cohort
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cohorts_are_fair_and_do_not_depend_on_order() {
        let clients: Vec<ClientId> = (0..10).map(|i| format!("c{i}").parse().unwrap()).collect();
        let mut backwards: Vec<&ClientId> = clients.iter().collect();
        backwards.reverse();
        let seed = Seed::from_number(11);
        let mut chosen = BTreeMap::new();
        for round in (1..=1000).map(Round) {
            let cohort = draw_cohort(&seed, round, clients.iter().collect(), 3);
            assert_eq!(cohort.len(), 3);
            assert_eq!(cohort, draw_cohort(&seed, round, backwards.clone(), 3));
            cohort.into_iter().for_each(|client| *chosen.entry(client).or_insert(0) += 1);
        }
        // Each is chosen 300 times on average, with deviation 14.5.
        assert_eq!(chosen.len(), 10);
        assert!(chosen.values().all(|count| (230..370).contains(count)), "{chosen:?}");
    }
}
