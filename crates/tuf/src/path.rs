//! Names that come from outside: target paths, role names as file names, and path patterns of delegations.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

use crate::Error;
use crate::digest::encode_hex;

/// Longest target path, in bytes.
const MAX_PATH: usize = 512;
/// Longest role name, in bytes; percent-encoded it still is a file name on every file system.
const MAX_ROLE: usize = 80;

/// Path of a target relative to the repository: `/` between parts, no empty part, no `.`, `..`, `\`, or control character.
///
/// ```
/// assert!("releases/nanodet-1.0.0.tar".parse::<ocelli_tuf::TargetPath>().is_ok());
/// assert!("../etc/passwd".parse::<ocelli_tuf::TargetPath>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPath(String);

impl TargetPath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path with a digest before its last part, as repositories with consistent snapshots store it.
    pub(crate) fn with_prefix(&self, digest: &str) -> String {
        match self.0.rsplit_once('/') {
            Some((folder, name)) => format!("{folder}/{digest}.{name}"),
            None => format!("{digest}.{}", self.0),
        }
    }

    /// Hex SHA-256 of the path, for `path_hash_prefixes`.
    pub(crate) fn hash(&self) -> String {
        encode_hex(digest(&SHA256, self.0.as_bytes()).as_ref())
    }
}

impl FromStr for TargetPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let reason = if text.len() > MAX_PATH {
            "it is longer than 512 bytes"
        } else if text.chars().any(|c| c.is_control() || c == '\\') {
            "it has a control character or a backslash"
        } else if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            "it has an empty part, \".\" or \"..\""
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Error::UnsafePath { path: text.chars().take(80).collect(), reason })
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What is wrong with the name of a delegated role, if anything.
pub(crate) fn role_name_fault(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("a delegated role has no name"),
        "root" | "timestamp" | "snapshot" | "targets" | "mirrors" => {
            Some("a delegated role has the name of a top-level role")
        }
        _ if name.len() > MAX_ROLE => Some("a delegated role's name is longer than 80 bytes"),
        _ => None,
    }
}

/// The metadata file of a role, without a version: one safe level of a path, of a URL and of an MQTT topic.
///
/// ```
/// assert_eq!(ocelli_tuf::metadata_file("../team/a"), "..%2Fteam%2Fa.json");
/// ```
#[must_use]
pub fn metadata_file(role: &str) -> String {
    let mut file = percent_encode(role);
    file.push_str(".json");
    file
}

/// RFC 3986 percent-encoding of everything but unreserved characters.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte.into());
            }
            _ => {
                out.push('%');
                out.push_str(&encode_hex(&[byte]).to_ascii_uppercase());
            }
        }
    }
    out
}

/// Whether a path matches a shell pattern: `*` and `?` stand for anything but `/`; every other character for itself.
pub(crate) fn matches_pattern(pattern: &str, path: &str) -> bool {
    // TUF 1.0.34 §4.5, PATHPATTERN: a separator is not matched by a wildcard
    let mut parts = path.split('/');
    pattern.split('/').all(|pattern| parts.next().is_some_and(|part| matches_part(pattern, part)))
        && parts.next().is_none()
}

/// Wildcards within one part; remembers the last `*`, so the time is at most pattern × text.
fn matches_part(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') => (p, t) = (p + 1, t + 1),
            Some(c) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_follow_the_specification() {
        // The first eight are the examples of TUF 1.0.34 §4.5.
        let cases = [
            ("targets/*.tgz", "targets/foo.tgz", true),
            ("targets/*.tgz", "targets/foo.txt", false),
            ("foo-version-?.tgz", "foo-version-2.tgz", true),
            ("foo-version-?.tgz", "foo-version-alpha.tgz", false),
            ("*.tgz", "foo.tgz", true),
            ("*.tgz", "targets/foo.tgz", false),
            ("foo.tgz", "foo.tgz", true),
            ("foo.tgz", "foo.tgz2", false),
            ("*", "", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a*b*c", "aXbbYc", true),
            ("a*b*c", "aXbbY", false),
            ("**", "abc", true),
            ("?", "é", true),
            ("*.py", "A.PY", false),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
            ("a/", "a", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(matches_pattern(pattern, path), expected, "{pattern} against {path}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_exponential_time() {
        let pattern = "*a".repeat(250) + "b";
        assert!(!matches_pattern(&pattern, &"a".repeat(500)));
    }

    #[test]
    fn unsafe_target_paths_are_refused() {
        let long = "a".repeat(MAX_PATH + 1);
        let cases =
            ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\\b", "a\0b", "a\nb", &long];
        for text in cases {
            assert!(
                matches!(text.parse::<TargetPath>(), Err(Error::UnsafePath { .. })),
                "{text:?}"
            );
        }
        for text in ["a", "a/b.c", "..a", "a b", "é", "rollout/nanodet.json", "-"] {
            assert!(text.parse::<TargetPath>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn role_names_become_one_safe_path_level() {
        let cases = [
            ("releases", "releases.json"),
            ("/role", "%2Frole.json"),
            ("../role", "..%2Frole.json"),
            ("?#+", "%3F%23%2B.json"),
            (".", "..json"),
            ("é", "%C3%A9.json"),
        ];
        for (role, file) in cases {
            assert_eq!(metadata_file(role), file);
        }
        let longest = "é".repeat(MAX_ROLE / 2);
        assert_eq!(role_name_fault(&longest), None);
        assert!(metadata_file(&longest).len() <= 255);
        assert!(role_name_fault(&(longest + "a")).is_some());
        assert!(role_name_fault("timestamp").is_some());
    }

    #[test]
    fn digest_goes_before_the_last_part() {
        let path: TargetPath = "a/b/c.tar".parse().unwrap();
        assert_eq!(path.with_prefix("00ff"), "a/b/00ff.c.tar");
    }
}
