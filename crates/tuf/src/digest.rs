//! Signed lengths and digests of files, checked in one piece or while the bytes arrive.

use std::collections::BTreeMap;

use ring::digest::{Algorithm, Context, SHA256, SHA384, SHA512};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Digests of one file by algorithm, in hex. `sha256`, `sha384` and `sha512` are known; others are not looked at,
/// but at least one known one is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hashes(pub BTreeMap<String, String>);

impl Hashes {
    /// The SHA-256 digest of some bytes.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&SHA256, bytes);
        Self(BTreeMap::from([("sha256".to_owned(), encode_hex(digest.as_ref()))]))
    }

    /// The digest of one algorithm in hex, if it is signed.
    #[must_use]
    pub fn get(&self, algorithm: &str) -> Option<&str> {
        self.0.get(algorithm).map(String::as_str)
    }

    /// The known algorithms among these, the shortest digest first.
    fn known(&self) -> impl Iterator<Item = (&'static str, &'static Algorithm, &str)> {
        KNOWN.iter().filter_map(|(name, algorithm)| Some((*name, *algorithm, self.get(name)?)))
    }

    /// The digest that prefixes the target's file name in a repository with consistent snapshots.
    pub(crate) fn prefix(&self) -> Option<&str> {
        self.known().map(|(_, _, digest)| digest).find(|digest| decode_hex(digest).is_some())
    }
}

const KNOWN: &[(&str, &Algorithm)] =
    &[("sha256", &SHA256), ("sha384", &SHA384), ("sha512", &SHA512)];

/// Checks a file against its signed length and digests while it arrives; takes not one byte more than signed.
#[derive(Clone)]
pub struct FileCheck {
    file: String,
    length: Option<u64>,
    seen: u64,
    digests: Vec<(&'static str, Context, Vec<u8>)>,
}

impl FileCheck {
    /// A check of a file with these signed properties.
    ///
    /// # Errors
    /// [`Error::Format`] if no digest is of a known algorithm, or one is no hex.
    pub(crate) fn new(file: &str, length: Option<u64>, hashes: &Hashes) -> Result<Self, Error> {
        let mut digests = Vec::new();
        for (name, algorithm, expected) in hashes.known() {
            let expected = decode_hex(expected)
                .ok_or_else(|| Error::format(file, format_args!("its {name} digest is no hex")))?;
            digests.push((name, Context::new(algorithm), expected));
        }
        if digests.is_empty() {
            return Err(Error::format(file, "it has no digest of a known algorithm"));
        }
        Ok(Self { file: file.to_owned(), length, seen: 0, digests })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`] as soon as more came than is signed.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        if let Some(limit) = self.length
            && self.seen > limit
        {
            return Err(Error::TooLong { file: self.file.clone(), limit });
        }
        for (_, context, _) in &mut self.digests {
            context.update(bytes);
        }
        Ok(())
    }

    /// All bytes have come: whether they are the signed ones.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Digest`].
    pub fn finish(self) -> Result<(), Error> {
        // Off-spec (stricter than TUF 1.0.34 §5.7.3, "up to"): the length must be met exactly, as python-tuf does.
        if let Some(expected) = self.length
            && self.seen != expected
        {
            return Err(Error::Length { file: self.file, expected, found: self.seen });
        }
        for (name, context, expected) in self.digests {
            if context.finish().as_ref() != expected {
                return Err(Error::Digest { file: self.file, algorithm: name.to_owned() });
            }
        }
        Ok(())
    }
}

/// Lower-case hex.
pub(crate) fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Hex of either case; `None` for the empty text, odd lengths and other characters.
pub(crate) fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(length: Option<u64>, hashes: &Hashes, chunks: &[&[u8]]) -> Result<(), Error> {
        let mut check = FileCheck::new("file", length, hashes)?;
        for chunk in chunks {
            check.update(chunk)?;
        }
        check.finish()
    }

    #[test]
    fn accepts_only_the_signed_bytes() {
        let good = Hashes::sha256(b"abc");
        let file = || "file".to_owned();
        let mut two = good.clone();
        two.0.insert("sha512".to_owned(), "00".repeat(64));
        let no_hex = Hashes(BTreeMap::from([("sha256".to_owned(), "zz".to_owned())]));
        let unknown = Hashes(BTreeMap::from([("md5".to_owned(), "00".to_owned())]));
        type Case<'a> = (&'a str, Option<u64>, &'a Hashes, &'a [&'a [u8]], Result<(), Error>);
        let cases: [Case<'_>; 9] = [
            ("whole", Some(3), &good, &[b"abc"], Ok(())),
            ("in parts", Some(3), &good, &[b"a", b"", b"bc"], Ok(())),
            ("no length", None, &good, &[b"abc"], Ok(())),
            (
                "short",
                Some(3),
                &good,
                &[b"ab"],
                Err(Error::Length { file: file(), expected: 3, found: 2 }),
            ),
            (
                "long",
                Some(3),
                &good,
                &[b"abc", b"d"],
                Err(Error::TooLong { file: file(), limit: 3 }),
            ),
            (
                "changed",
                Some(3),
                &good,
                &[b"abd"],
                Err(Error::Digest { file: file(), algorithm: "sha256".to_owned() }),
            ),
            (
                "one digest of two wrong",
                Some(3),
                &two,
                &[b"abc"],
                Err(Error::Digest { file: file(), algorithm: "sha512".to_owned() }),
            ),
            (
                "unknown digest only",
                Some(3),
                &unknown,
                &[b"abc"],
                Err(Error::format("file", "it has no digest of a known algorithm")),
            ),
            (
                "no hex",
                Some(3),
                &no_hex,
                &[b"abc"],
                Err(Error::format("file", "its sha256 digest is no hex")),
            ),
        ];
        for (name, length, hashes, chunks, expected) in cases {
            assert_eq!(check(length, hashes, chunks), expected, "{name}");
        }
    }

    #[test]
    fn hex_is_read_as_written() {
        assert_eq!(decode_hex(&encode_hex(&[0, 0x9f, 0xff])), Some(vec![0, 0x9f, 0xff]));
        for bad in ["", "a", "0g", "é", "+1"] {
            assert_eq!(decode_hex(bad), None, "{bad}");
        }
    }
}
