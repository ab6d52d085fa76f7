//! 1 to 4 bits for each value of a rotated segment: DRIVE (Vargaftik et al. 2021, arXiv 2105.08339) at
//! one bit and EDEN (Vargaftik et al. 2022, arXiv 2108.08842) beyond.
//!
//! The values are cut into segments, of which a payload holds one, and that into blocks. A block x of
//! d values is rotated, y = H D x / sqrt(d), and each y_i sqrt(d) / ‖x‖ becomes the nearest centroid
//! q_i of a normal distribution. The decoder gives D H (S q) / sqrt(d), with
//!
//! - S = <y, q> / ‖q‖², which makes the least error, where that is fed back (DRIVE, section 4.1), and
//! - S = ‖x‖² / <y, q>, which makes the expectation right, where it is not (EDEN, section 3.2).
//!
//! ```text
//! width, segments, segment    a byte each
//! seed of the signs           u32, little-endian
//! for each block              S, an f32; then its codes as planes
//! ```

use std::ops::Range;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use super::compression::Bits;
use super::lloyd_max::Codebook;
use super::rotation::{Block, Signs, blocks, hadamard, longest, segment};
use super::{InvalidPayload, Remainder, planes};

const HEADER: usize = 7;
const SCALE: usize = size_of::<f32>();

pub(super) fn encode(
    bits: Bits,
    remainder: Remainder,
    delta: &[f32],
    rng: &mut ChaCha20Rng,
    out: &mut Vec<u8>,
) {
    let segments = u32::from(bits.segments());
    // A segment that is drawn stands for all of them.
    let (turn, gain) = match remainder {
        Remainder::FedBack { turn } => (turn, 1.0),
        Remainder::Dropped => (rng.next_u32(), f64::from(segments)),
    };
    let segment = (turn % segments) as u8;
    let values = &delta[range(delta.len(), bits, segment)];
    let seed = rng.next_u32();
    let (signs, mut block) = room(values.len(), seed);
    let codebook = Codebook::new(bits.width());
    let mut codes = vec![0; block.len()];

    out.reserve(body_bytes(bits, values.len()));
    out.extend([bits.width(), bits.segments(), segment]);
    out.extend(seed.to_le_bytes());
    for Block { range, size } in blocks(values.len()) {
        let (block, codes) = (&mut block[..size], &mut codes[..size]);
        let largest = load(&values[range], block);
        rotate(block, &signs);
        let scale = quantize(block, &codebook, remainder, codes);
        let scale = (scale * gain * f64::from(largest)).min(f64::from(f32::MAX)) as f32;
        out.extend(scale.to_le_bytes());
        planes::pack(bits.width(), codes, out);
    }
}

pub(super) fn decode(len: usize, body: &[u8]) -> Result<Vec<f32>, InvalidPayload> {
    let length = |want| InvalidPayload::Length { part: "bits", want, got: body.len() };
    let (header, mut rest) = body.split_first_chunk::<HEADER>().ok_or(length(HEADER))?;
    let [width, segments, segment, seed @ ..] = *header;
    let bits = Bits::new(width, segments).map_err(|_| InvalidPayload::Damaged("width"))?;
    if segment >= segments {
        return Err(InvalidPayload::Damaged("segment"));
    }
    let range = range(len, bits, segment);
    let want = body_bytes(bits, range.len());
    if body.len() != want {
        return Err(length(want));
    }
    let (signs, mut block) = room(range.len(), u32::from_le_bytes(seed));
    let codebook = Codebook::new(width);
    let mut delta = Vec::with_capacity(len);
    delta.resize(range.start, 0.0);
    for Block { range, size } in blocks(range.len()) {
        let (scale, codes, block) = (rest.split_off(..SCALE), size, &mut block[..size]);
        let scale = scale.and_then(|bytes| bytes.try_into().ok()).map(f32::from_le_bytes);
        let codes = rest.split_off(..planes::bytes(width, codes));
        let (Some(scale), Some(codes)) = (scale, codes) else { return Err(length(want)) };
        if !(scale.is_finite() && scale >= 0.0) {
            return Err(InvalidPayload::NotFinite);
        }
        planes::look_up(width, codes, codebook.values(), block);
        hadamard(block);
        signs.flip(block);
        let factor = scale / (size as f32).sqrt();
        let value = |unit: &f32| (*unit * factor).clamp(f32::MIN, f32::MAX);
        delta.extend(block[..range.len()].iter().map(value));
    }
    delta.resize(len, 0.0);
    Ok(delta)
}

/// The values of one segment: contiguous, so that tensors that belong together move together.
fn range(len: usize, bits: Bits, index: u8) -> Range<usize> {
    segment(len, bits.segments(), index)
}

fn body_bytes(bits: Bits, len: usize) -> usize {
    let block = |block: Block| SCALE + planes::bytes(bits.width(), block.size);
    HEADER + blocks(len).map(block).sum::<usize>()
}

/// Signs and room for the longest block of `len` values, which comes first.
fn room(len: usize, seed: u32) -> (Signs, Vec<f32>) {
    let longest = longest(len);
    (Signs::draw(seed, longest), vec![0.0; longest])
}

/// Copies `values`, divided by the largest of them, to a block that zeros fill up: no sum overflows,
/// and the smallest keep their digits. Gives the largest.
fn load(values: &[f32], block: &mut [f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let divisor = if largest > 0.0 { largest } else { 1.0 };
    let (filled, rest) = block.split_at_mut(values.len());
    filled.iter_mut().zip(values).for_each(|(slot, value)| *slot = value / divisor);
    rest.fill(0.0);
    largest
}

/// x becomes H D x / sqrt(d).
fn rotate(block: &mut [f32], signs: &Signs) {
    signs.flip(block);
    hadamard(block);
    let norm = 1.0 / (block.len() as f32).sqrt();
    block.iter_mut().for_each(|value| *value *= norm);
}

/// The code of each value of a rotated block, and S; zero for a block of zeros.
fn quantize(rotated: &[f32], book: &Codebook, remainder: Remainder, codes: &mut [u8]) -> f64 {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let energy: f64 = rotated.iter().map(square).sum();
    if energy == 0.0 {
        codes.fill(0);
        return 0.0;
    }
    let unit = (rotated.len() as f64 / energy).sqrt() as f32;
    let (mut product, mut centroids) = (0.0, 0.0);
    book.code(rotated, unit, codes);
    for (code, value) in codes.iter().zip(rotated) {
        let centroid = book.values()[usize::from(*code & 15)];
        product += f64::from(*value) * f64::from(centroid);
        centroids += square(&centroid);
    }
    match remainder {
        Remainder::FedBack { .. } => product / centroids,
        Remainder::Dropped => energy / product,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ../shared/vectors, block `compression`: DRIVE on a block of eight, with these signs.
    const X: [f32; 8] = [1.0, -2.0, 3.1, 0.5, -1.0, 0.3, 2.0, -0.7];
    const SIGNS: [f32; 8] = [1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0];
    const ROTATED: [f64; 8] = [
        2.333_452_377_915_607,
        -0.141_421_356_237_309_5,
        0.707_106_781_186_547_5,
        -0.070_710_678_118_654_65,
        2.333_452_377_915_607,
        1.272_792_206_135_785_5,
        -1.131_370_849_898_476,
        -2.474_873_734_152_916_3,
    ];

    fn signs() -> Signs {
        let mut masks = SIGNS.iter().map(|sign| sign.to_bits() & (1 << 31));
        Signs::given(&mut masks)
    }

    #[test]
    fn one_bit_is_drives() {
        let mut block = X;
        rotate(&mut block, &signs());
        for (value, want) in block.iter().zip(ROTATED) {
            assert!((f64::from(*value) - want).abs() < 1e-6, "{value} {want}");
        }
        let energy: f64 = X.iter().map(|x| f64::from(*x).powi(2)).sum();
        // (remainder, S of signs, normalised error)
        let cases = [
            (Remainder::Dropped, 1.953_143_595_601_761, 0.493_060_628_195_763_24),
            (Remainder::FedBack { turn: 0 }, 1.308_147_545_195_113, 0.330_234_833_659_491_2),
        ];
        for (remainder, want_scale, want_error) in cases {
            let (book, mut codes) = (Codebook::new(1), [0; 8]);
            let scale = quantize(&block, &book, remainder, &mut codes);
            let of_signs = scale * f64::from(book.values()[0]);
            assert!((of_signs - want_scale).abs() < 1e-6, "{of_signs}");
            let mut decoded = codes.map(|code| book.values()[usize::from(code)]);
            hadamard(&mut decoded);
            signs().flip(&mut decoded);
            let decoded = decoded.map(|value| f64::from(value) * scale / 8f64.sqrt());
            let error = |(x, y): (&f32, f64)| (f64::from(*x) - y).powi(2);
            let error = X.iter().zip(decoded).map(error).sum::<f64>() / energy;
            assert!((error - want_error).abs() < 1e-6, "{error}");
            if remainder == Remainder::Dropped {
                let want = 2.762_162_162_162_162;
                let want = [0.0, -want, want, 0.0, 0.0, want, want, 0.0];
                assert!(decoded.iter().zip(want).all(|(x, y)| (x - y).abs() < 1e-5), "{decoded:?}");
            }
        }
    }
}
