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

mod changes;
mod command;
mod edit;
mod held;
mod online;
mod package;
mod rollout;
mod sign;
mod status;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use ocelli_protocol::Id;
use ocelli_tuf::repository::Document;
use ocelli_tuf::schema::{Role, Root, Snapshot, Targets, Timestamp};
use ocelli_tuf::{Authority, DateTime, Json, metadata_file};
use serde::{Deserialize, Serialize};

use crate::files::Place;
use crate::{Failure, files};

pub(crate) use command::Command;
pub(crate) use edit::{now, run};
pub(crate) use held::Held;
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
        if !path.exists() {
            let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
            return Err(Failure(format!(
                "{}: no repository, it holds no ocelctl.json; name the right folder with --repo, or begin one with \
                 `ocelctl repo init`",
                whole.display()
            )));
        }
        let marker: Marker = serde_json::from_slice(&files::read(&path)?).map_err(|error| {
            Failure(format!(
                "{}: {error}; it was not written by this program, take it from a copy of the repository",
                path.display()
            ))
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

    /// Delegated roles of the published targets.
    fn published_delegated(&self) -> Result<Vec<String>, Failure> {
        let targets = self.newest::<Targets>("targets")?;
        let delegations = targets.as_ref().and_then(|one| one.signed().delegations.as_ref());
        Ok(delegations.iter().flat_map(|all| &all.roles).map(|role| role.name.clone()).collect())
    }
}

fn issue(signed: &mut impl Issued, now: DateTime) {
    let text = Json::String(now.to_string());
    signed.extra().insert("x-ocelli-issued".to_owned(), text);
}

fn authority<'a>(root: &'a Root, role: &'a str) -> Result<Authority<'a>, Failure> {
    Authority::of_root(root, role).ok_or_else(|| Failure(format!("the root has no role {role}")))
}
