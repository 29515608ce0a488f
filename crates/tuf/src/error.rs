//! What can go wrong in an update, one variant for each thing the caller does differently.

use crate::DateTime;

/// Why an update cycle was aborted. Everything persisted before it stays trusted; the next cycle may succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not metadata of the expected role and form.
    #[error("{file} is malformed: {reason}")]
    Format {
        /// File it was read from.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More bytes than allowed (endless data).
    #[error("{file} is longer than {limit} bytes")]
    TooLong {
        /// File that was offered.
        file: String,
        /// Most bytes that would have been taken.
        limit: u64,
    },
    /// Another length than the signed one.
    #[error("{file} has {found} bytes, signed are {expected}")]
    Length {
        /// File that was offered.
        file: String,
        /// Signed length.
        expected: u64,
        /// Length of what came.
        found: u64,
    },
    /// Another digest than the signed one.
    #[error("{file} does not have the signed {algorithm} digest")]
    Digest {
        /// File that was offered.
        file: String,
        /// The digest that differs.
        algorithm: String,
    },
    /// Fewer good signatures than the role's threshold (arbitrary software).
    #[error("{role} has {valid} valid signatures of the {needed} it needs")]
    Threshold {
        /// Role that should have signed.
        role: String,
        /// The role's threshold.
        needed: u64,
        /// Different keys of the role with a valid signature.
        valid: u64,
    },
    /// Older than what is trusted already.
    #[error("{file} version {offered} is older than trusted {trusted}")]
    Rollback {
        /// File that went back.
        file: String,
        /// Version that was accepted before.
        trusted: u64,
        /// Version that is offered now.
        offered: u64,
    },
    /// Another version than the referring metadata says (mix and match).
    #[error("{file} has version {found}, expected is {expected}")]
    VersionMismatch {
        /// File that was offered.
        file: String,
        /// Version the referring metadata names.
        expected: u64,
        /// Version inside the file.
        found: u64,
    },
    /// A metadata file vanished from the snapshot.
    #[error("{file} is no longer in the snapshot")]
    Removed {
        /// File that was listed before.
        file: String,
    },
    /// Not valid any more at the fixed update start time (freeze).
    #[error("{file} expired at {expires}, now is {now}")]
    Expired {
        /// File that expired.
        file: String,
        /// Its expiry.
        expires: DateTime,
        /// The fixed update start time.
        now: DateTime,
    },
    /// The repository does not have a file it must have.
    #[error("the repository has no {file}")]
    Absent {
        /// File that was asked for.
        file: String,
    },
    /// A role is delegated to, but its metadata is not in the snapshot.
    #[error("{file} is not listed in the snapshot")]
    NotInSnapshot {
        /// File that the delegation needs.
        file: String,
    },
    /// No role that may speak for the path names it.
    #[error("no trusted role names the target {path}")]
    NoSuchTarget {
        /// Path that was searched.
        path: String,
    },
    /// The search met more roles, or deeper ones, than allowed.
    #[error("the search for {path} met more than {limit}")]
    DelegationLimit {
        /// Path that was searched.
        path: String,
        /// The limit, as text.
        limit: String,
    },
    /// A path that could escape the folder it is put in.
    #[error("\"{path}\" is no safe target path: {reason}")]
    UnsafePath {
        /// The path as given.
        path: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The answer does not fit the action: a fault of the caller.
    #[error("{answer} does not answer {action}")]
    OutOfTurn {
        /// What was wanted.
        action: &'static str,
        /// What was given.
        answer: &'static str,
    },
}

impl Error {
    pub(crate) fn format(file: &str, reason: impl ToString) -> Self {
        Self::Format { file: file.to_owned(), reason: reason.to_string() }
    }
}
