//! What is wrong with a configuration: serde's errors and failed checks enter, sentences with file, line and column
//! leave. No RFC rules it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::form;
use super::locate::{Locations, Position, join};

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Complaint {
    /// Line and column, both from 1; `None` where the file could not be read at all.
    pub position: Option<Position>,
    /// The key, such as `tunnels.frankfurt.peer`; empty for the whole file.
    pub path: String,
    /// What was found, what was expected, what to do.
    pub message: String,
}

/// A configuration that cannot be used: everything that is wrong with it, in the order of the file.
///
/// Displayed one complaint a line as `FILE:LINE:COLUMN: KEY: what is wrong`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file as it was named.
    pub file: PathBuf,
    /// At least one.
    pub complaints: Vec<Complaint>,
}

/// More than this is not printed: the first ones are the cause of the rest.
const SHOWN: usize = 20;

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (index, complaint) in self.complaints.iter().take(SHOWN).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{file}:")?;
            if let Some(position) = complaint.position {
                write!(f, "{}:{}:", position.line, position.column)?;
            }
            if !complaint.path.is_empty() {
                write!(f, " {}:", complaint.path)?;
            }
            write!(f, " {}", complaint.message)?;
        }
        match self.complaints.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, "\n{file}: and {more} more"),
            _ => Ok(()),
        }
    }
}

impl ConfigError {
    /// The file could not be read, or is not text.
    pub fn unreadable(file: &Path, message: String) -> ConfigError {
        let complaint = Complaint { position: None, path: String::new(), message };
        ConfigError { file: file.into(), complaints: vec![complaint] }
    }

    /// It is more than any configuration.
    pub(super) fn exceeded(file: &Path, position: Position, message: String) -> ConfigError {
        ConfigError {
            file: file.into(),
            complaints: vec![Complaint { position: Some(position), path: String::new(), message }],
        }
    }

    /// What serde_yaml refused: syntax, an unknown key, a missing key, a value of the wrong form.
    pub(super) fn from_yaml(file: &Path, text: &str, error: &serde_yaml::Error) -> ConfigError {
        let mut position =
            error.location().map(|found| Position { line: found.line(), column: found.column() });
        let mut whole = error.to_string();
        if let Some(Position { line, column }) = position
            && let Some(rest) = whole.strip_suffix(&format!(" at line {line} column {column}"))
        {
            whole.truncate(rest.len());
        }
        let (path, message) = match whole.split_once(": ") {
            Some((path, message)) if is_path(path) => (path.to_string(), message.to_string()),
            _ => (String::new(), whole),
        };
        if message.starts_with("duplicate")
            && let Some(second) = Locations::of(text).duplicate(&path)
        {
            position = Some(second);
        }
        let message = match tab_at(text, position) {
            true => "a tab stands where YAML takes only spaces: indent with spaces".to_string(),
            false => plain(&message),
        };
        let mut complaints = vec![Complaint { position, path, message }];
        let locations = Locations::of(text);
        for (path, key, message) in form::errors(text) {
            let at = key.map_or_else(|| path.clone(), |key| join(&path, &key));
            let position = locations.find(&at);
            // The one that serde_yaml found has other words where it saw the text itself.
            let known =
                |one: &Complaint| one.path == path && (one.message == message || one.position == position);
            if !complaints.iter().any(known) {
                complaints.push(Complaint { position, path, message });
            }
        }
        complaints.sort_by_key(|complaint| complaint.position);
        ConfigError { file: file.into(), complaints }
    }

    /// What the checks found, put in the order of the file.
    pub(super) fn from_checks(file: &Path, text: &str, found: Vec<(String, String)>) -> ConfigError {
        let locations = Locations::of(text);
        let mut complaints: Vec<Complaint> = found
            .into_iter()
            .map(|(path, message)| Complaint { position: locations.find(&path), path, message })
            .collect();
        complaints.sort_by_key(|complaint| complaint.position);
        ConfigError { file: file.into(), complaints }
    }
}

/// Whether serde_yaml's text before the first colon is the path of a key, not words.
fn is_path(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(' ')
        && !matches!(text, "invalid" | "unknown")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.[]".contains(c))
}

/// Whether a tab is what the parser stumbled over.
fn tab_at(text: &str, position: Option<Position>) -> bool {
    let Some(Position { line, column }) = position else { return false };
    let line = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    line.chars().nth(column.saturating_sub(1)) == Some('\t')
}

/// Says in an operator's words what serde says in Rust's.
pub(super) fn plain(message: &str) -> String {
    let (found, expected) = match message.rsplit_once(", expected ") {
        Some((found, expected)) => (found, expected),
        None => {
            return match message.strip_prefix("missing field ") {
                Some(field) => format!("the key {field} is missing: add it"),
                None => message.replace("duplicate field", "duplicate key"),
            };
        }
    };
    let expected = match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") || other == "a map" => "keys with values below it",
        other => other,
    };
    let found =
        found.strip_prefix("unknown field ").map_or(found.to_string(), |key| format!("unknown key {key}"));
    format!("{found}, expected {expected}")
}
