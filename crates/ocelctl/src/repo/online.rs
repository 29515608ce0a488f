//! The online roles: snapshot and timestamp, made anew from what is signed, and the roll-out near its end.

use ocelli_tuf::KeyId;
use ocelli_tuf::repository::Document;
use ocelli_tuf::schema::{MetaFile, Role, Root, Snapshot, Targets, Timestamp};

use super::sign::{Signers, shorts};
use super::{Repository, authority, issue, lifetime};
use crate::files::Place;
use crate::{Failure, files};

impl Repository {
    /// Whether keys of both online roles are given and everything else is published.
    pub(super) fn can_refresh(&self, signers: &Signers) -> Result<bool, Failure> {
        let Some(root) = self.newest::<Root>("root")? else { return Ok(false) };
        let has = |role: &str| signers.has(&root.signed().roles[role].keyids);
        if !has("snapshot") || !has("timestamp") || self.newest::<Targets>("targets")?.is_none() {
            return Ok(false);
        }
        Ok(self.published_delegated()?.iter().all(|role| !self.versions(role).is_empty()))
    }

    /// Renews the online roles that are outdated, as far as the keys allow.
    pub(super) fn refresh(&self, signers: &Signers) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        if let Some(rollout) = self.newest::<Targets>("rollout")?
            && self.staged::<Targets>("rollout")?.is_none()
            && self.is_stale("rollout", rollout.signed())
        {
            self.edit::<Targets>("rollout", |_| {})?;
            told.extend(self.sign(signers)?);
        }
        let root = self.newest::<Root>("root")?.ok_or_else(|| self.unsigned("root"))?;
        let root = root.signed();
        signers.not_this_time(&root.roles["snapshot"].keyids);
        signers.not_this_time(&self.keys_of("rollout")?);
        let mut listed = Vec::new();
        for role in std::iter::once("targets".to_owned()).chain(self.published_delegated()?) {
            let document = self.newest::<Targets>(&role)?.ok_or_else(|| self.unsigned(&role))?;
            let version = document.signed().version;
            listed.push((role, MetaFile::of(version, &document.to_bytes())));
        }
        told.extend(self.renew_snapshot(root, &listed, signers)?);
        told.push(self.renew_timestamp(root, signers)?);
        Ok(told)
    }

    /// Keys of a role that targets delegates to.
    fn keys_of(&self, role: &str) -> Result<Vec<KeyId>, Failure> {
        let targets = self.latest::<Targets>("targets")?;
        let mut roles = targets.signed().delegations.iter().flat_map(|all| &all.roles);
        let found = roles.find(|other| other.name == role);
        Ok(found.map(|found| found.keys.keyids.clone()).unwrap_or_default())
    }

    fn unsigned(&self, role: &str) -> Failure {
        let waiting = self.waiting().unwrap_or_default();
        let staged = waiting.into_iter().find(|line| line.starts_with(&format!("{role} ")));
        Failure(format!(
            "{role} is not published; sign it first with `ocelctl repo sign`: {}",
            staged.unwrap_or_else(|| "nothing of it is staged".to_owned())
        ))
    }

    /// A new snapshot, unless the newest one lists just this and has half of its life.
    fn renew_snapshot(
        &self,
        root: &Root,
        listed: &[(String, MetaFile)],
        signers: &Signers,
    ) -> Result<Option<String>, Failure> {
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
        if current {
            return Ok(None);
        }
        let expires = self.now.plus_days(lifetime("snapshot"));
        let mut snapshot = match old {
            Some(mut old) => {
                old.next_version(expires).map_err(|error| Failure(error.to_string()))?;
                old
            }
            None => Document::new(Snapshot::new(expires)),
        };
        let signed = snapshot.amend();
        issue(signed, self.now);
        listed.iter().for_each(|(role, file)| signed.list(role, file.clone()));
        self.publish_online("snapshot", snapshot, root, signers).map(Some)
    }

    fn renew_timestamp(&self, root: &Root, signers: &Signers) -> Result<String, Failure> {
        let snapshot = self.newest::<Snapshot>("snapshot")?.expect("it was just published");
        let file = MetaFile::of(snapshot.signed().version, &snapshot.to_bytes());
        let expires = self.now.plus_days(lifetime("timestamp"));
        let mut timestamp = match self.newest::<Timestamp>("timestamp")? {
            Some(mut timestamp) => {
                let next = timestamp.next_version(expires);
                next.map_err(|error| Failure(error.to_string()))?.set_snapshot(file);
                timestamp
            }
            None => Document::new(Timestamp::new(file, expires)),
        };
        issue(timestamp.amend(), self.now);
        self.publish_online("timestamp", timestamp, root, signers)
    }

    fn publish_online<T: Role>(
        &self,
        role: &str,
        mut document: Document<T>,
        root: &Root,
        signers: &Signers,
    ) -> Result<String, Failure> {
        let may = &root.roles[role].keyids;
        signers.sign(&mut document, may);
        document.verify(authority(root, role)?).map_err(|error| {
            Failure(format!("{error}; name the {role} key ({}) with --key", shorts(may)))
        })?;
        let path = self.metadata_path(&document.file(role));
        files::write(&path, &document.to_bytes(), Place::Public)?;
        Ok(format!(
            "{role} {}: signed and published; {}",
            document.signed().version(),
            path.display()
        ))
    }
}
