//! How values are spread: for each group its quartiles, its tenths at both ends, and a dot for each
//! value.

use maud::{Markup, html};

use super::{Axis, CHARACTER, Plot, SUBTITLE, TOP, WIDTH, at, classes};
use crate::statistics::quantile;

/// Space beside the area.
const SIDE: f64 = 16.0;
/// Height of a group: its name, and its values below.
const ROW: f64 = 44.0;
const BELOW: f64 = 40.0;
/// Half the height of a box.
const HALF: f64 = 8.0;
/// Most dots of a group; of more values, every n-th has one.
const DOTS: usize = 300;

/// A group of values.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Strip {
    pub(in super::super) name: String,
    /// The experiment's, for its colour.
    pub(in super::super) index: usize,
    pub(in super::super) values: Vec<f64>,
}

/// Groups over a common axis.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Strips {
    pub(in super::super) title: String,
    /// What the values are, with their unit.
    pub(in super::super) x: String,
    pub(in super::super) strips: Vec<Strip>,
}

impl Strips {
    /// The drawing; none without values.
    pub(in super::super) fn draw(self) -> Option<Plot> {
        let values = self.strips.iter().flat_map(|strip| &strip.values).copied();
        let x = Axis::linear(&self.x, values)?;
        let strips: Vec<&Strip> =
            self.strips.iter().filter(|strip| !strip.values.is_empty()).collect();
        let bottom = TOP + ROW * strips.len() as f64;
        let body = html! {
            text.quiet x="12" y=(at(SUBTITLE)) {
                "box: middle half, line: middle eight tenths, dots: clients"
            }
            @for (value, label) in &x.ticks {
                @if let Some(x) = place(&x, *value) {
                    line.grid x1=(at(x)) x2=(at(x)) y1=(at(TOP)) y2=(at(bottom)) {}
                    text.quiet x=(at(x)) y=(at(bottom + 16.0)) text-anchor="middle" { (label) }
                }
            }
            line.axis x1=(at(SIDE)) x2=(at(WIDTH - SIDE)) y1=(at(bottom)) y2=(at(bottom)) {}
            text.quiet x=(at(WIDTH - SIDE)) y=(at(bottom + 33.0)) text-anchor="end" { (x.label) }
            @for (row, strip) in strips.iter().enumerate() {
                (group(&x, strip, TOP + ROW * row as f64))
            }
        };
        Some(Plot { title: self.title, height: bottom + BELOW, body })
    }
}

fn place(x: &Axis, value: f64) -> Option<f64> {
    Some(SIDE + x.place(value)? * (WIDTH - 2.0 * SIDE))
}

fn group(x: &Axis, strip: &Strip, top: f64) -> Markup {
    let mut sorted: Vec<f64> =
        strip.values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let place_of =
        |share: f64| quantile(&sorted, share).and_then(|value| place(x, value)).unwrap_or(SIDE);
    let [low, first, middle, third, high] = [0.1, 0.25, 0.5, 0.75, 0.9].map(place_of);
    let median = quantile(&sorted, 0.5).unwrap_or_default();
    let [stroke, fill, _] = classes(strip.index);
    let y = top + 28.0;
    let every = sorted.len().div_ceil(DOTS).max(1);
    let dots = sorted.iter().step_by(every).enumerate();
    // Steps of the golden ratio lie apart from each other, however many there are.
    let height = |dot: usize| y + HALF * (2.0 * (dot as f64 * 0.618_034).fract() - 1.0);
    let told = format!("median {median:.3}");
    let end = WIDTH - SIDE - CHARACTER * told.chars().count() as f64;
    html! {
        text.halo x=(at(SIDE)) y=(at(top + 13.0)) { (strip.name) }
        @if SIDE + CHARACTER * (strip.name.chars().count() as f64) < end {
            text.quiet.halo x=(at(WIDTH - SIDE)) y=(at(top + 13.0)) text-anchor="end" { (told) }
        }
        @for (dot, value) in dots {
            @if let Some(x) = place(x, *value) {
                circle.dot.(fill) cx=(at(x)) cy=(at(height(dot))) r="2.2" {}
            }
        }
        line.quartiles.(stroke) x1=(at(low)) x2=(at(first)) y1=(at(y)) y2=(at(y)) {}
        line.quartiles.(stroke) x1=(at(third)) x2=(at(high)) y1=(at(y)) y2=(at(y)) {}
        rect.quartiles.(stroke) x=(at(first)) y=(at(y - HALF)) width=(at(third - first))
            height=(at(2.0 * HALF)) rx="2" {}
        line.median.(stroke) x1=(at(middle)) x2=(at(middle)) y1=(at(y - HALF)) y2=(at(y + HALF)) {}
    }
}
