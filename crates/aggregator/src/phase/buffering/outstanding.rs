//! Work that was given out and is awaited, by client and by age.

use std::collections::BTreeSet;

use floret_core::{ClientId, Time};

use crate::state::{Assignment, Assignments};

#[derive(Debug, Default)]
pub(super) struct Outstanding {
    by_client: Assignments,
    by_age: BTreeSet<(Time, ClientId)>,
}

impl From<Assignments> for Outstanding {
    fn from(by_client: Assignments) -> Self {
        let by_age = by_client.iter().map(|(client, of)| (of.at, client.clone())).collect();
        Self { by_client, by_age }
    }
}

impl Outstanding {
    pub(super) fn get(&self, client: &ClientId) -> Option<&Assignment> {
        self.by_client.get(client)
    }

    pub(super) fn len(&self) -> usize {
        self.by_client.len()
    }

    pub(super) fn put(&mut self, client: &ClientId, assignment: Assignment) {
        self.take(client);
        self.by_client.insert(client.clone(), assignment);
        self.by_age.insert((assignment.at, client.clone()));
    }

    pub(super) fn take(&mut self, client: &ClientId) -> Option<Assignment> {
        let assignment = self.by_client.remove(client)?;
        self.by_age.remove(&(assignment.at, client.clone()));
        Some(assignment)
    }

    /// All of it, as if it had been given out at `now`.
    pub(super) fn renewed(&mut self, now: Time) -> Self {
        let mut all = std::mem::take(&mut self.by_client);
        all.values_mut().for_each(|assignment| assignment.at = now);
        all.into()
    }

    /// When each was given out, the oldest first.
    pub(super) fn by_age(&self) -> impl Iterator<Item = &(Time, ClientId)> {
        self.by_age.iter()
    }

    pub(super) fn into_assignments(self) -> Assignments {
        self.by_client
    }
}
