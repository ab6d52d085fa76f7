//! Buffers that are used again.
//!
//! The same sizes come back at every step, so a buffer whose tensor has done its work is kept for
//! the next of its size: no page is faulted in twice, and nothing is zeroed only to be
//! overwritten. What a buffer held stays in it; whoever takes it overwrites all of it. Buffers are
//! kept while somebody holds a [`Lease`].

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Values below which the allocator is as good.
const SMALL: usize = 1 << 10;

/// Free buffers of one length.
#[derive(Default)]
struct Shelf {
    free: Vec<Vec<f32>>,
    /// The fewest that were free at once since the last [`trim`]: as many are not needed.
    spare: usize,
}

#[derive(Default)]
struct Pool {
    leases: usize,
    /// Calls of [`trim`] since it last freed some.
    asked: usize,
    shelves: BTreeMap<usize, Shelf>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { leases: 0, asked: 0, shelves: BTreeMap::new() });

fn pool<R>(f: impl FnOnce(&mut Pool) -> R) -> R {
    f(&mut POOL.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Pool {
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let shelf = self.shelves.get_mut(&len)?;
        let buffer = shelf.free.pop();
        shelf.spare = shelf.spare.min(shelf.free.len());
        buffer
    }

    fn keep(&mut self, buffer: Vec<f32>) {
        if self.leases > 0 {
            self.shelves.entry(buffer.len()).or_default().free.push(buffer);
        }
    }

    fn trim(&mut self) {
        self.asked += 1;
        if self.asked < self.leases {
            return;
        }
        self.asked = 0;
        self.shelves.retain(|_, shelf| {
            shelf.free.truncate(shelf.free.len() - shelf.spare);
            shelf.spare = shelf.free.len();
            !shelf.free.is_empty()
        });
    }
}

/// Buffers are kept while one of these lives; behind the last, all are freed.
#[derive(Debug)]
pub(crate) struct Lease(());

impl Lease {
    pub(crate) fn new() -> Self {
        pool(|pool| pool.leases += 1);
        Self(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        pool(|pool| {
            pool.leases -= 1;
            if pool.leases == 0 {
                pool.shelves.clear();
            }
        });
    }
}

/// A buffer of `len` values, whatever they are.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let reused = if len < SMALL { None } else { pool(|pool| pool.take(len)) };
    reused.unwrap_or_else(|| vec![0.0; len])
}

/// Keeps `buffer` for the next of its size.
pub(crate) fn keep(buffer: Vec<f32>) {
    if buffer.len() >= SMALL {
        pool(|pool| pool.keep(buffer));
    }
}

/// Frees the buffers that were not needed since it last did; every holder of a lease calls it at each
/// step, and when it was called as often as there are holders, all of them have done one.
pub(crate) fn trim() {
    pool(Pool::trim);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_those_not_needed_are_freed() {
        let mut pool = Pool { leases: 1, ..Pool::default() };
        let lengths = |pool: &Pool| -> Vec<(usize, usize)> {
            pool.shelves.iter().map(|(len, shelf)| (*len, shelf.free.len())).collect()
        };
        [10, 10, 30].into_iter().for_each(|len| pool.keep(vec![1.0; len]));
        pool.trim();
        assert_eq!(lengths(&pool), [(10, 2), (30, 1)]);
        let buffer = pool.take(10).unwrap();
        assert_eq!((buffer.len(), pool.take(20)), (10, None));
        pool.keep(buffer);
        pool.trim();
        assert_eq!(lengths(&pool), [(10, 1)]);
        pool.leases = 0;
        pool.keep(vec![1.0; 10]);
        assert_eq!(lengths(&pool), [(10, 1)]);
    }
}
