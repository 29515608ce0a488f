//! The task between the agent, the outbox, the store and the connection.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ocelli_protocol::VERSION;
use ocelli_protocol::message::{FrameResult, Gap, Presence};
use ocelli_protocol::topic::DeviceTopics;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::clock::Clock;
use crate::mqtt::{Incoming, Outgoing, Port, Publish, QoS, Retain, Session, Token};
use crate::report::outbox::{Item, Message, Outbox};
use crate::report::rate::RateLimit;
use crate::report::{
    CONTROL, Control, Counters, Event, FrameReport, INTAKE, LinkState, MESSAGES, ReporterHandle,
    Settings,
};
use crate::store::{Applied, OutboxRow, Recovered, ResultRow, Store, StoreError};

/// Answers waiting for room in the connection; the oldest give way.
const MAX_ONCE: usize = 64;
/// Results for queries go to the store in groups of this size.
const KEEP_GROUP: usize = 64;
/// How long the goodbye may wait for its acknowledgement, and the store for its last write.
const FAREWELL: Duration = Duration::from_secs(2);

/// Builds the reporter: a handle, the events for the agent (bounded), and the task.
#[must_use]
pub fn start(
    settings: Settings,
    store: Store,
    recovered: &Recovered,
    port: Port,
    clock: Arc<dyn Clock>,
) -> (ReporterHandle, mpsc::Receiver<Event>, Reporter) {
    for note in &recovered.notes {
        log::warn!("store: {note}");
    }
    for gap in &recovered.gaps {
        log::warn!("outbox: numbers {} to {} will not come ({:?})", gap.from, gap.to, gap.reason);
    }
    let (intake_in, intake) = mpsc::channel(INTAKE);
    let (control_in, control) = mpsc::channel(CONTROL);
    let (events, events_out) = mpsc::channel(MESSAGES);
    let (stored_in, stored) = mpsc::unbounded_channel();
    let counters = Arc::new(Mutex::new(Counters::default()));
    let handle =
        ReporterHandle { intake: intake_in, control: control_in, counters: Arc::clone(&counters) };
    let outbox = Outbox::new(settings.outbox.clone(), recovered, clock.wall(), clock.now());
    let reporter = Reporter {
        topics: settings.topics(),
        rate: RateLimit::new(settings.max_rate),
        settings,
        outbox,
        store,
        port,
        clock,
        intake,
        control,
        events,
        stored_in,
        stored,
        session: None,
        next_token: 0,
        tokens: HashMap::new(),
        result_topics: HashMap::new(),
        latest: BTreeMap::new(),
        once: VecDeque::new(),
        requests: VecDeque::new(),
        kept: Vec::new(),
        blocked: false,
        wired: true,
        was_degraded: false,
        phase: Phase::Running,
        counters: Counters::default(),
        shared: counters,
    };
    (handle, events_out, reporter)
}

/// The task. See [`Reporter::run`].
pub struct Reporter {
    settings: Settings,
    topics: DeviceTopics,
    rate: RateLimit,
    outbox: Outbox,
    store: Store,
    port: Port,
    clock: Arc<dyn Clock>,
    intake: mpsc::Receiver<FrameReport>,
    control: mpsc::Receiver<Control>,
    events: mpsc::Sender<Event>,
    // At most one batch and one page are under way, so these hold at most two answers.
    stored_in: mpsc::UnboundedSender<Stored>,
    stored: mpsc::UnboundedReceiver<Stored>,
    session: Option<Session>,
    next_token: Token,
    tokens: HashMap<Token, Sent>,
    result_topics: HashMap<ocelli_protocol::Id, Arc<str>>,
    latest: BTreeMap<String, Latest>,
    once: VecDeque<(String, Vec<u8>, QoS)>,
    requests: VecDeque<Outgoing>,
    kept: Vec<ResultRow>,
    blocked: bool,
    wired: bool,
    was_degraded: bool,
    phase: Phase,
    counters: Counters,
    shared: Arc<Mutex<Counters>>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Reporter")
    }
}

enum Stored {
    Batch(Applied),
    Page(Result<Vec<OutboxRow>, StoreError>),
}

enum Sent {
    Item(Item),
    Latest(String),
    Once,
}

struct Latest {
    payload: Arc<[u8]>,
    /// Not published in this session since it changed.
    due: bool,
    /// Published, not yet acknowledged.
    unacked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Delivering what waits, until then at the latest.
    Flushing {
        until: Instant,
    },
    /// Saying `offline`, until then at the latest.
    Farewell {
        until: Instant,
    },
}

impl Reporter {
    /// Runs until [`ReporterHandle::shutdown`], or until every handle is dropped; then closes the store.
    pub async fn run(mut self) {
        self.requests.push_back(Outgoing::Subscribe(self.topics.command_filter()));
        loop {
            let now = self.clock.now();
            self.outbox.expire(self.clock.wall());
            self.drive_store(now);
            self.drive_connection();
            self.note_state();
            if self.advance_phase(now) {
                break;
            }
            let wake = self.outbox.next_wake(now).unwrap_or(now + Duration::from_secs(1));
            let running = self.phase == Phase::Running;
            tokio::select! {
                biased;
                told = self.port.incoming.recv(), if self.wired => match told {
                    Some(told) => self.on_incoming(told),
                    None => self.on_unwired(),
                },
                Some(stored) = self.stored.recv() => self.on_stored(stored),
                asked = self.control.recv(), if running => self.on_control(asked),
                Some(report) = self.intake.recv(), if self.outbox.can_accept() => self.take(report),
                () = room(&self.port.outgoing), if self.blocked => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        self.end().await;
    }

    fn on_control(&mut self, asked: Option<Control>) {
        match asked {
            None | Some(Control::Shutdown) => self.begin_flush(),
            Some(Control::Latest { topic, payload }) => {
                let latest = Latest { payload: payload.into(), due: true, unacked: false };
                self.latest.insert(topic, latest);
            }
            Some(Control::Once { topic, payload, qos }) => {
                if self.session.is_none() {
                    self.counters.replies_dropped += 1;
                    return;
                }
                if self.once.len() == MAX_ONCE {
                    self.once.pop_front();
                    self.counters.replies_dropped += 1;
                }
                self.once.push_back((topic, payload, qos));
            }
            Some(Control::Subscribe(filter)) => {
                self.requests.push_back(Outgoing::Subscribe(filter))
            }
            Some(Control::Unsubscribe(filter)) => {
                self.requests.push_back(Outgoing::Unsubscribe(filter))
            }
            Some(Control::Rate(stream, rate)) => self.rate.set(stream, rate),
        }
    }

    fn on_incoming(&mut self, told: Incoming) {
        let now = self.clock.now();
        match told {
            Incoming::Connected(session) => {
                self.session = Some(session);
                self.counters.sessions += 1;
                self.counters.link = LinkState::Up;
                self.tokens.clear();
                for latest in self.latest.values_mut() {
                    latest.due = true;
                }
                let online = self.settings.status(Presence::Online, self.clock.wall());
                self.set_status(online);
                self.outbox.connected(now);
            }
            Incoming::Disconnected(refusal) => {
                self.session = None;
                self.counters.link = LinkState::Down(refusal);
                self.counters.replies_dropped += self.once.len() as u64;
                self.once.clear();
                self.tokens.clear();
                self.outbox.disconnected(now);
            }
            Incoming::Acked(token) => match self.tokens.remove(&token) {
                Some(Sent::Item(item)) => self.outbox.acked(item, now),
                Some(Sent::Latest(topic)) => {
                    if let Some(latest) = self.latest.get_mut(&topic) {
                        latest.unacked = false;
                    }
                }
                Some(Sent::Once) | None => {}
            },
            Incoming::Message(message) => self.tell(Event::Message(message)),
            Incoming::Subscribed { filter, granted } => {
                self.tell(Event::Subscribed { filter, granted })
            }
        }
    }

    /// The connection's task has ended: no session will come, what waits goes to the store.
    fn on_unwired(&mut self) {
        self.wired = false;
        self.session = None;
        self.tokens.clear();
        self.outbox.disconnected(self.clock.now());
        self.begin_flush();
    }

    fn tell(&mut self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            self.counters.messages_dropped += 1;
        }
    }

    fn on_stored(&mut self, stored: Stored) {
        let now = self.clock.now();
        match stored {
            Stored::Batch(applied) => self.outbox.batch_done(&applied, self.clock.wall(), now),
            Stored::Page(page) => self.outbox.loaded(page, now),
        }
    }

    /// Gives a report its number and puts it into the outbox.
    fn take(&mut self, report: FrameReport) {
        let now = self.clock.now();
        if !self.rate.admit(&report.stream, now) {
            self.counters.rate_limited += 1;
            return;
        }
        let result = FrameResult {
            v: VERSION,
            device: self.settings.device.as_str().to_owned(),
            stream: report.stream.as_str().to_owned(),
            seq: self.outbox.next_seq(),
            boot_id: self.settings.boot_id.clone(),
            frame: report.frame,
            captured_at: report.captured_at.to_string(),
            model: report.model,
            backend: report.backend,
            latency_us: report.latency,
            findings: report.findings,
        };
        let payload = serde_json::to_vec(&result).expect("a tree of numbers and strings is JSON");
        if self.settings.keep_results {
            self.keep(ResultRow {
                seq: result.seq,
                stream: result.stream,
                captured_at: report.captured_at,
                payload: payload.clone(),
            });
        }
        let topics = &self.topics;
        let topic = self
            .result_topics
            .entry(report.stream)
            .or_insert_with_key(|stream| topics.result(stream).into());
        self.outbox.push(Arc::clone(topic), payload.into(), self.clock.wall(), now);
    }

    fn keep(&mut self, row: ResultRow) {
        self.kept.push(row);
        if self.kept.len() >= KEEP_GROUP {
            self.flush_kept();
        }
    }

    fn flush_kept(&mut self) {
        if !self.kept.is_empty()
            && let Err(error) = self.store.keep(std::mem::take(&mut self.kept))
        {
            log::debug!("results for queries not kept: {error}");
        }
    }

    fn drive_store(&mut self, now: Instant) {
        if let Some(batch) = self.outbox.next_batch(now) {
            let stored = self.stored_in.clone();
            // The task may be gone when the answer comes; then nobody needs it.
            let reply = move |applied| drop(stored.send(Stored::Batch(applied)));
            if let Err(error) = self.store.apply(batch, reply) {
                self.outbox.batch_refused(error, self.clock.wall(), now);
            }
        }
        if let Some(load) = self.outbox.next_load(now) {
            let stored = self.stored_in.clone();
            let reply = move |page| drop(stored.send(Stored::Page(page)));
            if let Err(error) = self.store.load(load.after, load.limit, load.max_bytes, reply) {
                self.outbox.loaded(Err(error), now);
            }
        }
    }

    /// Fills the connection's channel as far as there is room, never waiting.
    fn drive_connection(&mut self) {
        self.blocked = false;
        loop {
            match self.port.outgoing.clone().try_reserve_owned() {
                Ok(permit) => match self.next_outgoing() {
                    Some(outgoing) => drop(permit.send(outgoing)),
                    None => return,
                },
                Err(TrySendError::Full(_)) => {
                    self.blocked = true;
                    return;
                }
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }

    fn next_outgoing(&mut self) -> Option<Outgoing> {
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        let session = self.session?;
        let publish = self.next_publish()?;
        self.counters.published += 1;
        Some(Outgoing::Publish(session, publish))
    }

    fn next_publish(&mut self) -> Option<Publish> {
        if let Some((topic, payload, qos)) = self.once.pop_front() {
            let token = self.token(Sent::Once, qos);
            return Some(Publish {
                topic: topic.into(),
                payload: payload.into(),
                qos,
                retain: Retain::No,
                token,
            });
        }
        let due = self.latest.iter_mut().find(|(_, latest)| latest.due);
        if let Some((topic, latest)) = due {
            latest.due = false;
            latest.unacked = true;
            let (topic, payload) = (topic.clone(), Arc::clone(&latest.payload));
            let token = self.token(Sent::Latest(topic.clone()), QoS::AtLeastOnce);
            return Some(Publish {
                topic: topic.into(),
                payload,
                qos: QoS::AtLeastOnce,
                retain: Retain::Yes,
                token,
            });
        }
        if matches!(self.phase, Phase::Farewell { .. }) {
            return None;
        }
        let (topic, payload, item) = match self.outbox.next_publish()? {
            Message::Result(row) => (row.topic, row.payload, Item::Result(row.seq)),
            Message::Gap(gap) => {
                let payload = Gap { v: VERSION, from: gap.from, to: gap.to, reason: gap.reason };
                let payload = serde_json::to_vec(&payload).expect("numbers are JSON");
                (self.topics.gap().into(), payload.into(), Item::Gap(gap.from))
            }
        };
        let token = self.token(Sent::Item(item), QoS::AtLeastOnce);
        Some(Publish { topic, payload, qos: QoS::AtLeastOnce, retain: Retain::No, token })
    }

    fn token(&mut self, sent: Sent, qos: QoS) -> Token {
        self.next_token += 1;
        if qos == QoS::AtLeastOnce {
            self.tokens.insert(self.next_token, sent);
        }
        self.next_token
    }

    fn set_status(&mut self, payload: Vec<u8>) {
        let status = Latest { payload: payload.into(), due: true, unacked: false };
        self.latest.insert(self.topics.status(), status);
    }

    /// Publishes the counters, and logs when the store fails or is back.
    fn note_state(&mut self) {
        self.counters.outbox = self.outbox.state();
        let degraded = self.counters.outbox.degraded;
        if degraded != self.was_degraded {
            self.was_degraded = degraded;
            if degraded {
                log::error!(
                    "store: it takes no writes (full, read-only or broken disk); results are only in memory"
                );
            } else {
                log::info!("store: it takes writes again");
            }
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.counters);
    }

    fn begin_flush(&mut self) {
        if self.phase == Phase::Running {
            self.intake.close();
            // What was handed over before the shutdown still gets a number, as far as there is room.
            while self.outbox.can_accept()
                && let Ok(report) = self.intake.try_recv()
            {
                self.take(report);
            }
            self.outbox.close();
            self.flush_kept();
            self.phase = Phase::Flushing { until: self.clock.now() + self.settings.flush };
        }
    }

    /// Moves through the shutdown; true at its end.
    fn advance_phase(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Flushing { until } => {
                let stored = self.outbox.is_durable();
                let done = stored && (self.outbox.is_delivered() || self.session.is_none());
                if done || now >= until {
                    self.phase = Phase::Farewell { until: now + FAREWELL };
                    let offline = self.settings.status(Presence::Offline, self.clock.wall());
                    self.set_status(offline);
                    self.drive_connection();
                }
                false
            }
            Phase::Farewell { until } => {
                let said = !self
                    .latest
                    .get(&self.topics.status())
                    .is_some_and(|status| status.due || status.unacked);
                now >= until || self.session.is_none() || said
            }
        }
    }

    async fn end(self) {
        let goodbye = self.port.outgoing.send(Outgoing::Disconnect);
        if tokio::time::timeout(FAREWELL, goodbye).await.is_err() {
            log::debug!("mqtt: no room for a goodbye");
        }
        let (closed_in, closed) = tokio::sync::oneshot::channel();
        let closing = self.store.close(move |()| {
            // Nobody may be waiting any more.
            let _ = closed_in.send(());
        });
        if closing.is_ok() && tokio::time::timeout(FAREWELL, closed).await.is_err() {
            log::warn!("store: the last write is still under way");
        }
    }
}

/// Waits until the connection's channel has room, or is closed.
async fn room(outgoing: &mpsc::Sender<Outgoing>) {
    // The permit is given back at once: `drive_connection` takes its own.
    drop(outgoing.reserve().await);
}
