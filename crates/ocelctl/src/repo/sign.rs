//! Signing what is staged, by one or several people on several machines, and publishing what then has enough signatures.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ocelli_tuf::repository::{Document, SigningKey};
use ocelli_tuf::schema::{DelegatedRole, Role, Root, Targets};
use ocelli_tuf::{Authority, KeyId, metadata_file};

use super::{Repository, authority};
use crate::files::Place;
use crate::keys::{self, Passphrase};
use crate::{Failure, files};

/// Characters of a key's id that tell it from others, as `rotate --remove` takes them.
const SHORT_ID: usize = 12;

/// The beginning of a key's id.
pub(super) fn short(id: &KeyId) -> &str {
    id.as_str().get(..SHORT_ID).unwrap_or(id.as_str())
}

/// Beginnings of ids, in a row.
pub(super) fn shorts<'a>(ids: impl IntoIterator<Item = &'a KeyId>) -> String {
    ids.into_iter().map(short).collect::<Vec<_>>().join(", ")
}

/// The secret keys of one call, and which of them were of use.
#[derive(Default)]
pub(super) struct Signers {
    keys: Vec<(PathBuf, SigningKey)>,
    used: RefCell<BTreeSet<KeyId>>,
}

impl Signers {
    /// Reads the keys; asks for their passphrases where it must.
    pub(super) fn read(paths: &[PathBuf], passphrase: &Passphrase) -> Result<Self, Failure> {
        let read = |path: &PathBuf| Ok((path.clone(), keys::read(path, passphrase)?));
        let keys = paths.iter().map(read).collect::<Result<_, Failure>>()?;
        Ok(Self { keys, used: RefCell::default() })
    }

    /// Signs with each key that may.
    pub(super) fn sign<T: Role>(&self, document: &mut Document<T>, may: &[KeyId]) {
        for (_, key) in &self.keys {
            let id = key.public().id();
            if may.contains(&id) {
                document.sign(key);
                self.used.borrow_mut().insert(id);
            }
        }
    }

    /// These keys were looked at, and not needed this time: nobody is told to leave them out.
    pub(super) fn not_this_time(&self, ids: &[KeyId]) {
        self.used.borrow_mut().extend(ids.iter().cloned());
    }

    /// Whether one of these keys is among them.
    pub(super) fn has(&self, ids: &[KeyId]) -> bool {
        self.keys.iter().any(|(_, key)| ids.contains(&key.public().id()))
    }
}

/// What becomes of a staged document that has enough signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Publish,
    /// Nothing is written.
    Tell,
}

impl Repository {
    /// Signs what is staged with each key that may, and publishes what then has enough signatures. Tells what it did.
    pub(super) fn sign(&self, signers: &Signers) -> Result<Vec<String>, Failure> {
        self.each_staged(signers, Then::Publish)
    }

    /// What is staged, and which signatures it lacks.
    pub(super) fn waiting(&self) -> Result<Vec<String>, Failure> {
        self.each_staged(&Signers::default(), Then::Tell)
    }

    fn each_staged(&self, signers: &Signers, then: Then) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        if let Some(mut root) = self.staged::<Root>("root")? {
            let old = self.newest::<Root>("root")?;
            let own = root.signed().clone();
            let mut authorities = vec![authority(&own, "root")?];
            let mut may = own.roles["root"].keyids.clone();
            if let Some(old) = &old {
                authorities.push(authority(old.signed(), "root")?);
                let before = &old.signed().roles["root"].keyids;
                may.extend(
                    before.iter().filter(|id| !own.roles["root"].keyids.contains(id)).cloned(),
                );
            }
            signers.sign(&mut root, &may);
            told.push(self.finish("root", &root, &authorities, &may, None, then)?);
        }
        let root = self.latest::<Root>("root")?;
        if let Some(mut targets) = self.staged::<Targets>("targets")? {
            let keys = &root.signed().roles["targets"];
            signers.sign(&mut targets, &keys.keyids);
            let authorities = [authority(root.signed(), "targets")?];
            let before = self.newest::<Root>("root")?;
            let changes = before.is_some_and(|before| before.signed().roles["targets"] != *keys);
            let above = changes.then(|| format!("root {}", root.signed().version));
            told.push(self.finish("targets", &targets, &authorities, &keys.keyids, above, then)?);
        }
        let targets = self.latest::<Targets>("targets")?;
        let before = self.newest::<Targets>("targets")?;
        for delegation in delegations(targets.signed()) {
            let Some(mut document) = self.staged::<Targets>(&delegation.name)? else { continue };
            let all = targets.signed().delegations.as_ref().expect("it has this delegation");
            let may = &delegation.keys.keyids;
            signers.sign(&mut document, may);
            let authorities = [Authority::of_delegation(&all.keys, delegation)];
            let changes = before.as_ref().is_some_and(|before| {
                delegations(before.signed())
                    .all(|one| one.name != delegation.name || one.keys != delegation.keys)
            });
            let above = changes.then(|| format!("targets {}", targets.signed().version));
            told.push(self.finish(&delegation.name, &document, &authorities, may, above, then)?);
        }
        Ok(told)
    }

    /// Publishes a staged document with enough signatures, else keeps it with those it has. It also waits for the document
    /// above it that changes its keys, named by `above`: devices would refuse it until that is published.
    fn finish<T: Role>(
        &self,
        role: &str,
        document: &Document<T>,
        authorities: &[Authority<'_>],
        may: &[KeyId],
        above: Option<String>,
        then: Then,
    ) -> Result<String, Failure> {
        let version = document.signed().version();
        let staged = self.staged_path(role);
        let missing = authorities.iter().find_map(|authority| document.verify(*authority).err());
        if let Some(missing) = missing {
            if then == Then::Publish {
                self.save(role, document)?;
            }
            let signed = |id: &&KeyId| document.signatures().iter().any(|one| one.keyid == **id);
            let others = shorts(may.iter().filter(|id| !signed(id)));
            let path = staged.display();
            return Ok(format!("{role} {version}: staged, {missing}, of keys {others}; {path}"));
        }
        if let Some(above) = above {
            if then == Then::Publish {
                self.save(role, document)?;
            }
            let path = staged.display();
            return Ok(format!(
                "{role} {version}: staged, signed, waits for {above}, which changes its keys; {path}"
            ));
        }
        if then == Then::Tell {
            return Ok(format!(
                "{role} {version}: staged, with enough signatures; `ocelctl repo sign` publishes it"
            ));
        }
        let path = self.metadata_path(&document.file(role));
        files::write(&path, &document.to_bytes(), Place::Public)?;
        std::fs::remove_file(&staged)
            .map_err(|error| Failure(format!("{}: {error}", staged.display())))?;
        Ok(format!("{role} {version}: signed and published; {}", path.display()))
    }

    /// Takes the signatures of a copy over.
    pub(super) fn merge(&self, copy: &Path) -> Result<(), Failure> {
        // That the file can be read comes before anything about its name.
        files::read(copy)?;
        let file = copy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut roles = vec!["root".to_owned(), "targets".to_owned()];
        roles.extend(self.delegated()?);
        let of = |role: &&String| is_copy_of(file, role);
        let role = roles.iter().filter(of).max_by_key(|role| role.len()).ok_or_else(|| {
            Failure(format!(
                "{}: its name must begin with the role, as releases.json or releases.ben.json; there are {}",
                copy.display(),
                roles.join(", ")
            ))
        })?;
        match role.as_str() {
            "root" => self.merge_as::<Root>(role, copy),
            _ => self.merge_as::<Targets>(role, copy),
        }
    }

    fn merge_as<T: Role>(&self, role: &str, copy: &Path) -> Result<(), Failure> {
        let Some(mut own) = self.staged::<T>(role)? else {
            return Err(Failure(format!(
                "{}: no change of {role} waits for signatures here; see ocelctl repo status",
                copy.display()
            )));
        };
        let other: Document<T> = Self::parse(copy)?;
        own.merge(&other).map_err(|error| {
            Failure(format!(
                "{}: {error}; it was signed before {} changed, have that signed instead",
                copy.display(),
                self.staged_path(role).display()
            ))
        })?;
        self.save(role, &own)
    }

    /// Keys of this call that signed nothing, and why.
    pub(super) fn unused(&self, signers: &Signers) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        let used = signers.used.borrow();
        for (path, key) in &signers.keys {
            let id = key.public().id();
            if used.contains(&id) {
                continue;
            }
            let roles = self.roles_of(&id)?;
            let why = if roles.is_empty() {
                "it is a key of no role of this repository".to_owned()
            } else {
                format!("it signs {}, where no change waited", roles.join(" and "))
            };
            told.push(format!("note: {} ({}) signed nothing: {why}", path.display(), short(&id)));
        }
        Ok(told)
    }

    /// Roles with a staged change that these keys sign.
    pub(super) fn staged_for(&self, signers: &Signers) -> Result<BTreeSet<String>, Failure> {
        let mut found = BTreeSet::new();
        for (_, key) in &signers.keys {
            found.extend(self.roles_of(&key.public().id())?);
        }
        found.retain(|role| self.staged_path(role).exists());
        Ok(found)
    }

    fn roles_of(&self, id: &KeyId) -> Result<Vec<String>, Failure> {
        let root = self.latest::<Root>("root")?;
        let targets = self.latest::<Targets>("targets")?;
        let top = root.signed().roles.iter().map(|(name, keys)| (name, &keys.keyids));
        let below = delegations(targets.signed()).map(|role| (&role.name, &role.keys.keyids));
        let all = top.chain(below).filter(|(_, keys)| keys.contains(id));
        Ok(all.map(|(name, _)| name.clone()).collect())
    }
}

fn delegations(targets: &Targets) -> impl Iterator<Item = &DelegatedRole> {
    targets.delegations.iter().flat_map(|all| &all.roles)
}

/// Whether a file's name says that it is a role's: `releases.json`, with a note of who signed as `releases.anna.json`, or as it
/// is published, `2.releases.json`.
fn is_copy_of(file: &str, role: &str) -> bool {
    let published = file.split_once('.').filter(|(version, _)| version.parse::<u64>().is_ok());
    let name = published.map_or(file, |(_, name)| name);
    let own = metadata_file(role);
    let stem = own.trim_end_matches("json");
    name == own || (name.starts_with(stem) && name.ends_with(".json"))
}

#[cfg(test)]
mod tests {
    use super::is_copy_of;

    #[test]
    fn a_copy_is_known_by_its_name() {
        for file in ["releases.json", "releases.anna.json", "12.releases.json"] {
            assert!(is_copy_of(file, "releases"), "{file}");
        }
        for file in ["release.json", "releasesx.json", "releases", "x.releases.json", ""] {
            assert!(!is_copy_of(file, "releases"), "{file}");
        }
    }
}
