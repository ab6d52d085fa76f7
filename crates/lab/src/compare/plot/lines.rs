//! Curves: for each experiment the mean over seeds, and a thin line for each seed.

use maud::{Markup, html};

use super::{Axis, CHARACTER, LEFT, Plot, RIGHT, SUBTITLE, TOP, WIDTH, at, classes, dashes};

/// Height of the area in which curves are drawn, and of what stands below it.
const AREA: f64 = 200.0;
const BELOW: f64 = 44.0;
/// From one line of the legend, or one name at an end, to the next.
const LEGEND_LINE: f64 = 17.0;
const NAME_LINE: f64 = 14.0;
/// Names of up to this many characters can stand beside the ends.
const BESIDE: usize = 12;
/// Up to this many points of a curve have a dot.
const DOTS: usize = 30;

/// An experiment's curves: points of x and y.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Line {
    pub(in super::super) name: String,
    /// The experiment's, for its colour.
    pub(in super::super) index: usize,
    pub(in super::super) mean: Vec<[f64; 2]>,
    /// More than one, or none.
    pub(in super::super) seeds: Vec<Vec<[f64; 2]>>,
}

impl Line {
    pub(in super::super) fn xs(&self) -> impl Iterator<Item = f64> {
        self.points().map(|[x, _]| x)
    }

    pub(in super::super) fn ys(&self) -> impl Iterator<Item = f64> {
        self.points().map(|[_, y]| y)
    }

    fn points(&self) -> impl Iterator<Item = [f64; 2]> {
        self.seeds.iter().flatten().chain(&self.mean).copied()
    }
}

/// A value of y to compare with.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Reference {
    pub(in super::super) name: String,
    pub(in super::super) value: f64,
    /// Whether its name stands below it at the left, and not above it at the right.
    pub(in super::super) below: bool,
}

/// Curves over a common axis.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Lines {
    pub(in super::super) title: String,
    pub(in super::super) x: Axis,
    pub(in super::super) y: Axis,
    pub(in super::super) lines: Vec<Line>,
    pub(in super::super) references: Vec<Reference>,
}

/// Where things lie in the drawing.
struct Frame {
    x: Axis,
    y: Axis,
    top: f64,
    right: f64,
}

impl Frame {
    fn x(&self, value: f64) -> Option<f64> {
        Some(LEFT + self.x.place(value)? * (self.right - LEFT))
    }

    fn y(&self, value: f64) -> Option<f64> {
        Some(self.bottom() - self.y.place(value)? * AREA)
    }

    fn bottom(&self) -> f64 {
        self.top + AREA
    }

    /// Places of points, without those that have none.
    fn places(&self, points: &[[f64; 2]]) -> Vec<[f64; 2]> {
        points.iter().filter_map(|[x, y]| Some([self.x(*x)?, self.y(*y)?])).collect()
    }
}

impl Lines {
    /// The drawing.
    pub(in super::super) fn draw(self) -> Plot {
        let longest = self.lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let beside = self.lines.len() > 1 && longest <= BESIDE && self.ends_at_the_right();
        let legend = if beside { Vec::new() } else { self.legend() };
        let room = if beside { 22.0 + CHARACTER * longest as f64 } else { RIGHT };
        let top =
            TOP + LEGEND_LINE * legend.iter().map(|place| place.1 + 1).max().unwrap_or(0) as f64;
        let (x, y) = (self.x.clone(), self.y.clone());
        let frame = Frame { x, y, top, right: WIDTH - room };
        let body = html! {
            text.quiet x="12" y=(at(SUBTITLE)) { (self.y.label) }
            @for (line, (x, row)) in self.lines.iter().zip(&legend) {
                (key(line, *x, TOP + LEGEND_LINE * *row as f64))
            }
            (axes(&frame))
            @for reference in &self.references { (self.reference(&frame, reference)) }
            @for line in &self.lines { (seeds(&frame, line)) }
            @for line in &self.lines { (mean(&frame, line)) }
            @if beside { (self.names(&frame)) }
        };
        Plot { title: self.title, height: top + AREA + BELOW, body }
    }

    /// Whether all curves end near the end of the axis, where their names can stand.
    fn ends_at_the_right(&self) -> bool {
        let end = |line: &Line| line.mean.last().and_then(|[x, _]| self.x.place(*x));
        self.lines.iter().all(|line| end(line).is_some_and(|place| place > 0.9))
    }

    /// Where each name stands in the legend: x, and the number of its line. A single experiment needs
    /// none.
    fn legend(&self) -> Vec<(f64, usize)> {
        if self.lines.len() < 2 {
            return Vec::new();
        }
        let (mut x, mut row) = (12.0, 0);
        let place = |line: &Line| {
            let width = 40.0 + CHARACTER * line.name.chars().count() as f64;
            if x > 12.0 && x + width > WIDTH {
                (x, row) = (12.0, row + 1);
            }
            let place = (x, row);
            x += width;
            place
        };
        self.lines.iter().map(place).collect()
    }

    fn reference(&self, frame: &Frame, reference: &Reference) -> Markup {
        let Some(y) = frame.y(reference.value) else { return Markup::default() };
        let (x, anchor, offset) = match reference.below {
            true => (LEFT + 6.0, "start", 13.0),
            false => (frame.right - 6.0, "end", -5.0),
        };
        html! {
            line.reference x1=(at(LEFT)) x2=(at(frame.right)) y1=(at(y)) y2=(at(y)) {}
            text.quiet.halo x=(at(x)) y=(at(y + offset)) text-anchor=(anchor) { (reference.name) }
        }
    }

    /// Names beside the ends of curves, moved apart, each with a line to its end.
    fn names(&self, frame: &Frame) -> Markup {
        let end = |line: &Line| frame.places(&line.mean).last().copied();
        let ends: Vec<(&Line, [f64; 2])> =
            self.lines.iter().filter_map(|line| Some((line, end(line)?))).collect();
        let wanted: Vec<f64> = ends.iter().map(|(_, [_, y])| *y).collect();
        let places = apart(&wanted, NAME_LINE, [frame.top, frame.bottom()]);
        let x = frame.right + 14.0;
        html! {
            @for ((line, [from, height]), y) in ends.iter().zip(places) {
                line.(classes(line.index)[0]) x1=(at(*from)) x2=(at(x - 3.0)) y1=(at(*height)) y2=(at(y)) {}
                text x=(at(x)) y=(at(y + 4.0)) { (line.name) }
            }
        }
    }
}

fn key(line: &Line, x: f64, y: f64) -> Markup {
    html! {
        line.mean.(classes(line.index)[0]) stroke-dasharray=[dashes(line.index)]
            x1=(at(x)) x2=(at(x + 20.0)) y1=(at(y)) y2=(at(y)) {}
        text x=(at(x + 26.0)) y=(at(y + 4.0)) { (line.name) }
    }
}

fn axes(frame: &Frame) -> Markup {
    let (bottom, right) = (frame.bottom(), frame.right);
    html! {
        @for (value, label) in &frame.y.ticks {
            @if let Some(y) = frame.y(*value) {
                line.grid x1=(at(LEFT)) x2=(at(right)) y1=(at(y)) y2=(at(y)) {}
                text.quiet x=(at(LEFT - 6.0)) y=(at(y + 4.0)) text-anchor="end" { (label) }
            }
        }
        @for (value, label) in &frame.x.ticks {
            @if let Some(x) = frame.x(*value) {
                line.axis x1=(at(x)) x2=(at(x)) y1=(at(bottom)) y2=(at(bottom + 4.0)) {}
                text.quiet x=(at(x)) y=(at(bottom + 17.0)) text-anchor="middle" { (label) }
            }
        }
        line.axis x1=(at(LEFT)) x2=(at(right)) y1=(at(bottom)) y2=(at(bottom)) {}
        text.quiet x=(at(right)) y=(at(bottom + 35.0)) text-anchor="end" { (frame.x.label) }
    }
}

fn seeds(frame: &Frame, line: &Line) -> Markup {
    html! {
        @for points in &line.seeds {
            path.seed.(classes(line.index)[0]) d=(path(&frame.places(points))) {}
        }
    }
}

fn mean(frame: &Frame, line: &Line) -> Markup {
    let [stroke, fill, _] = classes(line.index);
    let places = frame.places(&line.mean);
    html! {
        path.mean.(stroke) stroke-dasharray=[dashes(line.index)] d=(path(&places)) {
            title { (line.name) }
        }
        @if places.len() <= DOTS {
            @for [x, y] in &places { circle.(fill) cx=(at(*x)) cy=(at(*y)) r="2.4" {} }
        }
    }
}

fn path(places: &[[f64; 2]]) -> String {
    let step = |(index, [x, y]): (usize, &[f64; 2])| {
        format!("{}{} {}", if index == 0 { "M" } else { "L" }, at(*x), at(*y))
    };
    places.iter().enumerate().map(step).collect()
}

/// Heights near those that are wanted, at least `least` from each other, and within `range` as long as
/// there is room.
fn apart(wanted: &[f64], least: f64, range: [f64; 2]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places: Vec<f64> = order.iter().map(|at| wanted[*at]).collect();
    let mut lowest = range[0];
    for place in &mut places {
        *place = place.max(lowest);
        lowest = *place + least;
    }
    let mut highest = range[1];
    for place in places.iter_mut().rev() {
        *place = place.min(highest);
        highest = *place - least;
    }
    let mut found = vec![0.0; wanted.len()];
    order.into_iter().zip(places).for_each(|(at, place)| found[at] = place);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_order_and_distance() {
        assert_eq!(apart(&[50.0, 10.0, 12.0], 10.0, [0.0, 100.0]), [50.0, 10.0, 20.0]);
        assert_eq!(apart(&[99.0, 98.0, 97.0], 10.0, [0.0, 100.0]), [100.0, 90.0, 80.0]);
        assert_eq!(apart(&[-5.0], 10.0, [0.0, 100.0]), [0.0]);
    }
}
