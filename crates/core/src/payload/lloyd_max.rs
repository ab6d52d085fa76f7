//! Quantisers of a normal distribution with least squared error (Max 1960, "Quantizing for minimum
//! distortion", table I; Lloyd 1982), as EDEN (Vargaftik et al. 2022, arXiv 2108.08842, section 3)
//! applies them to a rotated block.

use pulp::{Arch, NullaryFnOnce};

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
    /// Where one positive centroid gives way to the next; infinite where there is none.
    bounds: [f32; 7],
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
        let mut bounds = [f32::INFINITY; 7];
        for (bound, [low, high]) in bounds.iter_mut().zip(positive.array_windows()) {
            *bound = 0.5 * (low + high);
        }
        Self { values, bounds, sign: 1 << (width - 1) }
    }

    /// Writes the codes of the nearest centroids of `values` times `unit`.
    pub(super) fn code(&self, values: &[f32], unit: f32, codes: &mut [u8]) {
        Arch::new().dispatch(Code { book: self, values, unit, codes });
    }

    /// The value of each code.
    pub(super) fn values(&self) -> &[f32; 16] {
        &self.values
    }
}

/// Compiled for each width of vectors.
struct Code<'a> {
    book: &'a Codebook,
    values: &'a [f32],
    unit: f32,
    codes: &'a mut [u8],
}

impl NullaryFnOnce for Code<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Codebook { bounds, sign, .. } = *self.book;
        for (code, value) in self.codes.iter_mut().zip(self.values) {
            let value = value * self.unit;
            let above = bounds.map(|bound| u8::from(value.abs() > bound));
            let place = above.iter().fold(0u8, |place, above| place.wrapping_add(*above));
            *code = place | if value.is_sign_negative() { sign } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ../shared/vectors, block `compression`: `lloyd_max_gaussian`, `lloyd_max_mse`.
    const MSE: [f64; 4] = [0.363_380_227_6, 0.117_481_847_8, 0.034_547_760_8, 0.009_501_008];

    fn code(book: &Codebook, value: f32) -> u8 {
        let mut code = [0];
        book.code(&[value], 1.0, &mut code);
        code[0]
    }

    #[test]
    fn the_error_on_a_normal_distribution_is_the_least() {
        for (width, want) in (1..=4).zip(MSE) {
            let book = Codebook::new(width);
            // ∫ (x - c(x))² φ(x) dx by the midpoint rule over ±10.
            let step = 1e-4;
            let error: f64 = (-100_000..100_000)
                .map(|i| {
                    let x = (f64::from(i) + 0.5) * step;
                    let centroid = book.values()[usize::from(code(&book, x as f32))];
                    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                    (x - f64::from(centroid)).powi(2) * density * step
                })
                .sum();
            assert!((error - want).abs() < 1e-7, "{width} bits: {error}");
        }
    }

    #[test]
    fn vectors_change_no_code() {
        let values: Vec<f32> = (0..1003).map(|at| (at as f32 * 0.7).sin() * 4.0).collect();
        for width in 1..=4 {
            let book = &Codebook::new(width);
            let [mut vectors, mut scalars] = [vec![0; 1003], vec![0; 1003]];
            book.code(&values, 0.9, &mut vectors);
            Code { book, values: &values, unit: 0.9, codes: &mut scalars }.call();
            assert_eq!(vectors, scalars);
        }
    }

    #[test]
    fn every_centroid_has_its_own_code() {
        for width in 1..=4u8 {
            let book = Codebook::new(width);
            for code in 0..1u8 << width {
                assert_eq!(self::code(&book, book.values()[usize::from(code)]), code);
            }
            assert_eq!(code(&book, f32::MAX) ^ code(&book, f32::MIN), 1 << (width - 1));
        }
    }
}
