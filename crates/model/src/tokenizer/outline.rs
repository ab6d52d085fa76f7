//! Checks of a `tokenizer.json` before crate `tokenizers` reads it: what it does not survive is
//! refused here.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What is looked at. The vocabulary and its merges are passed over and not kept.
#[derive(Deserialize)]
struct Outline {
    model: ModelOutline,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
    /// Its JSON must be whole, or it panics.
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct ModelOutline {
    #[serde(default)]
    vocab: Longest,
    #[serde(default)]
    merges: Longest,
    continuing_subword_prefix: Option<String>,
}

/// Length of the longest key of a vocabulary, or of what a merge of a list makes, in bytes.
#[derive(Default)]
struct Longest(usize);

/// A merge as "a b" or as ["a", "b"]. Other lists, such as a vocabulary with scores, have none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Line(#[serde(borrow)] Cow<'a, str>),
    Pair(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>),
    None(IgnoredAny),
}

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LongestVisitor)
    }
}

struct LongestVisitor;

impl<'de> Visitor<'de> for LongestVisitor {
    type Value = Longest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary or a list of merges")
    }

    fn visit_unit<E>(self) -> Result<Longest, E> {
        Ok(Longest(0))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some((key, IgnoredAny)) = map.next_entry::<Cow<'de, str>, _>()? {
            longest = longest.max(key.len());
        }
        Ok(Longest(longest))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some(merge) = list.next_element::<Merge<'de>>()? {
            longest = longest.max(match merge {
                Merge::Line(text) => text.len().saturating_sub(1),
                Merge::Pair(one, two) => one.len() + two.len(),
                Merge::None(IgnoredAny) => 0,
            });
        }
        Ok(Longest(longest))
    }
}

/// Refuses JSON that is not whole, compiled tables, merges of more than a token, and templates that
/// cannot be filled.
///
/// # Errors
/// What is wrong.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let outline: Outline = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    check_model(&outline.model)?;
    if any_object(&outline.normalizer, &is_compiled) {
        return Err("its normalizer is of type Precompiled, which Floret does not read".to_owned());
    }
    if any_object(&outline.post_processor, &is_broken_template) {
        return Err("its template is for two texts, or lacks a special token".to_owned());
    }
    if any_object(&outline.decoder, &strips_ends) {
        return Err("its decoder strips the ends of tokens, which Floret does not read".to_owned());
    }
    Ok(())
}

/// Merges are joined in a buffer that is as long as the longest token, without the prefix.
fn check_model(model: &ModelOutline) -> Result<(), String> {
    let Longest(merge) = model.merges;
    if merge > 0 && model.continuing_subword_prefix.as_deref().is_some_and(|text| !text.is_empty())
    {
        return Err(
            "its merges have a continuing_subword_prefix, which Floret does not read".into()
        );
    }
    if merge > model.vocab.0 {
        return Err(format!(
            "a merge makes {merge} bytes, and its longest token has {}",
            model.vocab.0
        ));
    }
    Ok(())
}

type Fields = serde_json::Map<String, Value>;

/// Whether `of` is true of `value` or of any object in it.
fn any_object(value: &Value, of: &dyn Fn(&Fields) -> bool) -> bool {
    match value {
        Value::Object(fields) => of(fields) || fields.values().any(|value| any_object(value, of)),
        Value::Array(items) => items.iter().any(|item| any_object(item, of)),
        _ => false,
    }
}

/// A Precompiled normalizer: the lengths in its table are believed.
fn is_compiled(fields: &Fields) -> bool {
    fields.get("type").is_some_and(|name| name == "Precompiled")
        || fields.contains_key("precompiled_charsmap")
}

/// A Strip decoder that cuts at the end: a token that is shorter than what it cuts breaks it.
fn strips_ends(fields: &Fields) -> bool {
    fields.get("stop").is_some_and(|stop| stop != &Value::from(0))
}

/// A template for one text that names the second, or a special token that is not defined.
fn is_broken_template(fields: &Fields) -> bool {
    let Some(single) = fields.get("single") else { return false };
    let defined = |id: &str| {
        let tokens = fields.get("special_tokens").and_then(Value::as_object);
        tokens.is_some_and(|tokens| tokens.contains_key(id))
    };
    let fine = |piece: &Value| {
        piece["Sequence"]["id"] == "A" || piece["SpecialToken"]["id"].as_str().is_some_and(defined)
    };
    !single.as_array().is_some_and(|pieces| pieces.iter().all(fine))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of a file with these parts.
    fn error(parts: &str) -> String {
        check(with_model(parts).as_bytes()).unwrap_err()
    }

    fn with_model(parts: &str) -> String {
        format!(r#"{{"model": {{"type": "BPE", "vocab": {{"ab": 0}}}}, {parts}}}"#)
    }

    #[test]
    fn merges_make_no_more_than_a_token() {
        let model = |rest: &str| {
            let text = format!(r#"{{"model": {{"vocab": {{"a": 0, "ab": 1}}, {rest}}}}}"#);
            check(text.as_bytes())
        };
        for fine in [r#""merges": [["a", "b"]]"#, r#""merges": ["a b"]"#, r#""merges": null"#] {
            model(fine).unwrap();
        }
        check(br#"{"model": {"vocab": [["<unk>", 0.0], ["a", -1.5]]}}"#).unwrap();
        for bad in [r#""merges": [["a", "bc"]]"#, r#""merges": ["ab c"]"#] {
            assert!(model(bad).unwrap_err().contains("makes 3 bytes"), "{bad}");
        }
        let prefix = model(r#""merges": ["a b"], "continuing_subword_prefix": "@@""#);
        assert!(prefix.unwrap_err().contains("continuing_subword_prefix"));
    }

    #[test]
    fn json_that_breaks_within_a_part_is_refused() {
        check(with_model(r#""decoder": null"#).as_bytes()).unwrap();
        assert!(check(br#"{"decoder": {"type": "Fu"#).unwrap_err().contains("EOF"));
        assert!(error("\"decoder\": {\"type\": \"Fu\nse\"}").contains("control character"));
        assert!(error(r#""decoder": {"start": 1e999}"#).contains("out of range"));
    }

    #[test]
    fn compiled_normalizers_are_refused_at_any_depth() {
        let one = r#"{"type": "Precompiled", "precompiled_charsmap": "////fw=="}"#;
        let list = format!(r#"{{"type": "Sequence", "normalizers": [{one}]}}"#);
        for normalizer in [one, list.as_str(), r#"{"precompiled_charsmap": ""}"#] {
            let text = format!(r#""normalizer": {normalizer}"#);
            assert!(error(&text).contains("Precompiled"), "{text}");
        }
    }

    #[test]
    fn decoders_that_strip_ends_are_refused_and_those_that_strip_beginnings_are_not() {
        let strip = |stop: u32| {
            format!(r#"{{"type": "Strip", "content": " ", "start": 1, "stop": {stop}}}"#)
        };
        let decoders = |one: &str| {
            format!(r#""decoder": {{"type": "Sequence", "decoders": [{{"type": "Fuse"}}, {one}]}}"#)
        };
        check(with_model(&decoders(&strip(0))).as_bytes()).unwrap();
        assert!(error(&decoders(&strip(1))).contains("strips the ends"));
    }

    #[test]
    fn templates_have_what_they_name() {
        let template = |pieces: &str| {
            let tokens = r#"{"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}"#;
            format!(r#""post_processor": {{"single": [{pieces}], "special_tokens": {tokens}}}"#)
        };
        let [text, start] = [r#"{"Sequence": {"id": "A"}}"#, r#"{"SpecialToken": {"id": "<s>"}}"#];
        check(with_model(&template(&format!("{start}, {text}"))).as_bytes()).unwrap();
        for pieces in [text.replace('A', "B"), start.replace("<s>", "</s>"), "5".to_owned()] {
            assert!(error(&template(&pieces)).contains("template"), "{pieces}");
        }
    }
}
