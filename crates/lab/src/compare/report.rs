//! The page: figures, settings and plots in one file that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::figures::Figure;
use super::table::Comparison;
use super::{Contender, PLOTS_DIR, plot, settings};

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#24292f;--quiet:#59636e;--line:#d8dee4;--ground:#f6f8fa;--paper:#fff}\
@media screen and (prefers-color-scheme:dark){:root{--text:#e6edf3;--quiet:#9aa4af;--line:#2a3038;\
--ground:#0b0e12;--paper:#12161c}}\
*{box-sizing:border-box}\
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:76rem;font:16px/1.5 system-ui,-apple-system,sans-serif;\
color:var(--text);background:var(--ground)}\
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem}\
h2{font-size:1.15rem;margin:2rem 0 .5rem}\
p{margin:.25rem 0;max-width:50rem}\
.note,figcaption{color:var(--quiet);font-size:.875rem}\
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px;background:var(--paper)}\
table{border-collapse:separate;border-spacing:0;font-size:.9rem;min-width:100%}\
th,td{padding:.3rem .75rem;border-top:1px solid var(--line);text-align:right;white-space:nowrap;\
font-variant-numeric:tabular-nums}\
thead th{border-top:0;vertical-align:bottom}\
th:first-child{text-align:left;font-weight:400;white-space:normal;min-width:9rem;position:sticky;left:0;\
background:var(--paper)}\
.settings td{white-space:normal;min-width:7rem}\
.settings th:first-child{font-family:ui-monospace,monospace;font-size:.85rem}\
.key{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.4em}\
.plots{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));align-items:start}\
figure{margin:0;padding:.5rem;border:1px solid var(--line);border-radius:6px;background:var(--paper);\
break-inside:avoid}\
figure svg{display:block;width:100%;height:auto}\
figcaption{padding:0 .5rem;text-align:right}\
figcaption a{color:inherit}\
@media (max-width:40rem){body{padding:1rem .6rem 2rem}table{font-size:.8rem}th,td{padding:.25rem .5rem}\
th:first-child{min-width:7.5rem}.settings th:first-child{font-size:.75rem;overflow-wrap:anywhere}\
figure{padding:.1rem}}\
@media print{body{max-width:none;padding:0;background:none}.wide{overflow:visible}\
table{font-size:.75rem}.plots{grid-template-columns:1fr 1fr}}";

/// The page of a comparison.
pub(super) fn page(
    contenders: &[Contender],
    comparison: &Comparison,
    figures: &[Figure],
) -> Markup {
    let names: Vec<&str> = contenders.iter().map(|contender| &*contender.name).collect();
    let title = names.join(", ");
    let seeds: Vec<String> = comparison.seeds.iter().map(u64::to_string).collect();
    let styles = format!("{STYLE}{}", plot::style());
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(styles)) }
            }
            body {
                h1 { (title) }
                p.note {
                    "The baseline is " (comparison.baseline) ". "
                    @if seeds.len() == 1 { "Seed " } @else { "Seeds " } (seeds.join(", ")) "."
                }
                h2 { "Figures" }
                (table(&names, "figures", &cells(comparison)))
                @for note in comparison.notes() { p.note { (note) } }
                (settings(contenders, &names))
                h2 { "Plots" }
                @if seeds.len() > 1 {
                    p.note {
                        "Bold curves are means over seeds, thin ones are those of each seed. The dots \
                         are the evaluated clients of all seeds."
                    }
                }
                div.plots {
                    @for figure in figures {
                        figure {
                            (figure.plot.inline())
                            figcaption {
                                a href=(format!("{PLOTS_DIR}/{}.svg", figure.name)) { "SVG" }
                            }
                        }
                    }
                }
            }
        }
    }
}

type Row = (String, Vec<String>);

fn cells(comparison: &Comparison) -> Vec<Row> {
    comparison.rows().into_iter().map(|(label, cells)| (label.to_owned(), cells)).collect()
}

fn settings(contenders: &[Contender], names: &[&str]) -> Markup {
    let differences = settings::differences(contenders.iter().map(|of| &of.settings));
    let row = |(key, values): settings::Difference| {
        let value = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        (key, values.into_iter().map(value).collect())
    };
    let rows: Vec<Row> = differences.into_iter().map(row).collect();
    html! {
        @if !rows.is_empty() {
            h2 { "Settings that differ" }
            (table(names, "settings", &rows))
        }
    }
}

fn table(names: &[&str], class: &str, rows: &[Row]) -> Markup {
    html! {
        div.wide {
            table.(class) {
                thead {
                    tr {
                        th {}
                        @for (index, name) in names.iter().enumerate() {
                            th scope="col" { span.key.(plot::classes(index)[2]) {} (name) }
                        }
                    }
                }
                tbody {
                    @for (label, cells) in rows {
                        tr {
                            th scope="row" {
                                // Keys may go on in another line behind their signs.
                                @for part in label.split_inclusive(['.', '_']) { (part) wbr; }
                            }
                            @for cell in cells { td { (cell) } }
                        }
                    }
                }
            }
        }
    }
}
