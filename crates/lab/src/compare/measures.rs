//! The figures of a run, and how they are told.

use super::outcome::{Outcome, Point, spent_until};

/// A figure of a run beside the baseline's run of the same seed.
pub(super) struct Measure {
    /// Its name in JSON.
    pub(super) key: &'static str,
    /// Its name for people.
    pub(super) label: &'static str,
    pub(super) unit: Unit,
    /// The figure of a run; the baseline's run is second. None where it has no meaning, or a target
    /// was never reached.
    pub(super) of: fn(&Outcome, &Outcome) -> Option<f64>,
}

/// All figures, in the order in which they are told.
pub(super) const MEASURES: &[Measure] = &[
    Measure {
        key: "final_loss",
        label: "held-out loss at the end",
        unit: Unit::Loss,
        of: |run, _| run.final_loss(),
    },
    Measure {
        key: "gain",
        label: "gain over no adapter",
        unit: Unit::Loss,
        of: |run, _| run.gain(),
    },
    Measure {
        key: "loss_over_baseline",
        label: "loss as a share of the baseline's",
        unit: Unit::Loss,
        of: |run, baseline| Some(run.final_loss()? / baseline.final_loss()?),
    },
    Measure {
        key: "gain_over_baseline",
        label: "gain as a share of the baseline's",
        unit: Unit::Loss,
        of: |run, baseline| {
            let of_baseline = baseline.gain().filter(|gain| *gain > 0.0)?;
            Some(run.gain()? / of_baseline)
        },
    },
    Measure {
        key: "loss_over_central",
        label: "loss as a share of that of training in one place",
        unit: Unit::Loss,
        of: |run, _| run.summary.central.as_ref().map(|central| central.federated_over_central),
    },
    Measure {
        key: "worst_decile_loss",
        label: "loss of the worst tenth of clients",
        unit: Unit::Loss,
        of: |run, _| run.summary.federated.map(|spread| spread.worst_decile),
    },
    Measure {
        key: "personal_loss",
        label: "loss after own further steps",
        unit: Unit::Loss,
        of: |run, _| run.summary.personal.map(|spread| spread.pooled),
    },
    Measure {
        key: "virtual_s",
        label: "virtual time",
        unit: Unit::Seconds,
        of: |run, _| Some(run.summary.virtual_s),
    },
    Measure {
        key: "bytes_up",
        label: "uploaded",
        unit: Unit::Bytes,
        of: |run, _| Some(run.summary.bytes_up as f64),
    },
    Measure {
        key: "bytes_down",
        label: "downloaded",
        unit: Unit::Bytes,
        of: |run, _| Some(run.summary.bytes_down as f64),
    },
    Measure {
        key: "bytes_up_per_update",
        label: "uploaded by a device in a round",
        unit: Unit::Bytes,
        of: |run, _| up_per_update(run),
    },
    Measure {
        key: "f32_over_upload",
        label: "times smaller than values in f32",
        unit: Unit::Times,
        of: |run, _| Some(4.0 * run.summary.parameters as f64 / up_per_update(run)?),
    },
    Measure {
        key: "bytes_down_per_update",
        label: "downloaded by a device in a round",
        unit: Unit::Bytes,
        of: |run, _| Some(run.summary.bytes_down as f64 / updates(run)?),
    },
    Measure {
        key: "rounds_to_target",
        label: "rounds to the target",
        unit: Unit::Count,
        of: |run, baseline| to_target(run, baseline, |point| point.rounds),
    },
    Measure {
        key: "baseline_over_rounds_to_target",
        label: "times fewer than the baseline",
        unit: Unit::Times,
        of: |run, baseline| saving(run, baseline, |point| point.rounds),
    },
    Measure {
        key: "bytes_up_to_target",
        label: "uploaded to the target",
        unit: Unit::Bytes,
        of: |run, baseline| to_target(run, baseline, |point| point.bytes_up),
    },
    Measure {
        key: "baseline_over_bytes_up_to_target",
        label: "times fewer than the baseline",
        unit: Unit::Times,
        of: |run, baseline| saving(run, baseline, |point| point.bytes_up),
    },
    Measure {
        key: "bytes_to_target",
        label: "uploaded and downloaded to the target",
        unit: Unit::Bytes,
        of: |run, baseline| to_target(run, baseline, Point::bytes),
    },
    Measure {
        key: "baseline_over_bytes_to_target",
        label: "times fewer than the baseline",
        unit: Unit::Times,
        of: |run, baseline| saving(run, baseline, Point::bytes),
    },
];

fn updates(run: &Outcome) -> Option<f64> {
    Some(run.summary.updates as f64).filter(|updates| *updates > 0.0)
}

fn up_per_update(run: &Outcome) -> Option<f64> {
    Some(run.summary.bytes_up as f64 / updates(run)?)
}

/// What was spent until the loss was that of the baseline's target.
fn to_target(run: &Outcome, baseline: &Outcome, spent: fn(&Point) -> f64) -> Option<f64> {
    spent_until(&run.curve, baseline.target()?, spent)
}

/// How many times as much the baseline spent until then.
fn saving(run: &Outcome, baseline: &Outcome, spent: fn(&Point) -> f64) -> Option<f64> {
    let own = to_target(run, baseline, spent).filter(|own| *own > 0.0)?;
    Some(to_target(baseline, baseline, spent)? / own)
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Nats per token, or a ratio of such.
    Loss,
    /// How many times.
    Times,
    /// A number of things.
    Count,
    /// Bytes, told in powers of 1000.
    Bytes,
    /// Seconds, told in what suits their number.
    Seconds,
}

impl Unit {
    /// The name of the unit in which `value` is best told, and how many of these it is worth.
    pub(super) fn scale(self, value: f64) -> (&'static str, f64) {
        let scales: &[(&str, f64)] = match self {
            Self::Loss | Self::Count => &[("", 1.0)],
            Self::Times => &[("×", 1.0)],
            Self::Bytes => &[("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)],
            Self::Seconds => &[("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86_400.0)],
        };
        // Time stays in smaller units until two of the next are full.
        let least = if self == Self::Seconds { 2.0 } else { 1.0 };
        let fits = |(_, size): &&(&'static str, f64)| value.abs() >= least * size;
        *scales.iter().rev().find(fits).unwrap_or(&scales[0])
    }

    /// A figure, with its deviation if there is one.
    pub(super) fn tell(self, value: f64, deviation: Option<f64>) -> String {
        let (name, size) = self.scale(value);
        let digits = match self {
            Self::Loss => 4,
            Self::Bytes if size == 1.0 => 0,
            _ => (2 - (value / size).abs().log10().floor().clamp(-9.0, 2.0) as i32).min(4) as usize,
        };
        let number = |value: f64| format!("{:.digits$}", value / size);
        let spread = deviation.map(|deviation| format!(" ± {}", number(deviation)));
        let space = if matches!(name, "" | "×") { "" } else { " " };
        format!("{}{}{space}{name}", number(value), spread.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;
    use crate::simulate::results::Central;

    fn figure(key: &str, run: &Outcome, baseline: &Outcome) -> Option<f64> {
        (MEASURES.iter().find(|measure| measure.key == key).unwrap().of)(run, baseline)
    }

    /// The baseline goes from 3 to 2 in two rounds of 1000 bytes up; the other goes as far in four
    /// rounds of 100.
    #[test]
    fn savings_are_those_of_the_baseline_s_target() {
        let baseline = outcome(3.0, &[Some(2.5), Some(2.0)], 1000);
        let run = outcome(3.0, &[Some(2.6), Some(2.3), Some(2.1), Some(2.0)], 100);
        let near = |key: &str, run: &Outcome, want: f64| {
            let got = figure(key, run, &baseline).unwrap();
            assert!((got / want - 1.0).abs() < 1e-9, "{key}: {got}, not {want}");
        };
        // The target is 2.05: 0.9 of the way from 2.5 to 2.0, and half of that from 2.1 to 2.0.
        near("rounds_to_target", &baseline, 1.9);
        near("rounds_to_target", &run, 3.5);
        near("bytes_up_to_target", &run, 350.0);
        near("bytes_to_target", &run, 1050.0);
        near("baseline_over_rounds_to_target", &run, 1.9 / 3.5);
        near("baseline_over_bytes_up_to_target", &run, 1900.0 / 350.0);
        near("baseline_over_bytes_to_target", &run, 5700.0 / 1050.0);
        near("baseline_over_bytes_to_target", &baseline, 1.0);
        // 2 updates in each round, of 1000 values.
        near("bytes_up_per_update", &run, 50.0);
        near("f32_over_upload", &run, 80.0);
        near("loss_over_baseline", &run, 1.0);
        near("gain", &run, 1.0);
        let half = outcome(3.0, &[Some(2.5)], 100);
        near("gain_over_baseline", &half, 0.5);
        let mut central = half.clone();
        let losses = vec![(0.01, 2.0)];
        let of = Central { steps: 9, losses, best: 2.0, federated_over_central: 1.25 };
        central.summary.central = Some(of);
        near("loss_over_central", &central, 1.25);
        assert_eq!(figure("loss_over_central", &half, &baseline), None);
    }

    #[test]
    fn what_is_never_reached_is_none() {
        let baseline = outcome(3.0, &[Some(2.0)], 1000);
        let run = outcome(3.0, &[Some(2.5), Some(2.06)], 100);
        for key in ["rounds_to_target", "bytes_to_target", "baseline_over_bytes_to_target"] {
            assert_eq!(figure(key, &run, &baseline), None, "{key}");
        }
        assert_eq!(figure("personal_loss", &run, &baseline), None);
        // Nothing is a share of no gain.
        let lost = outcome(3.0, &[Some(3.0)], 100);
        assert_eq!(figure("gain_over_baseline", &run, &lost), None);
        let mut nobody = outcome(3.0, &[Some(2.0)], 0);
        (nobody.summary.updates, nobody.summary.federated) = (0, None);
        assert_eq!(figure("bytes_up_per_update", &nobody, &baseline), None);
        assert_eq!(figure("loss_over_baseline", &nobody, &baseline), None);
    }

    #[test]
    fn figures_are_told_in_units_that_suit_them() {
        let told = [
            (Unit::Loss, 2.345_67, Some(0.012_3), "2.3457 ± 0.0123"),
            (Unit::Times, 12.345, None, "12.3×"),
            (Unit::Times, 123.45, Some(6.7), "123 ± 7×"),
            (Unit::Count, 7.25, None, "7.25"),
            (Unit::Bytes, 999.0, Some(1.2), "999 ± 1 B"),
            (Unit::Bytes, 1_234_567.0, Some(45_678.0), "1.23 ± 0.05 MB"),
            (Unit::Bytes, 0.0, None, "0 B"),
            (Unit::Seconds, 119.0, None, "119 s"),
            (Unit::Seconds, 1234.0, None, "20.6 min"),
            (Unit::Seconds, 86_400.0, None, "24.0 h"),
        ];
        for (unit, value, deviation, want) in told {
            assert_eq!(unit.tell(value, deviation), want);
        }
    }
}
