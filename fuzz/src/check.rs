//! One input, under its limits.

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::Target;

/// What an input did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the decoder accepted it.
    pub accepted: bool,
    /// Most bytes that were allocated at any one time.
    pub peak: u64,
}

/// How an input fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A panic, with its place and message.
    Panic(String),
    /// More memory than the target declares.
    Allocation {
        /// Most bytes that were allocated at any one time.
        peak: u64,
        /// As declared.
        limit: usize,
    },
    /// No end within so many seconds.
    Hang(u64),
    /// The whole process died, as it does when its stack or memory is used up.
    Death,
}

impl Failure {
    /// Whether both fail in the same way.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let place = |message: &str| message.split(": ").next().map(str::to_owned);
        match (self, other) {
            (Self::Panic(one), Self::Panic(two)) => place(one) == place(two),
            (one, two) => std::mem::discriminant(one) == std::mem::discriminant(two),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(message) => write!(f, "panic at {message}"),
            Self::Allocation { peak, limit } => {
                write!(f, "{peak} bytes were allocated where the target declares {limit}")
            }
            Self::Hang(seconds) => write!(f, "no end within {seconds} s"),
            Self::Death => f.write_str("the process died"),
        }
    }
}

thread_local! {
    /// The last panic of this thread while it checks an input; `None` when it does not.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics are kept for the report while an input is checked, and shown as ever otherwise.
fn keep_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let shown = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let kept = PANIC.with_borrow_mut(|kept| {
                let message = info.payload_as_str().unwrap_or("a value");
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                kept.as_mut().map(|kept| *kept = format!("{place}: {message}"))
            });
            if kept.is_none() {
                shown(info);
            }
        }));
    });
}

/// Gives `input` to the target.
///
/// # Errors
/// A panic, or more memory than the target declares.
pub fn check(target: &Target, input: &[u8]) -> Result<Outcome, Failure> {
    let first = measure(target, input)?;
    let limit = (target.limit)(input);
    if first.peak <= limit as u64 {
        return Ok(first);
    }
    // The first time, tables may be made that stay.
    match measure(target, input)? {
        Outcome { peak, .. } if peak > limit as u64 => Err(Failure::Allocation { peak, limit }),
        outcome => Ok(outcome),
    }
}

fn measure(target: &Target, input: &[u8]) -> Result<Outcome, Failure> {
    keep_panics();
    let mut accepted = None;
    PANIC.set(Some(String::new()));
    let used = allocation_counter::measure(|| {
        accepted = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).ok();
    });
    let message = PANIC.take().unwrap_or_default();
    match accepted {
        Some(accepted) => Ok(Outcome { accepted, peak: used.bytes_max }),
        None => Err(Failure::Panic(message)),
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;
    use crate::targets::ALL;

    fn fake(run: fn(&[u8]) -> bool) -> Target {
        Target { run, limit: |data| 10 * data.len() + 1000, ..ALL[0] }
    }

    #[test]
    fn each_kind_of_failure_is_seen() {
        let fine = check(&fake(|data| black_box(data.to_vec()) == b"ab"), b"ab").unwrap();
        assert!(fine.accepted && (2..100).contains(&fine.peak), "{fine:?}");
        let panic = check(&fake(|data| data[5] == 0), b"ab").unwrap_err();
        assert!(matches!(&panic, Failure::Panic(text) if text.contains("check.rs")), "{panic}");
        let large = check(&fake(|data| black_box(vec![0u8; data.len() + 2000]).is_empty()), b"ab");
        assert_eq!(large.unwrap_err(), Failure::Allocation { peak: 2002, limit: 1020 });
    }
}
