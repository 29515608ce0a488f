//! Constructors and edits of the four roles. Each keeps its document valid.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use crate::path::TargetPath;
use crate::schema::{
    DelegatedRole, Delegations, MetaFile, RoleKeys, Root, RootType, Snapshot, SnapshotType,
    SpecVersion, TargetFile, Targets, TargetsType, Timestamp, TimestampType, Version,
};
use crate::{DateTime, Hashes, Key, KeyId};

const FIRST: Version = Version::MIN;

impl RoleKeys {
    /// These keys, of which so many must sign; a threshold of 0 becomes 1.
    #[must_use]
    pub fn new(keyids: Vec<KeyId>, threshold: u64) -> Self {
        Self { keyids, threshold: NonZeroU64::new(threshold).unwrap_or(NonZeroU64::MIN) }
    }
}

impl Root {
    /// Version 1 with consistent snapshots and no keys yet.
    #[must_use]
    pub fn new(expires: DateTime) -> Self {
        let roles = ["root", "timestamp", "snapshot", "targets"];
        Self {
            role_type: RootType::Type,
            spec_version: SpecVersion::default(),
            version: FIRST,
            expires,
            consistent_snapshot: true,
            keys: BTreeMap::new(),
            roles: roles.map(|role| (role.to_owned(), RoleKeys::new(Vec::new(), 1))).into(),
            extra: BTreeMap::new(),
        }
    }

    /// Lets a key sign a top-level role.
    pub fn allow(&mut self, role: &str, key: Key) {
        let id = key.id();
        let keys = self.roles.entry(role.to_owned()).or_insert_with(|| RoleKeys::new(vec![], 1));
        if !keys.keyids.contains(&id) {
            keys.keyids.push(id.clone());
        }
        self.keys.insert(id, key);
    }

    /// Takes a key from a top-level role, and out of the file when no role has it.
    pub fn revoke(&mut self, role: &str, id: &KeyId) {
        if let Some(keys) = self.roles.get_mut(role) {
            keys.keyids.retain(|other| other != id);
        }
        if self.roles.values().all(|keys| !keys.keyids.contains(id)) {
            self.keys.remove(id);
        }
    }

    /// Sets how many keys of a top-level role must sign.
    pub fn set_threshold(&mut self, role: &str, threshold: u64) {
        if let Some(keys) = self.roles.get_mut(role) {
            *keys = RoleKeys::new(std::mem::take(&mut keys.keyids), threshold);
        }
    }
}

impl MetaFile {
    /// The entry of a published metadata file, with length and digest.
    #[must_use]
    pub fn of(version: Version, bytes: &[u8]) -> Self {
        let (length, hashes) = (Some(bytes.len() as u64), Some(Hashes::sha256(bytes)));
        Self { version, length, hashes }
    }
}

impl Timestamp {
    /// Version 1 for a snapshot.
    #[must_use]
    pub fn new(snapshot: MetaFile, expires: DateTime) -> Self {
        Self {
            role_type: TimestampType::Type,
            spec_version: SpecVersion::default(),
            version: FIRST,
            expires,
            meta: BTreeMap::from([("snapshot.json".to_owned(), snapshot)]),
            extra: BTreeMap::new(),
        }
    }

    /// Points to another snapshot.
    pub fn set_snapshot(&mut self, snapshot: MetaFile) {
        self.meta.insert("snapshot.json".to_owned(), snapshot);
    }
}

impl Snapshot {
    /// Version 1 without entries.
    #[must_use]
    pub fn new(expires: DateTime) -> Self {
        Self {
            role_type: SnapshotType::Type,
            spec_version: SpecVersion::default(),
            version: FIRST,
            expires,
            meta: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Adds or replaces the entry of a targets role.
    pub fn list(&mut self, role: &str, file: MetaFile) {
        self.meta.insert(format!("{role}.json"), file);
    }
}

impl TargetFile {
    /// The entry of a file that is at hand; a large one is better given as length and digest.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, hashes: Hashes::sha256(bytes), custom: None }
    }
}

impl Targets {
    /// Version 1 without targets and delegations.
    #[must_use]
    pub fn new(expires: DateTime) -> Self {
        Self {
            role_type: TargetsType::Type,
            spec_version: SpecVersion::default(),
            version: FIRST,
            expires,
            targets: BTreeMap::new(),
            delegations: None,
            extra: BTreeMap::new(),
        }
    }

    /// Adds or replaces a target.
    pub fn add(&mut self, path: &TargetPath, file: TargetFile) {
        self.targets.insert(path.to_string(), file);
    }

    /// Delegates path patterns to a role, after the ones that are there; one of the same name is replaced in its place.
    pub fn delegate(&mut self, name: &str, keys: &[Key], threshold: u64, paths: &[&str]) {
        let role = DelegatedRole {
            name: name.to_owned(),
            keys: RoleKeys::new(keys.iter().map(Key::id).collect(), threshold),
            terminating: false,
            paths: Some(paths.iter().map(|path| (*path).to_owned()).collect()),
            path_hash_prefixes: None,
        };
        let delegations = self.delegations.get_or_insert_default();
        match delegations.roles.iter_mut().find(|other| other.name == name) {
            Some(other) => *other = role,
            None => delegations.roles.push(role),
        }
        delegations.keys.extend(keys.iter().map(|key| (key.id(), key.clone())));
        delegations.drop_unused_keys();
    }
}

impl Delegations {
    fn drop_unused_keys(&mut self) {
        let roles = &self.roles;
        self.keys.retain(|id, _| roles.iter().any(|role| role.keys.keyids.contains(id)));
    }
}
