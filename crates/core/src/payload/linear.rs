//! Payloads that can be added up as they are, and so under masks (secure aggregation): every client of
//! a round sends the same places, rotated by the same signs, on the same grid, as words that hold the
//! sum of all of them. Clip, rotate, round stochastically, count modulo 2^m: the pipeline of Kairouz
//! et al. 2021 (arXiv 2102.06387, algorithm 1) without its noise, on one segment of the values in turn.
//!
//! The values are dealt out over the segments and their blocks in short runs, so that each has its share
//! of every tensor. The n of one segment are clipped to the norm C', rotated, and cut to ±t σ, with σ = C' /
//! sqrt(n) what a value then has at most on average and t = sqrt(2 ln(1 + L)) about the largest of L
//! draws from a normal distribution. Each becomes one of 0..=L steps, with L = (2^m - 1) / summands, so
//! that a word of m bits holds their sum. C' = C / sqrt(1 + t² / L²) leaves room for the rounding's own
//! energy, at most (t σ / L)² for each value: what is sent has about the norm C at most.
//!
//! ```text
//! word bits, segments, segment   a byte each
//! L, seed of the signs           u32, little-endian
//! t σ                            f32, little-endian
//! a word for each value          of a block, then of the next
//! ```

use std::ops::Range;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use super::compression::Linear;
use super::rotation::{Block, Signs, blocks, hadamard, longest};
use super::rounding::stochastic;
use super::{InvalidPayload, Remainder, rotation, words};
use crate::seed::uniform_f32;

const HEADER: usize = 15;
/// Values that are dealt out together: a line of the processor's cache.
const RUN: usize = 16;

/// What all clients of a round share, so that what they send can be added up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shared {
    /// Most payloads that are added up.
    pub summands: u32,
    /// L2 norm that what is sent has at most.
    pub norm: f32,
    /// Which turn of the segments it is.
    pub turn: u32,
    /// Seed of the signs that values are rotated with.
    pub seed: u32,
}

pub(super) fn encode(
    linear: Linear,
    shared: Shared,
    remainder: Remainder,
    delta: &[f32],
    rng: &mut ChaCha20Rng,
    out: &mut Vec<u8>,
) {
    let segment = (shared.turn % u32::from(linear.segments())) as u8;
    // A segment stands for all of them where what it leaves out is lost.
    let gain = match remainder {
        Remainder::FedBack { .. } => 1.0,
        Remainder::Dropped => f64::from(linear.segments()),
    };
    let mut values = Vec::with_capacity(delta.len() / usize::from(linear.segments()) + RUN);
    runs(delta.len(), linear, segment).for_each(|run| values.extend_from_slice(&delta[run]));
    let steps = linear.steps(shared.summands);
    let range = range(steps);
    let room = 1.0 + (range / f64::from(steps)).powi(2);
    let norm = f64::from(shared.norm) / room.sqrt();
    let sigma = norm / (values.len().max(1) as f64).sqrt();
    let energy: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    // From values to units of sigma.
    let factor = gain * (norm / (gain * energy.sqrt())).min(1.0) / sigma;

    let (signs, mut block) = (Signs::draw(shared.seed, longest(values.len())), Vec::new());
    let mut rounded = Vec::with_capacity(values.len());
    for Block { range: part, size } in blocks(values.len()) {
        block.clear();
        block.extend(values[part].iter().map(|value| (f64::from(*value) * factor) as f32));
        block.resize(size, 0.0);
        signs.flip(&mut block);
        hadamard(&mut block);
        // From [-range, range] to [0, steps].
        let scale = (f64::from(steps) / (2.0 * range * (size as f64).sqrt())) as f32;
        let middle = steps as f32 / 2.0;
        rounded.extend(block.iter().map(|value| {
            let word = stochastic(value * scale + middle, uniform_f32(rng.next_u32()));
            (word as u32).min(steps)
        }));
    }
    out.reserve(HEADER + words::bytes(linear.word_bits(), rounded.len()));
    out.extend([linear.word_bits(), linear.segments(), segment]);
    out.extend(steps.to_le_bytes());
    out.extend(shared.seed.to_le_bytes());
    let reach = (range * sigma).min(f64::from(f32::MAX)) as f32;
    out.extend(reach.to_le_bytes());
    words::pack(linear.word_bits(), &rounded, out);
}

pub(super) fn decode(len: usize, body: &[u8]) -> Result<Vec<f32>, InvalidPayload> {
    let length = |want| InvalidPayload::Length { part: "words", want, got: body.len() };
    let (header, packed) = body.split_first_chunk::<HEADER>().ok_or(length(HEADER))?;
    let [word_bits, segments, segment, rest @ ..] = *header;
    let [steps, seed, range] = [0, 1, 2].map(|at| {
        let bytes = rest.as_chunks::<4>().0[at];
        u32::from_le_bytes(bytes)
    });
    let (linear, range) = (Linear::new(word_bits, segments), f32::from_bits(range));
    let linear = linear.map_err(|_| InvalidPayload::Damaged("word size"))?;
    if segment >= segments {
        return Err(InvalidPayload::Damaged("segment"));
    }
    if !(1..=words::largest(word_bits)).contains(&steps) {
        return Err(InvalidPayload::Damaged("number of steps"));
    }
    if !(range.is_finite() && range >= 0.0) {
        return Err(InvalidPayload::NotFinite);
    }
    let count = runs(len, linear, segment).map(|run| run.len()).sum();
    let want = words::bytes(word_bits, blocks(count).map(|block| block.size).sum());
    if packed.len() != want {
        return Err(length(HEADER + want));
    }
    let mut values = Vec::with_capacity(count);
    let mut words = words::unpack(word_bits, packed);
    let (signs, mut block) = (Signs::draw(seed, longest(count)), Vec::new());
    for Block { range: part, size } in blocks(count) {
        let unit = 2.0 / (steps as f32 * (size as f32).sqrt());
        let middle = 1.0 / (size as f32).sqrt();
        block.clear();
        for word in words.by_ref().take(size) {
            if word > steps {
                return Err(InvalidPayload::Damaged("list of words"));
            }
            block.push(word as f32 * unit - middle);
        }
        hadamard(&mut block);
        signs.flip(&mut block);
        let value = |unit: &f32| (unit * range).clamp(f32::MIN, f32::MAX);
        values.extend(block[..part.len()].iter().map(value));
    }
    let (mut delta, mut rest) = (vec![0.0; len], &values[..]);
    for run in runs(len, linear, segment) {
        let (values, behind) = rest.split_at(run.len());
        delta[run].copy_from_slice(values);
        rest = behind;
    }
    Ok(delta)
}

/// t: how far from nothing a value may be, in units of σ. All clients must have the same bits of it, whatever
/// the mathematics library of their system.
fn range(steps: u32) -> f64 {
    (2.0 * libm::log1p(f64::from(steps))).sqrt()
}

/// The runs of one segment, in the order in which they are sent: k · stride modulo their number, with a
/// stride near that number divided by the golden ratio, which spreads any part of them evenly.
fn runs(len: usize, linear: Linear, segment: u8) -> impl Iterator<Item = Range<usize>> {
    let count = len.div_ceil(RUN);
    let stride = stride(count);
    let turns = rotation::segment(count, linear.segments(), segment);
    let mut next = (turns.start as u128 * stride as u128 % count.max(1) as u128) as usize;
    turns.map(move |_| {
        let at = next * RUN;
        next += stride;
        if next >= count {
            next -= count;
        }
        at..len.min(at + RUN)
    })
}

/// A number below `count`, and without a common divisor, so that its multiples reach everything.
fn stride(count: usize) -> usize {
    let golden = (count as f64 * 0.618_033_988_749_894_8) as usize;
    let fits = |stride: &usize| gcd(*stride, count) == 1;
    (1..=golden.max(1)).rev().find(fits).unwrap_or(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn shared(summands: u32) -> Shared {
        Shared { summands, norm: 2.0, turn: 3, seed: 7 }
    }

    fn body(linear: Linear, shared: Shared, delta: &[f32], draws: u64) -> Vec<u8> {
        let (mut out, mut rng) = (Vec::new(), Seed::from_number(draws).stream());
        let remainder = Remainder::FedBack { turn: 0 };
        encode(linear, shared, remainder, delta, &mut rng, &mut out);
        out
    }

    fn normal(len: usize, seed: u64, norm: f32) -> Vec<f32> {
        let mut stream = Seed::from_number(seed).stream();
        let x: Vec<f32> = (0..len).map(|_| uniform_f32(stream.next_u32()) - 0.5).collect();
        let unit = norm / x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.iter().map(|x| x * unit).collect()
    }

    #[test]
    fn every_place_is_dealt_out_once_and_evenly() {
        for len in [0, 1, 2, 3, 10, 64, 1000, 12_288, 12_290] {
            for segments in [1, 3, 16] {
                let linear = Linear::new(8, segments).unwrap();
                let all = (0..segments).flat_map(|segment| runs(len, linear, segment));
                let mut all: Vec<usize> = all.flatten().collect();
                all.sort_unstable();
                assert_eq!(all, (0..len).collect::<Vec<_>>(), "{len} in {segments}");
            }
        }
        // Any part of a segment has its share of any part of the vector: 12 or 13 runs of 128.
        let linear = Linear::new(8, 3).unwrap();
        let part: Vec<usize> = runs(30_000, linear, 1).skip(100).take(128).flatten().collect();
        for tenth in 0..10 {
            let share = part.iter().filter(|at| **at / 3000 == tenth).count();
            assert!((12 * RUN - RUN..=13 * RUN + RUN).contains(&share), "{share}");
        }
    }

    /// The words of all clients, added modulo 2^m, are the sum of what they stand for: all that an
    /// aggregator under masks sees.
    #[test]
    fn the_sum_of_words_is_the_word_of_the_sum() {
        let (len, summands) = (3000, 13);
        for (bits, segments) in [(4, 1), (6, 3), (8, 4), (16, 2)] {
            let linear = Linear::new(bits, segments).unwrap();
            let shared = shared(summands);
            let bodies: Vec<Vec<u8>> = (0..summands)
                .map(|client| {
                    let client = u64::from(client);
                    body(linear, shared, &normal(len, client, 1.0 + client as f32 * 0.3), client)
                })
                .collect();
            let mut want = vec![0.0f32; len];
            for body in &bodies {
                let decoded = decode(len, body).unwrap();
                want.iter_mut().zip(decoded).for_each(|(sum, value)| *sum += value);
            }
            let mut sum = vec![0u32; words::unpack(bits, &bodies[0][HEADER..]).count()];
            for body in &bodies {
                for (sum, word) in sum.iter_mut().zip(words::unpack(bits, &body[HEADER..])) {
                    *sum = (*sum + word) & words::largest(bits);
                }
            }
            // A sum is read on a grid of as many steps as all clients have, and as far as they reach.
            let mut together = bodies[0][..HEADER].to_vec();
            let steps = linear.steps(summands) * summands;
            together[3..7].copy_from_slice(&steps.to_le_bytes());
            let range = f32::from_le_bytes(together[11..15].try_into().unwrap());
            together[11..15].copy_from_slice(&(range * summands as f32).to_le_bytes());
            words::pack(bits, &sum, &mut together);
            let got = decode(len, &together).unwrap();
            let close = |(got, want): (&f32, &f32)| (got - want).abs() < 1e-4 * range * 10.0;
            assert!(got.iter().zip(&want).all(close), "{bits} bits, {segments} segments");
        }
    }

    #[test]
    fn what_is_sent_is_no_longer_than_the_norm_and_right_in_expectation() {
        let (len, linear) = (2000, Linear::new(6, 2).unwrap());
        let places: Vec<usize> = runs(len, linear, 1).flatten().collect();
        let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for norm in [0.1, 1.5, 100.0] {
            let delta = normal(len, 5, norm);
            let (mut mean, draws) = (vec![0.0; len], 400);
            for draw in 0..draws {
                let decoded = decode(len, &body(linear, shared(10), &delta, draw)).unwrap();
                assert!(length(&decoded) < 2.0 * 1.03, "{}", length(&decoded));
                mean.iter_mut().zip(&decoded).for_each(|(m, x)| *m += x / draws as f32);
            }
            let sent: Vec<f32> = places.iter().map(|at| delta[*at]).collect();
            let got: Vec<f32> = places.iter().map(|at| mean[*at]).collect();
            let shrunk = length(&got) / length(&sent);
            let error: Vec<f32> =
                got.iter().zip(&sent).map(|(got, sent)| got - shrunk as f32 * sent).collect();
            // A draw's error has about half the norm, and the mean's is a twentieth of that; at full
            // norm, one value of twenty lies beyond the grid.
            let cut = if length(&sent) > 2.0 { 0.15 } else { 0.0 };
            assert!(length(&error) < 0.08 + cut, "{norm}: {}", length(&error));
            let clipped = (2.0 / length(&sent)).min(1.0);
            assert!((shrunk / clipped - 1.0).abs() < 0.15, "{norm}: {shrunk} where {clipped}");
        }
    }
}
