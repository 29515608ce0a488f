//! Roll-outs: which devices get which release. Only what is signed is rolled out, and what is rolled out stays.

use std::collections::BTreeMap;

use ocelli_protocol::repository::{Rollout, RolloutEntry, release_path, rollout_path};
use ocelli_protocol::{Id, VERSION};
use ocelli_tuf::TargetPath;
use ocelli_tuf::schema::{TargetFile, Targets};

use super::command::RolloutArguments;
use super::edit::known;
use super::{Repository, package};
use crate::files::Place;
use crate::{Failure, files};

/// Puts a release before the others of its channel.
pub(super) fn roll_out(
    repository: &Repository,
    arguments: RolloutArguments,
) -> Result<Vec<String>, Failure> {
    let RolloutArguments { model, version, channel, percent, label, attempt, .. } = arguments;
    let target = release_path(model.as_str(), &version);
    is_signed(repository, &target)?;
    let path = rollout_path(model.as_str());
    let mut rollout = repository.rollout(&path)?.unwrap_or_else(|| Rollout {
        v: VERSION,
        model: model.clone(),
        channels: BTreeMap::new(),
    });
    let entries = rollout.channels.entry(channel.clone()).or_default();
    let same = |entry: &RolloutEntry| entry.target == target && entry.labels == label;
    let before = entries.iter().find(|entry| entry.target == target).map(|entry| entry.attempt);
    entries.retain(|entry| !same(entry));
    let everybody = percent >= 100.0 && label.is_empty();
    if everybody {
        // Nothing after an entry that means all devices is ever reached.
        entries.clear();
    }
    let attempt = attempt.or(before).unwrap_or(1);
    // The salt stays while the part grows, so that no device falls out of it.
    let salt = target.clone();
    entries.insert(0, RolloutEntry { target, percent, labels: label, salt, attempt });
    let bytes = serde_json::to_vec(&rollout).expect("a roll-out is plain JSON");
    Rollout::parse(&bytes).map_err(|error| Failure(error.to_string()))?;
    files::write(&repository.target_path(&path, &package::digest(&bytes)), &bytes, Place::Public)?;
    let path: TargetPath = path.parse().map_err(|error| Failure(format!("{error}")))?;
    repository.edit::<Targets>("rollout", |targets| targets.add(&path, TargetFile::of(&bytes)))?;
    Ok(vec![format!("{model} {version}: {percent} % of channel {channel}, attempt {attempt}")])
}

/// Refuses what devices would not find: they take a release with enough signatures only.
fn is_signed(repository: &Repository, target: &str) -> Result<(), Failure> {
    let mut staged = None;
    for role in repository.delegated()?.into_iter().filter(|role| role != "rollout") {
        let published = repository.newest::<Targets>(&role)?;
        if published.is_some_and(|one| one.signed().targets.contains_key(target)) {
            return Ok(());
        }
        if known(repository, &role, target).is_ok() {
            staged = Some(role);
        }
    }
    Err(Failure(match staged {
        Some(role) => format!(
            "{target} is staged, but not signed by enough keys of {role}; sign it first with `ocelctl repo sign`, see \
             ocelctl repo status"
        ),
        None => format!("no release {target}; add it first with `ocelctl repo add`"),
    }))
}

/// Refuses to take away what devices are meant to get.
pub(super) fn not_rolled_out(repository: &Repository, target: &str) -> Result<(), Failure> {
    let rolled_out = repository.roll_outs()?;
    let Some((_, channel, entry)) =
        rolled_out.into_iter().find(|(_, _, entry)| entry.target == target)
    else {
        return Ok(());
    };
    Err(Failure(format!(
        "{target} is rolled out to {} % of channel {channel}: without it, those of them that do not run it yet are told \
         of a missing release and take no update; roll out another version first, or say --yes",
        entry.percent
    )))
}

impl Repository {
    /// Every entry of the roll-outs as staged or published, with its path and channel.
    pub(super) fn roll_outs(&self) -> Result<Vec<(String, Id, RolloutEntry)>, Failure> {
        let mut found = Vec::new();
        for path in self.latest::<Targets>("rollout")?.signed().targets.keys() {
            for (channel, entries) in self.rollout(path)?.into_iter().flat_map(|all| all.channels) {
                found.extend(
                    entries.into_iter().map(|entry| (path.clone(), channel.clone(), entry)),
                );
            }
        }
        Ok(found)
    }

    /// The roll-out document as staged or published.
    fn rollout(&self, path: &str) -> Result<Option<Rollout>, Failure> {
        let document = self.latest::<Targets>("rollout")?;
        let Some(target) = document.signed().targets.get(path) else { return Ok(None) };
        let mut content = package::Content::new();
        self.content(path, target, &mut content)?;
        let bytes = content.into_values().next().unwrap_or_default();
        Rollout::parse(&bytes).map(Some).map_err(|error| Failure(error.to_string()))
    }
}
