//! Words of few bits, one behind the other: the first begins in the lowest bit of the first byte.

/// Most bits of a word.
pub(super) const BITS_MAX: u8 = 24;

/// Bytes that `len` words take.
pub(super) fn bytes(bits: u8, len: usize) -> usize {
    (len * usize::from(bits)).div_ceil(8)
}

/// The largest word.
pub(super) fn largest(bits: u8) -> u32 {
    (1 << bits) - 1
}

/// Appends `words`, of which each fits `bits` bits; zeros fill the last byte up.
pub(super) fn pack(bits: u8, words: &[u32], out: &mut Vec<u8>) {
    let (mut open, mut count) = (0u64, 0);
    for word in words {
        open |= u64::from(*word) << count;
        count += u32::from(bits);
        if count >= 32 {
            out.extend((open as u32).to_le_bytes());
            open >>= 32;
            count -= 32;
        }
    }
    out.extend(&open.to_le_bytes()[..count.div_ceil(8) as usize]);
}

/// The words in `bytes`; fewer bits than a word has are left over.
pub(super) fn unpack(bits: u8, mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (mut open, mut count) = (0u64, 0);
    std::iter::from_fn(move || {
        while count < bits {
            match bytes.split_off(..4).and_then(|four| four.try_into().ok()) {
                Some(four) => {
                    open |= u64::from(u32::from_le_bytes(four)) << count;
                    count += 32;
                }
                None => {
                    open |= u64::from(*bytes.split_off_first()?) << count;
                    count += 8;
                }
            }
        }
        let word = (open as u32) & largest(bits);
        open >>= bits;
        count -= bits;
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_word_is_in_the_lowest_bits() {
        let mut packed = Vec::new();
        pack(5, &[1, 2, 31], &mut packed);
        assert_eq!(packed, [0x41, 0x7c]);
    }

    proptest! {
        #[test]
        fn words_round_trip(bits in 1u8..=BITS_MAX, words in prop::collection::vec(any::<u32>(), 0..200)) {
            let words: Vec<u32> = words.iter().map(|word| word & largest(bits)).collect();
            let mut packed = Vec::new();
            pack(bits, &words, &mut packed);
            prop_assert_eq!(packed.len(), bytes(bits, words.len()));
            let found: Vec<u32> = unpack(bits, &packed).take(words.len()).collect();
            prop_assert_eq!(found, words);
        }
    }
}
