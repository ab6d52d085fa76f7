//! Plots as SVG, for light and dark screens and for paper.
//!
//! # Layout
//!
//! - `axis`: from values to places and labels
//! - `lines`: curves; `strips`: how values are spread

mod axis;
mod lines;
mod strips;

use maud::{Markup, PreEscaped, html};

pub(super) use axis::Axis;
pub(super) use lines::{Line, Lines, Reference};
pub(super) use strips::{Strip, Strips};

/// Width of all plots, in units of their own: they grow with the page.
const WIDTH: f64 = 400.0;
/// Space at the left for labels of the vertical axis, and at the right.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 16.0;
/// Where the line under the title stands, and where what comes below it may begin.
const SUBTITLE: f64 = 37.0;
const TOP: f64 = 50.0;
/// Width of a character of a label, about.
const CHARACTER: f64 = 6.4;

/// Colours of experiments on light and on dark ground. The baseline's is that of text; the others are
/// those of Okabe and Ito (2008, "Color Universal Design"), which people with any kind of colour
/// vision tell apart, made lighter for dark ground.
const COLORS: [[&str; 2]; 7] = [
    ["#24292f", "#e6edf3"],
    ["#0072b2", "#4ba3e3"],
    ["#d55e00", "#ff8a4c"],
    ["#009e73", "#35c79a"],
    ["#cc79a7", "#e7a1c6"],
    ["#e69f00", "#f2b84b"],
    ["#56b4e9", "#a8dcff"],
];

const LIGHT: &str = "\
.plot text{font-family:system-ui,-apple-system,sans-serif;font-size:12px;fill:#24292f}\
.plot .title{font-size:14px;font-weight:600}\
.plot .quiet{font-size:11px;fill:#59636e}\
.plot .halo{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}\
.plot .paper{fill:#fff}\
.plot .grid{stroke:#e4e8ec}\
.plot .axis{stroke:#8b949e}\
.plot .reference{stroke:#59636e;stroke-dasharray:5 4}\
.plot .mean{fill:none;stroke-width:2.2;stroke-linejoin:round}\
.plot .seed{fill:none;stroke-width:.8;opacity:.55}\
.plot .quartiles{fill:none;stroke-width:1.4}\
.plot .median{stroke-width:3}\
.plot .dot{opacity:.3}";

const DARK: &str = "\
.plot text{fill:#e6edf3}\
.plot .quiet{fill:#9aa4af}\
.plot .halo{stroke:#12161c}\
.plot .paper{fill:#12161c}\
.plot .grid{stroke:#2a3038}\
.plot .axis{stroke:#6e7681}\
.plot .reference{stroke:#9aa4af}";

/// The rules that all plots share. Those of the page that holds them come on top.
pub(super) fn style() -> String {
    let colors = |ground: usize| {
        let rule = |(at, colors): (usize, &[&str; 2])| {
            let color = colors[ground];
            format!(".s{at}{{stroke:{color}}}.f{at}{{fill:{color}}}.b{at}{{background:{color}}}")
        };
        COLORS.iter().enumerate().map(rule).collect::<String>()
    };
    let dark = format!("{DARK}{}", colors(1));
    format!("{LIGHT}{}@media screen and (prefers-color-scheme:dark){{{dark}}}", colors(0))
}

/// Names of the classes that colour the strokes, the area and the ground of experiment `index`.
pub(super) fn classes(index: usize) -> [String; 3] {
    let color = index % COLORS.len();
    ["s", "f", "b"].map(|kind| format!("{kind}{color}"))
}

/// Dashes for lines of experiment `index`: colours come again, the pattern does not.
fn dashes(index: usize) -> Option<&'static str> {
    [None, Some("7 3"), Some("2 3")][(index / COLORS.len()).min(2)]
}

/// A drawing with a title.
#[derive(Debug)]
pub(super) struct Plot {
    title: String,
    height: f64,
    body: Markup,
}

impl Plot {
    /// As a part of a page, which has the [`style`].
    pub(super) fn inline(&self) -> Markup {
        self.svg(None)
    }

    /// As a file of its own.
    pub(super) fn file(&self) -> String {
        self.svg(Some(&style())).into_string() + "\n"
    }

    fn svg(&self, style: Option<&str>) -> Markup {
        let (width, height) = (WIDTH, self.height);
        html! {
            svg xmlns="http://www.w3.org/2000/svg" class="plot" width=(width) height=(height)
                viewBox=(format!("0 0 {width} {height}")) role="img" aria-label=(self.title) {
                @if let Some(style) = style { style { (PreEscaped(style)) } }
                rect.paper width=(width) height=(height) {}
                text.title x="12" y="20" { (self.title) }
                (self.body)
            }
        }
    }
}

/// A coordinate, as short as it can be told.
fn at(place: f64) -> String {
    format!("{place:.1}")
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    /// Names with every character that means something in XML come back as they were.
    #[test]
    fn files_are_well_formed_and_names_are_escaped() {
        let name = "<a & \"b'>".to_owned();
        let values = vec![[1.0, 3.0], [10.0, 2.0], [100.0, 1.5]];
        let line = |index| Line {
            name: format!("{name}{index}"),
            index,
            mean: values.clone(),
            seeds: vec![values.clone(); 2],
        };
        let lines: Vec<Line> = (0..9).map(line).collect();
        let references = vec![Reference { name: name.clone(), value: 3.0, below: false }];
        let x = Axis::bytes(&name, lines.iter().flat_map(Line::xs)).unwrap();
        let y = Axis::linear(&name, lines.iter().flat_map(Line::ys)).unwrap();
        let lines = Lines { title: name.clone(), x, y, lines, references }.draw();
        let strip = Strip { name: name.clone(), index: 1, values: vec![1.0, 2.0, 5.0] };
        let strips = Strips { title: name.clone(), x: name.clone(), strips: vec![strip] }.draw();
        for plot in [lines, strips.unwrap()] {
            let file = plot.file();
            let document = Document::parse(&file).unwrap();
            let svg = document.root_element();
            assert_eq!(svg.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
            assert_eq!(svg.attribute("aria-label"), Some(&*name));
            let texts = || document.descendants().filter_map(|node| node.text());
            assert!(texts().filter(|text| text.contains(&name)).count() >= 3, "{file}");
            assert!(!file.contains("NaN") && !file.contains("inf"), "{file}");
            // On the page it has no style of its own.
            let inline = plot.inline().into_string();
            assert!(
                Document::parse(&inline).unwrap().descendants().all(|of| !of.has_tag_name("style"))
            );
        }
    }
}
