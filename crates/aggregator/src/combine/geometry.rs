//! Inner products and distances of adapters, by what their factors stand for: the products B A of all
//! pairs, side by side. No product is formed: ⟨B_j A_j, B_k A_k⟩ = tr((B_jᵀ B_k)(A_k A_jᵀ)), at a cost
//! of r² (m + n) for factors of m x r and r x n.

use floret_core::Layout;

use crate::clipped::ClippedDelta;

/// A symmetric matrix over points.
#[derive(Debug, Clone, PartialEq)]
struct Symmetric {
    points: usize,
    /// Row by row.
    values: Vec<f64>,
}

impl Symmetric {
    fn get(&self, j: usize, k: usize) -> f64 {
        self.values[j * self.points + k]
    }

    fn of(points: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let mut values = vec![0.0; points * points];
        for j in 0..points {
            for k in j..points {
                let value = value(j, k);
                values[j * points + k] = value;
                values[k * points + j] = value;
            }
        }
        Self { points, values }
    }
}

/// Inner products of points.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram(Symmetric);

/// Squared distances between points.
#[derive(Debug, Clone, PartialEq)]
pub struct Distances(Symmetric);

impl Gram {
    /// Of adapters of `layout`: `value(point, i)` is the value of a point in place i of the flat vector.
    #[must_use]
    pub fn of_products(
        layout: &Layout,
        points: usize,
        value: impl Fn(usize, usize) -> f64,
    ) -> Self {
        let mut sum = Symmetric::of(points, |_, _| 0.0);
        for [a, b] in layout.pairs() {
            let (rank, input, out) = (a.rank(), a.shape[1], b.shape[0]);
            // Of each factor the r rows that products sum over: of A as it is, of B turned.
            let rows_of_a = |point| (0..rank * input).map(move |i| (point, a.offset + i));
            let rows_of_b = |point| {
                let places = (0..rank).flat_map(move |c| (0..out).map(move |o| o * rank + c));
                places.map(move |place| (point, b.offset + place))
            };
            let read = |(point, place)| value(point, place);
            let rows: Vec<[Vec<f64>; 2]> = (0..points)
                .map(|point| {
                    [rows_of_a(point).map(read).collect(), rows_of_b(point).map(read).collect()]
                })
                .collect();
            let product = Symmetric::of(points, |j, k| {
                let ([a_j, b_j], [a_k, b_k]) = (&rows[j], &rows[k]);
                let mut trace = 0.0;
                for (a_j, b_j) in a_j.chunks(input).zip(b_j.chunks(out)) {
                    for (a_k, b_k) in a_k.chunks(input).zip(b_k.chunks(out)) {
                        trace += dot(a_j, a_k) * dot(b_j, b_k);
                    }
                }
                trace
            });
            sum.values.iter_mut().zip(product.values).for_each(|(sum, value)| *sum += value);
        }
        Self(sum)
    }

    /// ⟨Σ x_j P_j, Σ y_k P_k⟩.
    #[must_use]
    pub fn inner(&self, x: &[f64], y: &[f64]) -> f64 {
        let row = |j| (0..self.0.points).map(|k| y[k] * self.0.get(j, k)).sum::<f64>();
        (0..self.0.points).map(|j| x[j] * row(j)).sum()
    }

    fn distances(&self) -> Distances {
        let Self(gram) = self;
        let squared = |j, k| {
            if j == k { 0.0 } else { gram.get(j, j) + gram.get(k, k) - 2.0 * gram.get(j, k) }
        };
        // Rounding may leave less than nothing of equal points.
        Distances(Symmetric::of(gram.points, |j, k| squared(j, k).max(0.0)))
    }
}

impl Distances {
    /// Between the products of adapters that began with the values `before` and changed by `deltas`.
    #[must_use]
    pub fn of_updates(layout: &Layout, before: &[f32], deltas: &[ClippedDelta]) -> Self {
        let after =
            |point: usize, i: usize| f64::from(before[i]) + f64::from(deltas[point].values()[i]);
        Gram::of_products(layout, deltas.len(), after).distances()
    }

    /// Like [`Distances::of_updates`], where the first point is the adapter that they began with.
    #[must_use]
    pub fn of_no_change_and_updates(
        layout: &Layout,
        before: &[f32],
        deltas: &[ClippedDelta],
    ) -> Self {
        let after = |point: usize, i: usize| {
            let change = point.checked_sub(1).map_or(0.0, |of| deltas[of].values()[i].into());
            f64::from(before[i]) + change
        };
        Gram::of_products(layout, 1 + deltas.len(), after).distances()
    }

    /// How many points there are.
    #[must_use]
    pub fn points(&self) -> usize {
        self.0.points
    }

    /// ‖x_j - x_k‖².
    #[must_use]
    pub fn squared(&self, j: usize, k: usize) -> f64 {
        self.0.get(j, k)
    }

    /// ⟨x_i - c, x_j - c⟩ of all points, for their mean c: (r_i + r_j - d_ij² - r̄) / 2 with r_i the mean of d_ij² over j
    /// and r̄ that of all r_i (classical scaling, Torgerson 1952).
    #[must_use]
    pub fn centered(&self) -> Vec<Vec<f64>> {
        let points = self.points();
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / points as f64;
        let rows: Vec<f64> =
            (0..points).map(|i| mean(&mut (0..points).map(|j| self.squared(i, j)))).collect();
        let all = mean(&mut rows.iter().copied());
        let entry = |i: usize, j: usize| 0.5 * (rows[i] + rows[j] - self.squared(i, j) - all);
        (0..points).map(|i| (0..points).map(|j| entry(i, j)).collect()).collect()
    }

    /// ‖x_i - z‖² of each point for z = Σ w_j x_j, where the weights have sum 1:
    /// Σ_j w_j d_ij² - ½ Σ_jk w_j w_k d_jk².
    #[must_use]
    pub fn squared_to(&self, weights: &[f64]) -> Vec<f64> {
        let points = self.points();
        let row = |i| (0..points).map(|j| weights[j] * self.squared(i, j)).sum::<f64>();
        let rows: Vec<f64> = (0..points).map(row).collect();
        let spread: f64 = rows.iter().zip(weights).map(|(row, weight)| row * weight).sum();
        rows.into_iter().map(|row| (row - 0.5 * spread).max(0.0)).collect()
    }

    /// Of plain vectors.
    #[cfg(test)]
    pub(crate) fn of_vectors<const N: usize>(vectors: &[[f64; N]]) -> Self {
        let squared = |j: usize, k: usize| {
            vectors[j].iter().zip(&vectors[k]).map(|(x, y)| (x - y).powi(2)).sum()
        };
        Self(Symmetric::of(vectors.len(), squared))
    }
}

/// Σ x y, in four sums side by side that are added in order.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    let ((x, rest_x), (y, rest_y)) = (x.as_chunks::<4>(), y.as_chunks::<4>());
    let mut sums = [0.0; 4];
    for (x, y) in x.iter().zip(y) {
        for lane in 0..4 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f64 = rest_x.iter().zip(rest_y).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{pair_layout, product, random_values};

    #[test]
    fn are_those_of_the_products() {
        let layout = pair_layout();
        for seed in 0..20 {
            let points: Vec<Vec<f64>> =
                (0..4).map(|point| random_values(&layout, 10 * seed + point)).collect();
            let gram = Gram::of_products(&layout, 4, |point, i| points[point][i]);
            let products: Vec<Vec<f64>> =
                points.iter().map(|values| product(&layout, values)).collect();
            let (x, y) = ([0.5, -1.0, 2.0, 0.25], [1.0, 1.0, -3.0, 0.0]);
            let sum = |weights: [f64; 4]| -> Vec<f64> {
                let at = |i| (0..4).map(|point| weights[point] * products[point][i]).sum();
                (0..products[0].len()).map(at).collect()
            };
            let want: f64 = sum(x).iter().zip(sum(y)).map(|(x, y)| x * y).sum();
            assert!((gram.inner(&x, &y) - want).abs() < 1e-9 * want.abs().max(1.0), "seed {seed}");
            let distances = gram.distances();
            let weights = [0.7, -0.2, 0.1, 0.4];
            let z = sum(weights);
            for (point, square) in distances.squared_to(&weights).into_iter().enumerate() {
                let away = products[point].iter().zip(&z).map(|(x, z)| (x - z).powi(2));
                let want: f64 = away.sum();
                assert!((square - want).abs() < 1e-9 * want.max(1.0), "seed {seed}");
            }
        }
    }
}
