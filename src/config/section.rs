//! Reads typed values out of a TOML section, and remembers what was asked for so that anything else is refused.
//!
//! Defaults come from the same document that users see (`defaults.toml`). Problems are collected, not thrown: one
//! `ocelli check` names them all.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use ocelli_protocol::Id;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line of the file, from 1.
    pub line: usize,
    /// Key with its sections, as `mqtt.port`; empty where no key is to blame.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: ", self.line)?;
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)
    }
}

/// What all sections of one file share.
pub(super) struct Source<'a> {
    /// The file's text, for line numbers.
    pub(super) text: &'a str,
    /// Folder that relative paths start from.
    pub(super) base: &'a Path,
    /// The whole defaults document, to say where a misplaced key belongs.
    pub(super) defaults: &'a DeTable<'a>,
    /// Problems so far.
    pub(super) problems: RefCell<Vec<Problem>>,
}

impl Source<'_> {
    /// Line of a byte position, from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub(super) fn report(&self, line: usize, key: impl Into<String>, message: impl Into<String>) {
        let problem = Problem { line, key: key.into(), message: message.into() };
        self.problems.borrow_mut().push(problem);
    }
}

/// A section as given (or not), beside its defaults.
pub(super) struct Section<'a> {
    source: &'a Source<'a>,
    path: String,
    line: usize,
    given: Option<&'a DeTable<'a>>,
    defaults: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The top of the file.
    pub(super) fn top(source: &'a Source<'a>, given: &'a DeTable<'a>) -> Self {
        Self::new(source, String::new(), 1, Some(given), source.defaults)
    }

    fn new(
        source: &'a Source<'a>,
        path: String,
        line: usize,
        given: Option<&'a DeTable<'a>>,
        defaults: &'a DeTable<'a>,
    ) -> Self {
        Self { source, path, line, given, defaults, asked: RefCell::default() }
    }

    /// Whether the user wrote this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Line of a key as given, else of the section.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.entry(key).map_or(self.line, |(line, _)| line)
    }

    /// Adds a problem with `key`.
    pub(super) fn report(&self, key: &str, message: impl Into<String>) {
        self.source.report(self.line_of(key), self.path_of(key), message);
    }

    /// A section or inline table below this one.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        self.asked.borrow_mut().push(key);
        let defaults = default_value(self.defaults, key).as_table();
        let defaults = defaults.expect("defaults.toml has a table for every section asked for");
        let (line, given) = match self.entry(key) {
            None => (self.line, None),
            Some((line, DeValue::Table(table))) => (line, Some(table)),
            Some((line, other)) => {
                let message = format!("expected a section [{key}], found {}", describe(other));
                self.source.report(line, self.path_of(key), message);
                (line, None)
            }
        };
        Self::new(self.source, self.path_of(key), line, given, defaults)
    }

    /// Repeated sections `[[key]]`; one of defaults when there is none.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        self.asked.borrow_mut().push(key);
        let first = default_value(self.defaults, key).as_array().and_then(|all| all.iter().next());
        let defaults = first.and_then(|first| first.get_ref().as_table());
        let defaults = defaults.expect("defaults.toml has one of every repeated section");
        let Some((line, given)) = self.entry(key) else {
            return vec![Self::new(self.source, key.to_owned(), self.line, None, defaults)];
        };
        let DeValue::Array(list) = given else {
            let message = format!("expected [[{key}]] with two brackets: there can be several");
            self.source.report(line, self.path_of(key), message);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let line = self.source.line(&item.span());
            let path = if list.len() == 1 { key.to_owned() } else { format!("{key}[{index}]") };
            match item.get_ref() {
                DeValue::Table(table) => {
                    found.push(Self::new(self.source, path, line, Some(table), defaults));
                }
                other => {
                    let message =
                        format!("expected a section [[{key}]], found {}", describe(other));
                    self.source.report(line, path, message);
                }
            }
        }
        found
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, _) in self.given.into_iter().flat_map(DeTable::iter) {
            let name: &str = key.get_ref();
            if !asked.contains(&name) {
                let line = self.source.line(&key.span());
                let message = unknown_key(name, &asked, self.source.defaults);
                self.source.report(line, self.path_of(name), message);
            }
        }
    }

    /// A value of any form: `convert` says what it expected when it refuses.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        expected: &str,
        convert: impl Fn(&DeValue<'_>) -> Option<T>,
    ) -> T {
        self.asked.borrow_mut().push(key);
        if let Some((line, given)) = self.entry(key) {
            if let Some(value) = convert(given) {
                return value;
            }
            let message = format!("expected {expected}, found {}", describe(given));
            self.source.report(line, self.path_of(key), message);
        }
        convert(default_value(self.defaults, key)).expect("defaults.toml holds valid values")
    }

    pub(super) fn boolean(&self, key: &'static str) -> bool {
        self.read(key, "true or false", |value| value.as_bool())
    }

    pub(super) fn text(&self, key: &'static str, expected: &str) -> String {
        self.read(key, expected, |value| value.as_str().map(str::to_owned))
    }

    /// Text that may be empty, which means: none.
    pub(super) fn optional_text(&self, key: &'static str, expected: &str) -> Option<String> {
        Some(self.text(key, expected)).filter(|text| !text.is_empty())
    }

    /// A path, made relative to the configuration file's folder; empty means none.
    pub(super) fn optional_path(&self, key: &'static str, expected: &str) -> Option<PathBuf> {
        self.optional_text(key, expected).map(|text| self.source.base.join(text))
    }

    /// An identifier; empty means none.
    pub(super) fn optional_id(&self, key: &'static str) -> Option<Id> {
        self.read(key, EXPECTED_ID, |value| match value.as_str()? {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        })
    }

    pub(super) fn id(&self, key: &'static str) -> Id {
        self.read(key, EXPECTED_ID, |value| value.as_str()?.parse().ok())
    }

    pub(super) fn ids(&self, key: &'static str) -> Vec<Id> {
        let expected = "a list of identifiers such as [\"site-a\"] (1 to 63 of a-z, 0-9, '-')";
        self.read(key, expected, |value| {
            value.as_array()?.iter().map(|item| item.get_ref().as_str()?.parse().ok()).collect()
        })
    }

    pub(super) fn integer(&self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| {
            let given = value.as_integer()?;
            let number = u64::from_str_radix(given.as_str(), given.radix()).ok()?;
            range.contains(&number).then_some(number)
        })
    }

    pub(super) fn number(&self, key: &'static str, range: RangeInclusive<f32>) -> f32 {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| {
            let number: f32 = match value {
                DeValue::Integer(given) => given.as_str().parse().ok()?,
                DeValue::Float(given) => given.as_str().parse().ok()?,
                _ => return None,
            };
            range.contains(&number).then_some(number)
        })
    }

    pub(super) fn duration(&self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        let [low, high] = [range.start(), range.end()].map(|end| humantime::format_duration(*end));
        let expected = format!("a time such as \"90s\" or \"7 days\", from {low} to {high}");
        self.read(key, &expected, |value| {
            let duration = humantime::parse_duration(value.as_str()?).ok()?;
            range.contains(&duration).then_some(duration)
        })
    }

    pub(super) fn bytes(&self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let [low, high] = [range.start(), range.end()].map(|end| ByteSize(*end).display().iec());
        let expected = format!("a size such as \"64 MiB\", from {low} to {high}");
        self.read(key, &expected, |value| {
            let bytes = value.as_str()?.parse::<ByteSize>().ok()?.as_u64();
            range.contains(&bytes).then_some(bytes)
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> T {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.read(key, &words.join(" or "), |value| {
            let text = value.as_str()?;
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    fn entry(&self, key: &str) -> Option<(usize, &'a DeValue<'a>)> {
        let (found, value) = self.given?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((self.source.line(&found.span()), value.get_ref()))
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

const EXPECTED_ID: &str = "an identifier (1 to 63 of a-z, 0-9 and '-', not beginning with '-')";

fn default_value<'a>(defaults: &'a DeTable<'a>, key: &str) -> &'a DeValue<'a> {
    let found = defaults.iter().find(|(name, _)| name.get_ref() == key);
    found.expect("defaults.toml has every key asked for").1.get_ref()
}

/// A value for messages, shortened.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() > 60 => {
            format!("{:?}…", text.chars().take(60).collect::<String>())
        }
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(list) => {
            match list.iter().map(Spanned::get_ref).map(describe).collect::<Vec<_>>() {
                items if items.len() <= 4 => format!("[{}]", items.join(", ")),
                items => format!("a list of {}", items.len()),
            }
        }
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Says what the user may have meant: the nearest key of the section, the section a key belongs to, or all keys.
fn unknown_key(name: &str, known: &[&str], defaults: &DeTable<'_>) -> String {
    if let Some(near) = nearest(name, known) {
        return format!("unknown key; did you mean \"{near}\"?");
    }
    for (section, value) in defaults {
        let table = match value.get_ref() {
            DeValue::Array(list) => list.iter().next().and_then(|first| first.get_ref().as_table()),
            other => other.as_table(),
        };
        if table.is_some_and(|table| table.iter().any(|(key, _)| key.get_ref() == name)) {
            return format!("unknown key here; it belongs to the section [{}]", section.get_ref());
        }
    }
    format!("unknown key; known here: {}", known.join(", "))
}

/// The known word closest to `name`, when it is close.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |word: &&str| strsim::damerau_levenshtein(name, word);
    let near = known.iter().copied().min_by_key(distance)?;
    let extends = name.len() >= 3 && (near.starts_with(name) || name.starts_with(near));
    let longer = known.iter().copied().find(|word| name.len() >= 3 && word.starts_with(name));
    if distance(&near) <= 2.min(name.len() / 2).max(1) || extends { Some(near) } else { longer }
}
