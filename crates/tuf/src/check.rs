//! The checks of the client workflow. Only this file can build [`Verified`]; nothing here stores or fetches.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::digest::FileCheck;
use crate::key::{Key, KeyId, Signature};
use crate::path::metadata_file;
use crate::schema::{
    DelegatedRole, Envelope, MetaFile, Role, RoleKeys, Root, Snapshot, Targets, Timestamp, Version,
};
use crate::{DateTime, Error};

/// Metadata that passed every check of its step in the client workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    signed: T,
    bytes: Vec<u8>,
}

impl<T> Verified<T> {
    /// The document as it was received, to be stored byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.signed
    }
}

/// Metadata from our own storage, signed by the current keys. It sets the floor for versions; it may be expired.
#[derive(Debug)]
pub(crate) struct Remembered<T> {
    signed: T,
    bytes: Vec<u8>,
}

/// Who may sign a role: the part of root or of a delegation that says so.
#[derive(Debug, Clone, Copy)]
pub struct Authority<'a> {
    role: &'a str,
    keys: &'a BTreeMap<KeyId, Key>,
    allowed: &'a RoleKeys,
}

impl<'a> Authority<'a> {
    /// The authority over a top-level role: `root`, `timestamp`, `snapshot` or `targets`.
    #[must_use]
    pub fn of_root(root: &'a Root, role: &'a str) -> Option<Self> {
        Some(Self { role, keys: &root.keys, allowed: root.roles.get(role)? })
    }

    /// The authority over a delegated role.
    #[must_use]
    pub fn of_delegation(keys: &'a BTreeMap<KeyId, Key>, role: &'a DelegatedRole) -> Self {
        Self { role: &role.name, keys, allowed: &role.keys }
    }
}

fn top_level<'a>(root: &'a Root, role: &'a str) -> Authority<'a> {
    Authority::of_root(root, role).expect("validate demands the four roles")
}

/// Whether a threshold of the role's keys signed the message: each key id and each key counts once.
///
/// Signatures that are malformed, wrong, or by keys the role does not list are not counted, and do no harm.
///
/// # Errors
/// [`Error::Threshold`] with the number of keys that did sign.
pub fn verify_threshold(
    authority: Authority<'_>,
    message: &[u8],
    signatures: &[Signature],
) -> Result<(), Error> {
    let mut signers = BTreeSet::new();
    for Signature { keyid, sig } in signatures {
        if !authority.allowed.keyids.contains(keyid) {
            continue;
        }
        // TUF 1.0.34 §4.3: clients MUST calculate each KEYID; a key under a false one never counts
        let key = authority.keys.get(keyid).filter(|key| key.id() == *keyid);
        let Some(verifier) = key.and_then(Key::verifier) else { continue };
        if verifier.verify(message, sig) {
            // TUF 1.0.34 §5.3.4: each KEY MUST only contribute one SIGNATURE. An id names one key, so counting keys also
            // counts each id once; and a key listed under two ids is still one key.
            signers.insert(verifier.into_material());
        }
    }
    let (needed, valid) = (authority.allowed.threshold.get(), signers.len() as u64);
    if valid >= needed {
        Ok(())
    } else {
        Err(Error::Threshold { role: authority.role.to_owned(), needed, valid })
    }
}

/// §5.2: the root that came with the device, or that an earlier update stored. It must be signed by itself.
pub(crate) fn trusted_root(bytes: &[u8]) -> Result<Verified<Root>, Error> {
    let envelope = Envelope::<Root>::parse("root.json", bytes)?;
    let own = top_level(&envelope.signed, "root");
    verify_threshold(own, &envelope.message, &envelope.signatures)?;
    Ok(verified(envelope, bytes))
}

/// §5.3.4 to §5.3.5: the successor of the trusted root.
pub(crate) fn next_root(trusted: &Root, bytes: &[u8]) -> Result<Verified<Root>, Error> {
    let envelope = Envelope::<Root>::parse("root.json", bytes)?;
    // TUF 1.0.34 §5.3.4: signed by a threshold of the trusted root's keys, and of its own
    for root in [trusted, &envelope.signed] {
        verify_threshold(top_level(root, "root"), &envelope.message, &envelope.signatures)?;
    }
    // TUF 1.0.34 §5.3.5: the version is exactly one more
    let (version, offered) = (trusted.version.get(), envelope.signed.version.get());
    match version.checked_add(1) {
        Some(expected) if expected == offered => Ok(verified(envelope, bytes)),
        _ if offered <= version => {
            Err(Error::Rollback { file: "root.json".to_owned(), trusted: version, offered })
        }
        _ => Err(Error::VersionMismatch {
            file: "root.json".to_owned(),
            expected: version.saturating_add(1),
            found: offered,
        }),
    }
}

/// §5.3.10, and the last check of every other role.
pub(crate) fn not_expired(role: &impl Role, file: &str, now: DateTime) -> Result<(), Error> {
    let expires = role.expires();
    if expires > now { Ok(()) } else { Err(Error::Expired { file: file.to_owned(), expires, now }) }
}

/// §5.3.11: whether a key of the role was taken out of service.
pub(crate) fn is_rotated(old: &Root, new: &Root, role: &str) -> bool {
    let (old, new) = (top_level(old, role), top_level(new, role));
    old.allowed.keyids.iter().any(|id| !new.allowed.keyids.contains(id))
}

/// What stored metadata is still good for: if the current keys signed it, its versions are the floor.
pub(crate) fn remember<T: Role>(root: &Root, role: &str, bytes: &[u8]) -> Option<Remembered<T>> {
    let envelope = Envelope::<T>::parse(role, bytes).ok()?;
    verify_threshold(top_level(root, role), &envelope.message, &envelope.signatures).ok()?;
    Some(Remembered { signed: envelope.signed, bytes: bytes.to_vec() })
}

/// The outcome of [`timestamp`].
pub(crate) enum CheckedTimestamp {
    /// Newer than what we have: to be stored.
    Newer(Verified<Timestamp>),
    /// The version we have: ours stays.
    Same(Verified<Timestamp>),
}

/// §5.4.2 to §5.4.4.
pub(crate) fn timestamp(
    root: &Root,
    trusted: Option<Remembered<Timestamp>>,
    bytes: &[u8],
    now: DateTime,
) -> Result<CheckedTimestamp, Error> {
    const FILE: &str = "timestamp.json";
    let envelope = Envelope::<Timestamp>::parse(FILE, bytes)?;
    // TUF 1.0.34 §5.4.2: arbitrary software
    verify_threshold(top_level(root, "timestamp"), &envelope.message, &envelope.signatures)?;
    let offered = &envelope.signed;
    if let Some(trusted) = trusted {
        // TUF 1.0.34 §5.4.3.1: rollback of the timestamp
        not_older(FILE, trusted.signed.version, offered.version)?;
        if trusted.signed.version == offered.version {
            // Off-spec: §5.4.3.1 ends the cycle here. We go on with the timestamp we have, because a power cut may have
            // come between §5.4.5 and §5.5.7; and we check its expiry (§5.4.4), because withholding news is a freeze.
            not_expired(&trusted.signed, FILE, now)?;
            let Remembered { signed, bytes } = trusted;
            return Ok(CheckedTimestamp::Same(Verified { signed, bytes }));
        }
        // TUF 1.0.34 §5.4.3.2: rollback of the snapshot
        let (old, new) = (trusted.signed.snapshot().version, offered.snapshot().version);
        not_older("snapshot.json", old, new)?;
    }
    // TUF 1.0.34 §5.4.4: freeze
    not_expired(offered, FILE, now)?;
    Ok(CheckedTimestamp::Newer(verified(envelope, bytes)))
}

/// §5.5.2 to §5.5.6.
pub(crate) fn snapshot(
    root: &Root,
    timestamp: &Timestamp,
    trusted: Option<&Remembered<Snapshot>>,
    bytes: &[u8],
    now: DateTime,
) -> Result<Verified<Snapshot>, Error> {
    const FILE: &str = "snapshot.json";
    let listed = timestamp.snapshot();
    // TUF 1.0.34 §5.5.2: mix and match
    matches_listing(FILE, listed, bytes)?;
    let envelope = Envelope::<Snapshot>::parse(FILE, bytes)?;
    // TUF 1.0.34 §5.5.3: arbitrary software
    verify_threshold(top_level(root, "snapshot"), &envelope.message, &envelope.signatures)?;
    // TUF 1.0.34 §5.5.4: the version the timestamp names
    same_version(FILE, listed.version, envelope.signed.version)?;
    // TUF 1.0.34 §5.5.5: no targets metadata goes back or vanishes
    for (file, old) in trusted.iter().flat_map(|trusted| &trusted.signed.meta) {
        let new = envelope.signed.meta.get(file);
        let new = new.ok_or_else(|| Error::Removed { file: file.clone() })?;
        not_older(file, old.version, new.version)?;
    }
    // TUF 1.0.34 §5.5.6: freeze
    not_expired(&envelope.signed, FILE, now)?;
    Ok(verified(envelope, bytes))
}

/// §5.6.2 to §5.6.5, for the top-level targets role and for every delegated one (§5.6.7).
pub(crate) fn targets(
    authority: Authority<'_>,
    listed: &MetaFile,
    bytes: &[u8],
    now: DateTime,
) -> Result<Verified<Targets>, Error> {
    let file = metadata_file(authority.role);
    // TUF 1.0.34 §5.6.2: mix and match
    matches_listing(&file, listed, bytes)?;
    let envelope = Envelope::<Targets>::parse(&file, bytes)?;
    // TUF 1.0.34 §5.6.3: arbitrary software
    verify_threshold(authority, &envelope.message, &envelope.signatures)?;
    // TUF 1.0.34 §5.6.4: the version the snapshot names
    same_version(&file, listed.version, envelope.signed.version)?;
    // TUF 1.0.34 §5.6.5: freeze
    not_expired(&envelope.signed, &file, now)?;
    Ok(verified(envelope, bytes))
}

/// Every caller has checked the envelope against its authority and its place in the workflow.
fn verified<T>(envelope: Envelope<T>, bytes: &[u8]) -> Verified<T> {
    Verified { signed: envelope.signed, bytes: bytes.to_vec() }
}

fn not_older(file: &str, trusted: Version, offered: Version) -> Result<(), Error> {
    if offered >= trusted {
        return Ok(());
    }
    Err(Error::Rollback { file: file.to_owned(), trusted: trusted.get(), offered: offered.get() })
}

fn same_version(file: &str, expected: Version, found: Version) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::VersionMismatch {
        file: file.to_owned(),
        expected: expected.get(),
        found: found.get(),
    })
}

/// Length and digests, where the referring metadata has them.
fn matches_listing(file: &str, listed: &MetaFile, bytes: &[u8]) -> Result<(), Error> {
    if let Some(hashes) = &listed.hashes {
        let mut check = FileCheck::new(file, listed.length, hashes)?;
        check.update(bytes)?;
        return check.finish();
    }
    match listed.length {
        Some(expected) if expected != bytes.len() as u64 => {
            Err(Error::Length { file: file.to_owned(), expected, found: bytes.len() as u64 })
        }
        _ => Ok(()),
    }
}
