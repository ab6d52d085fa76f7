//! The plots of a comparison: which there are, and of what.

use super::Contender;
use super::measures::Unit;
use super::outcome::{Outcome, Point, TARGET_SHARE};
use super::plot::{Axis, Line, Lines, Plot, Reference, Strip, Strips};
use super::table::Statistic;
use crate::simulate::{ClientRow, RoundRow};

const LOSS: &str = "loss on held-out text (nats per token)";

/// A plot with its name.
#[derive(Debug)]
pub(super) struct Figure {
    /// Name of its file, without the ending.
    pub(super) name: &'static str,
    pub(super) plot: Plot,
}

/// A curve of one run: points of x and y, each with what it is matched by among seeds.
type Curve = Vec<(u64, [f64; 2])>;

/// All plots for which there is something to show.
pub(super) fn all(contenders: &[Contender]) -> Vec<Figure> {
    let seconds = contenders.iter().flat_map(|contender| &contender.outcomes);
    let seconds = seconds.map(|run| run.summary.virtual_s).fold(0.0, f64::max);
    let (unit, size) = Unit::Seconds.scale(seconds);
    let time = format!("virtual time ({unit})");
    let bytes = |label: &str, xs: &[f64]| Axis::bytes(label, xs.iter().copied());
    let figures = [
        loss(
            contenders,
            Spent {
                name: "loss_by_round",
                title: "Loss by round",
                axis: &|xs| Axis::from_zero("rounds", xs.iter().copied()),
                of: &|point| point.rounds,
            },
        ),
        loss(
            contenders,
            Spent {
                name: "loss_by_upload",
                title: "Loss by bytes uploaded",
                axis: &|xs| bytes("uploaded by all devices together, logarithmic", xs),
                of: &|point| point.bytes_up,
            },
        ),
        loss(
            contenders,
            Spent {
                name: "loss_by_traffic",
                title: "Loss by bytes in both directions",
                axis: &|xs| bytes("uploaded and downloaded by all devices, logarithmic", xs),
                of: &Point::bytes,
            },
        ),
        loss(
            contenders,
            Spent {
                name: "loss_by_time",
                title: "Loss by virtual time",
                axis: &|xs| Axis::from_zero(&time, xs.iter().copied()),
                of: &|point| point.seconds / size,
            },
        ),
        clients(contenders),
        by_round(
            contenders,
            ("drop_outs", "Drop-outs", "assignments never answered, since the beginning"),
            |rows| {
                let mut sum = 0;
                let count = |row: &RoundRow| {
                    sum += row.dropped_out;
                    Some(sum as f64)
                };
                rows.iter().map(count).collect()
            },
        ),
        by_round(
            contenders,
            ("staleness", "Staleness", "mean over updates that count (versions)"),
            |rows| rows.iter().map(|row| row.mean_staleness).collect(),
        ),
        by_round(
            contenders,
            ("residual", "Aggregation residual", "distance of factors' mean from products' mean"),
            |rows| rows.iter().map(|row| row.residual).collect(),
        ),
    ];
    figures.into_iter().flatten().collect()
}

/// What the loss of a run is drawn against.
struct Spent<'a> {
    name: &'static str,
    title: &'a str,
    /// The axis for such values.
    axis: &'a dyn Fn(&[f64]) -> Option<Axis>,
    of: &'a dyn Fn(&Point) -> f64,
}

/// Held-out loss against what was spent.
fn loss(contenders: &[Contender], spent: Spent<'_>) -> Option<Figure> {
    let Spent { name, title, axis, of } = spent;
    let curve = |run: &Outcome| -> Curve {
        run.curve.iter().map(|point| (point.version, [of(point), point.loss])).collect()
    };
    let lines = lines(contenders, curve);
    let xs: Vec<f64> = lines.iter().flat_map(Line::xs).collect();
    let over_seeds = |value: fn(&Outcome) -> Option<f64>| {
        let values: Vec<f64> = contenders[0].outcomes.iter().filter_map(value).collect();
        Statistic::of(&values).map(|statistic| statistic.mean)
    };
    let base = over_seeds(Outcome::base_loss).map(|value| Reference {
        name: "without adapter".to_owned(),
        value,
        below: false,
    });
    let target = over_seeds(Outcome::target).map(|value| Reference {
        name: format!("{:.0}% of {}'s gain", 100.0 * TARGET_SHARE, contenders[0].name),
        value,
        below: true,
    });
    let references: Vec<Reference> = base.into_iter().chain(target).collect();
    let marks = references.iter().map(|reference| reference.value);
    let y = Axis::linear(LOSS, lines.iter().flat_map(Line::ys).chain(marks))?;
    let plot = Lines { title: title.to_owned(), x: axis(&xs)?, y, lines, references }.draw();
    Some(Figure { name, plot })
}

/// What `value` gives for each round; none if it is nothing but 0.
fn by_round(
    contenders: &[Contender],
    (name, title, y): (&'static str, &str, &str),
    value: impl Fn(&[RoundRow]) -> Vec<Option<f64>>,
) -> Option<Figure> {
    let curve = |run: &Outcome| -> Curve {
        let point = |(row, value): (&RoundRow, Option<f64>)| {
            Some((row.round.into(), [f64::from(row.round), value?]))
        };
        run.rounds.iter().zip(value(&run.rounds)).filter_map(point).collect()
    };
    let mut lines = lines(contenders, curve);
    lines.retain(|line| !line.mean.is_empty());
    let something = |line: &Line| line.mean.iter().any(|[_, y]| *y != 0.0);
    if !lines.iter().any(something) {
        return None;
    }
    let x = Axis::from_zero("round", lines.iter().flat_map(Line::xs))?;
    let y = Axis::from_zero(y, lines.iter().flat_map(Line::ys))?;
    let (title, references) = (title.to_owned(), Vec::new());
    let plot = Lines { title, x, y, lines, references }.draw();
    Some(Figure { name, plot })
}

fn lines(contenders: &[Contender], curve: impl Fn(&Outcome) -> Curve) -> Vec<Line> {
    let line = |(index, contender): (usize, &Contender)| {
        let curves: Vec<Curve> = contender.outcomes.iter().map(&curve).collect();
        let mean = mean(&curves);
        let points = |curve: Curve| curve.into_iter().map(|(_, point)| point).collect();
        let several = curves.len() > 1;
        let seeds = curves.into_iter().filter(|_| several).map(points).collect();
        Line { name: contender.name.clone(), index, mean, seeds }
    };
    contenders.iter().enumerate().map(line).collect()
}

/// The mean of points that all curves have.
fn mean(curves: &[Curve]) -> Vec<[f64; 2]> {
    let Some((first, others)) = curves.split_first() else { return Vec::new() };
    let point = |(key, point): &(u64, [f64; 2])| {
        others.iter().try_fold(*point, |sum, curve| {
            let (_, other) = curve.iter().find(|(other, _)| other == key)?;
            Some([sum[0] + other[0], sum[1] + other[1]])
        })
    };
    let share = |sum: [f64; 2]| sum.map(|value| value / curves.len() as f64);
    first.iter().filter_map(point).map(share).collect()
}

/// Losses of clients on their own texts: without an adapter, with it, and after steps of their own.
fn clients(contenders: &[Contender]) -> Option<Figure> {
    let losses = |contender: &Contender, loss: fn(&ClientRow) -> Option<f64>| -> Vec<f64> {
        contender.outcomes.iter().flat_map(|run| &run.clients).filter_map(loss).collect()
    };
    let before = losses(&contenders[0], |row| row.base_loss);
    let without = "without adapter".to_owned();
    let mut strips = vec![Strip { name: without.clone(), index: 0, values: before.clone() }];
    for (index, contender) in contenders.iter().enumerate() {
        let name = &contender.name;
        let base = losses(contender, |row| row.base_loss);
        if base != before {
            // Other clients, or another base model.
            strips.push(Strip { name: format!("{name}, {without}"), index, values: base });
        }
        let values = losses(contender, |row| row.adapter_loss);
        strips.push(Strip { name: name.clone(), index, values });
        let values = losses(contender, |row| row.personal_loss);
        if !values.is_empty() {
            strips.push(Strip { name: format!("{name}, after own steps"), index, values });
        }
    }
    let title = "Loss of each client".to_owned();
    let x = "loss on its own held-out text (nats per token)".to_owned();
    let plot = Strips { title, x, strips }.draw()?;
    Some(Figure { name: "client_losses", plot })
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    fn contender(name: &str, losses: &[Option<f64>]) -> Contender {
        let outcomes = vec![outcome(3.0, losses, 1000), outcome(3.0, losses, 2000)];
        Contender { name: name.to_owned(), settings: toml::Table::new(), outcomes }
    }

    #[test]
    fn there_are_plots_of_what_there_is() {
        let mut contenders =
            [contender("a", &[Some(2.5), Some(2.0)]), contender("b", &[None, Some(2.1)])];
        let names = |contenders: &[Contender]| -> Vec<&'static str> {
            all(contenders).iter().map(|figure| figure.name).collect()
        };
        let loss = ["loss_by_round", "loss_by_upload", "loss_by_traffic", "loss_by_time"];
        assert_eq!(names(&contenders), loss);
        contenders[1].outcomes[0].rounds[1].dropped_out = 2;
        contenders[0].outcomes[1].rounds[0].mean_staleness = Some(1.5);
        contenders[0].outcomes.iter_mut().for_each(|run| run.rounds[0].residual = Some(0.1));
        let row = ClientRow {
            client: "a".parse().unwrap(),
            source: None,
            examples: 3,
            updates: 1,
            drop_outs: 0,
            bytes_up: 0,
            bytes_down: 0,
            hostile: false,
            max_rank: None,
            holdout_tokens: Some(4),
            base_loss: Some(3.0),
            adapter_loss: Some(2.0),
            personal_loss: Some(1.0),
        };
        contenders[0].outcomes[0].clients = vec![row];
        let want = [&loss[..], &["client_losses", "drop_outs", "staleness", "residual"]].concat();
        assert_eq!(names(&contenders), want);
    }

    #[test]
    fn the_mean_is_over_points_that_all_seeds_have() {
        let curves = [
            vec![(0, [0.0, 4.0]), (2, [20.0, 3.0]), (4, [40.0, 2.0])],
            vec![(0, [0.0, 2.0]), (3, [25.0, 2.5]), (4, [60.0, 1.0])],
        ];
        assert_eq!(mean(&curves), [[0.0, 3.0], [50.0, 1.5]]);
        assert_eq!(mean(&[]), [[0.0; 2]; 0]);
    }
}
