//! The record of the slots: which one is trusted, what is on trial, what was accepted and rejected. One file, replaced whole.
//!
//! A record that cannot be read is kept aside, and a new one is made of the slots that hold a whole package. The file `confirmed`
//! has the digest of the trusted package a second time, so that the model that ran is found again.

use std::collections::VecDeque;
use std::io;

use ocelli_protocol::Id;
use ocelli_protocol::manifest::MAX_PACKAGE_BYTES;
use ocelli_protocol::model_state::LastUpdate;
use ocelli_protocol::repository::Digest;
use serde::{Deserialize, Serialize};

use super::{Candidate, OnTrial, Slot};
use crate::model::disk::{Disk, replace};
use crate::model::{Package, Sha256};

const RECORD: &str = "record.json";
/// The last record that could not be read.
const BAD: &str = "record.json.bad";
/// Digest of the package that is trusted.
const CONFIRMED: &str = "confirmed";
const MAX_RECORD_BYTES: u64 = 128 * 1024;
/// Rejections remembered; the oldest give way.
const MOST_REJECTIONS: usize = 32;
/// Versions whose package is remembered; the oldest give way.
const MOST_ACCEPTED: usize = 64;

/// A package that failed, not to be tried again in the same attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rejection {
    sha256: Digest,
    attempt: u32,
    reason: String,
}

/// The package that a version stands for on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Accepted {
    version: String,
    sha256: Digest,
}

/// See the module. Fields that a newer agent adds are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    v: u32,
    model: Id,
    pub(super) confirmed: Option<Slot>,
    pub(super) trial: Option<OnTrial>,
    pub(super) a: Option<Candidate>,
    pub(super) b: Option<Candidate>,
    rejected: VecDeque<Rejection>,
    #[serde(default)]
    accepted: VecDeque<Accepted>,
    pub(super) last: Option<LastUpdate>,
}

impl Record {
    fn new(model: Id) -> Self {
        let (rejected, accepted) = (VecDeque::new(), VecDeque::new());
        let (confirmed, trial, a, b, last) = (None, None, None, None, None);
        Self { v: 1, model, confirmed, trial, a, b, rejected, accepted, last }
    }

    pub(super) fn held(&mut self, slot: Slot) -> &mut Option<Candidate> {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }

    /// Why a package was rejected in this attempt, if it was.
    pub(super) fn rejection(&self, candidate: &Candidate) -> Option<&str> {
        let same =
            |one: &&Rejection| one.sha256 == candidate.sha256 && one.attempt == candidate.attempt;
        self.rejected.iter().find(same).map(|one| one.reason.as_str())
    }

    pub(super) fn reject(&mut self, candidate: &Candidate, reason: &str) {
        let (sha256, attempt) = (candidate.sha256, candidate.attempt);
        self.rejected.retain(|one| (one.sha256, one.attempt) != (sha256, attempt));
        self.rejected.push_back(Rejection { sha256, attempt, reason: reason.to_owned() });
        while self.rejected.len() > MOST_REJECTIONS {
            self.rejected.pop_front();
        }
    }

    /// The package that a version stands for.
    pub(super) fn accepted(&self, version: &str) -> Option<Digest> {
        self.accepted.iter().find(|one| one.version == version).map(|one| one.sha256)
    }

    /// From now on the version stands for this package.
    pub(super) fn accept(&mut self, candidate: &Candidate) {
        if self.accepted(&candidate.version).is_none() {
            let (version, sha256) = (candidate.version.clone(), candidate.sha256);
            self.accepted.push_back(Accepted { version, sha256 });
        }
        while self.accepted.len() > MOST_ACCEPTED {
            self.accepted.pop_front();
        }
    }

    /// Replaces the file.
    pub(super) fn store(&self, disk: &mut dyn Disk) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).expect("a record is a tree of plain values");
        replace(disk, RECORD, &bytes)
    }

    fn trusted(&self) -> Option<Digest> {
        let candidate = match self.confirmed? {
            Slot::A => self.a.as_ref(),
            Slot::B => self.b.as_ref(),
        };
        candidate.map(|candidate| candidate.sha256)
    }
}

/// Writes down a second time which package is trusted.
pub(super) fn mark(disk: &mut dyn Disk, record: &Record) -> io::Result<()> {
    let Some(trusted) = record.trusted().filter(|trusted| marked(disk) != Some(*trusted)) else {
        return Ok(());
    };
    replace(disk, CONFIRMED, trusted.to_string().as_bytes())
}

fn marked(disk: &dyn Disk) -> Option<Digest> {
    let bytes = disk.read(CONFIRMED, 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

/// The record of a folder; and what was wrong with it, and was done.
pub(super) fn open(disk: &mut dyn Disk, model: &Id) -> (Record, Option<String>) {
    let read = disk.read(RECORD, MAX_RECORD_BYTES);
    let wrong = match &read {
        Ok(bytes) => match serde_json::from_slice::<Record>(bytes) {
            Ok(record) if record.v == 1 && record.model == *model => {
                return (completed(disk, record), None);
            }
            Ok(record) if record.v == 1 => {
                log::info!("update: the slots hold {}, followed is {model}", record.model);
                return (Record::new(model.clone()), None);
            }
            Ok(record) => format!("it has version {}, known is 1", record.v),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => match marked(disk) {
            Some(_) => "it is gone".to_owned(),
            None => return (Record::new(model.clone()), None),
        },
        Err(error) => error.to_string(),
    };
    let record_was_there = !matches!(&read, Err(error) if error.kind() == io::ErrorKind::NotFound);
    let kept = match &read {
        Ok(bytes) => replace(disk, BAD, bytes),
        Err(_) if !record_was_there => Ok(()),
        Err(_) => disk.rename(RECORD, BAD).and_then(|()| disk.sync_folder("")),
    };
    let record = restored(disk, model);
    // What cannot be written now is written with the next change; until then each start does this again.
    let written = kept.and_then(|()| record.store(disk));
    let told = |candidate: &Option<Candidate>| {
        candidate.as_ref().map_or("nothing".to_owned(), Candidate::title)
    };
    let runs = record.trusted().map_or("the configured model", |_| "the trusted one");
    let (a, b) = (told(&record.a), told(&record.b));
    let aside = if record_was_there { format!(", it is kept as {BAD}") } else { String::new() };
    let mut text =
        format!("{RECORD} is lost ({wrong}){aside}; slot a holds {a}, b {b}, {runs} runs");
    if let Err(error) = written {
        text = format!("{text}; {error}");
    }
    (record, Some(text))
}

/// What an older agent did not write down.
fn completed(disk: &mut dyn Disk, mut record: Record) -> Record {
    for candidate in [record.a.clone(), record.b.clone()].into_iter().flatten() {
        record.accept(&candidate);
    }
    if let Err(error) = mark(disk, &record) {
        log::debug!("update: {error}");
    }
    record
}

/// A record of what the slots hold. Only what was trusted before is trusted; everything else has to pass its trial again.
fn restored(disk: &dyn Disk, model: &Id) -> Record {
    let mut record = Record::new(model.clone());
    let trusted = marked(disk);
    for slot in [Slot::A, Slot::B] {
        let Some(candidate) = whole(disk, slot, model) else { continue };
        if trusted == Some(candidate.sha256) {
            record.confirmed = Some(slot);
        }
        record.accept(&candidate);
        *record.held(slot) = Some(candidate);
    }
    record
}

/// The package in a slot's file, if it is a valid one of this model, byte for byte as it was signed: canonical.
fn whole(disk: &dyn Disk, slot: Slot, model: &Id) -> Option<Candidate> {
    let bytes = disk.read(slot.file(), MAX_PACKAGE_BYTES).ok()?;
    let package = Package::read_tar(&bytes[..], slot.file()).ok()?;
    let (id, found) = (package.spec().id(), Sha256::of(&bytes));
    let fits = id.name == model.as_str() && package.spec().sha256() == found;
    let (sha256, length) = (Digest(found.0), bytes.len() as u64);
    let (model, version) = (model.clone(), id.version.clone());
    fits.then_some(Candidate { model, version, sha256, length, attempt: 0 })
}
