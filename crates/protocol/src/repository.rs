//! What a repository publishes over MQTT beside TUF metadata: the head hint, the chunk index of a package, and the
//! roll-out of a model. All are versioned and strict: a field that is not known is refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Id, VERSION};

/// Largest chunk, and so the largest index and roll-out document, bytes.
pub const MAX_CHUNK_BYTES: usize = 128 * 1024;
/// Most entries of one channel in a roll-out.
pub const MAX_ENTRIES: usize = 64;

/// A SHA-256 digest; written as 64 lower-case hexadecimal digits.
///
/// ```
/// # use ocelli_protocol::repository::Digest;
/// let text = "00".repeat(32);
/// assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
/// assert!("0G".repeat(32).parse::<Digest>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

/// A text that is no [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest has 64 of 0-9 and a-f")]
pub struct InvalidDigest;

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::str::FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(InvalidDigest),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(InvalidDigest);
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Why a document of a repository is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Larger than [`MAX_CHUNK_BYTES`]; not looked into.
    #[error("{document} has {bytes} bytes, at most {MAX_CHUNK_BYTES} are read")]
    TooLarge {
        /// Which document.
        document: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// No JSON of the documented form.
    #[error("{document} is malformed: {reason}")]
    Format {
        /// Which document.
        document: &'static str,
        /// What is wrong.
        reason: String,
    },
}

fn parse<'a, T: Deserialize<'a>>(
    document: &'static str,
    bytes: &'a [u8],
    valid: impl FnOnce(&T) -> Result<(), String>,
) -> Result<T, DocumentError> {
    if bytes.len() > MAX_CHUNK_BYTES {
        return Err(DocumentError::TooLarge { document, bytes: bytes.len() });
    }
    let format = |reason: String| DocumentError::Format { document, reason };
    let parsed = serde_json::from_slice(bytes).map_err(|error| format(error.to_string()))?;
    valid(&parsed).map_err(format)?;
    Ok(parsed)
}

fn version(found: u32) -> Result<(), String> {
    if found == VERSION { Ok(()) } else { Err(format!("version {found} is not {VERSION}")) }
}

/// `repo/<repo>/head`: an unauthenticated hint which root and timestamp are the newest. A lie can only delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Payload version, [`VERSION`].
    pub v: u32,
    /// Version of the newest root.
    pub root: u64,
    /// Version of the newest timestamp.
    pub timestamp: u64,
}

impl Head {
    /// Reads a payload.
    ///
    /// # Errors
    /// [`DocumentError`]
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        parse("head", bytes, |head: &Self| version(head.v))
    }
}

/// One chunk of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, Digest)", into = "(u32, Digest)")]
pub struct Chunk {
    /// Bytes, 1 to [`MAX_CHUNK_BYTES`].
    pub length: u32,
    /// Digest of these bytes, and name of the chunk's topic.
    pub sha256: Digest,
}

impl From<(u32, Digest)> for Chunk {
    fn from((length, sha256): (u32, Digest)) -> Self {
        Self { length, sha256 }
    }
}

impl From<Chunk> for (u32, Digest) {
    fn from(chunk: Chunk) -> Self {
        (chunk.length, chunk.sha256)
    }
}

/// The chunks of a package, in order and without holes: `{"v":1,"length":n,"chunks":[[length,"sha256"],…]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkIndex {
    /// Document version, [`VERSION`].
    pub v: u32,
    /// Bytes of the package: the sum of all chunks.
    pub length: u64,
    /// The chunks, first byte first.
    pub chunks: Vec<Chunk>,
}

impl ChunkIndex {
    /// Reads an index.
    ///
    /// # Errors
    /// [`DocumentError`], also when a chunk is empty or too long, or the sum is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        parse("the chunk index", bytes, |index: &Self| {
            version(index.v)?;
            let fits = |chunk: &Chunk| (1..=MAX_CHUNK_BYTES).contains(&(chunk.length as usize));
            if let Some(at) = index.chunks.iter().position(|chunk| !fits(chunk)) {
                let length = index.chunks[at].length;
                return Err(format!("chunk {at} has {length} bytes, not 1 to {MAX_CHUNK_BYTES}"));
            }
            // At most 2^32 chunks of 2^17 bytes: no overflow.
            let sum: u64 = index.chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
            if sum == index.length {
                Ok(())
            } else {
                Err(format!("its chunks have {sum} bytes, it says {}", index.length))
            }
        })
    }

    /// Each chunk with its offset in the package.
    pub fn places(&self) -> impl Iterator<Item = (u64, Chunk)> {
        self.chunks.iter().scan(0, |next, chunk| {
            let offset = *next;
            *next += u64::from(chunk.length);
            Some((offset, *chunk))
        })
    }
}

/// `rollout/<model>.json`: which package each channel gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Document version, [`VERSION`].
    pub v: u32,
    /// The model it is about.
    pub model: Id,
    /// Entries of each channel; a device takes the first that means it.
    pub channels: BTreeMap<Id, Vec<RolloutEntry>>,
}

/// One step of a roll-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutEntry {
    /// Path of the package, a target of `releases`.
    pub target: String,
    /// Part of the devices, 0 to 100, to a hundredth.
    pub percent: f64,
    /// Labels a device must all have.
    #[serde(default)]
    pub labels: Vec<Id>,
    /// Which devices are in the part: others for another salt.
    #[serde(default)]
    pub salt: String,
    /// Raised to have devices try again what they rejected.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
}

fn first_attempt() -> u32 {
    1
}

impl Rollout {
    /// Reads a roll-out.
    ///
    /// # Errors
    /// [`DocumentError`], also for parts outside 0 to 100 and channels with too many entries.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        parse("the roll-out", bytes, |rollout: &Self| {
            version(rollout.v)?;
            for (channel, entries) in &rollout.channels {
                if entries.len() > MAX_ENTRIES {
                    return Err(format!("channel {channel} has more than {MAX_ENTRIES} entries"));
                }
                if let Some(entry) =
                    entries.iter().find(|one| !(0.0..=100.0).contains(&one.percent))
                {
                    return Err(format!("percent = {} is not 0 to 100", entry.percent));
                }
            }
            Ok(())
        })
    }
}

impl RolloutEntry {
    /// Whether a device is meant whose SHA-256 of `salt ‖ 0x00 ‖ device` begins with these bytes.
    #[must_use]
    pub fn includes(&self, hash: [u8; 8], labels: &[Id]) -> bool {
        // At most 10000, so the cast keeps it whole.
        let hundredths = (self.percent * 100.0).round() as u64;
        self.labels.iter().all(|label| labels.contains(label))
            && u64::from_be_bytes(hash) % 10_000 < hundredths
    }
}

/// What `releases` signs beside length and digest of a package: `custom.ocelli`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Name of the model.
    pub model: Id,
    /// Version of the package.
    pub version: String,
    /// Its chunk index, itself a chunk.
    pub index: IndexFile,
}

/// Length and digest of a chunk index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexFile {
    /// Bytes.
    pub length: u64,
    /// Digest.
    pub sha256: Digest,
}

/// Path of a package among the targets: `releases/<model>/<model>-<version>.tar`.
#[must_use]
pub fn release_path(model: &str, version: &str) -> String {
    format!("releases/{model}/{model}-{version}.tar")
}

/// Path of a model's roll-out among the targets.
#[must_use]
pub fn rollout_path(model: &str) -> String {
    format!("rollout/{model}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    #[test]
    fn an_index_has_the_documented_form() {
        let (a, b) = (digest(1), digest(2));
        let text = format!(r#"{{"v":1,"length":7,"chunks":[[5,"{a}"],[2,"{b}"]]}}"#);
        let index = ChunkIndex::parse(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&index).unwrap(), text);
        let places: Vec<_> = index.places().map(|(at, chunk)| (at, chunk.sha256)).collect();
        assert_eq!(places, [(0, a), (5, b)]);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let a = digest(1);
        let cases = [
            (r#"{"v":2,"length":0,"chunks":[]}"#.to_owned(), "version 2"),
            (format!(r#"{{"v":1,"length":6,"chunks":[[5,"{a}"]]}}"#), "have 5 bytes, it says 6"),
            (format!(r#"{{"v":1,"length":0,"chunks":[[0,"{a}"]]}}"#), "chunk 0 has 0 bytes"),
            (format!(r#"{{"v":1,"length":131073,"chunks":[[131073,"{a}"]]}}"#), "131073 bytes"),
            (format!(r#"{{"v":1,"length":1,"chunks":[[-1,"{a}"]]}}"#), "invalid value"),
            (r#"{"v":1,"length":1,"chunks":[[1,"AA"]]}"#.to_owned(), "64 of 0-9"),
            (r#"{"v":1,"length":0,"chunks":[],"x":1}"#.to_owned(), "unknown field"),
            (" ".repeat(MAX_CHUNK_BYTES + 1), "at most 131072"),
        ];
        for (text, says) in cases {
            let error = ChunkIndex::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text:.60}: {error}");
        }
    }

    #[test]
    fn a_roll_out_means_the_part_of_devices_with_its_labels() {
        let text = r#"{"v":1,"model":"m","channels":{"stable":[{"target":"t","percent":12.34,"labels":["a"],"salt":"s","attempt":2}]}}"#;
        let rollout = Rollout::parse(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&rollout).unwrap(), text);
        let entry = &rollout.channels[&"stable".parse().unwrap()][0];
        let labels = ["a".parse().unwrap(), "b".parse().unwrap()];
        let hash = |number: u64| (50_000 + number).to_be_bytes();
        assert!(entry.includes(hash(1233), &labels));
        assert!(!entry.includes(hash(1234), &labels));
        assert!(!entry.includes(hash(0), &labels[1..]));
    }

    #[test]
    fn what_is_no_roll_out_is_refused() {
        let entry = |percent: &str| {
            format!(
                r#"{{"v":1,"model":"m","channels":{{"c":[{{"target":"t","percent":{percent}}}]}}}}"#
            )
        };
        let cases = [
            (entry("100.1"), "not 0 to 100"),
            (entry("-1"), "not 0 to 100"),
            (entry("\"1\""), "invalid type"),
            (r#"{"v":1,"model":"M","channels":{}}"#.to_owned(), "no identifier"),
            (r#"{"v":0,"model":"m","channels":{}}"#.to_owned(), "version 0"),
        ];
        for (text, says) in cases {
            let error = Rollout::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(Rollout::parse(entry("100").as_bytes()).is_ok());
    }

    #[test]
    fn a_head_is_strict() {
        let head = Head { v: 1, root: 2, timestamp: 9 };
        let text = r#"{"v":1,"root":2,"timestamp":9}"#;
        assert_eq!(serde_json::to_string(&head).unwrap(), text);
        assert_eq!(Head::parse(text.as_bytes()), Ok(head));
        assert!(Head::parse(br#"{"v":1,"root":2,"timestamp":9,"x":0}"#).is_err());
        assert!(Head::parse(&[0xff; 9]).is_err());
    }
}
