//! Codes of 1 to 4 bits as planes: first the lowest bit of every code, then the next. A byte of a
//! plane holds the bits of eight codes, the first in its lowest bit.

/// The bits of each byte, one in each byte of a word.
const SPREAD: [u64; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            table[byte] |= ((byte as u64 >> bit) & 1) << (8 * bit);
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// Bytes that `len` codes take; `len` is a multiple of eight.
pub(super) fn bytes(width: u8, len: usize) -> usize {
    usize::from(width) * (len / 8)
}

/// Appends the planes of `codes`, whose number is a multiple of eight.
pub(super) fn pack(width: u8, codes: &[u8], out: &mut Vec<u8>) {
    for plane in 0..width {
        out.extend(codes.as_chunks::<8>().0.iter().map(|eight| {
            let bits = (u64::from_le_bytes(*eight) >> plane) & 0x0101_0101_0101_0101;
            // Moves the bit of byte i to bit i of the highest byte.
            (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
        }));
    }
}

/// Looks up the codes of `planes` in `values`.
pub(super) fn look_up(width: u8, planes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    match width {
        1 => unpack::<1>(planes, values, out),
        2 => unpack::<2>(planes, values, out),
        3 => unpack::<3>(planes, values, out),
        _ => unpack::<4>(planes, values, out),
    }
}

fn unpack<const WIDTH: usize>(planes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    let eights = out.as_chunks_mut::<8>().0;
    let length = eights.len();
    let planes: [&[u8]; WIDTH] =
        std::array::from_fn(|plane| &planes[plane * length..(plane + 1) * length]);
    for (at, eight) in eights.iter_mut().enumerate() {
        let mut codes = 0;
        for (plane, bytes) in planes.iter().enumerate() {
            codes |= SPREAD[usize::from(bytes[at])] << plane;
        }
        for (value, code) in eight.iter_mut().zip(codes.to_le_bytes()) {
            *value = values[usize::from(code & 15)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        let values = std::array::from_fn(|code| code as f32);
        for width in 1..=4 {
            let codes: Vec<u8> =
                (0..64u8).map(|i| i.wrapping_mul(37) >> 3 & ((1 << width) - 1)).collect();
            let mut packed = Vec::new();
            pack(width, &codes, &mut packed);
            assert_eq!(packed.len(), bytes(width, codes.len()));
            let mut found = vec![0.0; codes.len()];
            look_up(width, &packed, &values, &mut found);
            assert!(codes.iter().zip(&found).all(|(code, value)| f32::from(*code) == *value));
        }
    }

    #[test]
    fn the_first_code_is_in_the_lowest_bit() {
        let mut packed = Vec::new();
        pack(2, &[1, 0, 0, 2, 0, 0, 0, 3], &mut packed);
        assert_eq!(packed, [0b1000_0001, 0b1000_1000]);
    }
}
