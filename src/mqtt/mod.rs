//! The connection to the broker, as the rest of the agent sees it: two bounded channels and plain types.
//!
//! MQTT 3.1.1 with clean sessions. Nothing is retransmitted here: a message that was not acknowledged when a session
//! ended is the sender's again. Nothing in here names the client library; see [`client`].

pub mod backoff;
pub mod client;
mod secret;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

pub use backoff::BackoffSettings;
pub use secret::{SecretError, read_password, readable_by_others};

/// Messages that may wait for the wire. Senders see a full channel and hold back.
pub const OUTGOING: usize = 128;
/// Events that may wait for the agent. The network is not read while they do.
pub const INCOMING: usize = 128;
/// Largest packet accepted: a chunk of 128 KiB, its topic, and as much again for metadata that grows.
pub const MAX_INCOMING_BYTES: usize = 256 * 1024;
/// Largest packet sent: a snapshot in JPEG.
pub const MAX_OUTGOING_BYTES: usize = 1024 * 1024;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Client id; one session at a time has it.
    pub client_id: String,
    /// Host name or address; with TLS also the name that the certificate must show.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS, unless the network is trusted.
    pub tls: Option<TlsSettings>,
    /// User name.
    pub username: Option<String>,
    /// File with the password; a line break at the end is not part of it. Read anew for every connection.
    pub password_file: Option<PathBuf>,
    /// Time between pings, at least 1 s. A dead connection is noticed within twice this time.
    pub keep_alive: Duration,
    /// Limit for name resolution, TCP, TLS and CONNACK together, and for each write.
    pub timeout: Duration,
    /// What the broker publishes, retained, when the connection breaks.
    pub will: Option<Will>,
    /// Waits between attempts.
    pub backoff: BackoffSettings,
}

impl Settings {
    /// A broker without TLS or password, 30 s keep-alive, 10 s timeout.
    #[must_use]
    pub fn new(client_id: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        Self {
            client_id: client_id.into(),
            host: host.into(),
            port,
            tls: None,
            username: None,
            password_file: None,
            keep_alive: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            will: None,
            backoff: BackoffSettings::default(),
        }
    }
}

/// TLS files, PEM. Read anew for every connection, so that a renewed certificate needs no restart.
///
/// Only the certificates in `ca` are trusted; the system's are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Certificates of the authorities that may have issued the broker's.
    pub ca: PathBuf,
    /// Certificate chain and private key of this device, where the broker asks for them.
    pub client: Option<ClientCertificate>,
}

impl TlsSettings {
    /// Reads the files as a connection would, without connecting.
    ///
    /// # Errors
    /// [`RefusalKind::Settings`] names the file and what is wrong with it.
    pub fn check(&self) -> Result<(), Refusal> {
        tls::client_config(self).map(drop)
    }
}

/// Certificate and key of this device, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Chain, own certificate first.
    pub chain: PathBuf,
    /// Private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Last will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic.
    pub topic: String,
    /// Payload; published with QoS 1, retained.
    pub payload: Vec<u8>,
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QoS {
    /// At most once.
    AtMostOnce,
    /// At least once.
    AtLeastOnce,
}

/// Whether the broker keeps the message for later subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// Number of a session, from 1. Messages of an older session are not sent.
pub type Session = u64;
/// The sender's own name for a message, returned with its acknowledgement.
pub type Token = u64;

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Topic, without wildcards.
    pub topic: Arc<str>,
    /// Payload.
    pub payload: Arc<[u8]>,
    /// Quality of service.
    pub qos: QoS,
    /// Whether it is kept.
    pub retain: Retain,
    /// Returned in [`Incoming::Acked`] with QoS 1.
    pub token: Token,
}

/// What the agent asks of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// Publish, in this session only.
    Publish(Session, Publish),
    /// Subscribe with QoS 1, in this and every later session.
    Subscribe(String),
    /// No longer.
    Unsubscribe(String),
    /// Say goodbye and end; the will is not published.
    Disconnect,
}

/// What the connection tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A session began; nothing of an earlier one is left.
    Connected(Session),
    /// The session ended, or an attempt failed.
    Disconnected(Refusal),
    /// A message arrived.
    Message(Message),
    /// The broker has taken over a message of this session.
    Acked(Token),
    /// The broker answered a subscription.
    Subscribed {
        /// The filter.
        filter: String,
        /// Whether messages will come.
        granted: bool,
    },
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Payload, at most [`MAX_INCOMING_BYTES`].
    pub payload: Vec<u8>,
    /// Sent because it was retained, not because it was just published.
    pub retained: bool,
}

/// Why there is no connection, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of trouble.
    pub kind: RefusalKind,
    /// What happened, where, and what to do.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalKind {
    /// A file of the settings is missing or unreadable.
    Settings,
    /// The host name has no address.
    UnknownHost,
    /// Nothing listens, or there is no route.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// Wrong user name or password.
    BadCredentials,
    /// The broker does not want this device.
    NotAuthorized,
    /// The broker does not want this client id.
    BadClientId,
    /// The broker is there but does not serve.
    ServiceUnavailable,
    /// The broker's certificate comes from an authority that is not trusted.
    UnknownIssuer,
    /// The broker's certificate is past its time.
    CertificateExpired,
    /// The broker's certificate is ahead of its time, or the clock behind.
    CertificateNotYetValid,
    /// The broker's certificate is for another name.
    WrongHostName,
    /// The broker's certificate is bad in another way.
    BadCertificate,
    /// The broker refuses the certificate of this device, or misses one.
    ClientCertificate,
    /// No common TLS, or no TLS at all on that port.
    Tls,
    /// A message was larger than [`MAX_INCOMING_BYTES`].
    MessageTooLarge,
    /// The connection broke.
    Broken,
}

/// The agent's end of the connection.
#[derive(Debug)]
pub struct Port {
    /// Requests, bounded.
    pub outgoing: mpsc::Sender<Outgoing>,
    /// Events, bounded; must be read always, also while `outgoing` is full.
    pub incoming: mpsc::Receiver<Incoming>,
}

/// The connection's end.
#[derive(Debug)]
pub struct Wire {
    /// Requests of the agent.
    pub outgoing: mpsc::Receiver<Outgoing>,
    /// Events for the agent.
    pub incoming: mpsc::Sender<Incoming>,
}

/// Both ends.
#[must_use]
pub fn port() -> (Port, Wire) {
    let (outgoing, requests) = mpsc::channel(OUTGOING);
    let (events, incoming) = mpsc::channel(INCOMING);
    (Port { outgoing, incoming }, Wire { outgoing: requests, incoming: events })
}
