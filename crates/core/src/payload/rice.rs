//! Rice codes (Golomb 1966 with a power of two; Sattler et al. 2019, arXiv 1903.02891, section VI-C):
//! a number n is n >> b ones, a zero, and the b lowest bits of n, the highest first. Bits fill bytes
//! from the highest down.

/// Most low bits.
pub(super) const LOW_BITS_MAX: u8 = 24;

/// The number of low bits with which `numbers` take the fewest bits.
pub(super) fn best(numbers: &[u32]) -> u8 {
    let cost = |low: u8| {
        let bits = |number: &u32| u64::from(number >> low);
        numbers.iter().map(bits).sum::<u64>() + numbers.len() as u64 * u64::from(low)
    };
    (0..=LOW_BITS_MAX).min_by_key(|low| cost(*low)).unwrap_or(0)
}

/// Appends bits to bytes.
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Bits that are not yet a whole byte, in the lowest places.
    held: u64,
    count: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, held: 0, count: 0 }
    }

    /// Appends the `count` lowest bits of `bits`; at most 32 of them.
    pub(super) fn bits(&mut self, bits: u32, count: u32) {
        self.held = (self.held << count) | u64::from(bits);
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            self.out.push((self.held >> self.count) as u8);
        }
    }

    /// Appends the code of `number`.
    pub(super) fn rice(&mut self, number: u32, low: u8) {
        let mut ones = number >> low;
        while ones >= 16 {
            self.bits(0xffff, 16);
            ones -= 16;
        }
        // The ones and their zero.
        self.bits((1 << (ones + 1)) - 2, ones + 1);
        self.bits(number & ((1 << low) - 1), u32::from(low));
    }

    /// Fills the last byte up with zeros.
    pub(super) fn finish(mut self) {
        if self.count > 0 {
            self.bits(0, 8 - self.count);
        }
    }
}

/// Reads what [`Writer`] wrote. `None` where the bytes end too early.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// The next bits, in the highest places; zeros below.
    held: u64,
    count: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    /// Holds 56 to 63 bits, or all that are left.
    fn refill(&mut self) {
        if let (Some(eight), true) = (self.bytes.first_chunk::<8>(), self.count < 56) {
            let whole = (63 - self.count) / 8;
            let taken = u64::from_be_bytes(*eight) >> (64 - 8 * whole) << (64 - 8 * whole);
            self.held |= taken >> self.count;
            self.count += 8 * whole;
            self.bytes = &self.bytes[whole as usize..];
        }
        while self.count < 56
            && let Some((byte, rest)) = self.bytes.split_first()
        {
            self.held |= u64::from(*byte) << (56 - self.count);
            self.count += 8;
            self.bytes = rest;
        }
    }

    fn skip(&mut self, count: u32) {
        self.held <<= count;
        self.count -= count;
    }

    /// The next `count` bits, at most 32.
    pub(super) fn bits(&mut self, count: u32) -> Option<u32> {
        if self.count < count {
            self.refill();
        }
        if self.count < count {
            return None;
        }
        // Two shifts: one by 64 would be none.
        let bits = (self.held >> 32 >> (32 - count)) as u32;
        self.skip(count);
        Some(bits)
    }

    /// The next number, if it is at most `most`.
    pub(super) fn rice(&mut self, low: u8, most: u64) -> Option<u64> {
        let mut high = 0u64;
        loop {
            if self.count < 32 {
                self.refill();
            }
            let ones = self.held.leading_ones();
            let ended = ones < self.count;
            high += u64::from(ones);
            if high > most >> low || self.count == 0 {
                return None;
            }
            self.skip(ones);
            if ended {
                self.skip(1);
                break;
            }
        }
        let number = high << low | u64::from(self.bits(low.into())?);
        (number <= most).then_some(number)
    }

    /// Whether nothing is left but the zeros that fill the last byte up.
    pub(super) fn is_done(&self) -> bool {
        self.bytes.is_empty() && self.count < 8 && self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(numbers: &[u32], low: u8) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        numbers.iter().for_each(|number| writer.rice(*number, low));
        writer.finish();
        out
    }

    /// ../shared/vectors, block `compression`, `stc_k3`: gaps 1, 0, 3 are "01", "00", "101".
    #[test]
    fn codes_are_those_of_the_vectors() {
        assert_eq!(write(&[1, 0, 3], 1), [0b0100_1010]);
        assert_eq!(write(&[9], 2), [0b1100_1000]);
    }

    #[test]
    fn the_longest_runs_of_ones_are_read() {
        for number in [0, 7, 8, 15, 16, 17, 62, 63, 64, 65, 127, 128, 1000] {
            for low in [0, 3] {
                let bytes = write(&[number, 5, number], low);
                let mut reader = Reader::new(&bytes);
                for want in [number, 5, number] {
                    assert_eq!(
                        reader.rice(low, u64::MAX >> 8),
                        Some(want.into()),
                        "{number} {low}"
                    );
                }
                assert!(reader.is_done());
            }
        }
    }

    #[test]
    fn numbers_beyond_the_most_and_missing_bits_are_none() {
        assert_eq!(Reader::new(&[0b1110_1000]).rice(1, 6), None);
        assert_eq!(Reader::new(&[0b1110_0000]).rice(1, 6), Some(6));
        assert_eq!(Reader::new(&[0xff; 100]).rice(0, 1 << 40), None);
        assert_eq!(Reader::new(&[0xff; 100]).rice(0, 70), None);
        assert_eq!(Reader::new(&[]).rice(0, 70), None);
        assert_eq!(Reader::new(&[0]).bits(9), None);
        assert!(!Reader::new(&[0]).is_done());
    }

    proptest! {
        #[test]
        fn numbers_round_trip(numbers in prop::collection::vec(0u32..5000, 0..200), low in 0u8..=12) {
            let bytes = write(&numbers, low);
            let mut reader = Reader::new(&bytes);
            for number in numbers {
                prop_assert_eq!(reader.rice(low, 5000), Some(number.into()));
            }
            prop_assert!(reader.is_done());
        }

        #[test]
        fn the_best_number_of_low_bits_is_the_best(numbers in prop::collection::vec(0u32..2000, 1..100)) {
            let best = write(&numbers, best(&numbers)).len();
            prop_assert!((0..=LOW_BITS_MAX).all(|low| best <= write(&numbers, low).len()));
        }
    }
}
