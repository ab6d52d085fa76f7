//! Sums of products of factors, and their singular value decompositions: never as a dense matrix.
//!
//! Σ B_k A_k is one product of stacks, \[B_1 … B_K\] of m x R and \[A_1; …; A_K\] of R x n. With the thin
//! decompositions Q_B R_B and Q_A R_A of the stacks, its singular values are those of the R x R matrix
//! R_B R_Aᵀ, at a cost of (m + n) R² + R³ (FLoRIST, 2025, arXiv 2506.09199, section 3).

use floret_core::layout::TensorSpec;
use nalgebra::DMatrix;

/// A product of two stacks: components, each a column of m values and a row of n.
#[derive(Debug, Clone, Default)]
pub(crate) struct LowRank {
    /// Columns of the left stack.
    columns: Vec<Vec<f64>>,
    /// Rows of the right stack.
    rows: Vec<Vec<f64>>,
}

/// Components of a decomposition, the strongest first: each column has the singular value as its norm,
/// each row has norm 1, and the largest value of a row is positive. There are no more than what was stacked, nor
/// than the smaller side of the matrix.
#[derive(Debug, Clone, Default)]
pub(crate) struct Components {
    pub(crate) columns: Vec<Vec<f64>>,
    pub(crate) rows: Vec<Vec<f64>>,
}

/// Row `component` of A, of a flat vector that has `value(place)`.
pub(crate) fn row(a: &TensorSpec, component: usize, value: impl Fn(usize) -> f64) -> Vec<f64> {
    let inputs = a.shape[1];
    (0..inputs).map(|at| value(a.offset + component * inputs + at)).collect()
}

/// Column `component` of B, of a flat vector that has `value(place)`.
pub(crate) fn column(b: &TensorSpec, component: usize, value: impl Fn(usize) -> f64) -> Vec<f64> {
    let [outputs, rank] = b.shape;
    (0..outputs).map(|at| value(b.offset + at * rank + component)).collect()
}

impl LowRank {
    /// Adds the outer product of a column and a row.
    pub(crate) fn push(&mut self, column: Vec<f64>, row: Vec<f64>) {
        self.columns.push(column);
        self.rows.push(row);
    }

    /// The `rank` strongest components of the singular value decomposition, in f64 and in a fixed order.
    /// No sum of as many products is nearer to this one (Eckart and Young 1936).
    pub(crate) fn strongest(&self, rank: usize) -> Components {
        let (Some(column), Some(row)) = (self.columns.first(), self.rows.first()) else {
            return Components::default();
        };
        let (outputs, inputs, stacked) = (column.len(), row.len(), self.columns.len());
        let left = DMatrix::from_fn(outputs, stacked, |at, of| self.columns[of][at]).qr();
        let right = DMatrix::from_fn(inputs, stacked, |at, of| self.rows[of][at]).qr();
        let svd = product(&left.r(), &right.r().transpose()).svd(true, true);
        let (Some(u), Some(vt)) = (&svd.u, &svd.v_t) else { unreachable!("both were asked for") };
        let (u, vt) = (product(&left.q(), u), product(vt, &right.q().transpose()));
        let mut components = Components::default();
        for (at, strength) in svd.singular_values.iter().enumerate().take(rank) {
            let row = vt.row(at);
            let largest = row.iter().fold(0.0f64, |x, y| if y.abs() > x.abs() { *y } else { x });
            let sign = if largest < 0.0 { -1.0 } else { 1.0 };
            components.rows.push(row.iter().map(|value| sign * value).collect());
            let column = u.column(at);
            components.columns.push(column.iter().map(|value| sign * strength * value).collect());
        }
        components
    }
}

impl Components {
    /// Writes them into factors of a flat vector, from component `first` on.
    pub(crate) fn write(&self, [a, b]: &[TensorSpec; 2], first: usize, values: &mut [f32]) {
        let (inputs, rank) = (a.shape[1], b.shape[1]);
        for (at, (column, row)) in (first..).zip(self.columns.iter().zip(&self.rows)) {
            let of_a = values[a.range()].iter_mut().skip(at * inputs);
            of_a.zip(row).for_each(|(slot, value)| *slot = *value as f32);
            let of_b = values[b.range()].iter_mut().skip(at).step_by(rank);
            of_b.zip(column).for_each(|(slot, value)| *slot = *value as f32);
        }
    }
}

/// x y, its sums in order: a library's product may take another order on another processor.
pub(crate) fn product(x: &DMatrix<f64>, y: &DMatrix<f64>) -> DMatrix<f64> {
    DMatrix::from_fn(x.nrows(), y.ncols(), |row, column| {
        (0..x.ncols()).map(|inner| x[(row, inner)] * y[(inner, column)]).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{assert_near, values};

    /// Block `lora_aggregation` of ../shared/vectors: three clients of weights 1/8, 3/8 and 1/2 stacked are `ideal`, and
    /// their singular values `ideal_singular_values`.
    #[test]
    fn stacks_have_the_product_and_the_singular_values_of_the_vectors() {
        let ideal =
            [[-0.5, 0.75, 0.5, 0.125], [1.5, 0.25, 2.0, 0.875], [0.375, 0.625, 1.625, 2.125]];
        let mut stacks = LowRank::default();
        for ((a, b), share) in values::CLIENTS.iter().zip([0.125, 0.375, 0.5]) {
            for component in 0..2 {
                let column = b.iter().map(|row| share * f64::from(row[component])).collect();
                stacks.push(column, a[component].map(f64::from).to_vec());
            }
        }
        let Components { columns, rows } = stacks.strongest(3);
        let entry = |place: usize| {
            let pairs = columns.iter().zip(&rows);
            pairs.map(|(column, row)| column[place / 4] * row[place % 4]).sum::<f64>()
        };
        assert_near(&(0..12).map(entry).collect::<Vec<_>>(), ideal.as_flattened(), 1e-12);
        let norm = |column: &Vec<f64>| column.iter().map(|x| x * x).sum::<f64>().sqrt();
        let want = [3.656530561118237, 1.3622229970362425, 0.7860551901450347];
        assert_near(&columns.iter().map(norm).collect::<Vec<_>>(), &want, 1e-12);
        // There are no more than the smaller side of the matrix.
        assert_eq!(stacks.strongest(9).rows.len(), 3);
        assert!(LowRank::default().strongest(2).rows.is_empty());
    }
}
