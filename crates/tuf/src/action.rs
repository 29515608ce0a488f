//! What a state machine of the workflow wants and gets: actions, answers, and the caps on both.

use crate::Error;
use crate::check::Verified;
use crate::path::metadata_file;
use crate::schema::{MetaFile, Root, Snapshot};

/// Caps on what a hostile repository can make a client take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one `root.json` (W of §5.3.3).
    pub root_bytes: u64,
    /// Root versions in one update (Y of §5.3.3).
    pub roots: u32,
    /// Bytes of `timestamp.json` (X of §5.4.1).
    pub timestamp_bytes: u64,
    /// Bytes of `snapshot.json` (Y of §5.5.1), also if the timestamp signs a larger length.
    pub snapshot_bytes: u64,
    /// Bytes of one targets metadata file (Z of §5.6.1), also if the snapshot signs a larger length.
    pub targets_bytes: u64,
    /// Delegated roles visited in one search (§5.6.7.1).
    pub delegated_roles: usize,
    /// Delegations between the top-level targets role and the one that names the target.
    pub delegation_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            root_bytes: 256 * 1024,
            roots: 256,
            timestamp_bytes: 16 * 1024,
            snapshot_bytes: 256 * 1024,
            targets_bytes: 1024 * 1024,
            delegated_roles: 32,
            delegation_depth: 8,
        }
    }
}

/// What the workflow wants next. File names are one level each: safe in a path, a URL and a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'a> {
    /// Read a file of our own storage. Answer with its bytes or [`Answer::Absent`].
    Load {
        /// Name in storage, without a version.
        file: String,
    },
    /// Get a file from the repository, at most so many bytes. Answer with its bytes or [`Answer::Absent`].
    Fetch {
        /// Name in the repository.
        file: String,
        /// Refuse to buffer more.
        max_bytes: u64,
    },
    /// Put verified metadata into storage, durably, before answering [`Answer::Done`].
    Persist {
        /// Name in storage, without a version.
        file: String,
        /// The whole file.
        bytes: &'a [u8],
    },
    /// Remove a file from storage if it is there, durably, before answering [`Answer::Done`].
    Remove {
        /// Name in storage.
        file: String,
    },
}

/// The answer to an [`Action`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The bytes of the file.
    Bytes(Vec<u8>),
    /// There is no such file.
    Absent,
    /// It is written, or removed.
    Done,
}

/// A step further: what goes on, or what came out.
#[derive(Debug)]
#[must_use]
pub enum Progress<S, T> {
    /// There is another action.
    Continue(S),
    /// The end.
    Done(T),
}

/// A file of a role whose version the referring metadata names.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) file: String,
    pub(crate) max_bytes: u64,
}

impl Wanted {
    /// §5.5.1, §5.6.1: file name with the version under consistent snapshots; the signed length, or our own limit.
    pub(crate) fn new(
        root: &Root,
        role: &str,
        listed: &MetaFile,
        limit: u64,
    ) -> Result<Self, Error> {
        let file = match root.consistent_snapshot {
            true => format!("{}.{}", listed.version, metadata_file(role)),
            false => metadata_file(role),
        };
        match listed.length {
            Some(length) if length > limit => Err(Error::TooLong { file, limit }),
            length => Ok(Self { file, max_bytes: length.unwrap_or(limit) }),
        }
    }

    pub(crate) fn action(&self) -> Action<'static> {
        Action::Fetch { file: self.file.clone(), max_bytes: self.max_bytes }
    }

    /// What came, if it is there and not too long.
    pub(crate) fn take(self, answer: Answer) -> Result<Vec<u8>, Error> {
        match answer {
            Answer::Bytes(bytes) if bytes.len() as u64 > self.max_bytes => {
                Err(Error::TooLong { file: self.file, limit: self.max_bytes })
            }
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Absent => Err(Error::Absent { file: self.file }),
            Answer::Done => Err(out_of_turn("fetch", &answer)),
        }
    }
}

/// The snapshot's entry of a targets role.
pub(crate) fn listed<'a>(snapshot: &'a Snapshot, role: &str) -> Result<&'a MetaFile, Error> {
    let file = format!("{role}.json");
    snapshot.meta.get(&file).ok_or(Error::NotInSnapshot { file })
}

pub(crate) fn persist<'a, T>(file: &str, verified: &'a Verified<T>) -> Action<'a> {
    Action::Persist { file: file.to_owned(), bytes: verified.bytes() }
}

pub(crate) fn done(action: &'static str, answer: &Answer) -> Result<(), Error> {
    match answer {
        Answer::Done => Ok(()),
        _ => Err(out_of_turn(action, answer)),
    }
}

/// A stored file; one that is too long is as good as none.
pub(crate) fn loaded(answer: Answer, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    match answer {
        Answer::Bytes(bytes) => Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= limit)),
        Answer::Absent => Ok(None),
        Answer::Done => Err(out_of_turn("load", &answer)),
    }
}

fn out_of_turn(action: &'static str, answer: &Answer) -> Error {
    let answer = match answer {
        Answer::Bytes(_) => "bytes",
        Answer::Absent => "absent",
        Answer::Done => "done",
    };
    Error::OutOfTurn { action, answer }
}
