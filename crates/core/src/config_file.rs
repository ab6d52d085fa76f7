//! TOML configuration files: `version = 1`, and unknown keys refused with the nearest known one.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of configuration files that this program reads.
const CURRENT: u32 = 1;

/// The field `version` of a configuration file: always 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ConfigVersion;

impl TryFrom<u32> for ConfigVersion {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        if version == CURRENT {
            return Ok(Self);
        }
        Err(format!("version is {version}: this program reads version = {CURRENT}"))
    }
}

impl From<ConfigVersion> for u32 {
    fn from(ConfigVersion: ConfigVersion) -> Self {
        CURRENT
    }
}

/// A configuration file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfigFile {
    /// Not TOML, a key missing, or a value of the wrong type; the message tells line and column.
    #[error("{file}: {message}")]
    Syntax {
        /// Name of the file.
        file: String,
        /// What the parser said.
        message: String,
    },
    /// A key that no version of this file has.
    #[error("{file}: {message}\ndid you mean `{nearest}`?")]
    UnknownKey {
        /// Name of the file.
        file: String,
        /// What the parser said.
        message: String,
        /// The known key with the nearest spelling.
        nearest: String,
    },
}

/// Reads the TOML `text` of `file` (its name, for errors) into `T`, which denies unknown fields
/// and has a field `version` of type [`ConfigVersion`].
///
/// # Errors
/// Another version, an unknown key (with the nearest known one), a missing key or a wrong type.
pub fn from_toml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, InvalidConfigFile> {
    toml::from_str(text).map_err(|error| explain(file, &error))
}

fn explain(file: &str, error: &toml::de::Error) -> InvalidConfigFile {
    let (file, message) = (file.to_owned(), error.to_string().trim_end().to_owned());
    match nearest_key(error.message()) {
        Some(nearest) => InvalidConfigFile::UnknownKey { file, message, nearest },
        None => InvalidConfigFile::Syntax { file, message },
    }
}

/// The key nearest in spelling, out of serde's "unknown field `x`, expected one of `a`, `b`".
fn nearest_key(message: &str) -> Option<String> {
    let list = message.strip_prefix("unknown field `")?;
    let (unknown, expected) = list.split_once('`')?;
    let known = expected.split('`').skip(1).step_by(2);
    known
        .max_by(|x, y| {
            let near = |key: &str| strsim::jaro_winkler(unknown, key);
            near(x).total_cmp(&near(y))
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Example {
        version: ConfigVersion,
        cohort_size: u32,
        deadline_s: u32,
        section: Section,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Section {
        momentum: f32,
    }

    const GOOD: &str = "version = 1\ncohort_size = 4\ndeadline_s = 9\n[section]\nmomentum = 0.9\n";

    fn error(text: &str) -> String {
        from_toml::<Example>("x.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_read() {
        assert_eq!(from_toml::<Example>("x.toml", GOOD).unwrap().cohort_size, 4);
    }

    #[test]
    fn unknown_keys_name_the_nearest_and_the_line() {
        for (known, typo, line) in
            [("momentum", "momentun", "line 5"), ("cohort_size", "cohort_sise", "line 2")]
        {
            let error = error(&GOOD.replace(known, typo));
            assert!(error.contains(&format!("did you mean `{known}`?")), "{error}");
            assert!(error.contains("x.toml") && error.contains(line), "{error}");
        }
    }

    #[test]
    fn versions_and_types_are_checked() {
        assert!(error(&GOOD.replace("version = 1", "version = 2")).contains("version = 1"));
        assert!(error(&GOOD.replace("version = 1\n", "")).contains("version"));
        assert!(error(&GOOD.replace("= 9", "= \"soon\"")).contains("line 3"));
        assert!(error("version = ").contains("x.toml"));
    }
}
