//! The connection itself: sessions one after the other, with waits between them.
//!
//! Each session has a client of its own that is thrown away with it, so that the library never resends anything.
//! A task of its own polls the library, because a poll that is cancelled half-way can lose a packet.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions,
    NetworkOptions, Packet, StateError, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::mqtt::backoff::Backoff;
use crate::mqtt::{
    Incoming, MAX_INCOMING_BYTES, MAX_OUTGOING_BYTES, Message, Outgoing, Port, Publish, QoS,
    Refusal, RefusalKind, Retain, Session, Settings, Token, Wire, port, read_password, tls,
};

/// Requests inside the library; more wait in the channel.
const REQUESTS: usize = 128;
/// Packet identifiers in use at most; above what the outbox sends without acknowledgement.
const IN_FLIGHT: u16 = 256;
/// The same trouble is logged again after this time.
const REPEAT_LOG: Duration = Duration::from_secs(600);
/// Time without subscriptions after a message that was too large: a retained one would come again with each of them.
const DEAF: Duration = Duration::from_secs(60);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A port, and the task that keeps it connected until [`Outgoing::Disconnect`] or until the port is dropped.
pub fn start(settings: Settings, clock: Arc<dyn Clock>) -> (Port, impl Future<Output = ()> + Send) {
    let (port, wire) = port();
    (port, run(settings, clock, wire))
}

async fn run(settings: Settings, clock: Arc<dyn Clock>, wire: Wire) {
    let backoff = Backoff::new(settings.backoff);
    let mut connection = Connection {
        settings,
        clock,
        wire,
        filters: BTreeSet::new(),
        session: 0,
        logged: None,
        deaf_until: None,
    };
    connection.keep(backoff).await;
}

struct Connection {
    settings: Settings,
    clock: Arc<dyn Clock>,
    wire: Wire,
    filters: BTreeSet<String>,
    session: Session,
    logged: Option<(RefusalKind, Instant)>,
    /// Nothing is subscribed to before; what the agent sends goes out all the same.
    deaf_until: Option<Instant>,
}

/// How a session ended.
enum End {
    /// The agent is done.
    Done,
    /// It broke, or was never there; `lasted` from CONNACK on.
    Broken { refusal: Refusal, lasted: Duration },
}

impl Connection {
    async fn keep(&mut self, mut backoff: Backoff) {
        loop {
            let end = match self.options() {
                Ok(options) => self.session(options).await,
                Err(refusal) => End::Broken { refusal, lasted: Duration::ZERO },
            };
            let End::Broken { refusal, lasted } = end else { return };
            if refusal.kind == RefusalKind::MessageTooLarge {
                self.deaf_until = Some(self.clock.now() + DEAF);
            }
            let wait = backoff.after(lasted, random());
            self.log(&refusal, wait);
            if self.wire.incoming.send(Incoming::Disconnected(refusal)).await.is_err() {
                return;
            }
            if !self.wait(wait).await {
                return;
            }
        }
    }

    /// Waits; requests meanwhile change the filters or are dropped. False when the agent is done.
    async fn wait(&mut self, wait: Duration) -> bool {
        let until = tokio::time::Instant::from_std(self.clock.now() + wait);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                request = self.wire.outgoing.recv() => match request {
                    None | Some(Outgoing::Disconnect) => return false,
                    Some(Outgoing::Subscribe(filter)) => { self.filters.insert(filter); }
                    Some(Outgoing::Unsubscribe(filter)) => { self.filters.remove(&filter); }
                    Some(Outgoing::Publish(..)) => {}
                },
            }
        }
    }

    fn log(&mut self, refusal: &Refusal, wait: Duration) {
        let now = self.clock.now();
        let known = self.logged.is_some_and(|(kind, at)| {
            kind == refusal.kind && now.saturating_duration_since(at) < REPEAT_LOG
        });
        if known {
            log::debug!("mqtt: {refusal}; next attempt in {} ms", wait.as_millis());
        } else {
            log::warn!("mqtt: {refusal}; trying again, first in {} ms", wait.as_millis());
            self.logged = Some((refusal.kind, now));
        }
    }

    fn options(&self) -> Result<MqttOptions, Refusal> {
        let settings = &self.settings;
        let mut options = MqttOptions::new(&settings.client_id, &settings.host, settings.port);
        options
            .set_clean_session(true)
            .set_keep_alive(settings.keep_alive.max(Duration::from_secs(1)))
            .set_max_packet_size(MAX_INCOMING_BYTES, MAX_OUTGOING_BYTES)
            .set_inflight(IN_FLIGHT);
        if let Some(tls) = &settings.tls {
            let config = TlsConfiguration::Rustls(tls::client_config(tls)?);
            options.set_transport(Transport::tls_with_config(config));
        }
        if let Some(username) = &settings.username {
            options.set_credentials(username, self.password()?);
        }
        if let Some(will) = &settings.will {
            let will =
                LastWill::new(&will.topic, will.payload.clone(), rumqttc::QoS::AtLeastOnce, true);
            options.set_last_will(will);
        }
        Ok(options)
    }

    fn password(&self) -> Result<String, Refusal> {
        let Some(path) = &self.settings.password_file else { return Ok(String::new()) };
        read_password(path)
            .map_err(|error| Refusal { kind: RefusalKind::Settings, message: error.to_string() })
    }

    async fn session(&mut self, options: MqttOptions) -> End {
        let (client, mut eventloop) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(self.settings.timeout.as_secs().max(1));
        eventloop.set_network_options(network);
        let (events_in, mut events) = mpsc::channel(32);
        let _pump = Pump(tokio::spawn(pump(eventloop, events_in)));
        let mut live = Live {
            client,
            held: None,
            sent: VecDeque::new(),
            in_flight: HashMap::new(),
            acked: self.clock.now(),
            asked: VecDeque::new(),
            subscribing: HashMap::new(),
        };
        let patience = 2 * self.settings.keep_alive;
        let mut since: Option<Instant> = None;
        loop {
            // No order among these: a flood of events must not keep requests waiting.
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else {
                        let message = "the MQTT client stopped; this is a fault of the agent".to_owned();
                        let refusal = Refusal { kind: RefusalKind::Broken, message };
                        return End::Broken { refusal, lasted: Duration::ZERO };
                    };
                    match event {
                        Err(error) => {
                            let lasted = since.map_or(Duration::ZERO, |at| self.clock.now().saturating_duration_since(at));
                            return End::Broken { refusal: self.explain(&error, since.is_some()), lasted };
                        }
                        Ok(Event::Incoming(Packet::ConnAck(_))) => {
                            since = Some(self.clock.now());
                            self.session += 1;
                            self.logged = None;
                            log::info!("mqtt: connected to {}:{}", self.settings.host, self.settings.port);
                            if self.deaf_until.is_none() {
                                live.asked.extend(self.filters.iter().cloned());
                            }
                            if self.wire.incoming.send(Incoming::Connected(self.session)).await.is_err() {
                                return End::Done;
                            }
                        }
                        Ok(event) => {
                            if let Some(told) = live.handle(event, self.clock.now())
                                && self.wire.incoming.send(told).await.is_err()
                            {
                                return End::Done;
                            }
                        }
                    }
                }
                () = until(live.overdue(patience)), if !live.in_flight.is_empty() => {
                    let lasted = since.map_or(Duration::ZERO, |at| self.clock.now().saturating_duration_since(at));
                    return End::Broken { refusal: self.unacknowledged(patience), lasted };
                }
                () = until(self.deaf_until), if since.is_some() && self.deaf_until.is_some() => {
                    self.deaf_until = None;
                    live.asked.extend(self.filters.iter().cloned());
                }
                request = self.wire.outgoing.recv(), if live.held.is_none() => match request {
                    None | Some(Outgoing::Disconnect) => {
                        if since.is_some() {
                            goodbye(&live.client, &mut events).await;
                        }
                        return End::Done;
                    }
                    Some(Outgoing::Subscribe(filter)) => {
                        self.filters.insert(filter.clone());
                        if since.is_some() && self.deaf_until.is_none() {
                            live.asked.push_back(filter);
                        }
                    }
                    Some(Outgoing::Unsubscribe(filter)) => {
                        self.filters.remove(&filter);
                        if since.is_some() && live.client.try_unsubscribe(&filter).is_err() {
                            log::debug!("mqtt: still subscribed to {filter} in this session");
                        }
                    }
                    // A message of an older session was sent again by its owner already, or will be.
                    Some(Outgoing::Publish(session, publish)) => {
                        if since.is_some() && session == self.session {
                            live.held = Some(publish);
                        }
                    }
                },
            }
            if since.is_some() {
                live.offer();
            }
        }
    }

    fn unacknowledged(&self, patience: Duration) -> Refusal {
        let (host, port) = (&self.settings.host, self.settings.port);
        let message = format!(
            "{host}:{port} acknowledges nothing for {} s; the connection is given up; check the broker's disk and queue limits",
            patience.as_secs()
        );
        Refusal { kind: RefusalKind::Timeout, message }
    }

    fn explain(&self, error: &ConnectionError, connected: bool) -> Refusal {
        let (host, port) = (&self.settings.host, self.settings.port);
        if let Some(refusal) = tls::explain(error, host, self.clock.wall()) {
            return refusal;
        }
        let (kind, message) = match error {
            ConnectionError::ConnectionRefused(code) => {
                explain_connack(*code, host, &self.settings.client_id)
            }
            ConnectionError::NetworkTimeout => (
                RefusalKind::Timeout,
                format!(
                    "{host}:{port} does not answer; check address, firewall and that the broker runs"
                ),
            ),
            ConnectionError::FlushTimeout
            | ConnectionError::MqttState(StateError::AwaitPingResp) => (
                RefusalKind::Timeout,
                format!("{host}:{port} went silent; the connection is given up"),
            ),
            ConnectionError::Io(error) => explain_io(error, host, port),
            ConnectionError::MqttState(StateError::Deserialization(
                rumqttc::mqttbytes::Error::PayloadSizeLimitExceeded(bytes),
            )) if connected => (
                RefusalKind::MessageTooLarge,
                format!(
                    "{host}:{port} sent a message of {bytes} bytes, at most {MAX_INCOMING_BYTES} are read; nothing \
                     is subscribed to for {} s; remove large retained messages below this device's topics",
                    DEAF.as_secs()
                ),
            ),
            other if connected => (
                RefusalKind::Broken,
                format!("the connection to {host}:{port} broke: {}", causes(other)),
            ),
            other => (
                RefusalKind::Broken,
                format!(
                    "{host}:{port} ended the connection before it answered ({}); check that an MQTT broker \
                     listens there, and whether it wants TLS or a client certificate",
                    causes(other)
                ),
            ),
        };
        Refusal { kind, message }
    }
}

/// What one session knows.
struct Live {
    client: AsyncClient,
    /// A message for which the library had no room yet.
    held: Option<Publish>,
    /// Handed to the library, in order, not yet on the wire.
    sent: VecDeque<Token>,
    /// On the wire, by packet identifier.
    in_flight: HashMap<u16, Token>,
    /// When an acknowledgement came last, or the first of `in_flight` went out.
    acked: Instant,
    /// Filters to ask for.
    asked: VecDeque<String>,
    /// Asked for: first those without a packet identifier in order, then by identifier.
    subscribing: HashMap<u16, String>,
}

impl Live {
    /// Hands over what waits, as far as there is room.
    fn offer(&mut self) {
        while let Some(filter) = self.asked.front() {
            // One at a time without an identifier, so that answers find their filter.
            if self.subscribing.contains_key(&0)
                || self.client.try_subscribe(filter, rumqttc::QoS::AtLeastOnce).is_err()
            {
                break;
            }
            if let Some(filter) = self.asked.pop_front() {
                self.subscribing.insert(0, filter);
            }
        }
        let Some(publish) = &self.held else { return };
        if publish.topic.contains(['+', '#', '\0']) {
            log::error!("mqtt: \"{}\" is no topic; check mqtt.root in the config", publish.topic);
            self.held = None;
            return;
        }
        let qos = match publish.qos {
            QoS::AtMostOnce => rumqttc::QoS::AtMostOnce,
            QoS::AtLeastOnce => rumqttc::QoS::AtLeastOnce,
        };
        let retain = publish.retain == Retain::Yes;
        if self.client.try_publish(&*publish.topic, qos, retain, &*publish.payload).is_ok() {
            self.sent.push_back(publish.token);
            self.held = None;
        }
    }

    /// When a broker that answers pings but acknowledges nothing is given up: the outbox would wait for it for ever.
    fn overdue(&self, patience: Duration) -> Option<Instant> {
        (!self.in_flight.is_empty()).then(|| self.acked + patience)
    }

    /// What an event of the library means for the agent.
    fn handle(&mut self, event: Event, now: Instant) -> Option<Incoming> {
        match event {
            // The library puts publishes on the wire in the order it got them, one event for each.
            Event::Outgoing(rumqttc::Outgoing::Publish(id)) => {
                let token = self.sent.pop_front()?;
                if id != 0 {
                    if self.in_flight.is_empty() {
                        self.acked = now;
                    }
                    self.in_flight.insert(id, token);
                }
                None
            }
            Event::Outgoing(rumqttc::Outgoing::Subscribe(id)) => {
                let filter = self.subscribing.remove(&0)?;
                self.subscribing.insert(id, filter);
                None
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                let token = self.in_flight.remove(&ack.pkid)?;
                self.acked = now;
                Some(Incoming::Acked(token))
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let filter = self.subscribing.remove(&ack.pkid)?;
                let granted = !ack.return_codes.contains(&SubscribeReasonCode::Failure);
                if !granted {
                    log::warn!(
                        "mqtt: the broker refuses the subscription to {filter}; check its access rules"
                    );
                }
                Some(Incoming::Subscribed { filter, granted })
            }
            Event::Incoming(Packet::Publish(publish)) => Some(Incoming::Message(Message {
                topic: publish.topic,
                payload: publish.payload.to_vec(),
                retained: publish.retain,
            })),
            _ => None,
        }
    }
}

/// Waits for an instant; for ever without one.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(tokio::time::Instant::from_std(instant)).await,
        None => std::future::pending().await,
    }
}

/// Ends the polling task with the session.
struct Pump(JoinHandle<()>);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn pump(mut eventloop: EventLoop, events: mpsc::Sender<Result<Event, ConnectionError>>) {
    loop {
        let event = eventloop.poll().await;
        let last = event.is_err();
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

async fn goodbye(
    client: &AsyncClient,
    events: &mut mpsc::Receiver<Result<Event, ConnectionError>>,
) {
    if client.try_disconnect().is_err() {
        return;
    }
    let gone = async {
        while let Some(Ok(event)) = events.recv().await {
            if event == Event::Outgoing(rumqttc::Outgoing::Disconnect) {
                break;
            }
        }
    };
    if tokio::time::timeout(GOODBYE, gone).await.is_err() {
        log::debug!("mqtt: no time for a goodbye");
    }
}

fn explain_connack(code: ConnectReturnCode, host: &str, client_id: &str) -> (RefusalKind, String) {
    match code {
        ConnectReturnCode::BadUserNamePassword => (
            RefusalKind::BadCredentials,
            format!(
                "{host} says: bad user name or password; check mqtt.username and the file mqtt.password_file"
            ),
        ),
        // Mosquitto answers this to a wrong password as well.
        ConnectReturnCode::NotAuthorized => (
            RefusalKind::NotAuthorized,
            format!(
                "{host} says: not authorised; check mqtt.username, the file mqtt.password_file, and the \
                 broker's access rules for this device"
            ),
        ),
        ConnectReturnCode::BadClientId => (
            RefusalKind::BadClientId,
            format!(
                "{host} rejects the client id \"{client_id}\"; check device.id and the broker's rules for ids"
            ),
        ),
        ConnectReturnCode::ServiceUnavailable => (
            RefusalKind::ServiceUnavailable,
            format!(
                "{host} says: service unavailable; the broker is starting, full or shutting down"
            ),
        ),
        other => (
            RefusalKind::ServiceUnavailable,
            format!("{host} refuses the connection: {other:?}; it must speak MQTT 3.1.1"),
        ),
    }
}

fn explain_io(error: &std::io::Error, host: &str, port: u16) -> (RefusalKind, String) {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => (
            RefusalKind::Unreachable,
            format!(
                "nothing listens on {host}:{port}; start the broker or check mqtt.host and mqtt.port"
            ),
        ),
        ErrorKind::TimedOut => (
            RefusalKind::Timeout,
            format!(
                "{host}:{port} does not answer; check address, firewall and that the broker runs"
            ),
        ),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => (
            RefusalKind::Unreachable,
            format!("there is no route to {host}:{port} ({error}); check cable, Wi-Fi and gateway"),
        ),
        // The resolver's errors have no kind of their own.
        _ if error.to_string().contains("lookup address")
            || error.to_string().contains("resolve") =>
        {
            (
                RefusalKind::UnknownHost,
                format!(
                    "the name \"{host}\" has no address ({error}); check mqtt.host and the DNS server"
                ),
            )
        }
        _ => (RefusalKind::Broken, format!("the connection to {host}:{port} broke: {error}")),
    }
}

/// An error and its causes in one line, each once.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the wait is the shortest allowed one.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        return 0;
    }
    u64::from_be_bytes(bytes)
}
