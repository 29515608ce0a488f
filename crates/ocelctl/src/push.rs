//! `ocelctl push` and `ocelctl prune`: a repository as retained messages. Chunks come first and the timestamp last, so that a
//! device never sees metadata whose content is not there yet. Both can be broken off and run again at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;

use ocelli_protocol::VERSION;
use ocelli_protocol::repository::Head;
use ocelli_protocol::topic::RepoTopics;
use ocelli_tuf::metadata_file;
use ocelli_tuf::schema::{Root, Snapshot, Targets, Timestamp};

use crate::connection::{Broker, Link};
use crate::repo::{Content, Held, Repository, now};
use crate::{Failure, files, written};

/// Releases whose chunks and metadata stay on the broker beside the current ones.
const RELEASES_KEPT: usize = 3;
/// Largest part of a push that is held in memory unsent, messages.
const BATCH: usize = 64;

/// Arguments of `ocelctl push`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the repository
    #[arg(long, value_name = "DIR", default_value = "repo")]
    repo: PathBuf,
    /// Push although something that every device needs has expired
    #[arg(long)]
    allow_expired: bool,
    #[command(flatten)]
    broker: Broker,
}

/// What to do with a repository that no device would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expired {
    Refuse,
    Allow,
}

/// Arguments of `ocelctl prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArguments {
    /// Folder of the repository
    #[arg(long, value_name = "DIR", default_value = "repo")]
    repo: PathBuf,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    broker: Broker,
}

/// What the broker must hold, in the order it is written.
struct Wanted {
    chunks: Vec<(String, Vec<u8>)>,
    metadata: Vec<(String, Vec<u8>)>,
    timestamp: (String, Vec<u8>),
    head: (String, Vec<u8>),
}

/// Runs `ocelctl push`.
pub(crate) async fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, now())?;
    let expired = if arguments.allow_expired { Expired::Allow } else { Expired::Refuse };
    push(&repository, expired, &arguments.broker, out).await
}

/// Tells what the push does not bring to devices, and refuses what none would take.
fn look_over(
    repository: &Repository,
    expired: Expired,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut over = Vec::new();
    for ending in repository.endings()? {
        if expired == Expired::Refuse && ending.stops_updates() {
            over.push(ending.to_string());
        } else {
            written(writeln!(out, "warning: {ending}"))?;
        }
    }
    if !over.is_empty() {
        return Err(Failure(format!(
            "no device would take this: {}; --allow-expired pushes it all the same",
            over.join("; ")
        )));
    }
    let told = repository.unpublished()?;
    if repository.newest::<Timestamp>("timestamp")?.is_none() {
        return Err(Failure(format!("nothing to push yet: {}", told.join("; "))));
    }
    told.iter().try_for_each(|line| written(writeln!(out, "warning: not pushed: {line}")))
}

/// Brings a repository to a broker and verifies what the broker then holds.
async fn push(
    repository: &Repository,
    expired: Expired,
    broker: &Broker,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    look_over(repository, expired, out)?;
    let topics = RepoTopics::new(&broker.root, &repository.id);
    let wanted = wanted(repository, &topics)?;
    let mut link = broker.connect(&[]).await?;
    let probe = topics.metadata("probe");
    not_behind(repository, &mut link, &topics).await?;
    let (mut bytes, mut messages) = (0, 0);
    let parts = [wanted.chunks, wanted.metadata, vec![wanted.timestamp], vec![wanted.head]];
    let all: usize = parts.iter().map(Vec::len).sum();
    let mut looked = 0;
    for part in parts {
        for batch in part.chunks(BATCH) {
            let missing = missing(&mut link, batch, &probe).await?;
            let mut bar = Bar { before: looked, of: all };
            link.publish_retained(&missing, |done| bar.show(done)).await?;
            if !missing.is_empty() {
                let still = self::missing(&mut link, &missing, &probe).await?;
                if let Some((topic, _)) = still.first() {
                    return Err(Failure(format!(
                        "the broker does not keep {topic}; check that it retains messages of this size and that \
                         this user may write"
                    )));
                }
            }
            bytes += missing.iter().map(|(_, payload)| payload.len()).sum::<usize>();
            messages += missing.len();
            looked += batch.len();
            written(writeln!(
                out,
                "{:>3} %  {looked} of {all} messages checked, {messages} written, {bytes} bytes",
                looked * 100 / all
            ))?;
        }
    }
    written(writeln!(
        out,
        "pushed {} to {}: {messages} messages, {bytes} bytes; {} were there already; all verified",
        repository.id,
        broker.host,
        all - messages
    ))
}

/// Progress within a batch, on a terminal only; the lines of the batches follow in any case.
struct Bar {
    before: usize,
    of: usize,
}

impl Bar {
    const WIDTH: usize = 40;

    fn show(&mut self, done: usize) {
        let mut terminal = std::io::stderr();
        if terminal.is_terminal() {
            // Nobody is left to tell when standard error is closed.
            let _ = write!(terminal, "\r{}\r", self.line(done));
        }
    }

    fn line(&self, done: usize) -> String {
        let at = (self.before + done).min(self.of);
        let filled = at * Self::WIDTH / self.of.max(1);
        format!("[{}{}] {at} of {}", "#".repeat(filled), ".".repeat(Self::WIDTH - filled), self.of)
    }
}

/// Refuses to write over, or to remove, what this folder does not know of: devices would refuse what is older, and wait.
async fn not_behind(
    repository: &Repository,
    link: &mut Link,
    topics: &RepoTopics,
) -> Result<(), Failure> {
    let probe = topics.metadata("probe");
    let mut held = Held::new();
    let mut files = repository.telling_files();
    while !files.is_empty() {
        let filters: Vec<String> = files.iter().map(|file| topics.metadata(file)).collect();
        let found = link.retained(&filters, &probe).await?;
        for (file, topic) in files.iter().zip(&filters) {
            let message = found.iter().find(|one| one.topic == *topic);
            held.extend(message.map(|one| (file.clone(), one.payload.clone())));
        }
        let snapshot = Repository::snapshot_of(&held);
        files = snapshot
            .into_iter()
            .filter(|file| !files.contains(file) && !held.contains_key(file))
            .collect();
    }
    repository.not_behind(&held)
}

/// Those messages that the broker does not hold byte for byte.
async fn missing(
    link: &mut Link,
    messages: &[(String, Vec<u8>)],
    probe: &str,
) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let filters: Vec<String> = messages.iter().map(|(topic, _)| topic.clone()).collect();
    let held = link.retained(&filters, probe).await?;
    let held: BTreeMap<_, _> = held.into_iter().map(|one| (one.topic, one.payload)).collect();
    let lacks = |(topic, payload): &&(String, Vec<u8>)| held.get(topic) != Some(payload);
    Ok(messages.iter().filter(lacks).cloned().collect())
}

fn wanted(repository: &Repository, topics: &RepoTopics) -> Result<Wanted, Failure> {
    let unpublished =
        |what: &str| Failure(format!("{what} is not published; see ocelctl repo status"));
    let timestamp =
        repository.newest::<Timestamp>("timestamp")?.ok_or_else(|| unpublished("the timestamp"))?;
    let version = timestamp.signed().snapshot().version.get();
    let snapshot = repository.version::<Snapshot>("snapshot", version)?;
    let mut content = Content::new();
    let mut files = Vec::new();
    for (file, listed) in &snapshot.signed().meta {
        let role = file.trim_end_matches(".json");
        let document = repository.version::<Targets>(role, listed.version.get())?;
        for (path, target) in &document.signed().targets {
            repository.content(path, target, &mut content)?;
        }
        files.push(document.file(role));
    }
    files.push(snapshot.file("snapshot"));
    let roots = repository.versions("root");
    // Devices begin with the first one they know: all stay.
    let mut names: Vec<String> =
        roots.iter().map(|version| format!("{version}.root.json")).collect();
    names.extend(files);
    let read = |name: &String| {
        let bytes = files::read(&repository.metadata_path(name))?;
        Ok((topics.metadata(name), bytes))
    };
    let head = Head {
        v: VERSION,
        root: roots.last().copied().ok_or_else(|| unpublished("the root"))?,
        timestamp: timestamp.signed().version.get(),
    };
    Ok(Wanted {
        chunks: content.into_iter().map(|(sha256, bytes)| (topics.chunk(&sha256), bytes)).collect(),
        metadata: names.iter().map(read).collect::<Result<_, Failure>>()?,
        timestamp: (topics.metadata("timestamp.json"), timestamp.to_bytes()),
        head: (topics.head(), serde_json::to_vec(&head).expect("a head is plain JSON")),
    })
}

/// Runs `ocelctl prune`.
pub(crate) async fn prune(arguments: PruneArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, now())?;
    let topics = RepoTopics::new(&arguments.broker.root, &repository.id);
    let kept = kept(&repository, &topics)?;
    let mut link = arguments.broker.connect(&[]).await?;
    not_behind(&repository, &mut link, &topics).await?;
    let held = link.retained(&[topics.all()], &topics.metadata("probe")).await?;
    let root = |topic: &str| topic.ends_with(".root.json");
    let mut removed = Vec::new();
    let mut bytes = 0;
    for message in held {
        if message.retained && !kept.contains(&message.topic) && !root(&message.topic) {
            bytes += message.payload.len();
            removed.push((message.topic, Vec::new()));
        }
    }
    if !arguments.dry_run {
        link.publish_retained(&removed, |_| {}).await?;
    }
    let verb = if arguments.dry_run { "would remove" } else { "removed" };
    written(writeln!(out, "{verb} {} messages, {bytes} bytes", removed.len()))
}

/// Topics that current metadata and the last releases need.
fn kept(repository: &Repository, topics: &RepoTopics) -> Result<BTreeSet<String>, Failure> {
    let mut kept = BTreeSet::from([topics.head(), topics.metadata("timestamp.json")]);
    let mut content = Content::new();
    for version in repository.versions("snapshot").iter().rev().take(RELEASES_KEPT + 1) {
        let snapshot = repository.version::<Snapshot>("snapshot", *version)?;
        kept.insert(topics.metadata(&snapshot.file("snapshot")));
        for (file, listed) in &snapshot.signed().meta {
            let role = file.trim_end_matches(".json");
            kept.insert(topics.metadata(&format!("{}.{}", listed.version, metadata_file(role))));
        }
    }
    for role in repository.delegated()?.iter().map(String::as_str).chain(["targets"]) {
        let last = repository.versions(role);
        for version in last.iter().rev().take(RELEASES_KEPT + 1) {
            let document = repository.version::<Targets>(role, *version)?;
            for (path, target) in &document.signed().targets {
                repository.content(path, target, &mut content)?;
            }
        }
    }
    for root in repository.versions("root") {
        let document = repository.version::<Root>("root", root)?;
        kept.insert(topics.metadata(&document.file("root")));
    }
    kept.extend(content.keys().map(|sha256| topics.chunk(sha256)));
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::tests::Site;

    #[test]
    fn what_has_expired_or_is_not_whole_is_told_before_anything_is_written() {
        let site = Site::signed_by(&["root", "targets", "releases", "rollout"]);
        let look = |days: u32, expired: Expired| {
            let mut out = Vec::new();
            let looked = look_over(&site.open(days), expired, &mut out);
            let told = String::from_utf8(out).unwrap();
            looked.map(|()| told.clone()).map_err(|failure| told + &failure.0)
        };
        let told = look(0, Expired::Refuse).unwrap_err();
        assert!(
            told.contains(
                "nothing to push yet: there is no snapshot, without which devices see nothing"
            ),
            "{told}"
        );
        site.run(0, &["refresh"], &["snapshot", "timestamp"]).unwrap();
        assert_eq!(look(0, Expired::Refuse).unwrap(), "");
        let told = look(5, Expired::Refuse).unwrap();
        assert!(
            told.contains("warning: timestamp ends at") && told.contains("in 2 days"),
            "{told}"
        );
        let told = look(8, Expired::Refuse).unwrap_err();
        assert!(told.contains("no device would take this: timestamp EXPIRED at"), "{told}");
        let told = look(8, Expired::Allow).unwrap();
        assert!(told.contains("warning: timestamp EXPIRED at"), "{told}");
        site.run(0, &["rotate", "releases"], &[]).unwrap();
        let told = look(0, Expired::Refuse).unwrap();
        assert!(told.contains("warning: not pushed: releases 2: staged, "), "{told}");
    }
}
