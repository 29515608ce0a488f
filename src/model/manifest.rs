//! Parses `manifest.toml` and turns the parser's complaints into ones that name file, key, value and expectation.
//!
//! Knows the text only; whether values fit each other is checked when the [`super::ModelSpec`] is built.

use ocelli_protocol::manifest::{FILE_NAME, FORMAT, Manifest};
use toml::Table;

use super::PackageError;
use super::archive::Files;

/// Least similarity (Jaro-Winkler) at which a known key is offered for an unknown one.
const SIMILAR: f64 = 0.75;

/// Keys of `[budget]` that are limits; every other key there is a board label with a table of its own.
const LIMITS: &[&str] = &["latency_p90_ms", "memory_mib"];

/// The manifest of a package.
pub(super) fn parse(files: &Files) -> Result<Manifest, PackageError> {
    let file = files.locate(FILE_NAME);
    let bytes = files.get(FILE_NAME).map_or(&[][..], |bytes| bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| PackageError::Syntax {
        line: line_at(bytes, error.valid_up_to()),
        file: file.clone(),
        detail: "not UTF-8 text".into(),
    })?;
    let source = Source { file, text };
    let table: Table = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    source.check_format(&table)?;
    source.check_budget(&table)?;
    toml::from_str(text).map_err(|error| source.explain(&error, table))
}

/// A manifest's text and where it came from.
struct Source<'a> {
    file: String,
    text: &'a str,
}

impl Source<'_> {
    /// Looked at first: a later format may have other keys.
    fn check_format(&self, table: &Table) -> Result<(), PackageError> {
        match table.get("format") {
            None => Err(self.missing("format")),
            Some(toml::Value::Integer(found)) if *found == i64::from(FORMAT) => Ok(()),
            Some(found) => {
                let shown = found.as_integer().map_or(found.type_str().into(), |n| n.to_string());
                Err(self.value("format", shown, format!("{FORMAT}, the format this agent reads")))
            }
        }
    }

    /// The parser takes any unknown key of `[budget]` for a board label.
    fn check_budget(&self, table: &Table) -> Result<(), PackageError> {
        let Some(budget) = table.get("budget").and_then(toml::Value::as_table) else {
            return Ok(());
        };
        let stray =
            budget.iter().find(|(key, value)| !LIMITS.contains(&key.as_str()) && !value.is_table());
        stray.map_or(Ok(()), |(key, _)| Err(self.unknown_key(key, self.line_of(key), LIMITS)))
    }

    fn explain(&self, error: &toml::de::Error, table: Table) -> PackageError {
        let message = error.message();
        let line = error.span().map_or(1, |span| line_at(self.text.as_bytes(), span.start));
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let (kind, found, expected) = match message.split_once(", expected ") {
            Some((head, expected)) => {
                let (kind, found) = head.split_once(": ").unwrap_or((head, ""));
                (kind, found, expected)
            }
            None => (message, "", ""),
        };
        match (kind, &quoted[..]) {
            (kind, [key, known @ ..]) if kind.starts_with("unknown field") => {
                self.unknown_key(key, self.line_of(key).max(line), known)
            }
            (kind, [name, known @ ..]) if kind.starts_with("unknown variant") => {
                let key = key_of(table, message);
                self.value(&key, format!("\"{name}\""), nearest(name, known))
            }
            (kind, [key]) if kind.starts_with("missing field") => {
                self.missing(&join(&key_of(table, message), key))
            }
            ("invalid type" | "invalid value", _) => {
                self.value(&key_of(table, message), found.to_owned(), plain(expected))
            }
            _ => PackageError::Syntax { file: self.file.clone(), line, detail: one_line(message) },
        }
    }

    fn syntax(&self, error: &toml::de::Error) -> PackageError {
        let line = error.span().map_or(1, |span| line_at(self.text.as_bytes(), span.start));
        PackageError::Syntax { file: self.file.clone(), line, detail: one_line(error.message()) }
    }

    fn unknown_key(&self, key: &str, line: usize, known: &[&str]) -> PackageError {
        let (file, key) = (self.file.clone(), key.to_owned());
        PackageError::UnknownKey { file, line, hint: nearest(&key, known), key }
    }

    fn missing(&self, key: &str) -> PackageError {
        PackageError::MissingKey { file: self.file.clone(), key: key.to_owned() }
    }

    fn value(&self, key: &str, value: String, expected: String) -> PackageError {
        PackageError::Value { file: self.file.clone(), key: key.to_owned(), value, expected }
    }

    /// First line that gives `key` a value; 1 when none does.
    fn line_of(&self, key: &str) -> usize {
        let gives = |line: &str| {
            let rest = line.trim_start().strip_prefix(key);
            rest.is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        self.text.lines().position(gives).map_or(1, |index| index + 1)
    }
}

/// Path of the key that a message is about: the parser tells it only when it reads from values.
fn key_of(table: Table, message: &str) -> String {
    let head = table.get("head").and_then(toml::Value::as_table).cloned();
    let Err(error) = table.try_into::<Manifest>() else { return String::new() };
    let text = error.to_string();
    let path = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
    match (path.unwrap_or_default(), head) {
        ("head", Some(head)) => join("head", &key_of_head(&head, message)),
        (path, _) => path.to_owned(),
    }
}

/// The key of `[head]` without which `message` is no longer the complaint. The kind of the head is read first, and
/// with it the path inside is lost to the parser.
fn key_of_head(head: &Table, message: &str) -> String {
    use ocelli_protocol::manifest::Head;
    if message.starts_with("unknown variant") {
        return "kind".into();
    } else if message.starts_with("missing field") {
        return String::new();
    }
    let cures = |key: &&String| {
        let mut rest = head.clone();
        rest.remove(*key);
        rest.try_into::<Head>().err().is_none_or(|error| error.message() != message)
    };
    let mut keys = head.keys().filter(|key| *key != "kind");
    keys.find(cures).cloned().unwrap_or_default()
}

fn join(section: &str, key: &str) -> String {
    match (section, key) {
        ("", key) => key.to_owned(),
        (section, "") => section.to_owned(),
        (section, key) => format!("{section}.{key}"),
    }
}

fn nearest(word: &str, known: &[&str]) -> String {
    let score = |name: &&str| strsim::jaro_winkler(word, name);
    let best = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    match best {
        Some(name) if score(name) >= SIMILAR => {
            format!("one of {}; did you mean `{name}`?", known.join(", "))
        }
        _ => format!("one of {}", known.join(", ")),
    }
}

/// Rust's type names in the reader's words.
fn plain(expected: &str) -> String {
    match expected {
        "usize" | "u32" | "u64" => "a whole number, 0 or more".into(),
        "u8" => "a whole number from 0 to 255".into(),
        "f32" | "f64" => "a number".into(),
        other => other.replace("struct ", "a table, "),
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_at(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count()
}
