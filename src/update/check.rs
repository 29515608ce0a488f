//! One look at the repository: refresh the metadata, find the roll-out, choose an entry, find its package and its index.
//! Says what it needs from the broker; everything else it does through the disk.

use std::io;

use ocelli_protocol::manifest::MAX_PACKAGE_BYTES;
use ocelli_protocol::repository::{
    ChunkIndex, Digest, Head, MAX_CHUNK_BYTES, Release, Rollout, RolloutEntry, release_path,
    rollout_path,
};
use ocelli_protocol::topic::RepoTopics;
use ocelli_tuf::{
    Action, Answer, DateTime, Error as TufError, Limits, Progress, Refresh, Search, Target,
    TargetPath, Trusted,
};

use crate::model::Sha256;
use crate::model::disk::{Disk, remove, replace};
use crate::model::slots::Candidate;
use crate::update::{Error, METADATA_FOLDER, Settings};

/// Longest version of a package: it is kept in the record.
const MAX_VERSION_BYTES: usize = 128;

/// What is known without asking.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The hint.
    pub(super) head: Option<Head>,
    /// The newest `timestamp.json`.
    pub(super) timestamp: Option<Vec<u8>>,
}

/// What the repository wants of this device.
#[derive(Debug)]
pub(super) enum Choice {
    /// Nothing, for the reason given.
    Nothing(String),
    /// This package.
    Package(Candidate, Release),
}

/// A step of the look.
#[derive(Debug)]
pub(super) enum Look {
    /// A message of this topic, at most so many bytes.
    Needs { topic: String, max_bytes: u64 },
    /// The end.
    Chose(Choice),
}

#[derive(Debug)]
enum Step {
    Refresh(Box<Refresh>),
    SearchRollout(Box<Search>, Box<Trusted>),
    Rollout(Box<Target>, Box<Trusted>),
    SearchPackage(Box<Search>, RolloutEntry),
    Over,
}

/// One look at the repository.
#[derive(Debug)]
pub(super) struct Check {
    topics: RepoTopics,
    step: Step,
    root_file: Option<u64>,
    /// Version of the root that this look ended with, once it is known.
    pub(super) root: Option<u64>,
}

impl Check {
    /// Begins with the stored root, or the one that came with the device.
    pub(super) fn start(
        settings: &Settings,
        disk: &dyn Disk,
        now: DateTime,
    ) -> Result<Self, Error> {
        let limits = Limits::default();
        let stored = disk.read(&stored("root.json"), limits.root_bytes).ok();
        // A worn disk must not end all updates: the first root leads to every later one.
        let begun = stored.and_then(|root| Refresh::start(&root, now, limits).ok());
        let refresh =
            begun.map_or_else(|| Refresh::start(&settings.first_root, now, limits), Ok)?;
        let topics = RepoTopics::new(&settings.topic_root, &settings.repo);
        Ok(Self { topics, step: Step::Refresh(Box::new(refresh)), root_file: None, root: None })
    }

    /// Goes on as far as possible.
    pub(super) fn drive(
        &mut self,
        settings: &Settings,
        disk: &mut dyn Disk,
        watch: &Watch,
    ) -> Result<Look, Error> {
        loop {
            let action = match &self.step {
                Step::Refresh(refresh) => refresh.action(),
                Step::SearchRollout(search, _) | Step::SearchPackage(search, _) => search.action(),
                Step::Rollout(target, _) => {
                    let (topic, max_bytes) = (self.topics.chunk(&digest(target)?), target.length());
                    return Ok(Look::Needs { topic, max_bytes });
                }
                Step::Over => return Ok(Look::Chose(Choice::Nothing("it is over".to_owned()))),
            };
            let answer = match action {
                Action::Load { file } => load(disk, &file)?,
                Action::Persist { file, bytes } => {
                    replace(disk, &stored(&file), bytes)?;
                    Answer::Done
                }
                Action::Remove { file } => {
                    remove(disk, &stored(&file))?;
                    Answer::Done
                }
                Action::Fetch { file, max_bytes } => match at_hand(&file, watch) {
                    Some(answer) => answer,
                    None => {
                        self.root_file = root_version(&file);
                        return Ok(Look::Needs { topic: self.topics.metadata(&file), max_bytes });
                    }
                },
            };
            if let Some(choice) = self.take(settings, answer)? {
                return Ok(Look::Chose(choice));
            }
        }
    }

    /// The broker's answer to [`Look::Needs`]; [`Self::drive`] goes on.
    pub(super) fn came(
        &mut self,
        settings: &Settings,
        topic: &str,
        bytes: Option<Vec<u8>>,
    ) -> Result<Option<Choice>, Error> {
        let answer = match bytes {
            Some(bytes) => Answer::Bytes(bytes),
            // The chain of roots ends where there is no next one.
            None if self.root_file.is_some() => Answer::Absent,
            None => return Err(Error::Absent { topic: topic.to_owned() }),
        };
        self.root_file = None;
        self.take(settings, answer)
    }

    fn take(&mut self, settings: &Settings, answer: Answer) -> Result<Option<Choice>, Error> {
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Refresh(refresh) => match refresh.answer(answer)? {
                Progress::Continue(refresh) => self.step = Step::Refresh(Box::new(refresh)),
                Progress::Done(trusted) => {
                    self.root = Some(trusted.root().version.get());
                    let path: TargetPath = rollout_path(settings.model.as_str()).parse()?;
                    match found(Search::start(&trusted, &path))? {
                        None => return Ok(Some(no_rollout(settings))),
                        Some(Progress::Continue(search)) => {
                            self.step = Step::SearchRollout(Box::new(search), Box::new(trusted));
                        }
                        Some(Progress::Done(target)) => {
                            self.step = Step::Rollout(Box::new(target), Box::new(trusted));
                        }
                    }
                }
            },
            Step::SearchRollout(search, trusted) => match found(search.answer(answer))? {
                None => return Ok(Some(no_rollout(settings))),
                Some(Progress::Continue(search)) => {
                    self.step = Step::SearchRollout(Box::new(search), trusted);
                }
                Some(Progress::Done(target)) => {
                    self.step = Step::Rollout(Box::new(target), trusted);
                }
            },
            Step::Rollout(target, trusted) => {
                let Answer::Bytes(bytes) = answer else { return Ok(None) };
                target.verify(&bytes)?;
                let rollout = Rollout::parse(&bytes)?;
                let entry = match choose(settings, &rollout) {
                    Ok(entry) => entry,
                    Err(why) => return Ok(Some(Choice::Nothing(why))),
                };
                let path: TargetPath = entry.target.parse()?;
                return self.search_package(Search::start(&trusted, &path), entry, settings);
            }
            Step::SearchPackage(search, entry) => {
                return self.search_package(search.answer(answer), entry, settings);
            }
            Step::Over => {}
        }
        Ok(None)
    }

    fn search_package(
        &mut self,
        progress: Result<Progress<Search, Target>, TufError>,
        entry: RolloutEntry,
        settings: &Settings,
    ) -> Result<Option<Choice>, Error> {
        match found(progress)? {
            None => Ok(Some(Choice::Nothing(format!("{} is withdrawn", entry.target)))),
            Some(Progress::Continue(search)) => {
                self.step = Step::SearchPackage(Box::new(search), entry);
                Ok(None)
            }
            Some(Progress::Done(target)) => package(&target, &entry, settings).map(Some),
        }
    }
}

/// The release of a target, held to what this device follows.
fn package(target: &Target, entry: &RolloutEntry, settings: &Settings) -> Result<Choice, Error> {
    let path = target.path().to_string();
    let refuse = |reason: String| Err(Error::Release { path: path.clone(), reason });
    let custom = target.custom().and_then(|custom| custom.get("ocelli"));
    let release = custom.and_then(|custom| serde_json::to_value(custom).ok());
    let release = release.map(serde_json::from_value::<Release>);
    let release = match release {
        Some(Ok(release)) => release,
        Some(Err(error)) => return refuse(format!("custom.ocelli: {error}")),
        None => return refuse("custom.ocelli is missing".to_owned()),
    };
    if release.model != settings.model {
        return refuse(format!("it is for {}, followed is {}", release.model, settings.model));
    }
    if path != release_path(release.model.as_str(), &release.version) {
        return refuse(format!("its path is not that of version {}", release.version));
    }
    if release.version.len() > MAX_VERSION_BYTES {
        return refuse(format!("its version has more than {MAX_VERSION_BYTES} characters"));
    }
    if target.length() > MAX_PACKAGE_BYTES {
        let (bytes, limit) = (target.length(), MAX_PACKAGE_BYTES);
        return refuse(format!("it has {bytes} bytes, at most {limit} are taken"));
    }
    if release.index.length > MAX_CHUNK_BYTES as u64 {
        let (bytes, limit) = (release.index.length, MAX_CHUNK_BYTES);
        return refuse(format!("its index has {bytes} bytes, at most {limit} are taken"));
    }
    let candidate = Candidate {
        model: release.model.clone(),
        version: release.version.clone(),
        sha256: digest(target)?,
        length: target.length(),
        attempt: entry.attempt,
    };
    Ok(Choice::Package(candidate, release))
}

/// The index of a release, once its bytes have come.
pub(super) fn index(
    candidate: &Candidate,
    release: &Release,
    bytes: &[u8],
) -> Result<ChunkIndex, Error> {
    let refuse = |reason: String| Error::Release { path: candidate.title(), reason };
    if bytes.len() as u64 != release.index.length || Sha256::of(bytes).0 != release.index.sha256.0 {
        return Err(refuse("what the broker has as its index is something else".to_owned()));
    }
    let index = ChunkIndex::parse(bytes)?;
    if index.length != candidate.length {
        let (signed, found) = (candidate.length, index.length);
        return Err(refuse(format!("its index makes {found} bytes, signed are {signed}")));
    }
    Ok(index)
}

/// The first entry of the channel that means this device.
fn choose(settings: &Settings, rollout: &Rollout) -> Result<RolloutEntry, String> {
    if rollout.model != settings.model {
        return Err(format!("the roll-out is for {}", rollout.model));
    }
    let Some(entries) = rollout.channels.get(&settings.channel) else {
        return Err(format!("the roll-out has no channel {}", settings.channel));
    };
    let means = |entry: &&RolloutEntry| {
        let text = [entry.salt.as_bytes(), &[0], settings.device.as_str().as_bytes()].concat();
        let hash = Sha256::of(&text).0;
        let first = hash[..8].try_into().expect("a digest has 32 bytes");
        entry.includes(first, &settings.labels)
    };
    let chosen = entries.iter().find(means);
    chosen.cloned().ok_or_else(|| "no entry of the roll-out means this device".to_owned())
}

/// No such target is an answer, not a fault.
fn found<T>(outcome: Result<T, TufError>) -> Result<Option<T>, Error> {
    match outcome {
        Ok(progress) => Ok(Some(progress)),
        Err(TufError::NoSuchTarget { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn no_rollout(settings: &Settings) -> Choice {
    Choice::Nothing(format!("there is no roll-out of {}", settings.model))
}

fn digest(target: &Target) -> Result<Digest, Error> {
    let sha256 = target.hashes().get("sha256").and_then(|text| text.parse().ok());
    sha256.ok_or_else(|| Error::Release {
        path: target.path().to_string(),
        reason: "its sha256 is missing; it names the topic".to_owned(),
    })
}

fn stored(file: &str) -> String {
    format!("{METADATA_FOLDER}/{file}")
}

fn load(disk: &dyn Disk, file: &str) -> Result<Answer, Error> {
    match disk.read(&stored(file), Limits::default().targets_bytes) {
        Ok(bytes) => Ok(Answer::Bytes(bytes)),
        // What cannot be read is fetched again; its signatures are checked all the same.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answer::Absent),
        Err(error) => {
            log::warn!("update: {file} is fetched again: {error}");
            Ok(Answer::Absent)
        }
    }
}

fn at_hand(file: &str, watch: &Watch) -> Option<Answer> {
    if file == "timestamp.json" {
        return watch.timestamp.clone().map(Answer::Bytes);
    }
    let (version, head) = (root_version(file)?, watch.head?);
    (version > head.root).then_some(Answer::Absent)
}

fn root_version(file: &str) -> Option<u64> {
    file.strip_suffix(".root.json")?.parse().ok()
}
