//! What a staged document changes, in words, for the person who is about to sign it.

use std::collections::BTreeMap;

use ocelli_protocol::Id;
use ocelli_protocol::repository::RolloutEntry;
use ocelli_tuf::repository::Document;
use ocelli_tuf::schema::{Role, RoleKeys, Root, TargetFile, Targets};

use super::Repository;
use crate::Failure;

impl Repository {
    /// Each staged document of the wanted roles against the published one. What others wrote is shown with its control characters escaped.
    pub(super) fn changes(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        if let Some(new) = self.staged::<Root>("root")?.filter(|_| wanted("root")) {
            let old = self.newest::<Root>("root")?;
            let before = old.as_ref().map(|old| &old.signed().roles);
            let mut lines = Vec::new();
            for (role, keys) in &new.signed().roles {
                let before = before.and_then(|roles| roles.get(role));
                lines.extend(key_changes(role, keys, before));
            }
            told.extend(with_heading("root", &new, old.as_ref(), lines));
        }
        for role in std::iter::once("targets".to_owned()).chain(self.delegated()?) {
            let Some(new) = self.staged::<Targets>(&role)?.filter(|_| wanted(&role)) else {
                continue;
            };
            let old = self.newest::<Targets>(&role)?;
            let mut lines = delegation_changes(new.signed(), old.as_ref().map(Document::signed));
            let none = BTreeMap::new();
            let before = old.as_ref().map_or(&none, |old| &old.signed().targets);
            lines.extend(target_changes(&new.signed().targets, before));
            if role == "rollout" {
                lines.extend(self.roll_out_lines());
            }
            told.extend(with_heading(&role, &new, old.as_ref(), lines));
        }
        Ok(told)
    }

    /// Who would get what.
    fn roll_out_lines(&self) -> Vec<String> {
        let Ok(roll_outs) = self.roll_outs() else {
            return vec!["  its documents are not in this copy of the repository".to_owned()];
        };
        let line = |channel, entry: RolloutEntry| {
            let RolloutEntry { target, percent, labels, attempt, .. } = entry;
            let labels: Vec<&str> = labels.iter().map(Id::as_str).collect();
            let who = if labels.is_empty() { "" } else { ", labels " };
            format!(
                "  then {channel}: {percent} % {target}, attempt {attempt}{who}{}",
                labels.join(" and ")
            )
        };
        roll_outs.into_iter().map(|(_, channel, entry)| line(channel, entry)).collect()
    }
}

fn with_heading<T: Role>(
    role: &str,
    new: &Document<T>,
    old: Option<&Document<T>>,
    lines: Vec<String>,
) -> Vec<String> {
    let before = old.map_or("the first".to_owned(), |old| {
        format!("published is {} until {}", old.signed().version(), old.signed().expires())
    });
    let (version, expires) = (new.signed().version(), new.signed().expires());
    let mut told = vec![format!("{role} {version} until {expires}; {before}")];
    if lines.is_empty() {
        told.push("  nothing changes but version and end".to_owned());
    }
    told.extend(lines);
    told
}

fn key_changes(role: &str, new: &RoleKeys, old: Option<&RoleKeys>) -> Vec<String> {
    if old == Some(new) {
        return Vec::new();
    }
    let was = old
        .map_or(String::new(), |old| format!(" (now {} of {})", old.threshold, old.keyids.len()));
    let role = role.escape_debug();
    let mut lines =
        vec![format!("  {role}: {} of {} keys must sign{was}", new.threshold, new.keyids.len())];
    let before = old.map_or(&[][..], |old| &old.keyids);
    for id in &new.keyids {
        let sign = if before.contains(id) { ' ' } else { '+' };
        lines.push(format!("    {sign} key {}", id.as_str().escape_debug()));
    }
    for id in before.iter().filter(|id| !new.keyids.contains(id)) {
        lines.push(format!("    - key {}", id.as_str().escape_debug()));
    }
    lines
}

fn delegation_changes(new: &Targets, old: Option<&Targets>) -> Vec<String> {
    let mut lines = Vec::new();
    let before: Vec<_> =
        old.and_then(|old| old.delegations.as_ref()).iter().flat_map(|all| &all.roles).collect();
    let after: Vec<_> = new.delegations.iter().flat_map(|all| &all.roles).collect();
    for role in &after {
        let was = before.iter().find(|other| other.name == role.name);
        lines.extend(key_changes(&role.name, &role.keys, was.map(|was| &was.keys)));
        if was.is_none_or(|was| was.paths != role.paths) {
            let paths = role.paths.iter().flatten().map(|path| path.escape_debug().to_string());
            let (name, paths) = (role.name.escape_debug(), paths.collect::<Vec<_>>().join(", "));
            lines.push(format!("  {name} may then name {paths}"));
        }
    }
    for role in before.iter().filter(|role| after.iter().all(|other| other.name != role.name)) {
        lines.push(format!("  - role {}", role.name.escape_debug()));
    }
    lines
}

fn target_changes(
    new: &BTreeMap<String, TargetFile>,
    old: &BTreeMap<String, TargetFile>,
) -> Vec<String> {
    let told = |sign: char, path: &str, file: &TargetFile| {
        let sha256 = file.hashes.get("sha256").unwrap_or("none");
        let path = path.escape_debug();
        format!("  {sign} {path}  {} bytes  sha256 {}", file.length, sha256.escape_debug())
    };
    let mut lines = Vec::new();
    for (path, file) in new {
        match old.get(path) {
            Some(before) if before == file => {}
            Some(before) => lines.extend([told('-', path, before), told('+', path, file)]),
            None => lines.push(told('+', path, file)),
        }
    }
    for (path, file) in old.iter().filter(|(path, _)| !new.contains_key(*path)) {
        lines.push(told('-', path, file));
    }
    lines
}
