//! Changes to an input, of the kinds that decoders stumble over: sizes, ends, numbers, nesting.

#![allow(clippy::ptr_arg, reason = "every edit has the same form")]

use super::Draw;

/// Most make the input longer or shorter, so each is given a vector.
type Edit = fn(&mut Vec<u8>, &[u8], &mut Draw);

const EDITS: [Edit; 17] = [
    flip_bit,
    set_byte,
    set_byte,
    nudge_byte,
    nudge_integer,
    set_integer,
    truncate,
    remove,
    repeat,
    insert_random,
    insert_token,
    insert_token,
    set_number,
    set_numbers,
    splice,
    insert_other,
    insert_varint,
];

const BYTES: [u8; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'\n', b'\\', b'0'];

const INTEGERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

const NUMBERS: [&str; 20] = [
    "0",
    "-1",
    "1",
    "2",
    "255",
    "256",
    "1024",
    "65535",
    "65536",
    "1048576",
    "16777216",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "-0.0",
    "1e-320",
];

const TOKENS: [&str; 24] = [
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "\"\"",
    ",",
    ":",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":",
    "\\u0000",
    "\\ud800",
    "\\",
    "nan",
    "inf",
    "=",
    "\"\"\"",
    "[[a]]",
    "a.b.c",
    "#",
    "\u{feff}",
    "\u{10ffff}",
    "\r\n",
    "1979-05-27T07:32:00Z",
];

/// Makes one change; `other` is another file of the corpus.
pub(super) fn apply(input: &mut Vec<u8>, other: &[u8], draw: &mut Draw) {
    let edit = draw.of(&EDITS);
    edit(input, other, draw);
}

fn flip_bit(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, _) = draw.span(input);
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << draw.below(8);
    }
}

fn set_byte(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, _) = draw.span(input);
    let value = if draw.below(2) == 0 { draw.byte() } else { *draw.of(&BYTES) };
    if let Some(byte) = input.get_mut(at) {
        *byte = value;
    }
}

fn nudge_byte(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, _) = draw.span(input);
    let by = draw.below(9) as u8;
    if let Some(byte) = input.get_mut(at) {
        *byte = byte.wrapping_add(by).wrapping_sub(4);
    }
}

/// Adds a little to an integer of 2, 4 or 8 bytes, of either order: lengths and offsets.
fn nudge_integer(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let width = 2 << draw.below(3);
    let (at, _) = draw.span(input);
    let by = draw.below(33) as i64 - 16;
    let little = draw.below(2) == 0;
    let Some(place) = input.get_mut(at..at + width) else { return };
    let mut word = [0; 8];
    word[..width].copy_from_slice(place);
    if !little {
        word[..width].reverse();
    }
    word = u64::from_le_bytes(word).wrapping_add_signed(by).to_le_bytes();
    if !little {
        word[..width].reverse();
    }
    place.copy_from_slice(&word[..width]);
}

fn set_integer(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let width = 2 << draw.below(3);
    let (at, _) = draw.span(input);
    let mut word = draw.of(&INTEGERS).to_le_bytes();
    if draw.below(2) == 0 {
        word[..width].reverse();
    }
    if let Some(place) = input.get_mut(at..at + width) {
        place.copy_from_slice(&word[..width]);
    }
}

fn truncate(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, _) = draw.span(input);
    input.truncate(at);
}

fn remove(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, length) = draw.span(input);
    input.drain(at..at + length);
}

fn repeat(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, length) = draw.span(input);
    let times = 1 << draw.below(7);
    let piece = input[at..at + length].repeat(times.min(1 + 1024 / length.max(1)));
    input.splice(at..at, piece);
}

fn insert_random(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, length) = draw.span(input);
    let piece = draw.bytes(length.min(32));
    input.splice(at..at, piece);
}

fn insert_token(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, length) = draw.span(input);
    let over = if draw.below(2) == 0 { length } else { 0 };
    let token = draw.of(&TOKENS);
    input.splice(at..at + over, token.bytes());
}

/// Puts another number in the place of one in a text.
fn set_number(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (from, _) = draw.span(input);
    if let Some((start, length)) = number_from(input, from) {
        let number = draw.of(&NUMBERS);
        input.splice(start..start + length, number.bytes());
    }
}

/// Puts the same number in the place of some in a text: of sizes that are multiplied, both are large.
fn set_numbers(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let number = draw.of(&NUMBERS).as_bytes();
    let (mut from, _) = draw.span(input);
    while let Some((start, mut length)) = number_from(input, from) {
        if draw.below(4) == 0 {
            input.splice(start..start + length, number.iter().copied());
            length = number.len();
        }
        from = start + length;
    }
}

/// Place and length of the first number at or after `from`.
fn number_from(input: &[u8], from: usize) -> Option<(usize, usize)> {
    let digit = |byte: &u8| byte.is_ascii_digit();
    let start = from + input.get(from..)?.iter().position(digit)?;
    Some((start, input[start..].iter().take_while(|byte| digit(byte)).count()))
}

/// The beginning of this input, and the end of another.
fn splice(input: &mut Vec<u8>, other: &[u8], draw: &mut Draw) {
    let (at, _) = draw.span(input);
    let from = if draw.below(2) == 0 { at.min(other.len()) } else { draw.span(other).0 };
    input.truncate(at);
    input.extend_from_slice(&other[from..]);
}

fn insert_other(input: &mut Vec<u8>, other: &[u8], draw: &mut Draw) {
    let (at, length) = draw.span(input);
    let over = if draw.below(2) == 0 { length } else { 0 };
    let (from, length) = draw.span(other);
    input.splice(at..at + over, other[from..from + length].iter().copied());
}

/// A number of variable length as protobuf writes it, sometimes longer than it need be.
fn insert_varint(input: &mut Vec<u8>, _: &[u8], draw: &mut Draw) {
    let (at, _) = draw.span(input);
    let mut value = *draw.of(&INTEGERS);
    let mut varint = Vec::with_capacity(12);
    while value > 0x7f {
        varint.push(value as u8 | 0x80);
        value >>= 7;
    }
    varint.push(value as u8);
    if draw.below(8) == 0 {
        let last = varint.len() - 1;
        varint[last] |= 0x80;
        varint.extend([0x80, 0x80, 0]);
    }
    let over = draw.below(3).min(input.len() - at);
    input.splice(at..at + over, varint);
}
