//! The writing side, for the operator: documents that are edited, signed by one or several people, and published.
//!
//! Keys are Ed25519. Nothing here stores a key or a file; encryption at rest is the caller's.

mod build;
mod sign;

use serde::Serialize;

use crate::check::verify_threshold;
use crate::json::canonical;
use crate::path::metadata_file;
use crate::schema::{Envelope, Role, Version};
use crate::{Authority, DateTime, Error, Signature};

pub use sign::{InvalidKey, SigningKey};

/// One role's metadata while it is written: every change drops the signatures it makes worthless.
///
/// ```
/// use ocelli_tuf::repository::{Document, SigningKey};
/// use ocelli_tuf::schema::{Root, Targets};
/// use ocelli_tuf::{Authority, DateTime};
///
/// let now = DateTime::from_unix_seconds(1_795_000_000);
/// let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
/// let mut root = Root::new(now.plus_days(365));
/// for role in ["root", "timestamp", "snapshot", "targets"] {
///     root.allow(role, key.public());
/// }
/// let mut targets = Document::new(Targets::new(now.plus_days(180)));
/// targets.sign(&key);
/// let authority = Authority::of_root(&root, "targets").unwrap();
/// assert!(targets.verify(authority).is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document<T> {
    signed: T,
    signatures: Vec<Signature>,
}

impl<T: Role> Document<T> {
    /// A new document without signatures.
    #[must_use]
    pub fn new(signed: T) -> Self {
        Self { signed, signatures: Vec::new() }
    }

    /// Reads a document to sign or change it further. Its signatures are kept, not checked; see [`Self::verify`].
    ///
    /// # Errors
    /// [`Error::Format`]: malformed, or with fields that this version would lose, so that its signatures would break.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let Envelope { signed, signatures, message } = Envelope::<T>::parse(file, bytes)?;
        let document = Self { signed, signatures };
        if document.message() == message {
            Ok(document)
        } else {
            Err(Error::format(file, "it has fields that this version cannot keep"))
        }
    }

    /// The metadata.
    #[must_use]
    pub fn signed(&self) -> &T {
        &self.signed
    }

    /// The signatures so far.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Changes the metadata within its version, which has not been published; drops the signatures.
    pub fn amend(&mut self) -> &mut T {
        self.signatures.clear();
        &mut self.signed
    }

    /// Goes to the next version with a new expiry, to be changed and signed; drops the signatures.
    ///
    /// # Errors
    /// [`Error::Format`] after version 2^64 − 1.
    pub fn next_version(&mut self, expires: DateTime) -> Result<&mut T, Error> {
        let version = self.signed.version().checked_add(1);
        let version = version.ok_or_else(|| Error::format("metadata", "versions are used up"))?;
        self.signed.renew(version, expires);
        Ok(self.amend())
    }

    /// Adds a key's signature; one that the key made before is replaced.
    pub fn sign(&mut self, key: &SigningKey) {
        let signature = key.sign(&self.message());
        self.signatures.retain(|other| other.keyid != signature.keyid);
        self.signatures.push(signature);
    }

    /// Takes over the signatures of a copy that somebody else signed.
    ///
    /// # Errors
    /// [`Error::Format`] if the copy does not say the same.
    pub fn merge(&mut self, copy: &Self) -> Result<(), Error> {
        if self.message() != copy.message() {
            return Err(Error::format("the copy", "it is not the same document"));
        }
        for signature in &copy.signatures {
            if self.signatures.iter().all(|own| own.keyid != signature.keyid) {
                self.signatures.push(signature.clone());
            }
        }
        Ok(())
    }

    /// Whether enough of the role's keys have signed.
    ///
    /// # Errors
    /// [`Error::Threshold`] with what is there and what is needed.
    pub fn verify(&self, authority: Authority<'_>) -> Result<(), Error> {
        verify_threshold(authority, &self.message(), &self.signatures)
    }

    /// The document as it is published. The same document always gives the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Published<'a, T> {
            signatures: &'a [Signature],
            signed: &'a T,
        }
        let published = Published { signatures: &self.signatures, signed: &self.signed };
        serde_json::to_vec(&published).expect("metadata has string keys and whole numbers")
    }

    /// Name of the file to publish it under in a repository with consistent snapshots.
    #[must_use]
    pub fn file(&self, role: &str) -> String {
        // TUF 1.0.34 §6.2.1: every metadata file but the timestamp's carries its version
        let (version, file): (Version, _) = (self.signed.version(), metadata_file(role));
        if role == "timestamp" { file } else { format!("{version}.{file}") }
    }

    fn message(&self) -> Vec<u8> {
        canonical(&self.signed).expect("metadata has string keys and whole numbers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Root, Targets};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn now() -> DateTime {
        DateTime::from_unix_seconds(1_795_000_000)
    }

    fn two_of_three() -> Root {
        let mut root = Root::new(now().plus_days(1));
        for seed in 1..=3 {
            root.allow("targets", key(seed).public());
        }
        root.set_threshold("targets", 2);
        root
    }

    #[test]
    fn a_ceremony_needs_the_threshold_of_different_people() {
        let root = two_of_three();
        let authority = Authority::of_root(&root, "targets").unwrap();
        let missing = |valid| Error::Threshold { role: "targets".to_owned(), needed: 2, valid };
        let mut here = Document::new(Targets::new(now().plus_days(1)));
        let mut there = Document::<Targets>::parse("targets.json", &here.to_bytes()).unwrap();
        assert_eq!(here.verify(authority), Err(missing(0)));
        here.sign(&key(1));
        here.sign(&key(1));
        here.sign(&key(9));
        assert_eq!(here.verify(authority), Err(missing(1)));
        there.sign(&key(3));
        here.merge(&there).unwrap();
        assert_eq!(here.verify(authority), Ok(()));
    }

    #[test]
    fn a_change_drops_the_signatures() {
        let mut targets = Document::new(Targets::new(now().plus_days(1)));
        targets.sign(&key(1));
        let changed = targets.next_version(now().plus_days(2)).unwrap();
        assert_eq!((changed.version.get(), changed.expires), (2, now().plus_days(2)));
        assert!(targets.signatures().is_empty());
        assert_eq!(targets.file("targets"), "2.targets.json");
        assert_eq!(targets.file("timestamp"), "timestamp.json");
    }

    #[test]
    fn a_copy_that_says_something_else_is_not_merged() {
        let mut targets = Document::new(Targets::new(now().plus_days(1)));
        let mut other = targets.clone();
        other.next_version(now().plus_days(1)).unwrap();
        other.sign(&key(1));
        assert!(matches!(targets.merge(&other), Err(Error::Format { .. })));
        assert!(targets.signatures().is_empty());
    }

    #[test]
    fn a_document_that_would_change_by_reading_is_refused() {
        let targets = Document::new(Targets::new(now().plus_days(1)));
        let text = String::from_utf8(targets.to_bytes()).unwrap();
        let kept = text.replace("\"targets\":{}", "\"targets\":{},\"x-note\":[1]");
        assert!(Document::<Targets>::parse("targets.json", kept.as_bytes()).is_ok());
        let lost = text.replace(
            "\"targets\":{}",
            "\"targets\":{\"a\":{\"length\":1,\"hashes\":{},\"x-note\":1}}",
        );
        let read = Document::<Targets>::parse("targets.json", lost.as_bytes());
        assert!(matches!(read, Err(Error::Format { .. })), "{read:?}");
    }
}
