//! What the subcommands of `ocelctl repo` do: each changes what is staged, then signs and publishes as far as the given keys allow.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;

use ocelli::clock::{Clock, SystemClock};
use ocelli_protocol::repository::release_path;
use ocelli_tuf::schema::{RoleKeys, Root, Targets};
use ocelli_tuf::{DateTime, Key};

use super::command::{Command, Init, ROLES};
use super::package::Packed;
use super::rollout::{not_rolled_out, roll_out};
use super::sign::Signers;
use super::{Repository, lifetime};
use crate::{Failure, keys, written};

/// The time, for expiry.
pub(crate) fn now() -> DateTime {
    DateTime::from_unix_seconds(SystemClock.wall().as_secs())
}

/// Runs `ocelctl repo`.
pub(crate) fn run(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    run_at(now(), command, out)
}

/// Runs it at a time.
pub(super) fn run_at(now: DateTime, command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    let common = command.common().clone();
    // Held until the end: a timer's refresh and an operator must not change the same version.
    let _lock = Repository::lock(&common.repo)?;
    let open = || Repository::open(&common.repo, now);
    let signers = || Signers::read(&common.key, &common.passphrase);
    let repository = match command {
        Command::Init(arguments) => {
            // Before anything is made: after a wrong passphrase it can be run again.
            let signers = signers()?;
            let repository = init(arguments, now, out)?;
            return publish(&repository, &signers, out);
        }
        Command::Status { .. } => return say(out, &open()?.status()?),
        Command::Refresh { .. } => return refresh(&open()?, &signers()?, out),
        Command::Sign { merge, yes, .. } => {
            let repository = open()?;
            merge.iter().try_for_each(|file| repository.merge(file))?;
            let changes = repository.changes(|_| true)?;
            if !common.key.is_empty() && !changes.is_empty() {
                say(out, &changes)?;
                agree(yes, out)?;
            }
            repository
        }
        other => {
            let repository = open()?;
            // Nothing is staged after a wrong passphrase.
            let signers = signers()?;
            let before = repository.staged_for(&signers)?;
            say(out, &change(&repository, other)?)?;
            if !before.is_empty() {
                say(out, &["with what was staged before, this is signed:".to_owned()])?;
                say(out, &repository.changes(|role| before.contains(role))?)?;
            }
            return publish(&repository, &signers, out);
        }
    };
    publish(&repository, &signers()?, out)
}

/// Asks the person at the terminal, if there is one.
fn agree(yes: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let input = std::io::stdin();
    if yes || !input.is_terminal() {
        return Ok(());
    }
    written(write!(out, "Sign this? [y/N] ").and_then(|()| out.flush()))?;
    let mut answer = String::new();
    let read = input.read_line(&mut answer);
    read.map_err(|error| Failure(format!("no answer: {error}; see --yes")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new("nothing was signed")),
    }
}

/// Signs what is staged, and renews the online roles when their keys are there; tells what devices still do not get.
fn publish(repository: &Repository, signers: &Signers, out: &mut dyn Write) -> Result<(), Failure> {
    say(out, &repository.sign(signers)?)?;
    if repository.can_refresh(signers)? {
        say(out, &repository.refresh(signers)?)?;
    }
    say(out, &repository.unused(signers)?)?;
    not_out_yet(repository, out)
}

fn not_out_yet(repository: &Repository, out: &mut dyn Write) -> Result<(), Failure> {
    let waiting = repository.waiting()?;
    let told = repository.unpublished()?;
    // What waits for signatures was told by signing.
    let told = told.into_iter().filter(|line| !waiting.contains(line));
    say(out, &told.map(|line| format!("not out yet: {line}")).collect::<Vec<_>>())
}

/// Renews the online roles. What ends soon all the same is an error, so that a timer's unit fails; it is published before.
fn refresh(repository: &Repository, signers: &Signers, out: &mut dyn Write) -> Result<(), Failure> {
    say(out, &repository.refresh(signers)?)?;
    say(out, &repository.unused(signers)?)?;
    let waiting = repository.waiting()?.into_iter();
    say(out, &waiting.map(|line| format!("warning: not renewed: {line}")).collect::<Vec<_>>())?;
    let mut wrong = repository.without_authority()?;
    wrong.extend(repository.endings()?.iter().map(ToString::to_string));
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure(format!("refreshed, but {}", wrong.join("; "))))
}

/// Stages a change; tells which.
fn change(repository: &Repository, command: Command) -> Result<Vec<String>, Failure> {
    match command {
        Command::Add { package, role, .. } => {
            let packed = repository.pack(&package)?;
            may_release(repository, &role, &packed)?;
            if is_released(repository, &role, &packed)? {
                return Ok(vec![format!(
                    "{} is released already, the same to the byte",
                    packed.title
                )]);
            }
            let Packed { path, file, title } = packed;
            repository.edit::<Targets>(&role, |targets| targets.add(&path, file))?;
            Ok(vec![format!("added {title}")])
        }
        Command::Remove { model, version, role, yes, .. } => {
            let path = release_path(model.as_str(), &version);
            known(repository, &role, &path)?;
            if !yes {
                not_rolled_out(repository, &path)?;
            }
            repository.edit::<Targets>(&role, |targets| drop(targets.targets.remove(&path)))?;
            Ok(vec![format!("withdrawn {model} {version}")])
        }
        Command::Rollout(arguments) => roll_out(repository, arguments),
        Command::Rotate { role, add, remove, threshold, .. } => {
            let remove = remove.iter().map(key_id).collect::<Result<Vec<_>, _>>()?;
            rotate(repository, &role, &public_keys(&add)?, &remove, threshold)?;
            let what = if add.is_empty() && remove.is_empty() && threshold.is_none() {
                "renewed, its keys stay"
            } else {
                "keys changed"
            };
            Ok(vec![format!("{role}: {what}")])
        }
        Command::Delegate { role, model, public, threshold, .. } => {
            is_new(repository, &role)?;
            let keys = public_keys(&public)?;
            enough(&role, &RoleKeys::new(keys.iter().map(Key::id).collect(), threshold))?;
            let paths = format!("releases/{model}/*");
            repository.edit::<Targets>("targets", |targets| {
                targets.delegate(&role, &keys, threshold, &[&paths]);
            })?;
            repository.stage_new(&role, Targets::new(repository.now.plus_days(lifetime(&role))))?;
            Ok(vec![format!("{role} may release {model}")])
        }
        Command::Init(_)
        | Command::Sign { .. }
        | Command::Refresh { .. }
        | Command::Status { .. } => Ok(Vec::new()),
    }
}

fn say(out: &mut dyn Write, lines: &[String]) -> Result<(), Failure> {
    lines.iter().try_for_each(|line| written(writeln!(out, "{line}")))
}

fn public_keys(paths: &[PathBuf]) -> Result<Vec<Key>, Failure> {
    paths.iter().map(|path| keys::read_public(path)).collect()
}

/// A key's id, or the beginning of one, as somebody wrote it.
fn key_id(text: &String) -> Result<String, Failure> {
    if !text.ends_with(".pub") {
        return Ok(text.clone());
    }
    Ok(keys::read_public(text.as_ref())?.id().as_str().to_owned())
}

/// Whether a role has a target, staged or published.
pub(super) fn known(repository: &Repository, role: &str, path: &str) -> Result<(), Failure> {
    let document = repository.latest::<Targets>(role)?;
    if document.signed().targets.contains_key(path) {
        return Ok(());
    }
    Err(Failure(format!("{role} has no {path}; see ocelctl repo status")))
}

fn init(arguments: Init, now: DateTime, out: &mut dyn Write) -> Result<Repository, Failure> {
    // Whatever is wrong is told before the folder is made.
    for (role, _) in &arguments.threshold {
        if !ROLES.contains(&role.as_str()) {
            let roles = ROLES.join(", ");
            return Err(Failure(format!("--threshold {role}: no such role; there are {roles}")));
        }
    }
    let expires = |role| now.plus_days(lifetime(role));
    let threshold = |role: &str| {
        let given = arguments.threshold.iter().find(|(name, _)| name == role);
        given.map_or(1, |(_, number)| *number)
    };
    let mut root = Root::new(expires("root"));
    for (role, files) in [
        ("root", &arguments.root),
        ("timestamp", &arguments.timestamp),
        ("snapshot", &arguments.snapshot),
        ("targets", &arguments.targets),
    ] {
        for key in public_keys(files)? {
            root.allow(role, key);
        }
        root.set_threshold(role, threshold(role));
        enough(role, &root.roles[role])?;
    }
    let mut targets = Targets::new(expires("targets"));
    for (role, files, paths) in [
        ("releases", &arguments.releases, "releases/*/*"),
        ("rollout", &arguments.rollout, "rollout/*"),
    ] {
        let keys = public_keys(files)?;
        let ids = keys.iter().map(Key::id).collect();
        enough(role, &RoleKeys::new(ids, threshold(role)))?;
        targets.delegate(role, &keys, threshold(role), &[paths]);
    }
    let repository = Repository::create(&arguments.common.repo, arguments.id, now)?;
    repository.stage_new("root", root)?;
    repository.stage_new("targets", targets)?;
    for role in ["releases", "rollout"] {
        repository.stage_new(role, Targets::new(expires(role)))?;
    }
    say(out, &[format!("repository {} in {}", repository.id, arguments.common.repo.display())])?;
    Ok(repository)
}

fn enough(role: &str, keys: &RoleKeys) -> Result<(), Failure> {
    let (have, need) = (keys.keyids.len() as u64, keys.threshold.get());
    if have >= need {
        return Ok(());
    }
    Err(Failure(format!(
        "{role} would have {have} keys, of which {need} must sign; add keys or lower the threshold"
    )))
}

/// Refuses a release under a role that is not trusted for it: no device would find it.
fn may_release(repository: &Repository, role: &str, packed: &Packed) -> Result<(), Failure> {
    let targets = repository.latest::<Targets>("targets")?;
    let mut roles = targets.signed().delegations.iter().flat_map(|all| &all.roles);
    if roles.any(|one| one.name == role && one.covers(&packed.path)) {
        return Ok(());
    }
    Err(Failure(format!(
        "{role} may not release {}; name another --role, or see ocelctl repo delegate",
        packed.title
    )))
}

/// Refuses to begin a role again: its versions would go back, and another role's paths be replaced.
fn is_new(repository: &Repository, role: &str) -> Result<(), Failure> {
    if ROLES.contains(&role) || repository.delegated()?.iter().any(|one| one == role) {
        return Err(Failure(format!(
            "there is a role {role} already; change its keys with `ocelctl repo rotate {role}`, or choose another name"
        )));
    }
    Ok(())
}

/// Whether this very package is released. A published version never changes: the roll-out would bring another content to
/// every device at once, without the rollout key.
fn is_released(repository: &Repository, role: &str, packed: &Packed) -> Result<bool, Failure> {
    let published = repository.newest::<Targets>(role)?;
    let path = packed.path.as_str();
    let Some(file) = published.as_ref().and_then(|role| role.signed().targets.get(path)) else {
        return Ok(false);
    };
    if file.hashes == packed.file.hashes {
        return Ok(true);
    }
    Err(Failure(format!(
        "{} is released with another content; give this package a version of its own",
        packed.title
    )))
}

/// Whether each beginning of an id is that of one key of the role: a slip must not leave a stolen key in place.
fn are_keys(role: &str, keys: &RoleKeys, beginnings: &[String]) -> Result<(), Failure> {
    for beginning in beginnings {
        let found = keys.keyids.iter().filter(|id| id.as_str().starts_with(beginning)).count();
        if found != 1 || beginning.is_empty() {
            let ids: Vec<&str> = keys.keyids.iter().map(ocelli_tuf::KeyId::as_str).collect();
            return Err(Failure(format!(
                "{found} keys of {role} have an id that begins with \"{beginning}\", one is meant; it has {}",
                ids.join(", ")
            )));
        }
    }
    Ok(())
}

/// A next version of a top-level role with a new end, and nothing else.
fn renew(repository: &Repository, role: &str) -> Result<(), Failure> {
    match role {
        "root" => repository.edit::<Root>(role, |_| {}),
        "targets" => repository.edit::<Targets>(role, |_| {}),
        _ => Err(Failure(format!(
            "nothing to change of {role}: name --add, --remove or --threshold; `ocelctl repo refresh` renews it"
        ))),
    }
}

fn rotate(
    repository: &Repository,
    role: &str,
    add: &[Key],
    remove: &[String],
    threshold: Option<u64>,
) -> Result<(), Failure> {
    let gone =
        |id: &ocelli_tuf::KeyId| remove.iter().any(|start| id.as_str().starts_with(start.as_str()));
    let top = matches!(role, "root" | "timestamp" | "snapshot" | "targets");
    if top && add.is_empty() && remove.is_empty() && threshold.is_none() {
        return renew(repository, role);
    }
    if top {
        let root = repository.latest::<Root>("root")?;
        let mut changed = root.signed().clone();
        are_keys(role, &changed.roles[role], remove)?;
        let old: Vec<_> =
            changed.roles[role].keyids.iter().filter(|id| gone(id)).cloned().collect();
        old.iter().for_each(|id| changed.revoke(role, id));
        add.iter().for_each(|key| changed.allow(role, key.clone()));
        if let Some(threshold) = threshold {
            changed.set_threshold(role, threshold);
        }
        enough(role, &changed.roles[role])?;
        let (keys, roles) = (changed.keys, changed.roles);
        repository.edit::<Root>("root", |root| (root.keys, root.roles) = (keys, roles))?;
        if role == "targets" {
            repository.edit::<Targets>("targets", |_| {})?;
        }
        return Ok(());
    }
    let targets = repository.latest::<Targets>("targets")?;
    let delegations = targets.signed().delegations.clone().unwrap_or_default();
    let Some(delegation) = delegations.roles.iter().find(|one| one.name == role) else {
        return Err(Failure(format!("there is no role {role}; see ocelctl repo status")));
    };
    are_keys(role, &delegation.keys, remove)?;
    let kept = delegation.keys.keyids.iter().filter(|id| !gone(id));
    let mut keys: Vec<Key> = kept.filter_map(|id| delegations.keys.get(id).cloned()).collect();
    keys.extend(add.iter().cloned());
    let threshold = threshold.unwrap_or(delegation.keys.threshold.get());
    enough(role, &RoleKeys::new(keys.iter().map(Key::id).collect(), threshold))?;
    let paths: Vec<&str> = delegation.paths.iter().flatten().map(String::as_str).collect();
    repository
        .edit::<Targets>("targets", |targets| targets.delegate(role, &keys, threshold, &paths))?;
    repository.edit::<Targets>(role, |_| {})
}
