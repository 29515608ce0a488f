//! `ocelctl repo`: a TUF 1.0 repository in a folder. Changes are staged, signed by one or several people, and published when
//! the threshold is met.
//!
//! ```text
//! ocelctl.json            name of the repository
//! metadata/N.ROLE.json    published, and timestamp.json
//! targets/…               packages and roll-outs, under consistent-snapshot names
//! chunks/SHA256           chunk indexes
//! staged/ROLE.json        changes that wait for signatures; these files are passed between people
//! ```

mod edit;
mod package;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use ocelli_protocol::Id;
use ocelli_tuf::repository::{Document, SigningKey};
use ocelli_tuf::schema::{MetaFile, Role, Root, Snapshot, Targets, Timestamp};
use ocelli_tuf::{Authority, DateTime, Json, metadata_file};
use serde::{Deserialize, Serialize};

use crate::files::Place;
use crate::{Failure, files};

pub(crate) use edit::{Command, now, run};
pub(crate) use package::Content;

/// Days that metadata of a role is valid.
fn lifetime(role: &str) -> u32 {
    match role {
        "root" => 365,
        "timestamp" => 7,
        "snapshot" | "rollout" => 30,
        _ => 180,
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    v: u32,
    id: Id,
}

/// A repository's folder.
pub(crate) struct Repository {
    dir: PathBuf,
    pub(crate) id: Id,
    now: DateTime,
}

/// A role that carries `x-ocelli-issued`, which proves to devices without a clock that this time has come.
trait Issued: Role {
    fn extra(&mut self) -> &mut BTreeMap<String, Json>;
}

macro_rules! issued {
    ($($role:ty),*) => {$(
        impl Issued for $role {
            fn extra(&mut self) -> &mut BTreeMap<String, Json> {
                &mut self.extra
            }
        }
    )*};
}

issued!(Root, Targets, Snapshot, Timestamp);

impl Repository {
    /// Opens the folder that `init` made.
    pub(crate) fn open(dir: &Path, now: DateTime) -> Result<Self, Failure> {
        let path = dir.join("ocelctl.json");
        let marker: Marker = serde_json::from_slice(&files::read(&path)?).map_err(|error| {
            Failure(format!("{}: {error}; see ocelctl repo init", path.display()))
        })?;
        Ok(Self { dir: dir.to_owned(), id: marker.id, now })
    }

    /// Keeps other `ocelctl repo` commands away from the folder until the file is dropped; `None`: there is no repository yet.
    fn lock(dir: &Path) -> Result<Option<File>, Failure> {
        let path = dir.join("ocelctl.json");
        let Ok(file) = File::open(&path) else { return Ok(None) };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(Failure(format!(
                "{}: another ocelctl is at work here; run this again when it has ended",
                dir.display()
            ))),
            // A network share may have no locks: then it is as it was without.
            Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    }

    /// Version of a timestamp, if it is signed as the newest root wants it.
    pub(crate) fn signed_timestamp(&self, bytes: &[u8]) -> Result<Option<u64>, Failure> {
        let Some(root) = self.newest::<Root>("root")? else { return Ok(None) };
        let Ok(timestamp) = Document::<Timestamp>::parse("timestamp.json", bytes) else {
            return Ok(None);
        };
        let signed = timestamp.verify(authority(root.signed(), "timestamp")?).is_ok();
        Ok(signed.then(|| timestamp.signed().version.get()))
    }

    fn create(dir: &Path, id: Id, now: DateTime) -> Result<Self, Failure> {
        let path = dir.join("ocelctl.json");
        if path.exists() {
            return Err(Failure(format!("{}: there is a repository already", dir.display())));
        }
        let marker = Marker { v: 1, id: id.clone() };
        let marker = serde_json::to_vec(&marker).expect("a marker is plain JSON");
        files::write(&path, &marker, Place::Public)?;
        Ok(Self { dir: dir.to_owned(), id, now })
    }

    fn staged_path(&self, role: &str) -> PathBuf {
        self.dir.join("staged").join(metadata_file(role))
    }

    /// Path of a published metadata file.
    pub(crate) fn metadata_path(&self, file: &str) -> PathBuf {
        self.dir.join("metadata").join(file)
    }

    /// Versions of a role that are published, rising.
    pub(crate) fn versions(&self, role: &str) -> Vec<u64> {
        let file = metadata_file(role);
        let version = |name: String| name.strip_suffix(&file)?.strip_suffix('.')?.parse().ok();
        let entries = std::fs::read_dir(self.dir.join("metadata")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut found: Vec<u64> = names.filter_map(version).collect();
        found.sort_unstable();
        found
    }

    fn parse<T: Role>(path: &Path) -> Result<Document<T>, Failure> {
        let name = path.display().to_string();
        Document::parse(&name, &files::read(path)?).map_err(|error| Failure(error.to_string()))
    }

    /// A published version of a role.
    pub(crate) fn version<T: Role>(
        &self,
        role: &str,
        version: u64,
    ) -> Result<Document<T>, Failure> {
        Self::parse(&self.metadata_path(&format!("{version}.{}", metadata_file(role))))
    }

    /// The newest published version of a role.
    pub(crate) fn newest<T: Role>(&self, role: &str) -> Result<Option<Document<T>>, Failure> {
        if role == "timestamp" {
            let path = self.metadata_path("timestamp.json");
            return path.exists().then(|| Self::parse(&path)).transpose();
        }
        self.versions(role).last().map(|version| self.version(role, *version)).transpose()
    }

    fn staged<T: Role>(&self, role: &str) -> Result<Option<Document<T>>, Failure> {
        let path = self.staged_path(role);
        path.exists().then(|| Self::parse(&path)).transpose()
    }

    /// What is staged, else what is published.
    fn latest<T: Role>(&self, role: &str) -> Result<Document<T>, Failure> {
        let found = match self.staged(role)? {
            Some(document) => Some(document),
            None => self.newest(role)?,
        };
        found.ok_or_else(|| Failure(format!("{}: there is no {role} yet", self.dir.display())))
    }

    fn save<T: Role>(&self, role: &str, document: &Document<T>) -> Result<(), Failure> {
        files::write(&self.staged_path(role), &document.to_bytes(), Place::Public)
    }

    fn stage_new<T: Issued>(&self, role: &str, mut signed: T) -> Result<(), Failure> {
        issue(&mut signed, self.now);
        self.save(role, &Document::new(signed))
    }

    /// Changes the staged version of a role, or the next one; its signatures are void.
    fn edit<T: Issued>(&self, role: &str, change: impl FnOnce(&mut T)) -> Result<(), Failure> {
        let expires = self.now.plus_days(lifetime(role));
        let mut document = match self.staged::<T>(role)? {
            Some(mut document) => {
                let version = document.signed().version();
                document.amend().renew(version, expires);
                document
            }
            None => {
                let mut document = self.latest::<T>(role)?;
                let next = document.next_version(expires);
                next.map_err(|error| Failure(error.to_string()))?;
                document
            }
        };
        let signed = document.amend();
        issue(signed, self.now);
        change(signed);
        self.save(role, &document)
    }

    /// Names of the roles that targets delegates to.
    pub(crate) fn delegated(&self) -> Result<Vec<String>, Failure> {
        let targets = self.latest::<Targets>("targets")?;
        let delegations = targets.signed().delegations.as_ref();
        Ok(delegations.iter().flat_map(|all| &all.roles).map(|role| role.name.clone()).collect())
    }

    /// Signs what is staged with each key that may, and publishes what then has enough signatures. Tells what it did.
    fn sign(&self, keys: &[SigningKey]) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        if let Some(mut root) = self.staged::<Root>("root")? {
            let old = self.newest::<Root>("root")?;
            let own = root.signed().clone();
            let mut authorities = vec![authority(&own, "root")?];
            if let Some(old) = &old {
                authorities.push(authority(old.signed(), "root")?);
            }
            add_signatures(&mut root, keys, |id| {
                let roots = [Some(&own), old.as_ref().map(Document::signed)];
                roots.into_iter().flatten().any(|root| root.roles["root"].keyids.contains(id))
            });
            told.push(self.finish("root", &root, &authorities)?);
        }
        let root = self.latest::<Root>("root")?;
        if let Some(mut targets) = self.staged::<Targets>("targets")? {
            let allowed = &root.signed().roles["targets"].keyids;
            add_signatures(&mut targets, keys, |id| allowed.contains(id));
            told.push(self.finish("targets", &targets, &[authority(root.signed(), "targets")?])?);
        }
        let targets = self.latest::<Targets>("targets")?;
        for delegation in targets.signed().delegations.iter().flat_map(|all| &all.roles) {
            let Some(mut document) = self.staged::<Targets>(&delegation.name)? else { continue };
            let all = targets.signed().delegations.as_ref().expect("it has this delegation");
            add_signatures(&mut document, keys, |id| delegation.keys.keyids.contains(id));
            let authority = Authority::of_delegation(&all.keys, delegation);
            told.push(self.finish(&delegation.name, &document, &[authority])?);
        }
        Ok(told)
    }

    /// Publishes a staged document with enough signatures, else keeps it with those it has.
    fn finish<T: Role>(
        &self,
        role: &str,
        document: &Document<T>,
        authorities: &[Authority<'_>],
    ) -> Result<String, Failure> {
        let version = document.signed().version();
        let missing = authorities.iter().find_map(|authority| document.verify(*authority).err());
        if let Some(missing) = missing {
            self.save(role, document)?;
            let path = self.staged_path(role);
            return Ok(format!("{role} {version}: staged, {missing}; {}", path.display()));
        }
        files::write(
            &self.metadata_path(&document.file(role)),
            &document.to_bytes(),
            Place::Public,
        )?;
        let staged = self.staged_path(role);
        std::fs::remove_file(&staged)
            .map_err(|error| Failure(format!("{}: {error}", staged.display())))?;
        Ok(format!("{role} {version}: signed and published"))
    }

    /// Renews the online roles that are outdated, as far as the keys allow.
    fn refresh(&self, keys: &[SigningKey]) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        if let Some(rollout) = self.newest::<Targets>("rollout")?
            && self.staged::<Targets>("rollout")?.is_none()
            && self.is_stale("rollout", rollout.signed())
        {
            self.edit::<Targets>("rollout", |_| {})?;
            told.extend(self.sign(keys)?);
        }
        let root = self.newest::<Root>("root")?.ok_or_else(|| {
            Failure::new("the root is not published; sign it first, see ocelctl repo sign")
        })?;
        let root = root.signed();
        let mut listed = Vec::new();
        for role in std::iter::once("targets".to_owned()).chain(self.published_delegated()?) {
            let document = self.newest::<Targets>(&role)?.ok_or_else(|| {
                Failure(format!("{role} is not published; sign it first, see ocelctl repo sign"))
            })?;
            let version = document.signed().version;
            listed.push((role, MetaFile::of(version, &document.to_bytes())));
        }
        let expires = |role| self.now.plus_days(lifetime(role));
        let old = self.newest::<Snapshot>("snapshot")?;
        let current = old.as_ref().is_some_and(|old| {
            let lists = |(role, file): &(String, MetaFile)| {
                old.signed().meta.get(&format!("{role}.json")) == Some(file)
            };
            authority(root, "snapshot").is_ok_and(|authority| old.verify(authority).is_ok())
                && !self.is_stale("snapshot", old.signed())
                && old.signed().meta.len() == listed.len()
                && listed.iter().all(lists)
        });
        if !current {
            let mut snapshot =
                old.unwrap_or_else(|| Document::new(Snapshot::new(expires("snapshot"))));
            if self.newest::<Snapshot>("snapshot")?.is_some() {
                snapshot.next_version(expires("snapshot")).map_err(|e| Failure(e.to_string()))?;
            }
            let signed = snapshot.amend();
            issue(signed, self.now);
            listed.iter().for_each(|(role, file)| signed.list(role, file.clone()));
            told.push(self.publish_online("snapshot", snapshot, root, keys)?);
        }
        let snapshot = self.newest::<Snapshot>("snapshot")?.expect("it was just published");
        let file = MetaFile::of(snapshot.signed().version, &snapshot.to_bytes());
        let timestamp = match self.newest::<Timestamp>("timestamp")? {
            Some(mut timestamp) => {
                let next = timestamp.next_version(expires("timestamp"));
                next.map_err(|error| Failure(error.to_string()))?.set_snapshot(file);
                issue(timestamp.amend(), self.now);
                timestamp
            }
            None => {
                let mut signed = Timestamp::new(file, expires("timestamp"));
                issue(&mut signed, self.now);
                Document::new(signed)
            }
        };
        told.push(self.publish_online("timestamp", timestamp, root, keys)?);
        Ok(told)
    }

    /// Delegated roles of the published targets.
    fn published_delegated(&self) -> Result<Vec<String>, Failure> {
        let targets = self.newest::<Targets>("targets")?;
        let delegations = targets.as_ref().and_then(|one| one.signed().delegations.as_ref());
        Ok(delegations.iter().flat_map(|all| &all.roles).map(|role| role.name.clone()).collect())
    }

    fn publish_online<T: Role>(
        &self,
        role: &str,
        mut document: Document<T>,
        root: &Root,
        keys: &[SigningKey],
    ) -> Result<String, Failure> {
        let allowed = &root.roles[role].keyids;
        add_signatures(&mut document, keys, |id| allowed.contains(id));
        document
            .verify(authority(root, role)?)
            .map_err(|error| Failure(format!("{error}; name the {role} key with --key")))?;
        files::write(
            &self.metadata_path(&document.file(role)),
            &document.to_bytes(),
            Place::Public,
        )?;
        Ok(format!("{role} {}: signed and published", document.signed().version()))
    }

    /// Less than half of its life is left.
    fn is_stale(&self, role: &str, signed: &impl Role) -> bool {
        self.now.plus_days(lifetime(role).div_ceil(2)) > signed.expires()
    }
}

fn issue(signed: &mut impl Issued, now: DateTime) {
    let text = Json::String(now.to_string());
    signed.extra().insert("x-ocelli-issued".to_owned(), text);
}

fn add_signatures<T: Role>(
    document: &mut Document<T>,
    keys: &[SigningKey],
    allowed: impl Fn(&ocelli_tuf::KeyId) -> bool,
) {
    for key in keys.iter().filter(|key| allowed(&key.public().id())) {
        document.sign(key);
    }
}

fn authority<'a>(root: &'a Root, role: &'a str) -> Result<Authority<'a>, Failure> {
    Authority::of_root(root, role).ok_or_else(|| Failure(format!("the root has no role {role}")))
}
