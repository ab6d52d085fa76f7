//! Files of lines that are chained by digest: no byte of one can change, and no line can go, without a
//! line saying so. A line is JSON of one fixed form, `{"NAME":"LEAD","NAME":{BODY}}`, whose lead vouches
//! for the bytes of the body as they stand there.

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// The form of a chain's lines: the names of lead and body.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Everything before the lead.
    pub opening: &'static str,
    /// Everything between lead and body.
    pub middle: &'static str,
}

/// The end of a chain: what the next line builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Lines so far.
    pub entries: u64,
    /// Digest of the last; zeros before the first.
    pub digest: Digest,
}

impl Default for Head {
    fn default() -> Self {
        Self { entries: 0, digest: Digest([0; 32]) }
    }
}

/// What a line says, and where it stands.
#[derive(Debug)]
pub struct Line<T> {
    /// What it says.
    pub content: T,
    /// Its number, counted from 1.
    pub entry: u64,
    /// Digest of the line before.
    pub previous: Digest,
    /// Its own digest.
    pub digest: Digest,
}

/// A line that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry}: {problem}")]
pub struct BrokenLine {
    /// Its number, counted from 1.
    pub entry: u64,
    /// What is wrong.
    pub problem: &'static str,
}

impl Form {
    /// A line, without its line break.
    #[must_use]
    pub fn line(&self, lead: &str, body: &str) -> String {
        format!("{}{lead}{}{body}}}", self.opening, self.middle)
    }

    /// Lead and body of a line, without its line break.
    #[must_use]
    pub fn split<'a>(&self, line: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let line = str::from_utf8(line).ok()?;
        line.strip_prefix(self.opening)?.strip_suffix('}')?.split_once(self.middle)
    }
}

/// Reads the lines of a chain by `parse`, which is given each without its line break, and checks that
/// each names the one before.
///
/// # Errors
/// The first line that does not hold.
pub fn read<T>(
    text: &[u8],
    mut parse: impl FnMut(&[u8]) -> Result<Line<T>, &'static str>,
) -> Result<(Vec<T>, Head), BrokenLine> {
    let (mut found, mut head) = (Vec::new(), Head::default());
    let mut rest = text;
    while !rest.is_empty() {
        let entry = head.entries + 1;
        let broken = |problem| BrokenLine { entry, problem };
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| broken("the line does not end"))?;
        let line = parse(&rest[..end]).map_err(broken)?;
        if line.entry != entry || line.previous != head.digest {
            return Err(broken("the entry before it is not the one that it names"));
        }
        head = Head { entries: entry, digest: line.digest };
        found.push(line.content);
        rest = &rest[end + 1..];
    }
    Ok((found, head))
}
