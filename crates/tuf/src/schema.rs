//! The four roles as TUF 1.0 writes them (§4), and the envelope that carries signatures.
//!
//! These types say that a document has the right form, nothing more; that it may be believed is said by [`crate::Verified`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Hashes;
use crate::json::Json;
use crate::key::{Key, KeyId, Signature};
use crate::path::{TargetPath, matches_pattern, role_name_fault};
use crate::{DateTime, Error};

/// A version number; never 0.
pub type Version = NonZeroU64;

/// What the four roles have in common.
pub trait Role: Serialize + DeserializeOwned {
    /// The version of this metadata.
    fn version(&self) -> Version;
    /// When it stops being valid.
    fn expires(&self) -> DateTime;
    /// Sets version and expiry; for the writing side.
    fn renew(&mut self, version: Version, expires: DateTime);
    /// Rules of §4 that the types alone do not hold.
    ///
    /// # Errors
    /// The rule that is broken.
    fn validate(&self) -> Result<(), String>;
}

/// The version of the specification a document was written for; any 1.x is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpecVersion(String);

impl Default for SpecVersion {
    fn default() -> Self {
        Self("1.0.34".to_owned())
    }
}

impl TryFrom<String> for SpecVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // TUF 1.0.34 §4.3: clients MUST verify that "spec_version" matches; the major version decides here
        let numbers = text.split('.').all(|part| part.parse::<u32>().is_ok());
        if numbers && text.split('.').next() == Some("1") {
            Ok(Self(text))
        } else {
            Err(format!("spec_version \"{text}\" is not 1.x"))
        }
    }
}

impl From<SpecVersion> for String {
    fn from(version: SpecVersion) -> Self {
        version.0
    }
}

macro_rules! role_type {
    ($name:ident, $text:literal) => {
        #[doc = concat!("The constant `_type` of its role, \"", $text, "\".")]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            #[doc = "The only value."]
            #[default]
            #[serde(rename = $text)]
            Type,
        }
    };
}

role_type!(RootType, "root");
role_type!(TimestampType, "timestamp");
role_type!(SnapshotType, "snapshot");
role_type!(TargetsType, "targets");

/// The keys of one role and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Ids of the keys that may sign, each once.
    pub keyids: Vec<KeyId>,
    /// How many different ones must.
    pub threshold: NonZeroU64,
}

impl RoleKeys {
    fn validate(&self, role: &str) -> Result<(), String> {
        let unique: BTreeSet<_> = self.keyids.iter().collect();
        if unique.len() == self.keyids.len() {
            Ok(())
        } else {
            Err(format!("role {role} lists a key id twice"))
        }
    }
}

/// `root.json` (§4.3): who may sign what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// `"root"`
    #[serde(rename = "_type")]
    pub role_type: RootType,
    /// Version of the specification.
    pub spec_version: SpecVersion,
    /// Version of this metadata.
    pub version: Version,
    /// End of its validity.
    pub expires: DateTime,
    /// Whether file names carry versions and digests; absent means no.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// All keys of the top-level roles.
    pub keys: BTreeMap<KeyId, Key>,
    /// Keys and thresholds of `root`, `timestamp`, `snapshot` and `targets`.
    pub roles: BTreeMap<String, RoleKeys>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Json>,
}

/// `timestamp.json` (§4.6): the current snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// `"timestamp"`
    #[serde(rename = "_type")]
    pub role_type: TimestampType,
    /// Version of the specification.
    pub spec_version: SpecVersion,
    /// Version of this metadata.
    pub version: Version,
    /// End of its validity.
    pub expires: DateTime,
    /// Describes `snapshot.json`.
    pub meta: BTreeMap<String, MetaFile>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Json>,
}

impl Timestamp {
    /// The current snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &MetaFile {
        self.meta.get("snapshot.json").expect("validate demands it")
    }
}

/// `snapshot.json` (§4.4): the current version of all targets metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `"snapshot"`
    #[serde(rename = "_type")]
    pub role_type: SnapshotType,
    /// Version of the specification.
    pub spec_version: SpecVersion,
    /// Version of this metadata.
    pub version: Version,
    /// End of its validity.
    pub expires: DateTime,
    /// Every targets metadata file, by its unversioned, unencoded name (`<role>.json`).
    pub meta: BTreeMap<String, MetaFile>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Json>,
}

/// Version of a metadata file and, where signed, its length and digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: Version,
    /// Its length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
}

/// `targets.json` and every delegated role (§4.5): target files, and who else may name some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// `"targets"`
    #[serde(rename = "_type")]
    pub role_type: TargetsType,
    /// Version of the specification.
    pub spec_version: SpecVersion,
    /// Version of this metadata.
    pub version: Version,
    /// End of its validity.
    pub expires: DateTime,
    /// Target files by path. Ask with a [`TargetPath`]; a key here may be unsafe.
    pub targets: BTreeMap<String, TargetFile>,
    /// Roles trusted for some paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Json>,
}

/// Length, digests and the application's own data of one target file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFile {
    /// Length in bytes.
    pub length: u64,
    /// Digests of the whole file.
    pub hashes: Hashes,
    /// What the application signed beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Json>,
}

/// The roles a targets role delegates to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegations {
    /// Keys of those roles.
    pub keys: BTreeMap<KeyId, Key>,
    /// The roles, most trusted first.
    pub roles: Vec<DelegatedRole>,
}

/// One delegation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// Name of the role, also of its metadata file.
    pub name: String,
    /// Who signs it.
    #[serde(flatten)]
    pub keys: RoleKeys,
    /// Whether the search ends with this role for the paths it is trusted for.
    #[serde(default)]
    pub terminating: bool,
    /// Shell patterns of the paths it is trusted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Prefixes of hex SHA-256 digests of the paths it is trusted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
}

impl DelegatedRole {
    /// Whether the role is trusted for a path.
    #[must_use]
    pub fn covers(&self, path: &TargetPath) -> bool {
        let by_pattern = |patterns: &Vec<String>| {
            patterns.iter().any(|pattern| matches_pattern(pattern, path.as_str()))
        };
        let by_hash = |prefixes: &Vec<String>| {
            let hash = path.hash();
            prefixes.iter().any(|prefix| hash.starts_with(prefix.as_str()))
        };
        self.paths.as_ref().is_some_and(by_pattern)
            || self.path_hash_prefixes.as_ref().is_some_and(by_hash)
    }
}

macro_rules! role {
    ($name:ident, $validate:expr) => {
        impl Role for $name {
            fn version(&self) -> Version {
                self.version
            }

            fn expires(&self) -> DateTime {
                self.expires
            }

            fn renew(&mut self, version: Version, expires: DateTime) {
                self.version = version;
                self.expires = expires;
            }

            fn validate(&self) -> Result<(), String> {
                let rules: fn(&Self) -> Result<(), String> = $validate;
                rules(self)
            }
        }
    };
}

role!(Root, |root| {
    for name in ["root", "timestamp", "snapshot", "targets"] {
        root.roles.get(name).ok_or_else(|| format!("role {name} is missing"))?.validate(name)?;
    }
    Ok(())
});

role!(Timestamp, |timestamp| {
    if timestamp.meta.contains_key("snapshot.json") {
        Ok(())
    } else {
        Err("snapshot.json is missing in meta".to_owned())
    }
});

role!(Snapshot, |_| Ok(()));

role!(Targets, |targets| {
    let mut names = BTreeSet::new();
    for role in targets.delegations.iter().flat_map(|delegations| &delegations.roles) {
        role.keys.validate(&role.name)?;
        if let Some(fault) = role_name_fault(&role.name) {
            return Err(fault.to_owned());
        }
        if !names.insert(&role.name) {
            return Err(format!("role {} is delegated to twice", role.name));
        }
        if role.paths.is_some() && role.path_hash_prefixes.is_some() {
            return Err(format!("role {} has both paths and path_hash_prefixes", role.name));
        }
    }
    Ok(())
});

/// A well-formed document with its signatures, nothing about them checked.
pub(crate) struct Envelope<T> {
    pub(crate) signed: T,
    pub(crate) signatures: Vec<Signature>,
    /// Canonical form of `signed`: what the signatures are over.
    pub(crate) message: Vec<u8>,
}

impl<T: Role> Envelope<T> {
    /// Reads a document. `file` names it in errors.
    pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Document<T> {
            signed: T,
            signatures: Vec<Signature>,
        }
        // The strict reading comes first: after it the document has no duplicate key, so the typed reading of the same
        // bytes cannot see another value than the one that is signed.
        let json = Json::parse(bytes).map_err(|error| Error::format(file, error))?;
        let signed = json.get("signed").ok_or_else(|| Error::format(file, "no \"signed\""))?;
        let message = signed.canonical();
        let document: Document<T> =
            serde_json::from_slice(bytes).map_err(|error| Error::format(file, error))?;
        document.signed.validate().map_err(|reason| Error::format(file, reason))?;
        // TUF 1.0.34 §4.2.1: the keyid MUST be unique in the "signatures" array
        let unique: BTreeSet<_> = document.signatures.iter().map(|entry| &entry.keyid).collect();
        if unique.len() != document.signatures.len() {
            return Err(Error::format(file, "a key id is in \"signatures\" twice"));
        }
        Ok(Self { signed: document.signed, signatures: document.signatures, message })
    }
}
