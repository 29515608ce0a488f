//! Names that become topic levels and file names: devices, streams, repositories, models, channels, requests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest identifier, in bytes.
const MAX_LENGTH: usize = 63;

/// An identifier: `[a-z0-9][a-z0-9-]{0,62}`.
///
/// The alphabet is safe in an MQTT topic level, a file name and a host name.
///
/// ```
/// # use ocelli_protocol::Id;
/// assert_eq!("dock-3".parse::<Id>().unwrap().as_str(), "dock-3");
/// assert!("Dock 3".parse::<Id>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// An identifier outside `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no identifier: use 1 to 63 of a-z, 0-9 and '-', not beginning with '-'")]
pub struct InvalidId(String);

impl Id {
    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let valid = !text.is_empty()
            && text.len() <= MAX_LENGTH
            && !text.starts_with('-')
            && text.bytes().all(allowed);
        if valid { Ok(Self(text)) } else { Err(InvalidId(text.chars().take(80).collect())) }
    }
}

impl std::str::FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::try_from(text.to_owned())
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_exactly_the_documented_alphabet() {
        let longest = "a".repeat(MAX_LENGTH);
        let too_long = "a".repeat(MAX_LENGTH + 1);
        let cases = [
            ("dock-3", true),
            ("0", true),
            ("a-", true),
            (longest.as_str(), true),
            ("", false),
            ("-a", false),
            ("Dock", false),
            ("a/b", false),
            ("a+b", false),
            ("a#", false),
            ("a.b", false),
            ("\u{e4}", false),
            (too_long.as_str(), false),
        ];
        let wrong: Vec<_> =
            cases.iter().filter(|(text, valid)| text.parse::<Id>().is_ok() != *valid).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
