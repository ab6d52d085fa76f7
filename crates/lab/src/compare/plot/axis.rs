//! From values to places along an axis, and the values that are labelled.

use super::super::measures::Unit;

/// An axis from one value to another.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Axis {
    /// What it shows, with the unit.
    pub(super) label: String,
    from: f64,
    to: f64,
    logarithmic: bool,
    /// Values with a label.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis for `values`, with a little room at both ends; none if there are none.
    pub(in super::super) fn linear(label: &str, values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = range(values)?;
        let room = if high > low { 0.06 * (high - low) } else { 0.05 * high.abs().max(1e-3) };
        Some(Self::of(label, low - room, high + room))
    }

    /// An axis from 0 to the largest of `values`.
    pub(in super::super) fn from_zero(
        label: &str,
        values: impl Iterator<Item = f64>,
    ) -> Option<Self> {
        let (_, high) = range(values)?;
        Some(Self::of(label, 0.0, if high > 0.0 { high } else { 1.0 }))
    }

    /// A logarithmic axis for bytes, of which those that are above 0 have a place.
    pub(in super::super) fn bytes(label: &str, values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = range(values.filter(|value| *value > 0.0))?;
        let (from, to) = (low / 1.15, high * 1.15);
        let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
        let tick = |decade: i32, part: f64| part * 10f64.powi(decade);
        let within = |value: &f64| (from..=to).contains(value);
        let whole: Vec<f64> =
            decades.clone().map(|decade| tick(decade, 1.0)).filter(within).collect();
        let parts = |decade: i32| [1.0, 2.0, 5.0].map(|part| tick(decade, part));
        let mut ticks: Vec<f64> = match (to / from).log10() > 2.0 {
            true => whole,
            false => decades.flat_map(parts).filter(within).collect(),
        };
        if ticks.len() < 2 {
            ticks = nice(from, to).0;
        }
        let name = |value: f64| {
            let (unit, size) = Unit::Bytes.scale(value * (1.0 + 1e-9));
            format!("{} {unit}", (value / size * 1e3).round() / 1e3)
        };
        let ticks = ticks.into_iter().map(|value| (value, name(value))).collect();
        Some(Self { label: label.to_owned(), from, to, logarithmic: true, ticks })
    }

    fn of(label: &str, from: f64, to: f64) -> Self {
        let (ticks, digits) = nice(from, to);
        let ticks = ticks.into_iter().map(|value| (value, format!("{value:.digits$}"))).collect();
        Self { label: label.to_owned(), from, to, logarithmic: false, ticks }
    }

    /// The place of `value`: 0 at the beginning of the axis, 1 at its end; none if it has no place.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let share = match self.logarithmic {
            true => (value / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        share.is_finite().then_some(share)
    }
}

/// Smallest and largest of the values that are finite.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let wider = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    values
        .filter(|value| value.is_finite())
        .map(|value| (value, value))
        .reduce(|a, b| wider(wider(a, b.0), b.1))
}

/// Four to eight round values from `from` to `to`, and how many digits behind the point tell them apart.
fn nice(from: f64, to: f64) -> (Vec<f64>, usize) {
    let rough = (to - from) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|part| part * power);
    let step = step.into_iter().find(|step| *step >= rough * 0.8).unwrap_or(10.0 * power);
    let (first, last) = ((from / step - 1e-9).ceil() as i64, (to / step + 1e-9).floor() as i64);
    let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    ((first..=last).map(|count| count as f64 * step).collect(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| &**label).collect()
    }

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let axis = Axis::from_zero("", [3.0, 40.0].into_iter()).unwrap();
        assert_eq!(labels(&axis), ["0", "10", "20", "30", "40"]);
        let axis = Axis::linear("", [2.0, 2.5].into_iter()).unwrap();
        assert_eq!(labels(&axis), ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5"]);
        assert!((axis.place(2.25).unwrap() - 0.5).abs() < 1e-9);
        let axis = Axis::bytes("", [0.0, 2e4, 5e7].into_iter()).unwrap();
        assert_eq!(labels(&axis), ["100 kB", "1 MB", "10 MB"]);
        let axis = Axis::bytes("", [9e5, 3e6].into_iter()).unwrap();
        assert_eq!(labels(&axis), ["1 MB", "2 MB"]);
        assert_eq!(axis.place(0.0), None);
        assert!((axis.place(3e6 * 1.15).unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn any_values_have_an_axis() {
        for values in [vec![0.0], vec![2.5], vec![-1.0, f64::NAN, 1e9], vec![1e-7, 1.1e-7]] {
            let linear = Axis::linear("", values.iter().copied()).unwrap();
            let zero = Axis::from_zero("", values.iter().copied()).unwrap();
            for axis in [linear, zero] {
                assert!((2..=9).contains(&axis.ticks.len()), "{values:?}: {axis:?}");
            }
        }
        assert_eq!(Axis::linear("", [f64::INFINITY].into_iter()), None);
        assert_eq!(Axis::bytes("", [0.0].into_iter()), None);
        let narrow = Axis::bytes("", [1.3e6].into_iter()).unwrap();
        assert!((2..=9).contains(&narrow.ticks.len()), "{narrow:?}");
    }
}
