//! How every command reaches the broker: host, TLS, user. One copy of these options.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ocelli_protocol::topic::DEFAULT_ROOT;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, MqttOptions,
    Publish, QoS, StateError, TlsConfiguration, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Failure;

/// Largest message accepted, bytes: snapshots are the largest.
const MAX_PACKET_BYTES: usize = 8 * 1024 * 1024;
/// Messages or subscriptions under way at once.
const MOST_UNACKED: usize = 16;
/// Quiet after which a broker has sent all that it retained.
const LATE: Duration = Duration::from_millis(250);
/// Longest time without anything from the broker, pings included.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest wait for a retained message or for our own probe. A broker that does not let this user write swallows the probe.
const ECHO: Duration = Duration::from_secs(20);
/// Longest time from the first packet to the broker's answer.
const CONNECT_TIMEOUT_SECS: u64 = 10;

/// Where the broker is and who asks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Broker {
    /// Name or address of the broker
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub(crate) host: String,
    /// TCP port [default: 1883, or 8883 with --ca]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// First level of every topic, as in the devices' `mqtt.root`
    #[arg(long, default_value = DEFAULT_ROOT, value_name = "TOPIC")]
    pub(crate) root: String,
    /// PEM file with the certificates that the broker's must come from; turns TLS on
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// PEM file with this client's certificate, for brokers that ask for one
    #[arg(long, value_name = "FILE", requires_all = ["key", "ca"])]
    pub(crate) cert: Option<PathBuf>,
    /// PEM file with the key of --cert
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// User name at the broker
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE", requires = "username")]
    pub(crate) password_file: Option<PathBuf>,
}

impl Broker {
    /// A broker without TLS or user.
    pub(crate) fn plain(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port: Some(port),
            root: DEFAULT_ROOT.to_owned(),
            ca: None,
            cert: None,
            key: None,
            username: None,
            password_file: None,
        }
    }

    /// Port given, or the usual one.
    fn port(&self) -> u16 {
        self.port.unwrap_or(if self.ca.is_some() { 8883 } else { 1883 })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port())
    }

    /// Connects and subscribes to `filters`; returns when the broker confirmed both.
    pub(crate) async fn connect(&self, filters: &[String]) -> Result<Link, Failure> {
        let id = format!("ocelctl-{}-{:08x}", std::process::id(), nonce());
        let mut options = MqttOptions::new(id, &self.host, self.port());
        options.set_keep_alive(Duration::from_secs(20));
        options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
        if let Some(ca) = &self.ca {
            let identity = self.cert.as_deref().zip(self.key.as_deref());
            let config = tls_config(ca, identity)?;
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(config))));
        }
        if let Some(username) = &self.username {
            options.set_credentials(username, self.password()?);
        }
        let (client, mut events) = AsyncClient::new(options, 64);
        events.network_options.set_connection_timeout(CONNECT_TIMEOUT_SECS);
        let mut link = Link {
            client,
            events,
            filters: filters.to_vec(),
            address: self.address(),
            early: VecDeque::new(),
        };
        let ready = tokio::time::timeout(
            Duration::from_secs(2 * CONNECT_TIMEOUT_SECS),
            link.wait_until_subscribed(),
        );
        ready.await.map_err(|_| {
            Failure(format!(
                "the broker at {} does not answer; check host and port",
                self.address()
            ))
        })??;
        Ok(link)
    }

    fn password(&self) -> Result<String, Failure> {
        let Some(path) = &self.password_file else { return Ok(String::new()) };
        ocelli::mqtt::read_password(path)
            .map_err(|error| Failure(format!("{error}; see --password-file")))
    }
}

/// A connected and subscribed client.
pub(crate) struct Link {
    pub(crate) client: AsyncClient,
    events: EventLoop,
    filters: Vec<String>,
    address: String,
    /// What came before the last subscription was confirmed: retained messages of the first ones.
    early: VecDeque<Message>,
}

/// A received message.
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) retained: bool,
}

impl From<Publish> for Message {
    fn from(publish: Publish) -> Self {
        Self { topic: publish.topic, payload: publish.payload.to_vec(), retained: publish.retain }
    }
}

impl Link {
    async fn wait_until_subscribed(&mut self) -> Result<(), Failure> {
        let mut waiting = self.filters.len();
        while waiting > 0 {
            match self.events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => self.subscribe()?,
                Ok(Event::Incoming(Incoming::SubAck(answer))) => {
                    let refused = |code: &rumqttc::SubscribeReasonCode| {
                        matches!(code, rumqttc::SubscribeReasonCode::Failure)
                    };
                    if answer.return_codes.iter().any(refused) {
                        return Err(Failure(format!(
                            "the broker at {} refuses the subscription to {}; check the rights of this user",
                            self.address,
                            self.filters.join(", ")
                        )));
                    }
                    waiting -= 1;
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    self.early.push_back(publish.into());
                }
                Ok(_) => {}
                Err(error) => return Err(Failure(explain(&self.address, &error))),
            }
        }
        Ok(())
    }

    /// Publishes retained messages with QoS 1 and returns when the broker has taken all of them over. `done` is told after
    /// each.
    pub(crate) async fn publish_retained(
        &mut self,
        messages: &[(String, Vec<u8>)],
        mut done: impl FnMut(usize),
    ) -> Result<(), Failure> {
        let (mut sent, mut acked) = (0, 0);
        // Answers to pings do not count: a broker that takes nothing over still gives them.
        let mut heard = tokio::time::Instant::now();
        while acked < messages.len() {
            if let Some((topic, payload)) = messages.get(sent)
                && sent - acked < MOST_UNACKED
                && self.client.try_publish(topic, QoS::AtLeastOnce, true, payload.clone()).is_ok()
            {
                sent += 1;
                continue;
            }
            let event = tokio::time::timeout_at(heard + SILENCE, self.poll()).await;
            match event.map_err(|_| self.silent())?? {
                Event::Incoming(Incoming::PubAck(_)) => {
                    heard = tokio::time::Instant::now();
                    acked += 1;
                    done(acked);
                }
                Event::Incoming(Incoming::Publish(publish)) => {
                    self.early.push_back(publish.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the broker holds under these filters now. `probe` is a topic that this client may write to and read: its echo comes after
    /// everything that was retained.
    pub(crate) async fn retained(
        &mut self,
        filters: &[String],
        probe: &str,
    ) -> Result<Vec<Message>, Failure> {
        let mut found = Vec::new();
        for filters in filters.chunks(MOST_UNACKED) {
            let mut asked = 0;
            for filter in filters.iter().map(String::as_str).chain([probe]) {
                let told = self.client.try_subscribe(filter, QoS::AtLeastOnce);
                told.map_err(|error| Failure(format!("cannot subscribe to {filter}: {error}")))?;
                asked += 1;
            }
            let nonce = format!("{:016x}", nonce());
            let asked_for = found.len() + filters.len();
            let mut heard = tokio::time::Instant::now();
            loop {
                let event = tokio::time::timeout_at(heard + ECHO, self.poll()).await;
                let event = event.map_err(|_| self.silent())??;
                if matches!(event, Event::Incoming(Incoming::SubAck(_) | Incoming::Publish(_))) {
                    heard = tokio::time::Instant::now();
                }
                match event {
                    Event::Incoming(Incoming::SubAck(answer)) => {
                        self.granted(&answer)?;
                        asked -= 1;
                        if asked == 0 {
                            let sent = self.client.try_publish(
                                probe,
                                QoS::AtLeastOnce,
                                false,
                                nonce.clone(),
                            );
                            sent.map_err(|error| {
                                Failure(format!("cannot ask the broker: {error}"))
                            })?;
                        }
                    }
                    Event::Incoming(Incoming::Publish(publish))
                        if publish.topic == probe && *publish.payload == *nonce.as_bytes() =>
                    {
                        break;
                    }
                    Event::Incoming(Incoming::Publish(publish)) if publish.topic == probe => {}
                    Event::Incoming(Incoming::Publish(publish)) => found.push(publish.into()),
                    _ => {}
                }
            }
            // Some brokers send what they retained a moment later than what is published meanwhile.
            let wild = filters.iter().any(|filter| filter.ends_with('#'));
            while wild || found.len() < asked_for {
                match tokio::time::timeout(LATE, self.poll()).await {
                    Ok(Ok(Event::Incoming(Incoming::Publish(publish))))
                        if publish.topic != probe =>
                    {
                        found.push(publish.into());
                    }
                    Ok(event) => drop(event?),
                    Err(_) => break,
                }
            }
            for filter in filters {
                let told = self.client.try_unsubscribe(filter);
                told.map_err(|error| {
                    Failure(format!("cannot unsubscribe from {filter}: {error}"))
                })?;
            }
        }
        Ok(found)
    }

    fn granted(&self, answer: &rumqttc::SubAck) -> Result<(), Failure> {
        let refused = |code: &rumqttc::SubscribeReasonCode| {
            matches!(code, rumqttc::SubscribeReasonCode::Failure)
        };
        if answer.return_codes.iter().any(refused) {
            return Err(Failure(format!(
                "the broker at {} refuses a subscription; check the rights of this user",
                self.address
            )));
        }
        Ok(())
    }

    /// The next event; an error or a long silence ends the command, which can be run again.
    async fn poll(&mut self) -> Result<Event, Failure> {
        match tokio::time::timeout(SILENCE, self.events.poll()).await {
            Ok(Ok(event)) => Ok(event),
            Ok(Err(error)) => Err(Failure(explain(&self.address, &error))),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> Failure {
        Failure(format!(
            "the broker at {} swallows what is written; see whether this user may write, and run this again",
            self.address
        ))
    }

    fn subscribe(&self) -> Result<(), Failure> {
        for filter in &self.filters {
            let asked = self.client.try_subscribe(filter, QoS::AtLeastOnce);
            asked.map_err(|error| Failure(format!("cannot subscribe to {filter}: {error}")))?;
        }
        Ok(())
    }

    /// The next message. After a lost connection it reconnects, subscribes again and goes on: `lost` is told.
    pub(crate) async fn next(&mut self, mut lost: impl FnMut(&str)) -> Result<Message, Failure> {
        if let Some(message) = self.early.pop_front() {
            return Ok(message);
        }
        loop {
            match self.events.poll().await {
                Ok(Event::Incoming(Incoming::Publish(publish))) => return Ok(publish.into()),
                Ok(Event::Incoming(Incoming::ConnAck(_))) => self.subscribe()?,
                Ok(_) => {}
                Err(error) => {
                    lost(&explain(&self.address, &error));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// What went wrong with the connection, and what to check.
fn explain(address: &str, error: &ConnectionError) -> String {
    let text = error.to_string();
    let cure = match error {
        // With TLS 1.3 a broker refuses the client's certificate after the handshake, in the stream of packets.
        _ if text.contains("fatal alert") => {
            "check --cert and --key: the broker refuses this client's certificate, or misses one"
        }
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => "check --username and --password-file",
        ConnectionError::Tls(_) => {
            "check --ca, --cert, --key and that --host is the name in the broker's certificate"
        }
        ConnectionError::Io(_) => "check --host and --port, and that the broker runs",
        // mosquitto 2.0 hangs up on a client that writes what it may not.
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            "check the broker's log, and whether this user may write: some brokers hang up on one who may not"
        }
        _ => "check the connection options and the broker's log",
    };
    format!("broker {address}: {text}; {cure}")
}

fn tls_config(
    ca: &Path,
    identity: Option<(&Path, &Path)>,
) -> Result<rustls::ClientConfig, Failure> {
    let bad = |path: &Path, detail: String| {
        Failure(format!("{}: {detail}; expected a PEM file", path.display()))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Failure> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| bad(path, error.to_string()));
        match found? {
            list if list.is_empty() => Err(bad(path, "holds no certificate".to_owned())),
            list => Ok(list),
        }
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| bad(ca, error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure(error.to_string()))?
        .with_root_certificates(roots);
    let Some((cert, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error.to_string()))?;
    builder
        .with_client_auth_cert(certificates(cert)?, private)
        .map_err(|error| bad(cert, format!("does not go with {}: {error}", key.display())))
}

/// A number that differs from one run to the next, for client and request ids. Not a secret.
pub(crate) fn nonce() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
