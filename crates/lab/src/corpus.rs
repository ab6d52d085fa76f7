//! The texts of all clients, tokenized once, each with the source that it comes from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use floret_client::data::{PrivateData, SkippedLine};
use floret_client::setup::Base;
use floret_model::{Document, Example};
use serde_json::Value;

use crate::experiment::DataSection;

/// Texts by source.
#[derive(Debug)]
pub struct Corpus {
    /// Every text.
    pub documents: Vec<Document>,
    /// Names of the sources, in the order of their names.
    pub sources: Vec<String>,
    /// For each source, its texts: indices into `documents`, in the order in which they were read.
    pub texts: Vec<Vec<usize>>,
}

impl Corpus {
    /// Reads and tokenizes the texts that `section` names.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no example or has no source, or nothing at all.
    pub fn read(section: &DataSection, base: &Base) -> Result<Self> {
        let mut found = Vec::new();
        for path in &section.paths {
            let mut files = Vec::new();
            collect(path, &mut files)?;
            files.sort();
            for file in files {
                let bytes =
                    fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                match &section.key {
                    Some(key) if file.extension().is_some_and(|kind| kind == "jsonl") => {
                        read_keyed(&file, &bytes, key, &mut found)?;
                    }
                    _ => {
                        let source = source(path, &file);
                        let examples = whole(read(&file, &bytes))?;
                        found.extend(examples.into_iter().map(|of| (source.clone(), of)));
                    }
                }
            }
        }
        ensure!(!found.is_empty(), "data.paths holds no text");
        Self::of(&found, base)
    }

    fn of(found: &[(String, Example)], base: &Base) -> Result<Self> {
        let mut documents = Vec::with_capacity(found.len());
        let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (source, example) in found {
            by_source.entry(source).or_default().push(documents.len());
            documents.push(Document::new(example, &base.tokenizer, &base.local.config)?);
        }
        let sources = by_source.keys().map(|&source| source.to_owned()).collect();
        Ok(Self { documents, sources, texts: by_source.into_values().collect() })
    }

    /// Tokens of a source.
    #[must_use]
    pub fn tokens(&self, source: usize) -> usize {
        self.texts[source].iter().map(|&text| self.documents[text].num_tokens()).sum()
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let reading = || format!("cannot read {}", path.display());
    for entry in fs::read_dir(path).with_context(reading)? {
        let entry = entry.with_context(reading)?.path();
        let hidden =
            entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let text = entry.extension().is_some_and(|kind| kind == "txt" || kind == "jsonl");
        if !hidden && (text || entry.is_dir()) {
            collect(&entry, files)?;
        }
    }
    Ok(())
}

/// The entry of the folder `path` that `file` lies in, or the file's own name.
fn source(path: &Path, file: &Path) -> String {
    let within = file.strip_prefix(path).ok().and_then(|within| within.iter().next());
    let entry = within.map_or(file, Path::new);
    entry.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(file: &Path, bytes: &[u8]) -> PrivateData {
    let mut data = PrivateData::default();
    data.add(file, bytes);
    data
}

/// The examples, if no line was left out: here nothing is private, and nothing should be missed.
fn whole(data: PrivateData) -> Result<Vec<Example>> {
    match data.skipped.first() {
        None => Ok(data.examples),
        Some(first) => {
            let others = data.skipped.len() - 1;
            anyhow::bail!("{first} (and {others} more lines like it): mend or remove them")
        }
    }
}

fn read_keyed(
    file: &Path,
    bytes: &[u8],
    key: &str,
    found: &mut Vec<(String, Example)>,
) -> Result<()> {
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let mut data = read(file, line);
        for SkippedLine { line, .. } in &mut data.skipped {
            *line = index + 1;
        }
        let row: Option<Value> = serde_json::from_slice(line).ok();
        let examples = whole(data)?;
        let source = row.as_ref().and_then(|row| row.get(key)).and_then(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let missing = || format!("{} line {} has no {key:?}", file.display(), index + 1);
        let source = source.with_context(missing)?;
        found.extend(examples.into_iter().map(|of| (source.clone(), of)));
    }
    Ok(())
}
