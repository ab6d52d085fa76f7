//! How a delta is encoded, as one word of a configuration file says it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::words;

/// How a delta is encoded. In text: `none`, `int8`, `bits1` to `bits4`, `bits1/2` (one bit for each
/// value of one half), `sparse5%`, `linear8/4` (words of eight bits for one quarter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compression {
    /// f32 values as they are.
    None,
    /// Int8 with stochastic rounding, one scale per rank component, then zstd.
    Int8,
    /// 1 to 4 bits for each value of a rotated segment.
    Bits(Bits),
    /// The values of each tensor that matter most, as signs and positions.
    Sparse(Sparse),
    /// Words that can be added up as they are.
    Linear(Linear),
}

/// What a device must speak: a compression without its settings. The number is the payload's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Of [`Compression::None`].
    None = 0,
    /// Of [`Compression::Int8`].
    Int8 = 1,
    /// Of [`Compression::Bits`].
    Bits = 2,
    /// Of [`Compression::Sparse`].
    Sparse = 3,
    /// Of [`Compression::Linear`].
    Linear = 4,
}

/// Settings of [`Compression::Bits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    width: u8,
    segments: u8,
}

/// Settings of [`Compression::Sparse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sparse {
    per_mille: u16,
}

/// Settings of [`Compression::Linear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    word_bits: u8,
    segments: u8,
}

/// Settings that no payload has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no compression: use \"none\", \"int8\", \"bits1\" to \"bits4\", \"bits1/2\" to \
     \"bits4/16\" (one segment of so many at a time), \"sparse0.1%\" to \"sparse50%\", or \"linear1\" \
     to \"linear24/16\" (words of so many bits)"
)]
pub struct InvalidCompression(String);

impl Codec {
    /// Every codec.
    pub const ALL: [Self; 5] = [Self::None, Self::Int8, Self::Bits, Self::Sparse, Self::Linear];
}

impl Compression {
    /// Whether values are sent as they are.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// What a device must speak for it.
    #[must_use]
    pub fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Int8 => Codec::Int8,
            Self::Bits(_) => Codec::Bits,
            Self::Sparse(_) => Codec::Sparse,
            Self::Linear(_) => Codec::Linear,
        }
    }

    /// Whether it leaves out so much that devices should keep that for their next delta. The
    /// rounding of int8 is unbiased and small: it needs no memory.
    #[must_use]
    pub fn wants_feedback(self) -> bool {
        matches!(self, Self::Bits(_) | Self::Sparse(_) | Self::Linear(_))
    }
}

impl Bits {
    /// Most bits for a value.
    pub const WIDTH_MAX: u8 = 4;
    /// Most segments.
    pub const SEGMENTS_MAX: u8 = 16;

    /// `width` bits for each value of one of `segments` segments.
    ///
    /// # Errors
    /// A width outside 1 to 4, or segments outside 1 to 16.
    pub fn new(width: u8, segments: u8) -> Result<Self, InvalidCompression> {
        let fits =
            (1..=Self::WIDTH_MAX).contains(&width) && (1..=Self::SEGMENTS_MAX).contains(&segments);
        let bits = Self { width, segments };
        if fits { Ok(bits) } else { Err(InvalidCompression(Compression::Bits(bits).to_string())) }
    }

    /// Bits for a value.
    #[must_use]
    pub fn width(self) -> u8 {
        self.width
    }

    /// Segments, of which a payload holds one.
    #[must_use]
    pub fn segments(self) -> u8 {
        self.segments
    }
}

impl Sparse {
    /// Most values of a thousand.
    pub const PER_MILLE_MAX: u16 = 500;

    /// `per_mille` of a thousand values.
    ///
    /// # Errors
    /// A number outside 1 to 500.
    pub fn new(per_mille: u16) -> Result<Self, InvalidCompression> {
        let sparse = Self { per_mille };
        match (1..=Self::PER_MILLE_MAX).contains(&per_mille) {
            true => Ok(sparse),
            false => Err(InvalidCompression(Compression::Sparse(sparse).to_string())),
        }
    }

    /// Values that are kept of a thousand.
    #[must_use]
    pub fn per_mille(self) -> u16 {
        self.per_mille
    }

    /// Values that are kept of a tensor of `len`: at least one.
    #[must_use]
    pub fn kept(self, len: usize) -> usize {
        let kept = (len as u128 * u128::from(self.per_mille)).div_ceil(1000);
        usize::try_from(kept).unwrap_or(usize::MAX).min(len)
    }
}

impl Linear {
    /// Most segments.
    pub const SEGMENTS_MAX: u8 = 16;

    /// A word of `word_bits` bits for each value of one of `segments` segments.
    ///
    /// # Errors
    /// Words outside 1 to 24 bits, or segments outside 1 to 16.
    pub fn new(word_bits: u8, segments: u8) -> Result<Self, InvalidCompression> {
        let fits = (1..=words::BITS_MAX).contains(&word_bits)
            && (1..=Self::SEGMENTS_MAX).contains(&segments);
        let linear = Self { word_bits, segments };
        if fits {
            Ok(linear)
        } else {
            Err(InvalidCompression(Compression::Linear(linear).to_string()))
        }
    }

    /// Bits of a word: they hold the sum of all payloads of a round.
    #[must_use]
    pub fn word_bits(self) -> u8 {
        self.word_bits
    }

    /// Segments, of which a round's payloads hold one.
    #[must_use]
    pub fn segments(self) -> u8 {
        self.segments
    }

    /// L: steps of the grid that each of `summands` payloads has, so that a word holds their sum. At
    /// least 1, which [`Linear::holds`] tells whether it does.
    #[must_use]
    pub fn steps(self, summands: u32) -> u32 {
        (words::largest(self.word_bits) / summands.max(1)).max(1)
    }

    /// Whether a word holds the sum of `summands` payloads.
    #[must_use]
    pub fn holds(self, summands: u32) -> bool {
        summands <= words::largest(self.word_bits)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Int8 => f.write_str("int8"),
            Self::Bits(Bits { width, segments: 1 }) => write!(f, "bits{width}"),
            Self::Bits(Bits { width, segments }) => write!(f, "bits{width}/{segments}"),
            Self::Sparse(Sparse { per_mille }) => {
                write!(f, "sparse{}%", f64::from(*per_mille) / 10.0)
            }
            Self::Linear(Linear { word_bits, segments: 1 }) => write!(f, "linear{word_bits}"),
            Self::Linear(Linear { word_bits, segments }) => {
                write!(f, "linear{word_bits}/{segments}")
            }
        }
    }
}

impl FromStr for Compression {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        let wrong = || InvalidCompression(text.to_owned());
        let number = |digits: &str| digits.parse::<u8>().map_err(|_| wrong());
        let parsed = match text {
            "none" => Self::None,
            "int8" => Self::Int8,
            _ => {
                let in_segments = |settings: &str| {
                    let (bits, segments) = settings.split_once('/').unwrap_or((settings, "1"));
                    Ok((number(bits)?, number(segments)?))
                };
                if let Some(settings) = text.strip_prefix("bits") {
                    let (width, segments) = in_segments(settings)?;
                    Self::Bits(Bits::new(width, segments).map_err(|_| wrong())?)
                } else if let Some(settings) = text.strip_prefix("linear") {
                    let (word_bits, segments) = in_segments(settings)?;
                    Self::Linear(Linear::new(word_bits, segments).map_err(|_| wrong())?)
                } else {
                    let percent =
                        text.strip_prefix("sparse").and_then(|rest| rest.strip_suffix('%'));
                    let (whole, tenths) = percent
                        .map(|it| it.split_once('.').unwrap_or((it, "0")))
                        .ok_or_else(wrong)?;
                    let tenths =
                        if tenths.len() == 1 { number(tenths)? } else { return Err(wrong()) };
                    let per_mille = u16::from(number(whole)?) * 10 + u16::from(tenths);
                    Self::Sparse(Sparse::new(per_mille).map_err(|_| wrong())?)
                }
            }
        };
        // One spelling for each: leading zeros and signs are refused.
        if parsed.to_string() == text { Ok(parsed) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Compression {
    type Error = InvalidCompression;

    fn try_from(text: String) -> Result<Self, InvalidCompression> {
        text.parse()
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_spelling() {
        let bits = |width, segments| Compression::Bits(Bits::new(width, segments).unwrap());
        let sparse = |per_mille| Compression::Sparse(Sparse::new(per_mille).unwrap());
        let linear = |word, segments| Compression::Linear(Linear::new(word, segments).unwrap());
        for (text, value) in [
            ("none", Compression::None),
            ("int8", Compression::Int8),
            ("bits1", bits(1, 1)),
            ("bits4/16", bits(4, 16)),
            ("sparse5%", sparse(50)),
            ("sparse0.1%", sparse(1)),
            ("sparse12.5%", sparse(125)),
            ("sparse50%", sparse(500)),
            ("linear1", linear(1, 1)),
            ("linear24/16", linear(24, 16)),
        ] {
            assert_eq!(text.parse(), Ok(value), "{text}");
            assert_eq!(value.to_string(), text);
            assert_eq!(serde_json::to_string(&value).unwrap(), format!("{text:?}"));
        }
    }

    #[test]
    fn what_no_payload_has_is_refused_with_what_is_accepted() {
        for text in [
            "",
            "Int8",
            "bits",
            "bits0",
            "bits5",
            "bits1/0",
            "bits1/1",
            "bits1/17",
            "bits01",
            "bits+1",
            "bits1/2/2",
            "sparse",
            "sparse5",
            "sparse%",
            "sparse0%",
            "sparse51%",
            "sparse0.05%",
            "sparse5.0%",
            "sparse.5%",
            "sparse5.%",
            "sparse-5%",
            "sparseé%",
            "linear",
            "linear0",
            "linear25",
            "linear8/17",
            "linear08/2",
        ] {
            let error = text.parse::<Compression>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("bits1/2"), "{error}");
        }
        assert!(Bits::new(1, 0).is_err() && Sparse::new(501).is_err());
    }

    #[test]
    fn a_word_holds_what_all_send() {
        let linear = Linear::new(8, 4).unwrap();
        assert_eq!([1, 10, 13, 255, 256].map(|n| linear.steps(n)), [255, 25, 19, 1, 1]);
        assert_eq!([1, 255, 256].map(|n| linear.holds(n)), [true, true, false]);
    }

    #[test]
    fn a_tensor_keeps_one_value_at_least_and_all_at_most() {
        let sparse = Sparse::new(50).unwrap();
        assert_eq!([1, 19, 20, 21, 1000].map(|len| sparse.kept(len)), [1, 1, 1, 2, 50]);
        assert_eq!(Sparse::new(500).unwrap().kept(usize::MAX), usize::MAX / 2 + 1);
    }
}
