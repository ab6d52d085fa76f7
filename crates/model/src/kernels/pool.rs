//! Buffers that are used again.
//!
//! The same sizes come back at every step, so a buffer whose tensor has done its work is kept for
//! the next of its size: no page is faulted in twice, and nothing is zeroed only to be
//! overwritten. What a buffer held stays in it; whoever takes it overwrites all of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Values below which the allocator is as good.
const SMALL: usize = 1 << 10;

static FREE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

fn free<R>(f: impl FnOnce(&mut BTreeMap<usize, Vec<Vec<f32>>>) -> R) -> R {
    f(&mut FREE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A buffer of `len` values, whatever they are.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let reused = if len < SMALL { None } else { free(|free| free.get_mut(&len)?.pop()) };
    reused.unwrap_or_else(|| vec![0.0; len])
}

/// Keeps `buffer`.
pub(crate) fn keep(buffer: Vec<f32>) {
    if buffer.len() >= SMALL {
        free(|free| free.entry(buffer.len()).or_default().push(buffer));
    }
}

/// Frees all buffers that are kept.
pub(crate) fn clear() {
    free(BTreeMap::clear);
}
