//! Signed model updates: what a repository offers, what is fetched, tried, trusted or taken back.
//!
//! ```text
//! head, timestamp -> TUF -> roll-out -> chunks -> checked package -> slot -> trial -> swap -> probation -> confirmed
//! ```
//! [`Session`] decides everything and keeps its state through the [`crate::model::disk::Disk`] port. It knows neither the
//! broker nor processes nor the clock: events and the time come in, actions go out. Whoever can write to the broker can delay an
//! update, and nothing else.

mod check;
mod chunks;
mod floods;
mod limits;
mod mailbox;
mod quote;
mod session;
#[cfg(test)]
mod tests;
mod time;
pub mod trial;

use std::io;
use std::time::{Duration, Instant};

use ocelli_protocol::Id;
use ocelli_protocol::repository::{Digest, DocumentError};
use ocelli_tuf::{DateTime, Limits, Refresh};
use serde_json::Value;

use crate::clock::UnixTime;
use crate::model::slots::{Slot, StageError};

pub(crate) use floods::Floods;
pub(crate) use quote::in_short;
pub use session::Session;
pub use time::RELEASED;

/// Folder of metadata below the update folder.
pub const METADATA_FOLDER: &str = "meta";

/// Whether these bytes are root metadata that an update can begin with.
///
/// # Errors
/// [`Error::Tuf`]
pub fn verify_root(bytes: &[u8]) -> Result<(), Error> {
    Refresh::start(bytes, DateTime::from_unix_seconds(0), Limits::default())?;
    Ok(())
}

/// What a device follows, and how careful it is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// First levels of every topic.
    pub topic_root: String,
    /// Repository.
    pub repo: Id,
    /// Model.
    pub model: Id,
    /// Channel of the roll-out.
    pub channel: Id,
    /// Name of the device.
    pub device: Id,
    /// Labels of the device.
    pub labels: Vec<Id>,
    /// The root metadata that came with the device.
    pub first_root: Vec<u8>,
    /// What an unsynchronised clock means.
    pub clock: ClockRule,
    /// How long a new model is watched.
    pub probation: Probation,
}

/// What an unsynchronised clock means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockRule {
    /// Expiry is checked against the newest time that metadata proved.
    UseFloor,
    /// No update.
    Refuse,
}

/// How long a new model is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probation {
    /// Frames without fault.
    pub frames: u64,
    /// At least this long.
    pub time: Duration,
    /// After this time it is trusted also with fewer frames: a camera that is away must not block later updates.
    pub longest: Duration,
}

impl Default for Probation {
    fn default() -> Self {
        let [time, longest] = [60, 3600].map(Duration::from_secs);
        Self { frames: 100, time, longest }
    }
}

/// The time, as an argument.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For timeouts.
    pub now: Instant,
    /// Time of day.
    pub wall: UnixTime,
    /// Whether the system says that the time of day is right.
    pub clock: Clock,
}

/// Whether the time of day is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The system says so.
    Synchronised,
    /// Nobody says so.
    Unverified,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Time passed; at least every second.
    Tick,
    /// The session with the broker began.
    Connected,
    /// It ended.
    Disconnected,
    /// A message of the repository arrived.
    Message {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// The broker answered a subscription.
    Subscribed {
        /// The filter.
        filter: String,
        /// Whether messages will come.
        granted: bool,
    },
    /// The child process ended: the trial was passed, or why not.
    Tried(Result<(), trial::Failure>),
    /// The model asked for by [`Action::Run`], a package with this digest, looks at frames; or why it does not.
    Running(Result<Digest, String>),
    /// How the model on probation does.
    Sample(Sample),
    /// An operator wants to know now.
    CheckNow,
    /// Messages were dropped on their way here: more came than there is room for.
    Dropped,
}

/// How the model on probation does, since it took over.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Frames with findings.
    pub finished: u64,
    /// Frames that failed or panicked.
    pub faults: u64,
    /// 90th percentile of inference time, once there are enough frames.
    pub p90: Option<Duration>,
    /// Longest 90th percentile allowed.
    pub budget: Option<Duration>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Subscribe to a topic of the repository.
    Subscribe(String),
    /// No longer.
    Unsubscribe(String),
    /// Try a slot's package in a child process; answer with [`Event::Tried`].
    Try(Slot),
    /// End the child process; no answer.
    StopTrial,
    /// Load a slot's model (`None`: the configured one) and let it look at frames; answer with [`Event::Running`].
    Run(Option<Slot>),
    /// The state changed: publish it.
    Tell,
    /// Put a row into the audit log.
    Audit {
        /// Whom or what it concerns.
        subject: String,
        /// What was decided, and why.
        detail: Value,
    },
}

/// Why an update does not go on. All of these are tried again; none touches the model that runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Metadata or a target is not what trusted keys signed.
    #[error("{0}")]
    Tuf(#[from] ocelli_tuf::Error),
    /// A document of the repository is malformed.
    #[error("{0}")]
    Document(#[from] DocumentError),
    /// The disk failed.
    #[error("storage: {0}; free space or replace the disk")]
    Disk(#[from] io::Error),
    /// The broker does not have what the metadata names.
    #[error("the broker has no {topic}, or does not let this device read it; run ocelctl push")]
    Absent {
        /// The topic.
        topic: String,
    },
    /// What the broker has under a digest is something else.
    #[error("the broker's {topic} is not what its name says; run ocelctl push")]
    Damaged {
        /// The topic.
        topic: String,
    },
    /// The broker does not let this device read the repository.
    #[error("the broker refuses {topic}; allow this device to read the repository")]
    Refused {
        /// The topic.
        topic: String,
    },
    /// `require_clock` and no synchronised clock.
    #[error("the clock is not synchronised and update.require_clock is set")]
    Clock,
    /// The signed release is not one that this agent understands.
    #[error("release {path}: {reason}")]
    Release {
        /// Path of the target.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The package is not what its release says.
    #[error("{0}")]
    Stage(#[from] StageError),
    /// What lay on this device's disk was damaged after it was verified.
    #[error("{file} was damaged on this device's disk; what is damaged is fetched again")]
    Spoiled {
        /// The file.
        file: &'static str,
    },
    /// The device could not try the package. Of the package nothing is known.
    #[error("retry later: {0}")]
    Local(String),
    /// Messages of the repository were dropped because more came than the device takes.
    #[error(
        "no {topic} came, and other messages were dropped: more arrive than this device takes; find who publishes so many"
    )]
    Flooded {
        /// The topic.
        topic: String,
    },
}

impl Error {
    /// Which refusals share rows of the audit log.
    fn kind(&self) -> &'static str {
        match self {
            Self::Tuf(ocelli_tuf::Error::Format { .. }) => "malformed",
            Self::Tuf(ocelli_tuf::Error::Threshold { .. }) => "unsigned",
            Self::Tuf(ocelli_tuf::Error::Rollback { .. }) => "rollback",
            Self::Tuf(ocelli_tuf::Error::Expired { .. }) => "expired",
            Self::Tuf(_) => "metadata",
            Self::Document(_) => "document",
            Self::Disk(_) => "storage",
            Self::Absent { .. } => "absent",
            Self::Damaged { .. } => "damaged",
            Self::Refused { .. } => "refused",
            Self::Clock => "clock",
            Self::Release { .. } => "release",
            Self::Stage(_) => "package",
            Self::Spoiled { .. } => "storage",
            Self::Local(_) => "trial",
            Self::Flooded { .. } => "flood",
        }
    }
}
