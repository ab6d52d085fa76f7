//! From a combined delta to the next global adapter, and to the step that devices download.
//!
//! With download compression, a step of the adapter is encoded as an update is, and the adapter that
//! everyone holds from then on is the one that the *encoded* step leads to: a device that adds the
//! decoded step to its copy has the server's adapter bit for bit, and one that fetches the whole has
//! the same. What encoding left out waits at the server and is added to the next step (error feedback
//! on the way down, as in Tang et al. 2019, DoubleSqueeze, arXiv 1905.05957, algorithm 1, the server's
//! half: p = C(v + δ), δ ← v + δ - p).

use floret_core::adapter::InvalidAdapter;
use floret_core::payload::{Encoder, InvalidDelta};
use floret_core::seed::Purpose;
use floret_core::{Adapter, Payload, Round, Seed};
use std::ops::Range;
use std::sync::Arc;

use crate::config::Aggregation;
use crate::refactor::refactor;
use crate::server_optimizer::Moments;

/// Where a round begins.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The adapter that everyone holds.
    pub adapter: &'a Adapter,
    /// What the server optimizer remembers.
    pub moments: &'a Moments,
    /// What earlier steps left out, in layout order; none if nothing.
    pub unsent: Option<&'a [f32]>,
    /// Places that no device trains, in order.
    pub held: &'a [Range<usize>],
}

/// Where a round that is committed ends.
#[derive(Debug, Clone, PartialEq)]
pub struct After {
    /// The adapter that everyone holds from now on.
    pub adapter: Adapter,
    /// What the server optimizer remembers.
    pub moments: Moments,
    /// What the steps so far left out, in layout order; none without download compression.
    pub unsent: Option<Vec<f32>>,
    /// What leads from the adapter before to this one, if that is sent.
    pub step: Option<Payload>,
}

/// A step that leads nowhere: values that are not finite.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoStep {
    /// The adapter after it.
    #[error(transparent)]
    Adapter(#[from] InvalidAdapter),
    /// The step itself.
    #[error("the step of the adapter cannot be encoded: {0}")]
    Step(#[from] InvalidDelta),
}

/// The end of `round`, whose combined delta is `delta`, in layout order. Whoever has the same inputs gets
/// the same bits: the rounding of a step is drawn from the digest of the adapter before it.
///
/// # Errors
/// An adapter or a step with values that are not finite.
pub fn advance(
    before: Before<'_>,
    aggregation: &Aggregation,
    round: Round,
    delta: &[f32],
) -> Result<After, NoStep> {
    let (start, layout) = (before.adapter.values(), before.adapter.layout());
    let optimizer = aggregation.server_optimizer;
    let (mut values, moments) = optimizer.step(start, before.moments, delta, before.held);
    if aggregation.fold_residual > 0 {
        // What nobody trains is where the combine rule folded: it is no optimizer's.
        let places = before.held.iter().cloned().flatten();
        places.for_each(|place| values[place] += delta[place]);
    }
    // What waits for places that stay as they are goes on waiting.
    let mut waits = before.unsent.map(|_| vec![0.0; values.len()]);
    if let (Some(unsent), Some(waits)) = (before.unsent, &mut waits) {
        let mut sent = unsent.to_vec();
        for places in before.held {
            waits[places.clone()].copy_from_slice(&unsent[places.clone()]);
            sent[places.clone()].fill(0.0);
        }
        values.iter_mut().zip(sent).for_each(|(value, rest)| *value += rest);
    }
    let compression = aggregation.download_compression;
    if compression.is_none() {
        let mut adapter = Adapter::new(Arc::clone(layout), values)?;
        if aggregation.refactor {
            let mut values = adapter.values().to_vec();
            refactor(layout, &mut values);
            adapter = Adapter::new(Arc::clone(layout), values)?;
        }
        let unsent = waits.filter(|waits| waits.iter().any(|value| *value != 0.0));
        return Ok(After { adapter, moments, unsent, step: None });
    }
    let mut wanted: Vec<f32> = values.iter().zip(start).map(|(end, start)| end - start).collect();
    before.held.iter().for_each(|places| wanted[places.clone()].fill(0.0));
    let seed = Seed(before.adapter.digest().0).derive(Purpose::Rounding, round, None);
    let encoder = Encoder::new(compression, layout).leading_to(&values).with_feedback(round.0);
    let step = encoder.encode(&wanted, &mut seed.stream())?;
    let Ok(sent) = step.decode(layout) else { unreachable!("what was encoded here decodes here") };
    let mut unsent: Vec<f32> =
        wanted.iter().zip(&sent).map(|(wanted, sent)| wanted - sent).collect();
    if let Some(waits) = waits {
        unsent.iter_mut().zip(waits).for_each(|(unsent, waits)| *unsent += waits);
    }
    let adapter = before.adapter.plus(&sent)?;
    Ok(After { adapter, moments, unsent: Some(unsent), step: Some(step) })
}

#[cfg(test)]
mod tests {
    use floret_core::payload::Compression;
    use proptest::prelude::*;

    use super::*;
    use crate::coordinator::tests::layout;

    fn aggregation(download_compression: Compression) -> Aggregation {
        Aggregation { download_compression, ..Aggregation::default() }
    }

    fn delta(round: u32) -> Vec<f32> {
        let wave = |i: usize| (0.7 * i as f32 + round as f32).sin() * 0.01;
        (0..layout().len()).map(wave).collect()
    }

    /// Advances through `rounds`, and gives the end beside the adapter that a device has which adds up
    /// the steps.
    fn run(compression: Compression, rounds: u32) -> (After, Adapter) {
        let seed = Seed::from_number(3);
        let adapter = Adapter::init(layout(), &seed);
        let mut held = adapter.clone();
        let moments = Moments::zero(layout().len());
        let mut end = After { adapter, moments, unsent: None, step: None };
        for round in 1..=rounds {
            let unsent = end.unsent.as_deref();
            let before = Before { adapter: &end.adapter, moments: &end.moments, unsent, held: &[] };
            end = advance(before, &aggregation(compression), Round(round), &delta(round)).unwrap();
            if let Some(step) = &end.step {
                held = held.plus(&step.decode(&layout()).unwrap()).unwrap();
            }
        }
        (end, held)
    }

    #[test]
    fn a_device_that_adds_the_steps_has_the_servers_adapter() {
        let (end, held) = run(Compression::Int8, 20);
        assert_eq!(held, end.adapter);
        assert!(end.step.unwrap().bytes().len() < layout().bytes());
    }

    /// Σ C(v + δ) = Σ v - δ: what is left out of one step comes with a later one.
    #[test]
    fn what_a_step_leaves_out_is_not_lost() {
        let (exact, _) = run(Compression::None, 20);
        let (end, _) = run(Compression::Int8, 20);
        let unsent = end.unsent.unwrap();
        let values = end.adapter.values().iter().zip(&unsent).map(|(value, rest)| value + rest);
        for (got, want) in values.zip(exact.adapter.values()) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        assert!(unsent.iter().all(|rest| rest.abs() < 0.01));
        assert!(unsent.iter().any(|rest| *rest != 0.0));
        assert_eq!((exact.unsent, exact.step), (None, None));
    }

    #[test]
    fn a_run_that_stops_compressing_sends_what_was_left_out() {
        let (end, _) = run(Compression::Int8, 3);
        let before = Before {
            adapter: &end.adapter,
            moments: &end.moments,
            unsent: end.unsent.as_deref(),
            held: &[],
        };
        let nothing = vec![0.0; layout().len()];
        let last = advance(before, &aggregation(Compression::None), Round(4), &nothing).unwrap();
        let (exact, _) = run(Compression::None, 3);
        let pairs = last.adapter.values().iter().zip(exact.adapter.values());
        assert!(pairs.into_iter().all(|(got, want)| (got - want).abs() < 1e-5));
        assert_eq!(last.unsent, None);
    }

    /// What waits in a place that is held comes when it is not.
    #[test]
    fn places_that_are_held_stay_as_they_are() {
        let (end, _) = run(Compression::Int8, 3);
        let (adapter, moments) = (&end.adapter, &end.moments);
        let (unsent, held) = (end.unsent.as_deref(), [10..20, 30..31]);
        let before = Before { adapter, moments, unsent, held: &held };
        let next = advance(before, &aggregation(Compression::Int8), Round(4), &delta(4)).unwrap();
        for place in 0..layout().len() {
            let is_held = held.iter().any(|places| places.contains(&place));
            assert_eq!(is_held, next.adapter.values()[place] == adapter.values()[place], "{place}");
            if is_held {
                assert_eq!(next.unsent.as_ref().unwrap()[place], unsent.unwrap()[place]);
            }
        }
        // Also when steps are not encoded any more.
        let last = advance(before, &aggregation(Compression::None), Round(4), &delta(4)).unwrap();
        for place in held.iter().flat_map(Clone::clone) {
            assert_eq!(last.adapter.values()[place], adapter.values()[place]);
            assert_eq!(last.unsent.as_ref().unwrap()[place], unsent.unwrap()[place]);
        }
        assert!(last.unsent.unwrap()[..10].iter().all(|value| *value == 0.0));
    }

    proptest! {
        #[test]
        fn values_that_are_not_finite_lead_nowhere(at in 0usize..64, int8: bool) {
            let adapter = Adapter::init(layout(), &Seed::from_number(1));
            let moments = Moments::zero(layout().len());
            let before = Before { adapter: &adapter, moments: &moments, unsent: None, held: &[] };
            let mut delta = delta(1);
            let at = at % delta.len();
            delta[at] = f32::INFINITY;
            let compression = if int8 { Compression::Int8 } else { Compression::None };
            prop_assert!(advance(before, &aggregation(compression), Round(1), &delta).is_err());
        }
    }
}
