//! Two slots for model packages, and the record that says which one is trusted: whole through any power cut.
//!
//! A slot is one file, the package's canonical tar; nothing of it is ever unpacked. New bytes gather in `incoming.tar`,
//! become a slot by one rename, and are trusted by one replacement of `record.json`. Neither the confirmed slot nor the
//! one that runs is ever written to.

mod record;

use std::io;

use ocelli_protocol::Id;
use ocelli_protocol::manifest::MAX_PACKAGE_BYTES;
use ocelli_protocol::model_state::LastUpdate;
use ocelli_protocol::repository::{ChunkIndex, Digest, MAX_CHUNK_BYTES};
use serde::{Deserialize, Serialize};

use super::disk::{Disk, remove, replace};
use super::{Package, PackageError, Sha256};
use record::Record;

/// Starts of the agent, or of a child process, that one model on trial may use up without being confirmed.
pub const MOST_STARTS: u32 = 3;
/// File in which a package gathers.
pub const INCOMING: &str = "incoming.tar";

/// One of the two places for packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// `a` or `b`, as in `model.running.slot`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// File of its package, relative to the update folder.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::A => "a.tar",
            Self::B => "b.tar",
        }
    }

    fn index_file(self) -> &'static str {
        match self {
            Self::A => "a.index",
            Self::B => "b.index",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A package that a roll-out names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Name of the model.
    pub model: Id,
    /// Version of the package.
    pub version: String,
    /// Digest of the tar.
    pub sha256: Digest,
    /// Bytes of the tar.
    pub length: u64,
    /// The roll-out's attempt.
    pub attempt: u32,
}

impl Candidate {
    /// `<name>-<version>`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{}-{}", self.model, self.version)
    }
}

/// How far a model on trial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// In a child process; the confirmed model runs.
    Trial,
    /// It looks at frames and is watched.
    Probation,
}

/// A model on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnTrial {
    /// Where it lies.
    pub slot: Slot,
    /// How far it is.
    pub stage: Stage,
    /// Child processes, then starts of the agent, that it has used up in this stage.
    pub starts: u32,
}

/// Why received bytes do not become a slot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The disk failed; trying again later may help.
    #[error("storage: {0}")]
    Disk(#[from] io::Error),
    /// Not the signed bytes.
    #[error("the package has not the signed digest: found {found}")]
    Digest {
        /// Digest of what is there.
        found: Sha256,
    },
    /// The signed bytes are no valid package.
    #[error("{0}")]
    Package(#[from] PackageError),
    /// The package says something else of itself than the release.
    #[error("the package calls itself {found}, released is {released}")]
    Mislabelled {
        /// Name and version in the manifest.
        found: String,
        /// Name and version as signed.
        released: String,
    },
    /// Valid, but not byte for byte the tar that `ocelctl` writes.
    #[error("the package is no canonical tar; pack it with ocelctl repo add")]
    NotCanonical,
}

/// A package in `incoming.tar` that passed every check. Only [`Slots::check_incoming`] makes one.
#[derive(Debug)]
pub struct Checked {
    candidate: Candidate,
    index: Vec<u8>,
}

/// The slots and their record.
#[derive(Debug)]
pub struct Slots<D> {
    disk: D,
    record: Record,
    restored: Option<String>,
}

impl<D: Disk> Slots<D> {
    /// Reads the record. One of another model is as good as none: the configured model runs. A damaged one is kept aside, and made
    /// anew of what the slots hold.
    pub fn open(mut disk: D, model: &Id) -> Self {
        let (record, restored) = record::open(&mut disk, model);
        Self { disk, record, restored }
    }

    /// What was done about a damaged record, once.
    pub fn restored(&mut self) -> Option<String> {
        self.restored.take()
    }

    /// The disk, for metadata beside the slots.
    pub fn disk(&mut self) -> &mut D {
        &mut self.disk
    }

    /// The slot that is trusted; `None`: the configured model.
    #[must_use]
    pub fn confirmed(&self) -> Option<Slot> {
        self.record.confirmed
    }

    /// The model on trial.
    #[must_use]
    pub fn on_trial(&self) -> Option<&OnTrial> {
        self.record.trial.as_ref()
    }

    /// What came of the last update.
    #[must_use]
    pub fn last(&self) -> Option<&LastUpdate> {
        self.record.last.as_ref()
    }

    /// The package that a slot holds.
    #[must_use]
    pub fn package(&self, slot: Slot) -> Option<&Candidate> {
        match slot {
            Slot::A => self.record.a.as_ref(),
            Slot::B => self.record.b.as_ref(),
        }
    }

    /// Why a package was rejected in this attempt, if it was.
    #[must_use]
    pub fn rejection(&self, candidate: &Candidate) -> Option<&str> {
        self.record.rejection(candidate)
    }

    /// What is wrong with a package whose version this device knows as another one. A version means the same for ever: another
    /// content would run where nobody rolled it out.
    #[must_use]
    pub fn contradiction(&self, candidate: &Candidate) -> Option<String> {
        let known = self.record.accepted(&candidate.version)?;
        (known != candidate.sha256).then(|| {
            format!("this device accepted another package as this version ({known}); release it as a new version and roll that out")
        })
    }

    /// Whether a slot's file is the package of the record, byte for byte.
    #[must_use]
    pub fn is_whole(&self, slot: Slot) -> bool {
        let Some(candidate) = self.package(slot) else { return false };
        let read = self.disk.read(slot.file(), MAX_PACKAGE_BYTES);
        read.is_ok_and(|bytes| Sha256::of(&bytes).0 == candidate.sha256.0)
    }

    /// A slot that already holds the package whole.
    #[must_use]
    pub fn holding(&self, sha256: &Digest) -> Option<Slot> {
        let held = |slot: &Slot| self.package(*slot).is_some_and(|one| one.sha256 == *sha256);
        [Slot::A, Slot::B].into_iter().find(|slot| held(slot) && self.is_whole(*slot))
    }

    /// Which model to start with: counts this start against a model on probation, and gives it up after too many.
    /// A damaged slot is never started; the configured model, `None`, always remains.
    ///
    /// # Errors
    /// The disk failed. Then start with the confirmed slot if it is whole.
    pub fn start(&mut self) -> io::Result<(Option<Slot>, Option<&'static str>)> {
        let mut given_up = None;
        if let Some(trial) = self.record.trial.clone()
            && trial.stage == Stage::Probation
        {
            if !self.is_whole(trial.slot) {
                // That says nothing of the package: it is fetched again.
                self.withdraw(trial.slot)?;
                given_up = Some("the slot on trial is damaged");
            } else if trial.starts >= MOST_STARTS {
                given_up = Some("the agent started too often during its probation");
            } else {
                self.count_start()?;
                return Ok((Some(trial.slot), None));
            }
        }
        if let Some(slot) = self.record.confirmed
            && !self.is_whole(slot)
        {
            self.change(|record| {
                record.confirmed = None;
                *record.held(slot) = None;
            })?;
            return Ok((None, Some("the confirmed slot is damaged")));
        }
        Ok((self.record.confirmed, given_up))
    }

    /// Which chunks of `index` lie in `incoming.tar` already; the others are copied from the slots where these hold
    /// them. The file gets the length of the package.
    ///
    /// # Errors
    /// The disk failed.
    pub fn prepare_incoming(&mut self, index: &ChunkIndex) -> io::Result<Vec<bool>> {
        self.disk.set_length(INCOMING, index.length)?;
        let sources: Vec<(Slot, ChunkIndex)> = [Slot::A, Slot::B]
            .into_iter()
            .filter_map(|slot| Some((slot, self.slot_index(slot)?)))
            .collect();
        let mut held = Vec::with_capacity(index.chunks.len());
        for (offset, chunk) in index.places() {
            let length = chunk.length as usize;
            let is_it = |bytes: &Vec<u8>| Sha256::of(bytes).0 == chunk.sha256.0;
            if self.disk.read_at(INCOMING, offset, length).is_ok_and(|bytes| is_it(&bytes)) {
                held.push(true);
                continue;
            }
            let found = sources.iter().find_map(|(slot, source)| {
                let (at, _) = source.places().find(|(_, other)| other.sha256 == chunk.sha256)?;
                self.disk.read_at(slot.file(), at, length).ok().filter(is_it)
            });
            if let Some(bytes) = &found {
                self.disk.write_at(INCOMING, offset, bytes)?;
            }
            held.push(found.is_some());
        }
        Ok(held)
    }

    /// Puts a chunk, already verified, in its place.
    ///
    /// # Errors
    /// The disk failed.
    pub fn write_chunk(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(INCOMING, offset, bytes)
    }

    /// Makes what came so far survive a power cut.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync_incoming(&mut self) -> io::Result<()> {
        self.disk.sync(INCOMING)?;
        self.disk.sync_folder("")
    }

    /// Checks that `incoming.tar` is the signed package and that the package is what its release says.
    ///
    /// # Errors
    /// [`StageError`]
    pub fn check_incoming(
        &mut self,
        candidate: &Candidate,
        index: &[u8],
    ) -> Result<Checked, StageError> {
        self.sync_incoming()?;
        let bytes = self.disk.read(INCOMING, MAX_PACKAGE_BYTES)?;
        let found = Sha256::of(&bytes);
        if found.0 != candidate.sha256.0 {
            return Err(StageError::Digest { found });
        }
        let package = Package::read_tar(&bytes[..], &format!("{}.tar", candidate.title()))?;
        let id = package.spec().id();
        if id.name != candidate.model.as_str() || id.version != candidate.version {
            return Err(StageError::Mislabelled {
                found: format!("{}-{}", id.name, id.version),
                released: candidate.title(),
            });
        }
        if package.spec().sha256() != found {
            return Err(StageError::NotCanonical);
        }
        Ok(Checked { candidate: candidate.clone(), index: index.to_vec() })
    }

    /// Whether `incoming.tar` holds each chunk of an index.
    #[must_use]
    pub fn has_incoming(&self, index: &[u8]) -> bool {
        let Ok(index) = ChunkIndex::parse(index) else { return false };
        index.places().all(|(offset, chunk)| {
            let bytes = self.disk.read_at(INCOMING, offset, chunk.length as usize);
            bytes.is_ok_and(|bytes| Sha256::of(&bytes).0 == chunk.sha256.0)
        })
    }

    /// Throws away what came so far.
    ///
    /// # Errors
    /// The disk failed.
    pub fn discard_incoming(&mut self) -> io::Result<()> {
        remove(&mut self.disk, INCOMING)
    }

    /// Moves the checked package into the slot that is not in use.
    ///
    /// # Errors
    /// The disk failed; the confirmed slot is untouched.
    pub fn stage(&mut self, checked: Checked) -> io::Result<Slot> {
        let slot = self.record.confirmed.map_or(Slot::A, Slot::other);
        // The record must not promise bytes that are about to be replaced.
        self.change(|record| {
            *record.held(slot) = None;
            record.trial = None;
        })?;
        replace(&mut self.disk, slot.index_file(), &checked.index)?;
        self.disk.rename(INCOMING, slot.file())?;
        self.disk.sync_folder("")?;
        self.change(|record| {
            record.accept(&checked.candidate);
            *record.held(slot) = Some(checked.candidate);
        })?;
        Ok(slot)
    }

    /// Begins a stage of the trial of what `slot` holds, now named by the roll-out with this attempt.
    ///
    /// # Errors
    /// The disk failed.
    pub fn begin(&mut self, slot: Slot, stage: Stage, attempt: u32) -> io::Result<()> {
        let before = self.record.trial.as_ref();
        let starts = before
            .filter(|trial| trial.slot == slot && trial.stage == stage)
            .map_or(0, |trial| trial.starts);
        self.change(|record| {
            record.trial = Some(OnTrial { slot, stage, starts });
            if let Some(candidate) = record.held(slot) {
                candidate.attempt = attempt;
            }
        })
    }

    /// Counts a start of the model on trial.
    ///
    /// # Errors
    /// The disk failed.
    pub fn count_start(&mut self) -> io::Result<()> {
        self.change(|record| {
            if let Some(trial) = &mut record.trial {
                trial.starts += 1;
            }
        })
    }

    /// Trusts the model on trial.
    ///
    /// # Errors
    /// The disk failed: it is still on trial.
    pub fn confirm(&mut self, last: LastUpdate) -> io::Result<()> {
        self.change(|record| {
            if let Some(trial) = record.trial.take() {
                record.confirmed = Some(trial.slot);
            }
            record.last = Some(last);
        })?;
        if let Err(error) = record::mark(&mut self.disk, &self.record) {
            // It is made good at the next start.
            log::warn!("update: {error}");
        }
        Ok(())
    }

    /// Ends the trial of a slot without a verdict. A damaged package is forgotten.
    ///
    /// # Errors
    /// The disk failed.
    pub fn withdraw(&mut self, slot: Slot) -> io::Result<()> {
        let whole = self.is_whole(slot);
        self.change(|record| {
            record.trial = None;
            if !whole {
                *record.held(slot) = None;
            }
        })
    }

    /// Ends the trial, if there is one, and remembers the rejection.
    ///
    /// # Errors
    /// The disk failed.
    pub fn reject(&mut self, candidate: &Candidate, last: LastUpdate) -> io::Result<()> {
        self.change(|record| {
            record.trial = None;
            record.reject(candidate, &last.reason);
            record.last = Some(last);
        })
    }

    fn slot_index(&self, slot: Slot) -> Option<ChunkIndex> {
        self.package(slot)?;
        let bytes = self.disk.read(slot.index_file(), MAX_CHUNK_BYTES as u64).ok()?;
        ChunkIndex::parse(&bytes).ok()
    }

    /// Memory and disk change together, or not at all.
    fn change(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut next = self.record.clone();
        change(&mut next);
        next.store(&mut self.disk)?;
        self.record = next;
        Ok(())
    }
}
