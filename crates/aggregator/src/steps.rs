//! The adapter's latest steps, ready to be sent to devices that hold an earlier version: encoded once,
//! however many fetch them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use floret_core::{Digest, Payload};

use crate::message::Record;

/// Steps in order, each with the adapter that it starts from. They do not outlive a restart: whoever
/// comes then fetches the whole adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// Digest of the adapter before each step, and the step's length in bytes.
    steps: VecDeque<(Digest, usize)>,
    /// The steps, one behind the other.
    bytes: Bytes,
}

impl Steps {
    /// Keeps the step of a round that was committed; one without a step ends them all.
    pub fn keep(&mut self, record: &Record) {
        let Record::RoundCommitted { summary, after } = record else { return };
        match &after.step {
            Some(step) => {
                let whole = after.adapter.layout().bytes();
                self.push(summary.adapter_before, step, whole);
            }
            None => *self = Self::default(),
        }
    }

    /// Adds the step that starts from the adapter `before`. The oldest go when all together are larger
    /// than `whole`, the bytes of the adapter itself.
    fn push(&mut self, before: Digest, step: &Payload, whole: usize) {
        self.steps.push_back((before, step.bytes().len()));
        let mut total = self.bytes.len() + step.bytes().len();
        let mut gone = 0;
        while total > whole
            && let Some((_, oldest)) = self.steps.pop_front()
        {
            total -= oldest;
            gone += oldest;
        }
        let mut bytes = BytesMut::with_capacity(total);
        for part in [&self.bytes[..], step.bytes()] {
            let skipped = gone.min(part.len());
            gone -= skipped;
            bytes.extend_from_slice(&part[skipped..]);
        }
        self.bytes = bytes.freeze();
    }

    /// Lengths of the steps that lead from the adapter `held` to the current one, and their bytes.
    #[must_use]
    pub fn since(&self, held: Digest) -> Option<(Vec<u64>, Bytes)> {
        let first = self.steps.iter().position(|(before, _)| *before == held)?;
        let skipped: usize = self.steps.iter().take(first).map(|(_, len)| len).sum();
        let lengths = self.steps.iter().skip(first).map(|(_, len)| *len as u64).collect();
        Some((lengths, self.bytes.slice(skipped..)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(steps: &mut Steps, before: &str, bytes: &str, whole: usize) {
        steps.push(
            Digest::of(before.as_bytes()),
            &Payload::from_bytes(bytes.as_bytes().to_vec()),
            whole,
        );
    }

    #[test]
    fn a_device_gets_the_steps_behind_what_it_holds() {
        let mut steps = Steps::default();
        push(&mut steps, "v0", "one", 8);
        push(&mut steps, "v1", "two", 8);
        let since = |steps: &Steps, held: &str| steps.since(Digest::of(held.as_bytes()));
        assert_eq!(since(&steps, "v0"), Some((vec![3, 3], "onetwo".into())));
        assert_eq!(since(&steps, "v1"), Some((vec![3], "two".into())));
        assert_eq!(since(&steps, "v2"), None);
        // Nine bytes are more than the adapter itself has.
        push(&mut steps, "v2", "six", 8);
        assert_eq!(since(&steps, "v0"), None);
        assert_eq!(since(&steps, "v1"), Some((vec![3, 3], "twosix".into())));
        push(&mut steps, "v3", "too long", 7);
        assert_eq!(steps, Steps::default());
        push(&mut steps, "v4", "all", 7);
        assert_eq!(since(&steps, "v4"), Some((vec![3], "all".into())));
    }
}
