//! The subcommands of `ocelctl repo`: each changes what is staged, then signs and publishes as far as the given keys allow.

use std::io::Write;
use std::path::{Path, PathBuf};

use ocelli::clock::{Clock, SystemClock};
use ocelli_protocol::repository::{Rollout, RolloutEntry, release_path, rollout_path};
use ocelli_protocol::{Id, VERSION};
use ocelli_tuf::repository::{Document, SigningKey};
use ocelli_tuf::schema::{Role, RoleKeys, Root, Snapshot, TargetFile, Targets, Timestamp};
use ocelli_tuf::{DateTime, Key, TargetPath};

use super::package::Packed;
use super::{Repository, lifetime, package};
use crate::files::Place;
use crate::keys::{self, Passphrase};
use crate::{Failure, files, written};

/// Where the repository is, and who signs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// Folder of the repository
    #[arg(long, value_name = "DIR", default_value = "repo")]
    pub(crate) repo: PathBuf,
    /// Secret keys to sign with; each signs what it may
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) passphrase: Passphrase,
}

/// `ocelctl repo …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Begin a repository with the public keys of its roles
    Init(Init),
    /// Add a package, folder or tar
    Add {
        /// The package
        package: PathBuf,
        /// Role that signs it, see `delegate`
        #[arg(long, default_value = "releases")]
        role: String,
        #[command(flatten)]
        common: Common,
    },
    /// Withdraw a release: devices that run it keep it, no other gets it
    Remove {
        /// Name of the model
        model: Id,
        /// Version of the package
        version: String,
        /// Role that signs it
        #[arg(long, default_value = "releases")]
        role: String,
        #[command(flatten)]
        common: Common,
    },
    /// Name the version that devices get; an older one rolls back
    Rollout(RolloutArguments),
    /// Change the keys of a role
    Rotate {
        /// root, timestamp, snapshot, targets, or a delegated role
        role: String,
        /// Public key to add
        #[arg(long, value_name = "FILE")]
        add: Vec<PathBuf>,
        /// Id of a key to remove, or its first characters
        #[arg(long, value_name = "ID")]
        remove: Vec<String>,
        /// How many keys must sign
        #[arg(long)]
        threshold: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Let further keys release one model only
    Delegate {
        /// Name of the new role
        role: String,
        /// Model that it may release
        #[arg(long)]
        model: Id,
        /// Public keys of the role
        #[arg(long, value_name = "FILE", required = true)]
        public: Vec<PathBuf>,
        /// How many must sign
        #[arg(long, default_value_t = 1)]
        threshold: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Sign what is staged; publish what has enough signatures
    Sign {
        /// Copy of a staged file that somebody else signed
        #[arg(long, value_name = "FILE")]
        merge: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Renew snapshot, timestamp and, near its end, the roll-out; for a timer
    Refresh {
        #[command(flatten)]
        common: Common,
    },
    /// Show versions, ends and missing signatures
    Status {
        #[command(flatten)]
        common: Common,
    },
}

impl Command {
    fn common(&self) -> &Common {
        match self {
            Self::Init(Init { common, .. })
            | Self::Rollout(RolloutArguments { common, .. })
            | Self::Add { common, .. }
            | Self::Remove { common, .. }
            | Self::Rotate { common, .. }
            | Self::Delegate { common, .. }
            | Self::Sign { common, .. }
            | Self::Refresh { common }
            | Self::Status { common } => common,
        }
    }
}

/// Arguments of `ocelctl repo init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// Name of the repository, as in the devices' `update.repo`
    #[arg(long)]
    id: Id,
    /// Public keys of the root role, offline
    #[arg(long, value_name = "FILE", required = true)]
    root: Vec<PathBuf>,
    /// Public keys of the targets role, offline
    #[arg(long, value_name = "FILE", required = true)]
    targets: Vec<PathBuf>,
    /// Public keys that sign packages, offline
    #[arg(long, value_name = "FILE", required = true)]
    releases: Vec<PathBuf>,
    /// Public keys that sign roll-outs, online
    #[arg(long, value_name = "FILE", required = true)]
    rollout: Vec<PathBuf>,
    /// Public keys that sign snapshots, online
    #[arg(long, value_name = "FILE", required = true)]
    snapshot: Vec<PathBuf>,
    /// Public keys that sign timestamps, online
    #[arg(long, value_name = "FILE", required = true)]
    timestamp: Vec<PathBuf>,
    /// How many keys of a role must sign, as root=2
    #[arg(long, value_name = "ROLE=N", value_parser = threshold)]
    threshold: Vec<(String, u64)>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `ocelctl repo rollout`.
#[derive(Debug, clap::Args)]
pub(crate) struct RolloutArguments {
    /// Name of the model
    model: Id,
    /// Version that is rolled out
    version: String,
    /// Channel
    #[arg(long, default_value = "stable")]
    channel: Id,
    /// Part of the devices, 0 to 100
    #[arg(long, default_value_t = 100.0)]
    percent: f64,
    /// Labels that devices must have
    #[arg(long, value_name = "LABEL")]
    label: Vec<Id>,
    /// Raise it to have devices try again what they rejected
    #[arg(long)]
    attempt: Option<u32>,
    #[command(flatten)]
    common: Common,
}

fn threshold(text: &str) -> Result<(String, u64), String> {
    let (role, number) = text.split_once('=').ok_or("write it as root=2")?;
    let number = number.parse().map_err(|_| format!("{number} is no number"))?;
    Ok((role.to_owned(), number))
}

/// The time, for expiry.
pub(crate) fn now() -> DateTime {
    DateTime::from_unix_seconds(SystemClock.wall().as_secs())
}

/// Runs `ocelctl repo`.
pub(crate) fn run(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    // Held until the end: a timer's refresh and an operator must not change the same version.
    let _lock = Repository::lock(&command.common().repo)?;
    let (common, mut told) = match command {
        Command::Init(arguments) => init(arguments)?,
        Command::Add { package, role, common } => {
            let repository = Repository::open(&common.repo, now())?;
            let packed = repository.pack(&package)?;
            if is_released(&repository, &role, &packed)? {
                (
                    common,
                    vec![format!("{} is released already, the same to the byte", packed.title)],
                )
            } else {
                let Packed { path, file, title } = packed;
                repository.edit::<Targets>(&role, |targets| targets.add(&path, file))?;
                (common, vec![format!("added {title}")])
            }
        }
        Command::Remove { model, version, role, common } => {
            let repository = Repository::open(&common.repo, now())?;
            let path = release_path(model.as_str(), &version);
            known(&repository, &role, &path)?;
            repository.edit::<Targets>(&role, |targets| drop(targets.targets.remove(&path)))?;
            (common, vec![format!("withdrawn {model} {version}")])
        }
        Command::Rollout(arguments) => roll_out(arguments)?,
        Command::Rotate { role, add, remove, threshold, common } => {
            let repository = Repository::open(&common.repo, now())?;
            let add = public_keys(&add)?;
            rotate(&repository, &role, &add, &remove, threshold)?;
            (common, vec![format!("keys of {role} changed")])
        }
        Command::Delegate { role, model, public, threshold, common } => {
            let repository = Repository::open(&common.repo, now())?;
            let keys = public_keys(&public)?;
            let paths = format!("releases/{model}/*");
            repository.edit::<Targets>("targets", |targets| {
                targets.delegate(&role, &keys, threshold, &[&paths]);
            })?;
            repository.stage_new(&role, Targets::new(repository.now.plus_days(lifetime(&role))))?;
            (common, vec![format!("{role} may release {model}")])
        }
        Command::Sign { merge, common } => {
            let repository = Repository::open(&common.repo, now())?;
            for file in &merge {
                repository.merge(file)?;
            }
            (common, Vec::new())
        }
        Command::Refresh { common } => {
            let repository = Repository::open(&common.repo, now())?;
            let told = repository.refresh(&secret_keys(&common)?)?;
            return say(out, &told);
        }
        Command::Status { common } => {
            let repository = Repository::open(&common.repo, now())?;
            return say(out, &repository.status()?);
        }
    };
    let repository = Repository::open(&common.repo, now())?;
    let keys = secret_keys(&common)?;
    told.extend(repository.sign(&keys)?);
    if repository.can_refresh(&keys)? {
        told.extend(repository.refresh(&keys)?);
    }
    say(out, &told)
}

fn say(out: &mut dyn Write, lines: &[String]) -> Result<(), Failure> {
    lines.iter().try_for_each(|line| written(writeln!(out, "{line}")))
}

fn public_keys(paths: &[PathBuf]) -> Result<Vec<Key>, Failure> {
    paths.iter().map(|path| keys::read_public(path)).collect()
}

fn secret_keys(common: &Common) -> Result<Vec<SigningKey>, Failure> {
    common.key.iter().map(|path| keys::read(path, &common.passphrase)).collect()
}

fn known(repository: &Repository, role: &str, path: &str) -> Result<(), Failure> {
    let document = repository.latest::<Targets>(role)?;
    if document.signed().targets.contains_key(path) {
        return Ok(());
    }
    Err(Failure(format!("{role} has no {path}; see ocelctl repo status")))
}

fn init(arguments: Init) -> Result<(Common, Vec<String>), Failure> {
    let repository = Repository::create(&arguments.common.repo, arguments.id, now())?;
    let expires = |role| repository.now.plus_days(lifetime(role));
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
    repository.stage_new("root", root)?;
    repository.stage_new("targets", targets)?;
    for role in ["releases", "rollout"] {
        repository.stage_new(role, Targets::new(expires(role)))?;
    }
    let told = format!("repository {} in {}", repository.id, arguments.common.repo.display());
    Ok((arguments.common, vec![told]))
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

fn roll_out(arguments: RolloutArguments) -> Result<(Common, Vec<String>), Failure> {
    let RolloutArguments { model, version, channel, percent, label, attempt, common } = arguments;
    let repository = Repository::open(&common.repo, now())?;
    let target = release_path(model.as_str(), &version);
    let mut roles = repository.delegated()?;
    roles.retain(|role| role != "rollout");
    if !roles.iter().any(|role| known(&repository, role, &target).is_ok()) {
        return Err(Failure(format!("no release {target}; add it first")));
    }
    let path = rollout_path(model.as_str());
    let mut rollout = repository.rollout(&path)?.unwrap_or_else(|| Rollout {
        v: VERSION,
        model: model.clone(),
        channels: std::collections::BTreeMap::new(),
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
    let told = format!("{model} {version}: {percent} % of channel {channel}, attempt {attempt}");
    Ok((common, vec![told]))
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

impl Repository {
    /// The roll-out document as staged or published.
    fn rollout(&self, path: &str) -> Result<Option<Rollout>, Failure> {
        let document = self.latest::<Targets>("rollout")?;
        let Some(target) = document.signed().targets.get(path) else { return Ok(None) };
        let mut content = package::Content::new();
        self.content(path, target, &mut content)?;
        let bytes = content.into_values().next().unwrap_or_default();
        Rollout::parse(&bytes).map(Some).map_err(|error| Failure(error.to_string()))
    }

    /// Takes the signatures of a copy over.
    fn merge(&self, copy: &Path) -> Result<(), Failure> {
        let name = copy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A copy may carry a note of who signed: `releases.anna.json`.
        let role = name.split('.').next().unwrap_or_default();
        match role {
            "root" => self.merge_as::<Root>(role, copy),
            _ => self.merge_as::<Targets>(role, copy),
        }
    }

    fn merge_as<T: Role>(&self, role: &str, copy: &Path) -> Result<(), Failure> {
        let Some(mut own) = self.staged::<T>(role)? else {
            return Err(Failure(format!("{}: no change of {role} is staged", copy.display())));
        };
        let other: Document<T> = Self::parse(copy)?;
        own.merge(&other).map_err(|error| Failure(format!("{}: {error}", copy.display())))?;
        self.save(role, &own)
    }

    /// Whether keys of both online roles are given and everything else is published.
    fn can_refresh(&self, keys: &[SigningKey]) -> Result<bool, Failure> {
        let Some(root) = self.newest::<Root>("root")? else { return Ok(false) };
        let has = |role: &str| {
            let allowed = &root.signed().roles[role].keyids;
            keys.iter().any(|key| allowed.contains(&key.public().id()))
        };
        if !has("snapshot") || !has("timestamp") || self.newest::<Targets>("targets")?.is_none() {
            return Ok(false);
        }
        Ok(self.published_delegated()?.iter().all(|role| !self.versions(role).is_empty()))
    }

    fn status(&self) -> Result<Vec<String>, Failure> {
        let mut lines = vec![format!("repository {}", self.id)];
        let mut line = |role: &str, version: u64, expires: DateTime| {
            let over = if expires <= self.now { "  EXPIRED" } else { "" };
            lines.push(format!("{role:<12} version {version:<4} until {expires}{over}"));
        };
        if let Some(root) = self.newest::<Root>("root")? {
            line("root", root.signed().version.get(), root.signed().expires);
        }
        if let Some(one) = self.newest::<Timestamp>("timestamp")? {
            line("timestamp", one.signed().version.get(), one.signed().expires);
        }
        if let Some(one) = self.newest::<Snapshot>("snapshot")? {
            line("snapshot", one.signed().version.get(), one.signed().expires);
        }
        let delegated = self.delegated()?;
        for role in std::iter::once("targets").chain(delegated.iter().map(String::as_str)) {
            if let Some(one) = self.newest::<Targets>(role)? {
                line(role, one.signed().version.get(), one.signed().expires);
            }
        }
        for role in delegated.iter().filter(|role| *role != "rollout") {
            for path in self.latest::<Targets>(role)?.signed().targets.keys() {
                lines.push(format!("release      {path} ({role})"));
            }
        }
        for path in self.latest::<Targets>("rollout")?.signed().targets.keys() {
            let Some(rollout) = self.rollout(path)? else { continue };
            for (channel, entries) in &rollout.channels {
                for RolloutEntry { target, percent, attempt, .. } in entries {
                    lines.push(format!(
                        "roll-out     {channel}: {percent} % {target}, attempt {attempt}"
                    ));
                }
            }
        }
        // Signing with no key only tells what is missing.
        lines.extend(self.sign(&[])?.into_iter().map(|told| format!("staged       {told}")));
        Ok(lines)
    }
}
