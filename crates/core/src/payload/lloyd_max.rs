//! Quantisers of a normal distribution with least squared error (Max 1960, "Quantizing for minimum
//! distortion", table I; Lloyd 1982), as EDEN (Vargaftik et al. 2022, arXiv 2108.08842, section 3)
//! applies them to a rotated block.

/// The positive centroids of 1 to 4 bits, for a standard deviation of 1.
const CENTROIDS: [&[f32]; 4] = [
    &[0.797_884_6],
    &[0.452_780_03, 1.510_417_6],
    &[0.245_094_18, 0.756_005_3, 1.343_909_3, 2.151_945_7],
    &[
        0.128_395_03,
        0.388_048_3,
        0.656_759_1,
        0.942_340_46,
        1.256_231_2,
        1.618_046_4,
        2.069_017_2,
        2.732_589_6,
    ],
];

/// A quantiser. The code of a value has its sign in the highest bit and the place of its centroid
/// among the positive ones in the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codebook {
    /// The value of each code; the highest stay unused where there are fewer.
    values: [f32; 16],
    sign: u8,
}

impl Codebook {
    /// Codes of `width` bits, 1 to 4.
    pub(super) fn new(width: u8) -> Self {
        let positive = CENTROIDS[usize::from(width - 1)];
        let mut values = [0.0; 16];
        for (code, centroid) in positive.iter().enumerate() {
            values[code] = *centroid;
            values[code + positive.len()] = -centroid;
        }
        Self { values, sign: 1 << (width - 1) }
    }

    /// The code of the nearest centroid.
    pub(super) fn code(&self, value: f32) -> u8 {
        let positive = &self.values[..usize::from(self.sign)];
        let above = |pair: &[f32; 2]| u8::from(value.abs() > 0.5 * (pair[0] + pair[1]));
        let place = positive.array_windows().fold(0u8, |sum, pair| sum.wrapping_add(above(pair)));
        place | if value.is_sign_negative() { self.sign } else { 0 }
    }

    /// The value of each code.
    pub(super) fn values(&self) -> &[f32; 16] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ../shared/vectors, block `compression`: `lloyd_max_gaussian`, `lloyd_max_mse`.
    const MSE: [f64; 4] = [0.363_380_227_6, 0.117_481_847_8, 0.034_547_760_8, 0.009_501_008];

    #[test]
    fn the_error_on_a_normal_distribution_is_the_least() {
        for (width, want) in (1..=4).zip(MSE) {
            let book = Codebook::new(width);
            // ∫ (x - c(x))² φ(x) dx by the midpoint rule over ±10.
            let step = 1e-4;
            let error: f64 = (-100_000..100_000)
                .map(|i| {
                    let x = (f64::from(i) + 0.5) * step;
                    let centroid = book.values()[usize::from(book.code(x as f32))];
                    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                    (x - f64::from(centroid)).powi(2) * density * step
                })
                .sum();
            assert!((error - want).abs() < 1e-7, "{width} bits: {error}");
        }
    }

    #[test]
    fn every_centroid_has_its_own_code() {
        for width in 1..=4u8 {
            let book = Codebook::new(width);
            for code in 0..1u8 << width {
                assert_eq!(book.code(book.values()[usize::from(code)]), code);
            }
            assert_eq!(
                (book.code(f32::MAX), book.code(f32::MIN)).0 ^ book.code(f32::MIN),
                1 << (width - 1)
            );
        }
    }
}
