//! The order in which training goes over sequences: a new seeded one for each epoch.

use floret_core::Seed;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

/// Endless epochs over some items.
#[derive(Debug)]
pub(crate) struct Epochs<'a, T> {
    items: &'a [T],
    order: Vec<usize>,
    done: usize,
    stream: ChaCha20Rng,
}

impl<'a, T> Epochs<'a, T> {
    /// Epochs over `items`; none if there is no item.
    pub(crate) fn new(items: &'a [T], seed: &Seed) -> Option<Self> {
        let order: Vec<usize> = (0..items.len()).collect();
        let done = order.len();
        (done > 0).then(|| Self { items, order, done, stream: seed.stream() })
    }

    /// The next `size` items, or as many as the epoch has left: a share never holds an item twice.
    pub(crate) fn next_share(&mut self, size: usize) -> Vec<&'a T> {
        if self.done == self.order.len() {
            self.shuffle();
            self.done = 0;
        }
        let end = self.order.len().min(self.done.saturating_add(size.max(1)));
        let share = self.order[self.done..end].iter().map(|&at| &self.items[at]).collect();
        self.done = end;
        share
    }

    /// Fisher and Yates, from the end.
    fn shuffle(&mut self) {
        for last in (1..self.order.len()).rev() {
            let bound = last as u64 + 1;
            // Multiply and shift maps 64 random bits to 0..bound; its bias is below bound / 2^64.
            let pick = (u128::from(self.stream.next_u64()) * u128::from(bound)) >> 64;
            self.order.swap(last, pick as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_each_item_once_in_a_new_order() {
        let items: Vec<u32> = (0..50).collect();
        let mut epochs = Epochs::new(&items, &Seed::from_number(1)).unwrap();
        let mut epoch = || -> Vec<u32> {
            let shares = (0..4).map(|_| epochs.next_share(15)).collect::<Vec<_>>();
            assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [15, 15, 15, 5]);
            shares.concat().into_iter().copied().collect()
        };
        let (first, second) = (epoch(), epoch());
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, items);
        }
        assert!(Epochs::new(&items[..0], &Seed::from_number(1)).is_none());
    }
}
