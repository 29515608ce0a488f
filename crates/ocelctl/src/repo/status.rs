//! What a repository holds, what of it devices do not get yet, and what ends soon.

use std::fmt;

use ocelli_protocol::repository::RolloutEntry;
use ocelli_tuf::schema::{Role, Root, Snapshot, Targets, Timestamp};
use ocelli_tuf::{Authority, DateTime};

use super::sign::shorts;
use super::{Repository, authority, lifetime};
use crate::Failure;

/// Days before its end in which metadata that people sign wants to be renewed.
const OFFLINE_DAYS: u32 = 30;

/// Published metadata that is beyond its end, or near it.
pub(crate) struct Ending {
    role: String,
    expires: DateTime,
    now: DateTime,
    /// Signed by people, not by `refresh`.
    offline: bool,
    /// A change of the role waits for signatures.
    staged: bool,
}

impl Ending {
    /// Whether it is beyond its end, and devices take no update of any model because of it.
    pub(crate) fn stops_updates(&self) -> bool {
        let everybody = ["root", "timestamp", "snapshot", "targets", "releases", "rollout"];
        self.expires <= self.now && everybody.contains(&self.role.as_str())
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, expires, now, offline, staged } = self;
        if expires <= now {
            write!(formatter, "{role} EXPIRED at {expires}; ")?;
        } else {
            let days = (expires.unix_seconds() - now.unix_seconds()) / 86_400;
            write!(formatter, "{role} ends at {expires}, in {days} days; ")?;
        }
        match (staged, offline) {
            (true, _) => write!(
                formatter,
                "its next version is staged and lacks signatures, see ocelctl repo status"
            ),
            (false, true) => {
                write!(formatter, "renew it with `ocelctl repo rotate {role}` and its keys")
            }
            (false, false) => {
                write!(formatter, "renew it with `ocelctl repo refresh` and the {role} key")
            }
        }
    }
}

impl Repository {
    /// Less than half of its life is left.
    pub(super) fn is_stale(&self, role: &str, signed: &impl Role) -> bool {
        self.ends_within(lifetime(role).div_ceil(2), signed)
    }

    fn ends_within(&self, days: u32, signed: &impl Role) -> bool {
        self.now.plus_days(days) > signed.expires()
    }

    /// Published metadata that ends within the time in which it should have been renewed: half of its life for what `refresh`
    /// renews, 30 days for what people sign.
    pub(crate) fn endings(&self) -> Result<Vec<Ending>, Failure> {
        let mut found = Vec::new();
        if let Some(root) = self.newest::<Root>("root")? {
            found.extend(self.ending("root", root.signed()));
        }
        if let Some(timestamp) = self.newest::<Timestamp>("timestamp")? {
            found.extend(self.ending("timestamp", timestamp.signed()));
        }
        if let Some(snapshot) = self.newest::<Snapshot>("snapshot")? {
            found.extend(self.ending("snapshot", snapshot.signed()));
        }
        for role in std::iter::once("targets".to_owned()).chain(self.published_delegated()?) {
            if let Some(document) = self.newest::<Targets>(&role)? {
                found.extend(self.ending(&role, document.signed()));
            }
        }
        Ok(found)
    }

    fn ending(&self, role: &str, signed: &impl Role) -> Option<Ending> {
        let offline = !matches!(role, "timestamp" | "snapshot" | "rollout");
        let days = if offline { OFFLINE_DAYS } else { lifetime(role).div_ceil(2) };
        self.ends_within(days, signed).then(|| Ending {
            role: role.to_owned(),
            expires: signed.expires(),
            now: self.now,
            offline,
            staged: self.staged_path(role).exists(),
        })
    }

    /// What devices do not get with the metadata as it is published, and whose key is missing.
    pub(crate) fn unpublished(&self) -> Result<Vec<String>, Failure> {
        let mut told = self.waiting()?;
        told.extend(self.without_authority()?);
        let Some(root) = self.newest::<Root>("root")? else { return Ok(told) };
        let root = root.signed();
        let needs = |roles: &[&str]| {
            let one =
                |role: &&str| format!("the {role} key ({})", shorts(&root.roles[*role].keyids));
            let keys: Vec<String> = roles.iter().map(one).collect();
            format!("run `ocelctl repo refresh` with {}", keys.join(" and "))
        };
        let online = ["snapshot", "timestamp"];
        let Some(snapshot) = self.newest::<Snapshot>("snapshot")? else {
            told.push(format!(
                "there is no snapshot, without which devices see nothing: {}",
                needs(&online)
            ));
            return Ok(told);
        };
        for role in std::iter::once("targets".to_owned()).chain(self.published_delegated()?) {
            let Some(document) = self.newest::<Targets>(&role)? else { continue };
            let version = document.signed().version;
            let listed = snapshot.signed().meta.get(&format!("{role}.json"));
            if listed.is_none_or(|listed| listed.version != version) {
                told.push(format!(
                    "{role} {version} is signed, but in no snapshot: {}",
                    needs(&online)
                ));
            }
        }
        if snapshot.verify(authority(root, "snapshot")?).is_err() {
            told.push(format!(
                "snapshot {} lacks signatures of the keys in root {}: {}",
                snapshot.signed().version,
                root.version,
                needs(&online)
            ));
        }
        told.extend(
            self.behind(root, snapshot.signed())?
                .map(|why| format!("{why}: {}", needs(&["timestamp"]))),
        );
        Ok(told)
    }

    /// Published roles that the published targets do not trust: after a change of their keys, until they are signed anew.
    pub(super) fn without_authority(&self) -> Result<Vec<String>, Failure> {
        let Some(targets) = self.newest::<Targets>("targets")? else { return Ok(Vec::new()) };
        let targets = targets.signed();
        let Some(delegations) = &targets.delegations else { return Ok(Vec::new()) };
        let mut told = Vec::new();
        for role in &delegations.roles {
            let Some(document) = self.newest::<Targets>(&role.name)? else { continue };
            let authority = Authority::of_delegation(&delegations.keys, role);
            let Err(missing) = document.verify(authority) else { continue };
            told.push(format!(
                "{} {}: {missing} since targets {}; devices take nothing of it until its next version is signed, of \
                 keys {}",
                role.name,
                document.signed().version,
                targets.version,
                shorts(&role.keys.keyids)
            ));
        }
        Ok(told)
    }

    /// What is wrong with the timestamp.
    fn behind(&self, root: &Root, snapshot: &Snapshot) -> Result<Option<String>, Failure> {
        let Some(timestamp) = self.newest::<Timestamp>("timestamp")? else {
            return Ok(Some("there is no timestamp, without which devices see nothing".to_owned()));
        };
        let version = timestamp.signed().version;
        if timestamp.verify(authority(root, "timestamp")?).is_err() {
            let root = root.version;
            return Ok(Some(format!(
                "timestamp {version} lacks signatures of the keys in root {root}"
            )));
        }
        let names = timestamp.signed().snapshot().version;
        Ok((names != snapshot.version).then(|| {
            format!("timestamp {version} names snapshot {names}, not {}", snapshot.version)
        }))
    }

    /// Everything that an operator wants to know of a repository.
    pub(super) fn status(&self) -> Result<Vec<String>, Failure> {
        let mut lines = vec![format!("repository {}", self.id)];
        let delegated = self.delegated()?;
        lines.extend(self.line::<Root>("root")?);
        lines.extend(self.line::<Timestamp>("timestamp")?);
        lines.extend(self.line::<Snapshot>("snapshot")?);
        for role in std::iter::once("targets").chain(delegated.iter().map(String::as_str)) {
            lines.extend(self.line::<Targets>(role)?);
        }
        for role in delegated.iter().filter(|role| *role != "rollout") {
            let published = self.newest::<Targets>(role)?;
            for path in self.latest::<Targets>(role)?.signed().targets.keys() {
                let known = |one: &ocelli_tuf::repository::Document<Targets>| {
                    one.signed().targets.contains_key(path)
                };
                let note = if published.as_ref().is_some_and(known) { "" } else { ", staged only" };
                lines.push(format!("release      {path} ({role}{note})"));
            }
        }
        for (path, channel, entry) in self.roll_outs()? {
            let RolloutEntry { target, percent, attempt, .. } = entry;
            let staged = if self.is_published("rollout", &path)? { "" } else { ", staged only" };
            lines.push(format!(
                "roll-out     {channel}: {percent} % {target}, attempt {attempt}{staged}"
            ));
        }
        lines.extend(self.unpublished()?.into_iter().map(|told| format!("not out yet  {told}")));
        lines.extend(self.endings()?.into_iter().map(|ending| format!("warning      {ending}")));
        Ok(lines)
    }

    /// A role's version and end, or that it has none yet.
    fn line<T: Role>(&self, role: &str) -> Result<Option<String>, Failure> {
        let Some(document) = self.newest::<T>(role)? else {
            return Ok(Some(format!("{role:<12} not published")));
        };
        let (version, expires) = (document.signed().version(), document.signed().expires());
        let over = if expires <= self.now { "  EXPIRED" } else { "" };
        Ok(Some(format!("{role:<12} version {version:<4} until {expires}{over}")))
    }

    /// Whether the newest published and the staged version of a role name the same file under a path.
    fn is_published(&self, role: &str, path: &str) -> Result<bool, Failure> {
        let published = self.newest::<Targets>(role)?;
        let of = |one: &Targets| one.targets.get(path).cloned();
        let latest = of(self.latest::<Targets>(role)?.signed());
        Ok(published.and_then(|one| of(one.signed())) == latest)
    }
}
