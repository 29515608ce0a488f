//! The agent with a broker: forwards reports, answers commands, publishes health and model, feeds the watchdog, ends in
//! order. One task that never waits for disk or network.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ocelli_protocol::health::{AuditHead, Power};
use ocelli_protocol::message::{CommandError, ModelId};
use ocelli_protocol::model_state::{ModelState, RunningModel, UpdatePhase, UpdateState};
use ocelli_protocol::topic::{DeviceTopics, RepoTopics};
use ocelli_protocol::{Id, VERSION};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agent::accelerators::Journal;
use crate::agent::audit;
use crate::agent::commands::{self, Command, Commands, Received};
use crate::agent::hardware::Hardware;
use crate::agent::signals::Signals;
use crate::agent::updater::{self, Ask, Told};
use crate::agent::watchdog::{Notifier, Progress};
use crate::agent::{AgentError, DeliverySettings, WatchdogLimits, health};
use crate::board::{State, Watchdog};
use crate::clock::Clock;
use crate::frame::{Frame, PixelFormat};
use crate::model::slots::Slot;
use crate::mqtt::{self, MAX_OUTGOING_BYTES, Message};
use crate::pipeline::{CameraState, Control, ControlError, Reports};
use crate::report::{self, Event, FrameReport, LinkState, ReporterHandle};
use crate::store::{self, Store};
use crate::telemetry::Heartbeat;
use crate::update;
use crate::vision::annotate::Picture;

/// Time between two steps of the light.
const LIGHT_STEP: Duration = Duration::from_millis(60);
/// Time between two questions whether the store lives.
const STORE_PROBE: Duration = Duration::from_secs(5);
/// Longest wait for a frame that was asked for.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(5);
/// Snapshots under way at once.
const MOST_SNAPSHOTS: usize = 4;
/// Largest snapshot published: the packet's limit without topic and header.
const MAX_SNAPSHOT_BYTES: usize = MAX_OUTGOING_BYTES - 1024;
/// JPEG quality of a snapshot, 1 to 100.
const SNAPSHOT_QUALITY: u8 = 85;
/// What the reporter's end may take beside delivering: goodbye and last write, with room.
const FAREWELL: Duration = Duration::from_secs(8);

/// The agent's parts that are up before the broker is.
pub(super) struct Running {
    pub(super) boot_id: String,
    pub(super) control: Control,
    pub(super) model: updater::Running,
    pub(super) updates: Option<updater::Handle>,
    pub(super) hardware: Hardware,
    pub(super) health_interval: Duration,
    pub(super) watchdog: WatchdogLimits,
    pub(super) hardware_watchdog: Option<Watchdog>,
}

/// Serves until a signal, then ends in order.
pub(super) async fn serve(
    running: Running,
    delivery: DeliverySettings,
    reports: Reports,
    clock: &Arc<dyn Clock>,
) -> Result<(), AgentError> {
    let mut signals = Signals::new()?;
    let flush = delivery.flush;
    let mut reporting = report::Settings {
        outbox: delivery.outbox,
        flush,
        keep_results: delivery.store.results.is_some(),
        ..report::Settings::new(delivery.device, delivery.root, running.boot_id.clone())
    };
    reporting.agent = env!("CARGO_PKG_VERSION").to_owned();
    let topics = reporting.topics();
    let will = Some(reporting.will(clock.wall()));
    let (store, recovered) = store::start(delivery.store, Arc::clone(clock))?;
    let (port, connection) =
        mqtt::client::start(mqtt::Settings { will, ..delivery.mqtt }, Arc::clone(clock));
    let connection = tokio::spawn(connection);
    let (handle, events, reporter) =
        report::start(reporting, store.clone(), &recovered, port, Arc::clone(clock));
    let reporter = tokio::spawn(reporter.run());
    let streams: Vec<Id> = running.control.stream_names().cloned().collect();
    let forward = tokio::spawn(forward(reports, streams, handle.clone()));
    let mut tasks = Tasks { reporter, forward };
    let mut service =
        Service::new(running, topics, handle, store, Arc::clone(clock), delivery.repository);
    service.begin().await;
    let outcome = service.run(events, &mut signals, &mut tasks).await;
    service.notifier.stopping();
    log::info!("ending in order");
    tokio::select! {
        () = service.end(tasks, flush) => {}
        () = signals.next() => return Err(AgentError::Interrupted),
    }
    service.running.hardware.go_dark(clock.now());
    connection.abort();
    outcome
}

struct Tasks {
    reporter: JoinHandle<()>,
    forward: JoinHandle<()>,
}

/// Hands reports over until the pipeline or the reporter ends. Waits while the outbox holds back.
pub(crate) async fn forward(mut reports: Reports, streams: Vec<Id>, handle: ReporterHandle) {
    while let Some(report) = reports.recv().await {
        let frame = FrameReport {
            stream: streams[report.stream].clone(),
            frame: report.frame,
            captured_at: report.captured_at,
            model: (*report.model).clone(),
            backend: report.backend.clone(),
            latency: report.latency,
            findings: report.findings.clone(),
        };
        // The buffer goes back before the outbox may make us wait.
        drop(report);
        if handle.submit(frame).await.is_err() {
            return;
        }
    }
}

/// What the update thread tells next; waits for ever where there is none.
async fn told(updates: &mut Option<updater::Handle>) -> Option<Told> {
    match updates {
        Some(updates) => updates.told.recv().await,
        None => std::future::pending().await,
    }
}

/// A request whose answer took time.
type Finished = (Id, &'static str, Result<Value, CommandError>);

struct Service {
    running: Running,
    topics: DeviceTopics,
    handle: ReporterHandle,
    store: Store,
    clock: Arc<dyn Clock>,
    notifier: Notifier,
    commands: Commands,
    started: Instant,
    next_health: Instant,
    next_probe: Instant,
    next_second: Instant,
    audit: Arc<Mutex<Option<AuditHead>>>,
    store_trouble: Arc<Mutex<Option<String>>>,
    store_alive: Arc<Heartbeat>,
    power: Option<Power>,
    accelerators: Journal,
    snapshots: usize,
    requests: audit::Requests,
    repository: Option<RepoTopics>,
    update: UpdateState,
    connected: bool,
    /// Messages that were dropped before they came here, as far as the update thread knows.
    messages_dropped: u64,
    /// The update thread had no room for one.
    events_lost: Cell<bool>,
    finished_in: mpsc::Sender<Finished>,
    finished: mpsc::Receiver<Finished>,
}

impl Service {
    fn new(
        mut running: Running,
        topics: DeviceTopics,
        handle: ReporterHandle,
        store: Store,
        clock: Arc<dyn Clock>,
        repository: Option<RepoTopics>,
    ) -> Self {
        let now = clock.now();
        let notifier = Notifier::from_environment(running.hardware_watchdog.take());
        let (finished_in, finished) = mpsc::channel(MOST_SNAPSHOTS);
        let state = if running.updates.is_some() { UpdatePhase::Idle } else { UpdatePhase::Off };
        let accelerators = Journal::of(&running.model.watch.report());
        Self {
            running,
            topics,
            handle,
            store,
            clock,
            notifier,
            commands: Commands::default(),
            started: now,
            next_health: now,
            next_probe: now,
            next_second: now,
            audit: Arc::default(),
            store_trouble: Arc::default(),
            store_alive: Arc::new(Heartbeat::new(now)),
            power: None,
            accelerators,
            snapshots: 0,
            requests: audit::Requests::new(),
            repository,
            update: UpdateState { state, target: None, progress: None, reason: None, last: None },
            connected: false,
            messages_dropped: 0,
            events_lost: Cell::new(false),
            finished_in,
            finished,
        }
    }

    async fn begin(&mut self) {
        let id = self.running.model.spec.id().clone();
        let detail = json!({
            "boot_id": self.running.boot_id,
            "model": id.name,
            "version": id.version,
            "sha256": self.running.model.spec.sha256().to_string(),
        });
        self.audit("start", env!("CARGO_PKG_VERSION"), &detail);
        self.publish(self.topics.model(), &self.model_state()).await;
        self.notifier.ready();
    }

    async fn run(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        signals: &mut Signals,
        tasks: &mut Tasks,
    ) -> Result<(), AgentError> {
        let step = self.notifier.tick_interval();
        let step = if self.running.hardware.has_light() { step.min(LIGHT_STEP) } else { step };
        let mut ticker = tokio::time::interval(step);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut frames_flow = true;
        loop {
            tokio::select! {
                () = signals.next() => return Ok(()),
                _ = ticker.tick() => self.tick().await,
                event = events.recv() => match event {
                    Some(Event::Message(message)) => self.on_message(message).await,
                    Some(Event::Subscribed { filter, granted }) => self.on_subscribed(filter, granted),
                    None => return Err(AgentError::Task("reporter")),
                },
                told = told(&mut self.running.updates) => match told {
                    Some(told) => self.on_told(told).await,
                    None => self.updates_ended().await,
                },
                Some((id, verb, outcome)) = self.finished.recv() => {
                    if verb == "snapshot" {
                        self.snapshots -= 1;
                    }
                    self.finish(&id, verb, outcome).await;
                }
                _ = &mut tasks.forward, if frames_flow => {
                    frames_flow = false;
                    if let Some(why) = self.running.control.failure() {
                        return Err(AgentError::Inference(why));
                    }
                    log::warn!("no more frames: all cameras have ended");
                }
                _ = &mut tasks.reporter => return Err(AgentError::Task("reporter")),
            }
        }
    }

    /// Delivers what can be delivered within `flush`; the rest stays in the store.
    async fn end(&mut self, tasks: Tasks, flush: Duration) {
        self.running.control.request_stop();
        // Reports that were made before the end still get a number.
        let mut forward = tasks.forward;
        if !forward.is_finished() && tokio::time::timeout(flush, &mut forward).await.is_err() {
            log::warn!("the outbox held back; the last reports are given up");
        }
        if self.handle.shutdown().await.is_err() || tasks.reporter.is_finished() {
            return;
        }
        if tokio::time::timeout(flush + FAREWELL, tasks.reporter).await.is_err() {
            log::warn!("the reporter does not end; results not acknowledged stay in the store");
        }
    }

    async fn tick(&mut self) {
        let now = self.clock.now();
        self.running.hardware.show(self.state(now), now);
        self.tell_link();
        if now < self.next_second {
            return self.feed(now);
        }
        self.next_second = now + Duration::from_secs(1);
        let finished = self.running.control.frames().finished.total();
        if let Some(power) = self.running.hardware.power(now, finished) {
            self.power = Some(power);
        }
        if now >= self.next_probe {
            self.next_probe = now + STORE_PROBE;
            self.probe_store();
        }
        self.feed(now);
        self.end_floods(now);
        self.tell_dropped();
        self.tell_status(now);
        if self.accelerators.has_any() {
            let report = self.running.model.watch.report();
            for (name, detail) in self.accelerators.changes(report) {
                self.audit("accelerator", &name, &detail);
            }
        }
        if now >= self.next_health {
            self.next_health = now + self.running.health_interval;
            let health = self.health(now);
            self.publish(self.topics.health(), &health).await;
        }
    }

    fn feed(&mut self, now: Instant) {
        let pipeline = self.running.control.progress(now);
        let progress = Progress {
            capture: pipeline.capture,
            inference: pipeline.inference,
            store: Some(self.store_alive.age(now)),
        };
        self.notifier.tick(&progress, &self.running.watchdog, now);
    }

    fn probe_store(&self) {
        let (alive, clock) = (Arc::clone(&self.store_alive), Arc::clone(&self.clock));
        let (audit, trouble) = (Arc::clone(&self.audit), Arc::clone(&self.store_trouble));
        let asked = self.store.audit_head(move |head| {
            // Any answer is a sign of life; a full queue gives none.
            alive.beat(clock.now());
            *lock(&trouble) = head.as_ref().err().map(ToString::to_string);
            if let Ok(head) = head {
                note_head(&audit, head);
            }
        });
        if let Err(error) = asked {
            log::debug!("store not asked: {error}");
        }
    }

    fn state(&self, now: Instant) -> State {
        let streaming =
            |stream: &crate::pipeline::StreamStatus| stream.camera == CameraState::Streaming;
        let streams = self.running.control.streams(now);
        match self.handle.counters().link {
            _ if streams.iter().all(|stream| stream.camera == CameraState::Opening) => {
                State::Starting
            }
            _ if !streams.iter().any(streaming) => State::Fault,
            LinkState::Up => State::Running,
            _ => State::NoBroker,
        }
    }

    fn tell_status(&mut self, now: Instant) {
        let id = self.running.model.spec.id();
        let fps: f32 = self.running.control.streams(now).iter().map(|stream| stream.fps).sum();
        let broker = match self.handle.counters().link {
            LinkState::Up => "broker connected".to_owned(),
            LinkState::Connecting => "connecting".to_owned(),
            LinkState::Down(why) => why.message,
        };
        self.notifier.status(format!("{} {}, {fps:.0} results/s, {broker}", id.name, id.version));
    }

    fn health(&self, now: Instant) -> ocelli_protocol::health::Health {
        health::report(health::Sources {
            at: self.clock.wall(),
            now,
            uptime: now.saturating_duration_since(self.started),
            boot_id: &self.running.boot_id,
            model: self.model_id(),
            control: &self.running.control,
            session: &self.running.model.watch.report(),
            counters: &self.handle.counters(),
            commands: self.commands.counts(),
            temperatures: self.running.hardware.temperatures(),
            power: self.power,
            audit: lock(&self.audit).clone(),
            store: lock(&self.store_trouble).clone(),
            clock: health::clock_state(std::path::Path::new("/run")),
        })
    }

    fn model_id(&self) -> &ModelId {
        self.running.model.spec.id()
    }

    fn model_state(&self) -> ModelState {
        let id = self.model_id();
        let mut backend: Vec<String> = Vec::new();
        for segment in self.running.model.watch.report().segments {
            if !backend.contains(&segment.delegate) {
                backend.push(segment.delegate);
            }
        }
        ModelState {
            v: VERSION,
            running: RunningModel {
                name: id.name.clone(),
                version: id.version.clone(),
                sha256: self.running.model.spec.sha256().to_string(),
                slot: self.running.model.slot.map_or("config", Slot::name).to_owned(),
                state: self.running.model.trust,
                backend,
                golden: self.running.model.spec.golden().len(),
            },
            update: self.update.clone(),
        }
    }

    /// What the update thread tells.
    async fn on_told(&mut self, told: Told) {
        match told {
            Told::Subscribe(topic) => self.subscribe(topic).await,
            Told::Unsubscribe(topic) => {
                if self.handle.unsubscribe(topic).await.is_err() {
                    log::debug!("not unsubscribed: the reporter has ended");
                }
            }
            Told::Update(state, trust) => {
                (self.update, self.running.model.trust) = (state, trust);
                self.publish(self.topics.model(), &self.model_state()).await;
            }
            Told::Model(model) => {
                self.accelerators = Journal::of(&model.watch.report());
                self.running.model = *model;
                self.publish(self.topics.model(), &self.model_state()).await;
            }
            Told::Audit { subject, detail } => self.audit("update", &subject, &detail),
        }
    }

    /// The update thread is gone, by a fault of ours: detection goes on, and whoever waits for an update is told.
    async fn updates_ended(&mut self) {
        let why = "the update thread has ended by a fault of the agent; restart it";
        log::error!("update: {why}");
        self.audit("update", "agent", &json!({ "decision": "ended", "reason": why }));
        self.running.updates = None;
        let (reason, last) = (Some(why.to_owned()), self.update.last.take());
        self.update =
            UpdateState { state: UpdatePhase::Off, target: None, progress: None, reason, last };
        self.publish(self.topics.model(), &self.model_state()).await;
    }

    async fn subscribe(&self, topic: String) {
        if self.handle.subscribe(topic).await.is_err() {
            log::debug!("not subscribed: the reporter has ended");
        }
    }

    /// Hands an event to the update thread; `false` when it has no room. A message that is lost is asked for again by the session.
    fn tell_updates(&self, event: update::Event) -> bool {
        let Some(updates) = &self.running.updates else { return true };
        let told = updates.asks.try_send(Ask::Event(event)).is_ok();
        if !told {
            log::debug!("an event is lost: the update thread is busy");
            self.events_lost.set(true);
        }
        told
    }

    /// The update thread learns that messages were dropped: those that it waits for may be among them.
    fn tell_dropped(&mut self) {
        let dropped = self.handle.counters().messages_dropped;
        if dropped != self.messages_dropped || self.events_lost.replace(false) {
            self.messages_dropped = dropped;
            self.tell_updates(update::Event::Dropped);
        }
    }

    /// The update thread learns of sessions that begin and end; when it is busy, with the next tick.
    fn tell_link(&mut self) {
        let connected = self.handle.counters().link == LinkState::Up;
        if connected != self.connected {
            let event =
                if connected { update::Event::Connected } else { update::Event::Disconnected };
            if self.tell_updates(event) {
                self.connected = connected;
            }
        }
    }

    fn check_update(&self) -> Result<Value, CommandError> {
        let Some(updates) = &self.running.updates else {
            let unset = "updates are not configured; add [update] to the configuration";
            return Err(commands::error("not-now", self.update.reason.as_deref().unwrap_or(unset)));
        };
        match updates.asks.try_send(Ask::Event(update::Event::CheckNow)) {
            Ok(()) => Ok(json!({ "update": self.update })),
            Err(_) => Err(commands::error("busy", "the update thread is busy; ask again")),
        }
    }

    /// Asks the store for rows of the audit log; the answer comes through `finished`.
    fn begin_audit(&self, id: &Id, after: u64) -> Result<(), CommandError> {
        let (id, finished) = (id.clone(), self.finished_in.clone());
        let asked = self.store.audit_after(after, audit::PAGE_ROWS, move |rows| {
            let outcome = match rows {
                Ok(rows) => Ok(audit::page(&rows)),
                Err(error) => Err(commands::error("failed", error.to_string())),
            };
            // Without room the operator asks again.
            let _ = finished.try_send((id, "audit", outcome));
        });
        asked.map_err(|error| commands::error("busy", error.to_string()))
    }

    /// Asks for the end of a trial; the answer comes through `finished`.
    fn begin_abort(&self, id: &Id) -> Result<(), CommandError> {
        let none = || commands::error("not-now", "no model is in trial or probation");
        let updates = self.running.updates.as_ref().ok_or_else(none)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        if updates.asks.try_send(Ask::Abort(answer)).is_err() {
            return Err(commands::error("busy", "the update thread is busy; ask again"));
        }
        let (id, finished) = (id.clone(), self.finished_in.clone());
        tokio::spawn(async move {
            let outcome = match answered.await {
                Ok(true) => Ok(json!({ "aborted": true })),
                Ok(false) => Err(none()),
                Err(_) => Err(commands::error("failed", "the update thread has ended")),
            };
            // The service may have ended; then nobody is answered.
            let _ = finished.send((id, "abort-trial", outcome)).await;
        });
        Ok(())
    }

    async fn publish(&self, topic: String, document: &impl serde::Serialize) {
        let payload = serde_json::to_vec(document).expect("a document is a tree of plain values");
        if self.handle.publish_latest(topic, payload).await.is_err() {
            log::debug!("not published: the reporter has ended");
        }
    }

    fn on_subscribed(&self, filter: String, granted: bool) {
        if !granted {
            log::error!("the broker refuses filter={filter}; allow it in its access rules");
        }
        if self.repository.as_ref().is_some_and(|repository| repository.owns(&filter)) {
            self.tell_updates(update::Event::Subscribed { filter, granted });
        }
    }

    async fn on_message(&mut self, message: Message) {
        if self.repository.as_ref().is_some_and(|repository| repository.owns(&message.topic)) {
            let Message { topic, payload, .. } = message;
            self.tell_updates(update::Event::Message { topic, payload });
            return;
        }
        let Some(verb) = self.topics.command_verb(&message.topic) else {
            return log::debug!("not a command topic={}", message.topic);
        };
        let now = self.clock.now();
        let short: String = verb.chars().take(40).collect();
        match self.commands.receive(verb, &message.payload, message.retained, now) {
            Received::Do { id, command } => self.carry_out(id, command).await,
            Received::Refuse { id, payload, code } => {
                log::info!("command verb={short} id={id} refused={code}");
                if code == "busy" {
                    let reason = "too many requests";
                    let detail = json!({ "outcome": "busy", "reason": reason });
                    self.audit_flood("busy", &short, &detail);
                } else {
                    self.audit_request(&short, &json!({ "id": id, "outcome": code }));
                }
                self.reply(&id, payload).await;
            }
            Received::Repeat { id, payload } => {
                let detail = json!({ "id": id, "outcome": "repeated" });
                self.audit_flood("repeated", &short, &detail);
                self.reply(&id, payload).await;
            }
            Received::Pending => log::info!("command verb={short} is under way"),
            Received::Ignore(reason) => {
                log::warn!("command verb={short} ignored: {reason}");
                let detail = json!({ "outcome": "ignored", "reason": reason });
                self.audit_flood("ignored", &short, &detail);
            }
        }
    }

    async fn carry_out(&mut self, id: Id, command: Command) {
        let (verb, outcome) = match command {
            Command::Ping => ("ping", Ok(json!({ "boot_id": self.running.boot_id }))),
            Command::SetRate { stream, fps } => ("set-rate", self.set_rate(stream, fps)),
            Command::Snapshot { stream } => match self.begin_snapshot(&id, stream) {
                Ok(()) => return,
                Err(error) => ("snapshot", Err(error)),
            },
            Command::CheckUpdate => ("check-update", self.check_update()),
            Command::Audit { after } => match self.begin_audit(&id, after) {
                Ok(()) => return,
                Err(error) => ("audit", Err(error)),
            },
            Command::AbortTrial => match self.begin_abort(&id) {
                Ok(()) => return,
                Err(error) => ("abort-trial", Err(error)),
            },
        };
        self.finish(&id, verb, outcome).await;
    }

    async fn finish(&mut self, id: &Id, verb: &str, outcome: Result<Value, CommandError>) {
        let told = outcome.as_ref().map_or_else(|error| error.code.as_str(), |_| "ok");
        log::info!("command verb={verb} id={id} outcome={told}");
        // Rows of the log in the log would make it grow by being read.
        let answer = outcome.as_ref().ok().filter(|_| verb != "audit").unwrap_or(&Value::Null);
        self.audit_request(verb, &json!({ "id": id, "outcome": told, "answer": answer }));
        let payload = self.commands.finish(id, &outcome);
        self.reply(id, payload).await;
    }

    async fn reply(&self, id: &Id, payload: Vec<u8>) {
        if self.handle.reply(self.topics.reply(id), payload).await.is_err() {
            log::debug!("not answered id={id}: the reporter has ended");
        }
    }

    /// The stream that a request means.
    fn stream(&self, named: Option<String>) -> Result<Id, CommandError> {
        let mut names = self.running.control.stream_names();
        let known = || {
            let names = self.running.control.stream_names().map(Id::as_str);
            names.collect::<Vec<_>>().join(", ")
        };
        match named {
            Some(named) => names.find(|name| name.as_str() == named).cloned().ok_or_else(|| {
                let named: String = named.chars().take(80).collect();
                let message = format!("there is no stream \"{named}\"; there is {}", known());
                commands::error("unknown-stream", message)
            }),
            None => match (names.next(), names.next()) {
                (Some(only), None) => Ok(only.clone()),
                _ => Err(commands::error("bad-request", format!("name a stream: {}", known()))),
            },
        }
    }

    fn set_rate(&self, stream: Option<String>, fps: Option<f32>) -> Result<Value, CommandError> {
        let stream = self.stream(stream)?;
        self.running.control.set_rate(stream.as_str(), fps).map_err(|error| refusal(&error))?;
        Ok(json!({ "stream": stream, "fps": fps }))
    }

    /// Asks for a frame; the answer comes through `finished`.
    fn begin_snapshot(&mut self, id: &Id, stream: Option<String>) -> Result<(), CommandError> {
        let stream = self.stream(stream)?;
        if self.snapshots >= MOST_SNAPSHOTS {
            let message = format!("{MOST_SNAPSHOTS} snapshots are under way; ask again later");
            return Err(commands::error("busy", message));
        }
        let frame =
            self.running.control.snapshot(stream.as_str()).map_err(|error| refusal(&error))?;
        self.snapshots += 1;
        let (topic, handle) = (self.topics.snapshot(&stream), self.handle.clone());
        let (id, finished) = (id.clone(), self.finished_in.clone());
        tokio::spawn(async move {
            let outcome = snapshot(frame, &stream, topic, &handle).await;
            // The service may have ended; then nobody is answered.
            let _ = finished.send((id, "snapshot", outcome)).await;
        });
        Ok(())
    }

    /// A row for a request, unless very many came.
    fn audit_request(&mut self, verb: &str, detail: &Value) {
        if self.requests.admit(self.clock.now()) {
            self.audit("command", verb, detail);
        }
    }

    /// A row for the first request of its kind; how many more came is told later.
    fn audit_flood(&mut self, outcome: &'static str, verb: &str, detail: &Value) {
        if self.requests.admit_kind(outcome, self.clock.now()) {
            self.audit("command", verb, detail);
        }
    }

    fn end_floods(&mut self, now: Instant) {
        for (outcome, more) in self.requests.ended(now) {
            self.audit("command", "several", &json!({ "outcome": outcome, "more": more }));
        }
    }

    fn audit(&self, kind: &str, subject: &str, detail: &Value) {
        let head = Arc::clone(&self.audit);
        let entry = audit::entry(self.clock.wall(), kind, subject, detail);
        let noted = self.store.audit(entry, move |row| match row {
            Ok(row) => {
                note_head(&head, store::AuditHead { number: row.number, digest: row.digest })
            }
            Err(error) => log::error!("not yet in the audit log: {error}"),
        });
        if let Err(error) = noted {
            log::error!("not in the audit log kind={kind} subject={subject}: {error}");
        }
    }
}

/// Waits for the frame, encodes it off the runtime's thread, publishes it.
async fn snapshot(
    frame: tokio::sync::oneshot::Receiver<Frame>,
    stream: &Id,
    topic: String,
    handle: &ReporterHandle,
) -> Result<Value, CommandError> {
    let failed = |message: String| commands::error("failed", message);
    let frame = match tokio::time::timeout(SNAPSHOT_WAIT, frame).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(_)) => return Err(failed(format!("stream \"{stream}\" has ended"))),
        Err(_) => {
            let seconds = SNAPSHOT_WAIT.as_secs();
            let message =
                format!("no frame of \"{stream}\" within {seconds} s; see its camera in health");
            return Err(failed(message));
        }
    };
    let (number, captured_at) = (frame.number, frame.captured_at.to_string());
    let jpeg = match tokio::task::spawn_blocking(move || jpeg(frame)).await {
        Ok(Ok(jpeg)) => jpeg,
        Ok(Err(why)) => return Err(failed(why)),
        Err(error) => return Err(failed(format!("encoding failed: {error}"))),
    };
    let bytes = jpeg.len();
    if bytes > MAX_SNAPSHOT_BYTES {
        let message =
            format!("the picture has {bytes} bytes, at most {MAX_SNAPSHOT_BYTES} are sent");
        return Err(failed(message));
    }
    if handle.snapshot(topic.clone(), jpeg).await.is_err() {
        return Err(failed("the agent is ending".to_owned()));
    }
    let answer = json!({ "stream": stream, "topic": topic, "bytes": bytes, "frame": number, "captured_at": captured_at });
    Ok(answer)
}

/// The picture of a frame as a JPEG file; that of an MJPEG camera as it is.
fn jpeg(frame: Frame) -> Result<Vec<u8>, String> {
    if frame.format == PixelFormat::Mjpeg {
        return Ok(frame.data);
    }
    let picture = Picture::from_frame(&frame).map_err(|error| error.to_string())?;
    picture.encode_jpeg(SNAPSHOT_QUALITY).map_err(|error| error.to_string())
}

fn refusal(error: &ControlError) -> CommandError {
    let code = match error {
        ControlError::UnknownStream { .. } => "unknown-stream",
        ControlError::Rate { .. } => "bad-request",
        ControlError::Ended => "failed",
    };
    commands::error(code, error.to_string())
}

fn note_head(known: &Mutex<Option<AuditHead>>, head: store::AuditHead) {
    if head.number > 0 {
        let sha256 = head.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        *lock(known) = Some(AuditHead { number: head.number, sha256 });
    }
}

// A panic of a holder leaves the value whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
