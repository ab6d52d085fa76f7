//! The private examples on this device: `.txt` and `.jsonl` files.
//!
//! A `.txt` file holds texts separated by blank lines. A line of a `.jsonl` file is an object with
//! `text`, or with `prompt` and `response`; other fields are ignored. Lines that cannot be read are
//! counted and named by file and line number; their content is never shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use floret_model::Example;
use serde::Deserialize;

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What a device found.
#[derive(Debug, Default)]
pub struct PrivateData {
    /// The examples, in the order of file names and lines.
    pub examples: Vec<Example>,
    /// Files that were read.
    pub files: usize,
    /// Lines that were left out.
    pub skipped: Vec<SkippedLine>,
}

/// A line that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedLine {
    /// Its file.
    pub file: PathBuf,
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl fmt::Display for SkippedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}: {}", self.file.display(), self.line, self.problem)
    }
}

impl PrivateData {
    /// Adds the examples of `bytes`, the content of `file`, whose name tells its kind.
    pub fn add(&mut self, file: &Path, bytes: &[u8]) {
        match kind(file) {
            Some(Kind::Lines) => read_lines(file, bytes, self),
            Some(Kind::Paragraphs) => read_paragraphs(file, bytes, self),
            None => return,
        }
        self.files += 1;
    }
}

/// Data that gives no example.
#[derive(Debug, thiserror::Error)]
pub enum NoData {
    /// A file or folder that cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of another kind.
    #[error("{0} is neither a folder nor a .txt or .jsonl file")]
    Kind(PathBuf),
    /// Nothing usable.
    #[error("{path} holds no example: {files} .txt and .jsonl files, {skipped} bad lines")]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// Files read.
        files: usize,
        /// Lines left out.
        skipped: usize,
    },
}

/// Reads every example of a `.txt` or `.jsonl` file, or of all such files in a folder and the
/// folders in it, in the order of their paths. Hidden files and other kinds are passed over.
///
/// # Errors
/// A file that cannot be read, or no example at all.
pub fn read_examples(path: &Path) -> Result<PrivateData, NoData> {
    let mut files = Vec::new();
    if path.is_dir() {
        collect(path, &mut files)?;
        files.sort();
    } else if path.exists() && kind(path).is_none() {
        return Err(NoData::Kind(path.into()));
    } else {
        files.push(path.to_owned());
    }
    let mut data = PrivateData::default();
    for file in files {
        let bytes = std::fs::read(&file).map_err(|source| unreadable(&file, source))?;
        data.add(&file, &bytes);
    }
    if data.examples.is_empty() {
        let (path, files, skipped) = (path.to_owned(), data.files, data.skipped.len());
        return Err(NoData::Empty { path, files, skipped });
    }
    Ok(data)
}

fn unreadable(path: &Path, source: io::Error) -> NoData {
    NoData::Unreadable { path: path.into(), source }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), NoData> {
    let entries = std::fs::read_dir(folder).map_err(|source| unreadable(folder, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| unreadable(folder, source))?;
        let kind_of = entry.file_type().map_err(|source| unreadable(folder, source))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if kind_of.is_dir() {
            collect(&path, files)?;
        } else if kind(&path).is_some() && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

enum Kind {
    Paragraphs,
    Lines,
}

fn kind(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()? {
        "txt" => Some(Kind::Paragraphs),
        "jsonl" => Some(Kind::Lines),
        _ => None,
    }
}

/// The lines of `bytes` with their numbers, without spaces at their ends and a byte order mark at
/// the beginning; bad ones are noted and left out.
fn lines<'a>(
    file: &'a Path,
    bytes: &'a [u8],
    skipped: &'a mut Vec<SkippedLine>,
) -> impl Iterator<Item = (usize, &'a str)> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    bytes.split(|byte| *byte == b'\n').enumerate().filter_map(move |(index, line)| {
        let problem = match std::str::from_utf8(line) {
            Ok(text) if line.len() <= LINE_BYTES_MAX => return Some((index + 1, text.trim_end())),
            Ok(_) => "is longer than 1 MiB",
            Err(_) => "is not UTF-8",
        };
        skipped.push(SkippedLine { file: file.to_owned(), line: index + 1, problem });
        None
    })
}

fn read_paragraphs(file: &Path, bytes: &[u8], data: &mut PrivateData) {
    let mut paragraph = String::new();
    let mut finish = |paragraph: &mut String| {
        if !paragraph.is_empty() {
            data.examples.push(Example::Text(std::mem::take(paragraph)));
        }
    };
    for (_, line) in lines(file, bytes, &mut data.skipped) {
        if line.is_empty() {
            finish(&mut paragraph);
            continue;
        }
        if !paragraph.is_empty() {
            paragraph.push('\n');
        }
        paragraph.push_str(line);
    }
    finish(&mut paragraph);
}

#[derive(Deserialize)]
struct Row {
    text: Option<String>,
    prompt: Option<String>,
    response: Option<String>,
}

fn read_lines(file: &Path, bytes: &[u8], data: &mut PrivateData) {
    let mut bad = Vec::new();
    for (line, text) in lines(file, bytes, &mut data.skipped).filter(|(_, text)| !text.is_empty()) {
        match example(text) {
            Ok(example) => data.examples.push(example),
            Err(problem) => bad.push(SkippedLine { file: file.to_owned(), line, problem }),
        }
    }
    data.skipped.extend(bad);
    data.skipped.sort_by(|x, y| (&x.file, x.line).cmp(&(&y.file, y.line)));
}

fn example(line: &str) -> Result<Example, &'static str> {
    // serde's own message would quote the line.
    let row: Row = serde_json::from_str(line).map_err(|_| "is not a JSON object of strings")?;
    match row {
        Row { text: Some(text), prompt: None, response: None } if !text.is_empty() => {
            Ok(Example::Text(text))
        }
        Row { text: None, prompt: Some(prompt), response: Some(response) }
            if !response.is_empty() =>
        {
            Ok(Example::Response { prompt, response })
        }
        Row { text: Some(_), prompt: None, response: None } => Err("has an empty `text`"),
        Row { text: None, prompt: Some(_), response: Some(_) } => Err("has an empty `response`"),
        _ => Err("needs either `text`, or `prompt` and `response`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn text(text: &str) -> Example {
        Example::Text(text.to_owned())
    }

    #[test]
    fn folders_are_read_in_the_order_of_paths() {
        let folder = folder(&[
            ("b.txt", b"\xef\xbb\xbfone\n  two \n\n\n  \nthree\r\n\r\nfour"),
            ("a/rows.jsonl", b"{\"text\": \"zero\", \"user\": 3}\n\n"),
            (".hidden.txt", b"no"),
            ("picture.png", b"\x89PNG"),
        ]);
        let data = read_examples(folder.path()).unwrap();
        assert_eq!(data.examples, [text("zero"), text("one\n  two"), text("three"), text("four")]);
        assert_eq!((data.files, data.skipped.len()), (2, 0));
    }

    #[test]
    fn bad_lines_are_named_by_number_and_not_by_content() {
        let rows =
            b"{\"text\": \"fine\"}\nsecret words\n{\"prompt\": \"secret\"}\n{\"text\": \"\"}\n\
            \xff\xfe\n{\"prompt\": \"p\", \"response\": \"r\"}\n{\"text\": 5}\n\
            {\"text\": \"secret\", \"prompt\": \"x\", \"response\": \"y\"}";
        let folder = folder(&[("rows.jsonl", rows)]);
        let data = read_examples(&folder.path().join("rows.jsonl")).unwrap();
        assert_eq!(data.examples.len(), 2);
        let lines: Vec<usize> = data.skipped.iter().map(|skipped| skipped.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 7, 8]);
        let shown = format!("{data:?}");
        assert!(!shown.contains("secret") && !shown.contains("fine"), "{shown}");
        let problem = data.skipped[0].to_string();
        assert!(problem.contains("rows.jsonl line 2: is not a JSON object"), "{problem}");
    }

    #[test]
    fn nothing_to_read_says_why() {
        let folder = folder(&[("a.jsonl", b"nonsense"), ("b.csv", b"x")]);
        let error = |path: &Path| read_examples(path).unwrap_err().to_string();
        assert!(error(folder.path()).contains("1 .txt and .jsonl files, 1 bad lines"));
        assert!(error(&folder.path().join("b.csv")).contains("neither"));
        assert!(error(&folder.path().join("absent.txt")).contains("absent.txt"));
    }
}
