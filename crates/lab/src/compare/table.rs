//! Figures of all runs, their mean and spread over seeds, and the table of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Contender;
use super::measures::{MEASURES, Measure};
use super::outcome::{Outcome, TARGET_SHARE};

/// The experiments side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Comparison {
    /// The experiment that the others are measured by.
    pub(super) baseline: String,
    /// Part of the baseline's gain, of the same seed, that is the target.
    pub(super) target_share: f64,
    pub(super) seeds: Vec<u64>,
    pub(super) experiments: Vec<Entry>,
}

/// An experiment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    /// In the order of seeds.
    pub(super) runs: Vec<Run>,
    /// Each figure over seeds; null if no run has it.
    pub(super) over_seeds: BTreeMap<String, Option<Statistic>>,
}

/// A run's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Run {
    pub(super) seed: u64,
    /// Whether every round was committed.
    pub(super) completed: bool,
    /// How it ended, in words.
    pub(super) message: String,
    pub(super) figures: BTreeMap<String, Option<f64>>,
}

/// A figure over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Statistic {
    pub(super) mean: f64,
    /// Standard deviation of the sample; null for one run.
    pub(super) deviation: Option<f64>,
    /// Runs that have the figure: the others never reached it.
    pub(super) runs: usize,
}

impl Statistic {
    /// Of values, of which there may be none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let (runs, sum) = (values.len(), values.iter().sum::<f64>());
        let mean = (runs > 0).then(|| sum / runs as f64)?;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (runs > 1).then(|| (squares / (runs - 1) as f64).sqrt());
        Some(Self { mean, deviation, runs })
    }
}

impl Comparison {
    /// Of contenders, the first of which is the baseline, each with a run for each seed.
    pub(super) fn of(contenders: &[Contender], seeds: &[u64]) -> Self {
        let baseline = &contenders[0];
        let entry = |contender: &Contender| {
            let pairs = || contender.outcomes.iter().zip(&baseline.outcomes);
            let over_seeds = |measure: &Measure| {
                let values: Vec<f64> =
                    pairs().filter_map(|(run, base)| (measure.of)(run, base)).collect();
                (measure.key.to_owned(), Statistic::of(&values))
            };
            Entry {
                name: contender.name.clone(),
                runs: pairs().map(|(run, base)| Run::of(run, base)).collect(),
                over_seeds: MEASURES.iter().map(over_seeds).collect(),
            }
        };
        Self {
            baseline: baseline.name.clone(),
            target_share: TARGET_SHARE,
            seeds: seeds.to_vec(),
            experiments: contenders.iter().map(entry).collect(),
        }
    }

    /// A line for each figure that any experiment has: its name, and it for each experiment.
    pub(super) fn rows(&self) -> Vec<(&'static str, Vec<String>)> {
        let has = |measure: &&Measure| {
            self.experiments.iter().any(|entry| entry.over_seeds[measure.key].is_some())
        };
        let row = |measure: &Measure| {
            let cell = |entry: &Entry| self.cell(measure, entry.over_seeds[measure.key]);
            (measure.label, self.experiments.iter().map(cell).collect())
        };
        MEASURES.iter().filter(has).map(row).collect()
    }

    fn cell(&self, measure: &Measure, statistic: Option<Statistic>) -> String {
        let Some(Statistic { mean, deviation, runs }) = statistic else { return "–".to_owned() };
        let told = measure.unit.tell(mean, deviation);
        match runs == self.seeds.len() {
            true => told,
            false => format!("{told} ({runs} of {})", self.seeds.len()),
        }
    }

    /// What has to be known to read the table.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "The target is {:.0}% of the gain of {}, of the same seed; – where it was not reached.",
            100.0 * self.target_share,
            self.baseline
        )];
        if self.seeds.len() > 1 {
            notes.push(format!(
                "Mean ± standard deviation over {} seeds; (n of {0}) where fewer reached it.",
                self.seeds.len()
            ));
        }
        for (name, run) in self.given_up() {
            notes.push(format!("{name}, seed {}, was given up: {}", run.seed, run.message));
        }
        notes
    }

    /// Runs that were given up.
    pub(super) fn given_up(&self) -> impl Iterator<Item = (&str, &Run)> {
        self.experiments
            .iter()
            .flat_map(|entry| entry.runs.iter().map(|run| (&*entry.name, run)))
            .filter(|(_, run)| !run.completed)
    }

    /// The table as text.
    pub(super) fn text(&self) -> String {
        let names = self.experiments.iter().map(|entry| entry.name.clone()).collect();
        let mut rows = vec![("", names)];
        rows.extend(self.rows());
        let width = |text: &str| text.chars().count();
        let first = rows.iter().map(|(label, _)| width(label)).max().unwrap_or(0);
        let column = |at: usize| rows.iter().map(|(_, cells)| width(&cells[at])).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.experiments.len()).map(column).collect();
        let line = |(label, cells): &(&str, Vec<String>)| {
            let mut line = format!("{label:<first$}");
            for (cell, width) in cells.iter().zip(&widths) {
                line += &format!("  {cell:>width$}");
            }
            line
        };
        let lines: Vec<String> = rows.iter().map(line).chain(self.notes()).collect();
        lines.join("\n")
    }
}

impl Run {
    fn of(run: &Outcome, baseline: &Outcome) -> Self {
        let figure = |measure: &Measure| (measure.key.to_owned(), (measure.of)(run, baseline));
        Self {
            seed: run.summary.seed,
            completed: run.summary.completed,
            message: run.summary.message.clone(),
            figures: MEASURES.iter().map(figure).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    fn contender(name: &str, outcomes: Vec<Outcome>) -> Contender {
        Contender { name: name.to_owned(), settings: toml::Table::new(), outcomes }
    }

    #[test]
    fn the_spread_is_that_of_a_sample() {
        let statistic = Statistic::of(&[1.0, 2.0, 6.0]).unwrap();
        // Deviations -2, -1 and 3 from 3: the root of 14 / 2.
        assert_eq!((statistic.mean, statistic.runs), (3.0, 3));
        assert!((statistic.deviation.unwrap() - 7.0f64.sqrt()).abs() < 1e-12);
        let one = Statistic { mean: 4.0, deviation: None, runs: 1 };
        assert_eq!(Statistic::of(&[4.0]), Some(one));
        assert_eq!(Statistic::of(&[]), None);
    }

    #[test]
    fn each_seed_has_its_own_target_and_those_that_miss_it_are_told() {
        let baseline = [outcome(3.0, &[Some(2.0)], 1000), outcome(3.0, &[Some(1.0)], 1000)];
        // 2.0 is enough for the first seed's target, 2.05, and not for the second's, 1.1.
        let short = [outcome(3.0, &[Some(2.0)], 100), outcome(3.0, &[Some(2.0)], 100)];
        let contenders = [contender("plain", baseline.into()), contender("short", short.into())];
        let comparison = Comparison::of(&contenders, &[1, 2]);
        let entry = &comparison.experiments[1];
        let reached = entry.over_seeds["bytes_up_to_target"].unwrap();
        assert_eq!((reached.runs, reached.deviation), (1, None));
        assert!((reached.mean - 95.0).abs() < 1e-9);
        assert_eq!(entry.runs[1].figures["bytes_up_to_target"], None);
        let text = comparison.text();
        assert!(
            text.contains("95 B (1 of 2)") && text.contains("95% of the gain of plain"),
            "{text}"
        );
        assert!(!text.contains("own further steps"), "{text}");
        let lines: Vec<usize> = text.lines().take(5).map(|line| line.chars().count()).collect();
        assert!(lines.iter().all(|length| *length == lines[0]), "{text}");
    }
}
