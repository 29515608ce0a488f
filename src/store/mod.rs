//! What survives a power cut: the outbox, results kept for queries, and the audit log, in one SQLite file on a
//! thread of its own.
//!
//! Callers never wait for the disk: commands go over a bounded channel, answers come by callback. The thread
//! gathers commands for at most [`Settings::group_commit`] and commits them in one transaction.
//! Only files below `src/store/` name SQLite.

mod audit;
mod database;
mod lock;
mod outbox;
mod recovery;
mod results;
mod sequence;
#[cfg(test)]
mod tests;
mod thread;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ocelli_protocol::message::GapReason;

use crate::clock::UnixTime;

pub use audit::{AuditEntry, AuditHead, AuditRow};
pub use lock::FolderLock;
pub use recovery::{HighWater, Ledger, account, unaccounted};
pub use results::{ResultLimits, ResultQuery, ResultRow};
pub use thread::{Store, start};

/// File name of the database in [`Settings::dir`].
pub const DATABASE_FILE: &str = "ocelli.db";
/// File name of the second copy of the sequence high-water mark in [`Settings::dir`].
pub const SEQUENCE_FILE: &str = "sequence";

/// How the store works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the database; made when it is absent.
    pub dir: PathBuf,
    /// Longest time that a command waits for others to share its commit.
    pub group_commit: Duration,
    /// Results kept for queries; `None` keeps none.
    pub results: Option<ResultLimits>,
}

impl Settings {
    /// A store in `dir` that commits after at most 10 ms and keeps no results for queries.
    #[must_use]
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), group_commit: Duration::from_millis(10), results: None }
    }
}

/// A result waiting for the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its number.
    pub seq: u64,
    /// When it entered the outbox.
    pub at: UnixTime,
    /// Topic to publish on.
    pub topic: Arc<str>,
    /// JSON.
    pub payload: Arc<[u8]>,
}

/// Numbers `from..=to` that will not come. Two gaps never share a number; `from` names the gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapRow {
    /// First number.
    pub from: u64,
    /// Last number.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// One step of the outbox, committed whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Results to keep.
    pub append: Vec<OutboxRow>,
    /// Results delivered or dropped.
    pub delete: Vec<u64>,
    /// Gaps to announce; one with a known `from` replaces it.
    pub put_gaps: Vec<GapRow>,
    /// Gaps acknowledged by the broker, by `from`.
    pub delete_gaps: Vec<u64>,
    /// Every number given so far, or allowed to be given, is at most this.
    pub reserved: u64,
    /// Every number up to this is delivered, a row, or in a gap, once this batch is committed.
    pub mark: u64,
    /// Every number up to this is delivered, or in a gap that was acknowledged: rows are not counted.
    pub settled: u64,
    /// Bound written to the second file first; at least `reserved`.
    pub ceiling: u64,
}

/// What became of a [`Batch`].
#[derive(Debug)]
pub struct Applied {
    /// Committed and on the disk, or not done at all.
    pub outcome: Result<(), StoreError>,
    /// Numbers up to this will never be given again, even when `outcome` is an error.
    pub ceiling: u64,
    /// What the database holds of earlier runs, when it could not be opened at the start and now is.
    pub found: Option<Recovered>,
}

/// What the store held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// First number that was never given.
    pub next_seq: u64,
    /// Whether `next_seq` is sure; when not, nothing could be read, and the clock has to serve.
    pub known: bool,
    /// Gaps not yet acknowledged, among them those found now.
    pub gaps: Vec<GapRow>,
    /// Results waiting.
    pub rows: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Number of the first result waiting.
    pub first_row: Option<u64>,
    /// Number of the last result waiting.
    pub last_row: Option<u64>,
    /// For the log: what was repaired, moved aside or cannot be used.
    pub notes: Vec<String>,
}

/// Why the store did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A newer agent wrote the database. It is left as it is.
    #[error(
        "{path} has schema {found}, this agent knows {known}; start the newer agent again or move the file away"
    )]
    Newer {
        /// The database.
        path: String,
        /// Schema version in the file.
        found: i64,
        /// Newest schema that this agent knows.
        known: i64,
    },
    /// The disk is full, read-only or broken. Nothing was changed; trying again later may help.
    #[error("store {path}: {detail}; the agent goes on in memory and tries again")]
    Unavailable {
        /// The database.
        path: String,
        /// What the system said, and what to do.
        detail: String,
    },
    /// The database was damaged. It was moved aside, and an empty one took its place.
    #[error("store {path} was damaged ({detail}); it was moved to {kept} and a new one started")]
    Lost {
        /// The database.
        path: String,
        /// What SQLite said.
        detail: String,
        /// Where the damaged file is now.
        kept: String,
    },
    /// Another agent works in the folder.
    #[error(
        "{folder} is used by another agent{holder}; end that one, or give each agent a store.dir of its own"
    )]
    InUse {
        /// The folder.
        folder: String,
        /// ` (process N)`, where it is known.
        holder: String,
    },
    /// Too many commands wait already.
    #[error("the store is busy; try again")]
    Busy,
}
