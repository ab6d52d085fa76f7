//! Centered clipping (Karimireddy et al. 2021, arXiv 2012.10333, algorithm 2), from no change.

use super::geometry::Distances;

/// The weights of all points but the first, which stands for no change, after `iterations` steps of
/// v ← v + mean((x_i - v) min(1, τ / ‖x_i - v‖)) from the first point; `radius` is τ.
#[must_use]
pub fn weights(distances: &Distances, radius: f64, iterations: u32) -> Vec<f64> {
    let n = distances.points() - 1;
    // v is a combination of all points, whose weights have sum 1.
    let mut weights = vec![0.0; n + 1];
    weights[0] = 1.0;
    for _ in 0..iterations {
        let squares = distances.squared_to(&weights);
        let pulls = squares[1..].iter().map(|square| match square.sqrt() {
            distance if distance > radius => radius / distance / n as f64,
            _ => 1.0 / n as f64,
        });
        let pulls: Vec<f64> = pulls.collect();
        let left = 1.0 - pulls.iter().sum::<f64>();
        weights.iter_mut().for_each(|weight| *weight *= left);
        weights[1..].iter_mut().zip(pulls).for_each(|(weight, pull)| *weight += pull);
    }
    weights.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::tests::{X, assert_near, average};

    /// Block `robust` of ../shared/vectors: `centered_clip_tau1_from0`, and, as one step from 0 with a
    /// larger radius, `clip_C4_mean`.
    #[test]
    fn follows_the_reference_values() {
        let points: Vec<[f64; 3]> = std::iter::once([0.0; 3]).chain(X).collect();
        let distances = Distances::of_vectors(&points);
        let after = |radius, iterations| average(&weights(&distances, radius, iterations), &X);
        let steps = [
            [0.23128178055421816, 0.44457196466927146, 0.6443430849250679],
            [0.45137771023922824, 0.8838192954284645, 1.2765952369948934],
            [0.6526997974744364, 1.3171594966712992, 1.8909934536932007],
        ];
        for (step, want) in (1..).zip(steps) {
            assert_near(&after(1.0, step), &want, 1e-9);
        }
        let want = [0.8708101502138766, 1.6183106643642196, 2.371532698555685];
        assert_near(&after(4.0, 1), &want, 1e-9);
    }
}
