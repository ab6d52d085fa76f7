//! Where experiments differ.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

/// A key whose values differ, and its value in each experiment; none where it is left out.
pub(super) type Difference = (String, Vec<Option<String>>);

/// The keys whose values differ between experiments, in order. The seed is no setting here.
pub(super) fn differences<'a>(experiments: impl Iterator<Item = &'a Table>) -> Vec<Difference> {
    let flat: Vec<BTreeMap<String, String>> = experiments.map(flat).collect();
    let keys: BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let of = |key: &String| flat.iter().map(|settings| settings.get(key).cloned()).collect();
    let rows = keys.into_iter().map(|key| (key.clone(), of(key)));
    let differs = |(key, values): &Difference| {
        key != "run.seed" && values.iter().any(|value| *value != values[0])
    };
    rows.filter(differs).collect()
}

fn flat(table: &Table) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                let inner = flat(inner).into_iter();
                found.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            Value::String(text) => {
                found.insert(key.clone(), text.clone());
            }
            other => {
                found.insert(key.clone(), other.to_string());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let texts = [
            "a = 1\nsame = [1, 2]\n[run]\nseed = 3\nname = \"x\"\n[b.c]\nd = 0.5",
            "a = 1\nsame = [1, 2]\n[run]\nseed = 4\nname = \"y\"\n[b]\ne = [1]",
        ];
        let tables = texts.map(|text| text.parse::<Table>().unwrap());
        let text = |text: &str| Some(text.to_owned());
        let want = [
            ("b.c.d".to_owned(), vec![text("0.5"), None]),
            ("b.e".to_owned(), vec![None, text("[1]")]),
            ("run.name".to_owned(), vec![text("x"), text("y")]),
        ];
        assert_eq!(differences(tables.iter()), want);
    }
}
