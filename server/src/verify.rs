//! `verify`: whether the ledger holds, and says what the state holds.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use floret_aggregator::ClippedDelta;
use floret_aggregator::advance::{Before, advance};
use floret_aggregator::combine::WeightedMean;
use floret_aggregator::combine::residual::Residual;
use floret_aggregator::config::Mode;
use floret_aggregator::ledger::{
    self, AcceptedEntry, BrokenLedger, Entry, Fact, RoundEntry, Settings,
};
use floret_core::Layout;
use floret_core::{Digest, PublicKey, Version};
use floret_store::{Disk, ReadFolder, blob};

use crate::config::Config;
use crate::error::CommandError;
use crate::home::Home;
use crate::model_dir;
use crate::store::{LEDGER, SavedRun, StoreError, updates};

/// A ledger, or an adapter that it names, that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The ledger itself.
    #[error(transparent)]
    Ledger(#[from] BrokenLedger),
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Entries of the ledger.
    pub entries: u64,
    /// Rounds that it tells of.
    pub rounds: u64,
    /// Adapters whose files have the digests that the ledger names.
    pub adapters: u64,
    /// Rounds whose adapter was computed again from the updates that are kept.
    pub recomputed: u64,
}

fn broken(entry: u64, problem: impl Into<String>) -> VerifyError {
    BrokenLedger { entry, problem: problem.into() }.into()
}

/// Checks the ledger of a server's directory with the public key `key`: signatures and chain, that
/// each round follows from the one before, that it ends where the state ends, the adapters that are
/// kept, and those that can be computed again. Works whether or not a server runs.
///
/// # Errors
/// The first thing that does not hold, with the entry that says otherwise.
pub fn verify(home: &Home, config: &Config, key: &PublicKey) -> Result<Verified, CommandError> {
    let dir = home.state();
    let read = || SavedRun::read(&dir)?.ok_or_else(|| StoreError::Empty(dir.clone()));
    let mut saved = read()?;
    let model = model_dir::read_config(&config.model_dir(home))?;
    let layout = Arc::new(Layout::new(&model, &saved.lora)?);
    let disk = ReadFolder::new(&dir);
    loop {
        let verified = verify_run(&disk, &saved, &layout, key);
        // A server that runs may have removed what was kept when this began: look again.
        let now = read()?;
        if verified.is_ok() || now == saved {
            return Ok(verified?);
        }
        saved = now;
    }
}

/// Checks the ledger on a disk like [`verify`]. `saved` was read before the ledger: a server that
/// runs beside may have gone on since.
///
/// # Errors
/// The first thing that does not hold, with the entry that says otherwise.
pub fn verify_run(
    disk: &dyn Disk,
    saved: &SavedRun,
    layout: &Arc<Layout>,
    key: &PublicKey,
) -> Result<Verified, VerifyError> {
    let text = blob::read_all(disk, LEDGER).map_err(StoreError::disk("read", LEDGER))?;
    let (entries, _) = ledger::verify(&text, key)?;
    follows(&entries)?;
    ends_where_the_state_does(&entries, &text, saved)?;
    let mut verified = Verified {
        entries: entries.len() as u64,
        rounds: rounds(&entries).count() as u64,
        adapters: 0,
        recomputed: 0,
    };
    let states = adapters_after(&entries, saved.ledger.entries);
    for (version, kept) in &saved.adapters {
        let Some((entry, digest)) = states.get(version) else { continue };
        let differs = |problem: String| broken(*entry, format!("version {version}: {problem}"));
        if kept.adapter != *digest {
            return Err(differs("the state names another adapter than the entry".into()));
        }
        saved.adapter(disk, layout, Some(*version)).map_err(|error| differs(error.to_string()))?;
        saved.moments(disk, layout, *version).map_err(|error| differs(error.to_string()))?;
        saved.unsent(disk, layout, *version).map_err(|error| differs(error.to_string()))?;
        verified.adapters += 1;
    }
    for (entry, round, settings) in rounds(&entries) {
        if recompute(disk, saved, layout, (entry, round, settings))? {
            verified.recomputed += 1;
        }
    }
    Ok(verified)
}

/// Rounds with the number of their entry and the settings that they followed.
fn rounds(entries: &[Entry]) -> impl Iterator<Item = (u64, &RoundEntry, &Settings)> {
    let mut current: Option<&Settings> = None;
    entries.iter().filter_map(move |entry| match &entry.fact {
        Fact::Settings(settings) => {
            current = Some(settings);
            None
        }
        Fact::Round(round) => Some((entry.entry, &**round, current?)),
    })
}

/// Each round begins with the adapter that the one before left, under settings that were stated.
fn follows(entries: &[Entry]) -> Result<(), VerifyError> {
    if let Some(Entry { entry, fact: Fact::Round(_), .. }) = entries.first() {
        return Err(broken(*entry, "a round comes before any settings"));
    }
    let mut before: Option<&RoundEntry> = None;
    for (entry, round, settings) in rounds(entries) {
        if round.plan != settings.digest() {
            return Err(broken(entry, "its plan is not that of the settings before it"));
        }
        if let Some(before) = before {
            let version = match before.committed {
                true => before.base_version.next(),
                false => before.base_version,
            };
            if round.base_version != version || round.adapter_before != before.adapter_after {
                return Err(broken(entry, "it does not begin with the adapter before it"));
            }
            if round.round <= before.round {
                return Err(broken(entry, "its round is not after the one before it"));
            }
        }
        if !round.committed && round.adapter_after != round.adapter_before {
            return Err(broken(entry, "an abandoned round changed the adapter"));
        }
        before = Some(round);
    }
    Ok(())
}

fn ends_where_the_state_does(
    entries: &[Entry],
    text: &[u8],
    saved: &SavedRun,
) -> Result<(), VerifyError> {
    let known = saved.ledger.entries;
    let found = entries.len() as u64;
    if found < known {
        let problem = format!("the ledger ends before it: the state knows of {known} entries");
        return Err(broken(found + 1, problem));
    }
    let line = text.split(|byte| *byte == b'\n').nth((known as usize).saturating_sub(1));
    if line.map(Digest::of) != Some(saved.ledger.digest) {
        return Err(broken(known, "it is not the entry that the state ends with"));
    }
    Ok(())
}

/// Digest of each version, with the entry that names it first, as far as the state goes.
fn adapters_after(entries: &[Entry], known: u64) -> BTreeMap<Version, (u64, Digest)> {
    let mut found = BTreeMap::new();
    for (entry, round, _) in rounds(entries).filter(|(entry, ..)| *entry <= known) {
        found.entry(round.base_version).or_insert((entry, round.adapter_before));
        if round.committed {
            found.insert(round.base_version.next(), (entry, round.adapter_after));
        }
    }
    found
}

/// Computes the adapter of a round again, if its updates and the adapter before are kept.
fn recompute(
    disk: &dyn Disk,
    saved: &SavedRun,
    layout: &Arc<Layout>,
    (entry, round, settings): (u64, &RoundEntry, &Settings),
) -> Result<bool, VerifyError> {
    let version = round.base_version;
    let here = disk.list(updates::UPDATES).unwrap_or_default();
    let kept = saved.adapters.contains_key(&version);
    if !round.committed || !kept || !here.contains(&updates::file(round.round)) {
        return Ok(false);
    }
    let failed = |problem: String| broken(entry, problem);
    let read = |error: StoreError| failed(error.to_string());
    let before = saved.adapter(disk, layout, Some(version)).map_err(read)?;
    let (delta, residual) = combine_again(disk, layout, before.values(), round, settings)
        .map_err(|error| failed(error.to_string()))?;
    let moments = saved.moments(disk, layout, version).map_err(read)?;
    let unsent = saved.unsent(disk, layout, version).map_err(read)?;
    let scope = settings.aggregation.scope(&settings.training, layout.rank(), version);
    let held = scope.outside(layout);
    let unsent = unsent.as_deref();
    let before = Before { adapter: &before, moments: &moments, unsent, held: &held };
    let after = advance(before, &settings.aggregation, round.round, &delta);
    let after = after.map_err(|error| failed(error.to_string()))?;
    if after.adapter.digest() != round.adapter_after {
        return Err(failed("the updates that are kept give another adapter".to_owned()));
    }
    // The last digit of a number may not outlive JSON.
    let same = |x: f64, y: f64| (x - y).abs() <= 1e-12 * x.abs().max(y.abs());
    match (residual, round.residual) {
        (None, None) => Ok(true),
        (Some(got), Some(named))
            if same(got.norm, named.norm) && same(got.relative, named.relative) =>
        {
            Ok(true)
        }
        _ => Err(failed("the updates that are kept give another residual".to_owned())),
    }
}

/// The combined delta of a round, and its residual if that was measured, from the updates that are
/// kept. They are held at once only for rules that need them so.
fn combine_again(
    disk: &dyn Disk,
    layout: &Layout,
    before: &[f32],
    round: &RoundEntry,
    settings: &Settings,
) -> Result<(Vec<f32>, Option<Residual>), Box<dyn Error>> {
    let aggregation = &settings.aggregation;
    let mut places: BTreeMap<Digest, Vec<usize>> = BTreeMap::new();
    for (place, accepted) in round.accepted.iter().enumerate() {
        places.entry(accepted.payload).or_default().push(place);
    }
    let mut mean = WeightedMean::new(layout);
    let mut deltas = BTreeMap::new();
    let mut problem: Option<Box<dyn Error>> = None;
    updates::read_all(disk, round.round, |payload| {
        let place = places.get_mut(&payload.digest()).and_then(Vec::pop);
        match (place, ClippedDelta::decode(&payload, layout, aggregation.clip_norm)) {
            (Some(place), Ok(delta)) => {
                mean.add(&delta, round.accepted[place].weight);
                if aggregation.needs_updates() {
                    deltas.insert(place, delta);
                }
            }
            (None, _) => problem = Some("an update is kept that it does not name".into()),
            (_, Err(error)) => problem = Some(error.into()),
        }
    })?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    if places.values().any(|left| !left.is_empty()) {
        return Err("an update that it names is not kept".into());
    }
    // Entries name updates in ClientId order.
    let deltas: Vec<ClippedDelta> = deltas.into_values().collect();
    let weights: Vec<u32> = round.accepted.iter().map(|accepted| accepted.weight).collect();
    let delta = match aggregation.rule() {
        Some(rule) => rule.combine(layout, before, &deltas, &weights),
        None => match settings.mode {
            Mode::Synchronous => {
                let counted = round.accepted.iter().map(AcceptedEntry::share);
                aggregation.mean(&mean, (layout, before), &settings.training, counted)
            }
            Mode::Buffered(config) => mean.over(config.divisor(), aggregation.clip_norm),
        },
    };
    let measured = aggregation.measure_residual;
    let residual = measured.then(|| Residual::of(layout, before, (&deltas, &weights), &delta));
    Ok((delta, residual))
}
