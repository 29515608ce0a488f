//! What to publish when: results through the outbox, documents of which the last one counts, answers to commands.
//!
//! [`start`] gives a [`ReporterHandle`] for the rest of the agent and a [`Reporter`] whose `run` is a task of the
//! agent's runtime. The task never waits for the disk or the network.

pub mod outbox;
mod rate;
mod reporter;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ocelli_protocol::message::{Findings, ModelId, Presence, StageLatency, Status};
use ocelli_protocol::topic::DeviceTopics;
use ocelli_protocol::{Id, VERSION};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;

use crate::clock::UnixTime;
use crate::mqtt::{Message, Refusal, Will};

pub use outbox::{Durability, OutboxSettings, OutboxState, Overflow};
pub use reporter::{Reporter, start};

/// Results that may wait for the reporter.
pub const INTAKE: usize = 64;
/// Documents, answers and requests that may wait for the reporter.
pub const CONTROL: usize = 64;
/// Received messages that may wait for the agent; more are dropped and counted.
pub const MESSAGES: usize = 64;

/// What a model found in one frame, ready to be reported.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameReport {
    /// Stream name.
    pub stream: Id,
    /// Frame number since the agent's start.
    pub frame: u64,
    /// When the frame was captured.
    pub captured_at: UnixTime,
    /// The model that ran.
    pub model: ModelId,
    /// Delegates that ran, each named once.
    pub backend: Vec<String>,
    /// Time of each stage.
    pub latency: StageLatency,
    /// What was found.
    pub findings: Findings,
}

/// How the reporter works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Device id.
    pub device: Id,
    /// Topic root, see [`ocelli_protocol::topic::DEFAULT_ROOT`].
    pub root: String,
    /// This run of the agent, see [`new_boot_id`].
    pub boot_id: String,
    /// Version of the agent.
    pub agent: String,
    /// Limits and rules of the outbox.
    pub outbox: OutboxSettings,
    /// Results a second and stream; `None` is no limit.
    pub max_rate: Option<f32>,
    /// Keep results for queries; how many is the store's setting.
    pub keep_results: bool,
    /// How long a shutdown may spend on delivering.
    pub flush: Duration,
}

impl Settings {
    /// The default outbox, no rate limit, nothing kept, 5 s to flush.
    #[must_use]
    pub fn new(device: Id, root: impl Into<String>, boot_id: impl Into<String>) -> Self {
        Self {
            device,
            root: root.into(),
            boot_id: boot_id.into(),
            agent: env!("CARGO_PKG_VERSION").into(),
            outbox: OutboxSettings::default(),
            max_rate: None,
            keep_results: false,
            flush: Duration::from_secs(5),
        }
    }

    /// Topics of this device.
    #[must_use]
    pub fn topics(&self) -> DeviceTopics {
        DeviceTopics::new(&self.root, &self.device)
    }

    /// The last will for [`crate::mqtt::Settings::will`]: status `offline`.
    #[must_use]
    pub fn will(&self, since: UnixTime) -> Will {
        Will { topic: self.topics().status(), payload: self.status(Presence::Offline, since) }
    }

    fn status(&self, state: Presence, since: UnixTime) -> Vec<u8> {
        let status = Status {
            v: VERSION,
            state,
            agent: self.agent.clone(),
            boot_id: self.boot_id.clone(),
            since: since.to_string(),
        };
        serde_json::to_vec(&status).expect("a struct of strings is JSON")
    }
}

/// A random name for one run of the agent: 16 hex digits.
#[must_use]
pub fn new_boot_id(now: UnixTime) -> String {
    let mut bytes = [0; 8];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        bytes = now.as_micros().to_be_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The connection, for health and indicators.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LinkState {
    /// The first attempt is under way.
    #[default]
    Connecting,
    /// A session is open.
    Up,
    /// Why there is none, in plain words.
    Down(Refusal),
}

/// What the reporter has done and holds, for health.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Results: waiting, delivered, dropped; gaps; whether the store takes writes.
    pub outbox: OutboxState,
    /// Messages handed to the connection, repetitions included.
    pub published: u64,
    /// Results that the rate limit held back; they got no number.
    pub rate_limited: u64,
    /// Sessions begun.
    pub sessions: u64,
    /// Received messages dropped because the agent did not take them in time.
    pub messages_dropped: u64,
    /// Answers and snapshots dropped for lack of a connection or of room.
    pub replies_dropped: u64,
    /// The connection.
    pub link: LinkState,
}

/// The reporter is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reporter has ended")]
pub struct Closed;

/// A report that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The outbox holds back (full, or the store is slow); the report got no number.
    #[error("the outbox holds back")]
    Full,
    /// The reporter is gone.
    #[error("the reporter has ended")]
    Closed,
}

enum Control {
    Latest { topic: String, payload: Vec<u8> },
    Once { topic: String, payload: Vec<u8>, qos: crate::mqtt::QoS },
    Subscribe(String),
    Unsubscribe(String),
    Rate(Id, Option<f32>),
    Shutdown,
}

/// The agent's side of the reporter. Cheap to clone.
#[derive(Clone)]
pub struct ReporterHandle {
    intake: mpsc::Sender<FrameReport>,
    control: mpsc::Sender<Control>,
    counters: Arc<Mutex<Counters>>,
}

impl fmt::Debug for ReporterHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ReporterHandle")
    }
}

impl ReporterHandle {
    /// Hands over a report; waits while the outbox holds back.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn submit(&self, report: FrameReport) -> Result<(), Closed> {
        self.intake.send(report).await.map_err(|_| Closed)
    }

    /// Hands over a report without waiting; for callers that would rather drop it. Callable from any thread.
    ///
    /// # Errors
    /// [`SubmitError::Full`] when the report was not taken.
    pub fn try_submit(&self, report: FrameReport) -> Result<(), SubmitError> {
        self.intake.try_send(report).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Full,
            mpsc::error::TrySendError::Closed(_) => SubmitError::Closed,
        })
    }

    /// Publishes a retained document with QoS 1. The last one for a topic counts; it is published again in each session.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn publish_latest(&self, topic: String, payload: Vec<u8>) -> Result<(), Closed> {
        self.send(Control::Latest { topic, payload }).await
    }

    /// Publishes an answer once, with QoS 1, if there is a session.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn reply(&self, topic: String, payload: Vec<u8>) -> Result<(), Closed> {
        self.send(Control::Once { topic, payload, qos: crate::mqtt::QoS::AtLeastOnce }).await
    }

    /// Publishes a picture once, with QoS 0, if there is a session.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn snapshot(&self, topic: String, payload: Vec<u8>) -> Result<(), Closed> {
        self.send(Control::Once { topic, payload, qos: crate::mqtt::QoS::AtMostOnce }).await
    }

    /// Receives messages of a filter, in this and later sessions. The device's commands are subscribed from the start.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn subscribe(&self, filter: String) -> Result<(), Closed> {
        self.send(Control::Subscribe(filter)).await
    }

    /// Receives messages of a filter no longer.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn unsubscribe(&self, filter: String) -> Result<(), Closed> {
        self.send(Control::Unsubscribe(filter)).await
    }

    /// Sets the rate of one stream, results a second; `None` is no limit.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    pub async fn set_rate(&self, stream: Id, max_rate: Option<f32>) -> Result<(), Closed> {
        self.send(Control::Rate(stream, max_rate)).await
    }

    /// Begins the orderly end: no more reports, deliver what can be delivered, store the rest, say goodbye.
    /// [`Reporter::run`] returns when it is done.
    ///
    /// # Errors
    /// [`Closed`] when it has ended already.
    pub async fn shutdown(&self) -> Result<(), Closed> {
        self.send(Control::Shutdown).await
    }

    /// What the reporter has done and holds.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, control: Control) -> Result<(), Closed> {
        self.control.send(control).await.map_err(|_| Closed)
    }
}

/// Events for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message on a subscribed filter.
    Message(Message),
    /// The broker answered a subscription; `granted` tells whether messages will come.
    Subscribed {
        /// The filter.
        filter: String,
        /// Whether messages will come.
        granted: bool,
    },
}
