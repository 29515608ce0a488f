//! The thread of model updates: carries out what the update session decides. Disk, child processes, loading and swapping
//! may take their time here; nobody waits for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ocelli_protocol::health::ClockState;
use ocelli_protocol::model_state::{Trust, UpdateState};
use ocelli_protocol::repository::Digest;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::agent::AgentError;
use crate::agent::health::clock_state;
use crate::agent::load::{Loaded, ModelError, load, load_this};
use crate::agent::settings::{Misfit, ModelSettings, UpdateSettings};
use crate::clock::Clock;
use crate::model::ModelSpec;
use crate::model::disk::Folder;
use crate::model::slots::Slot;
use crate::pipeline::{Control, Detector, SessionWatch};
use crate::telemetry::Percentiles;
use crate::update::trial::{self, Trial};
use crate::update::{self, Action, Event, METADATA_FOLDER, Moment, Sample, Session};

/// Events that may wait; more of the broker's are dropped, and asked for again by the session.
const QUEUE: usize = 64;
/// Between two looks at the session without an event.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at a child process.
const TRIAL_TICK: Duration = Duration::from_millis(50);
/// Longest wait for the inference thread to take a new detector.
const SWAP_WAIT: Duration = Duration::from_secs(60);
/// Noise that a latency budget made from the old model's allows.
const LATENCY_SLACK: Duration = Duration::from_millis(5);

/// What the thread is asked.
pub(super) enum Ask {
    /// For the session.
    Event(Event),
    /// `abort-trial`; answers whether there was one.
    Abort(oneshot::Sender<bool>),
}

/// What the thread tells the service.
pub(super) enum Told {
    Subscribe(String),
    Unsubscribe(String),
    Update(UpdateState, Trust),
    /// Another model looks at frames.
    Model(Box<Running>),
    Audit {
        subject: String,
        detail: Value,
    },
}

/// A model that looks at frames, without its detector.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) spec: ModelSpec,
    pub(super) watch: Arc<SessionWatch>,
    pub(super) slot: Option<Slot>,
    pub(super) trust: Trust,
}

/// The service's end.
pub(super) struct Handle {
    pub(super) asks: SyncSender<Ask>,
    pub(super) told: mpsc::Receiver<Told>,
}

/// The update folder, opened before any model is loaded.
pub(super) struct Updates {
    session: Session<Folder>,
    folder: PathBuf,
    settings: UpdateSettings,
    model: ModelSettings,
    clock: Arc<dyn Clock>,
}

impl Updates {
    pub(super) fn open(
        settings: UpdateSettings,
        model: ModelSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AgentError> {
        let folder = settings.folder.clone();
        let unusable = |error| AgentError::Updates { folder: folder.clone(), error };
        let disk = Folder::open(&settings.folder, &[METADATA_FOLDER]).map_err(unusable)?;
        let session = Session::open(settings.session.clone(), disk);
        Ok(Self { session, folder, settings, model, clock })
    }

    /// Loads the model to start with: on probation, confirmed, or configured. A slot that fails is passed over.
    pub(super) fn load_first(&mut self) -> Result<(Loaded, Option<Slot>), ModelError> {
        let moment = moment(&*self.clock);
        let mut slot = self.session.boot(&moment);
        while let Some(tried) = slot {
            match self.load(Some(tried), Misfit::StandIn) {
                Ok(loaded) => return Ok((loaded, slot)),
                Err(error) => {
                    log::error!("update: slot {} does not load: {error}", tried.name());
                    slot = self.session.boot_failed(tried, &error.to_string(), &moment);
                }
            }
        }
        Ok((self.load(None, Misfit::StandIn)?, None))
    }

    /// Whether what a slot holds may still be taken back.
    pub(super) fn trust(&self, slot: Option<Slot>) -> Trust {
        self.session.trust(slot)
    }

    fn load(&self, slot: Option<Slot>, misfit: Misfit) -> Result<Loaded, ModelError> {
        let path = match slot {
            Some(slot) => self.folder.join(slot.file()),
            None => self.model.path.clone(),
        };
        let verified = slot.and_then(|slot| Some(self.session.package(slot)?.sha256));
        let mut settings = ModelSettings { path, ..self.model.clone() };
        settings.accelerators.misfit = misfit;
        load_this(&settings, verified, &self.clock)
    }

    /// Starts the thread, once the pipeline runs.
    pub(super) fn start(self, running: Running, control: Control) -> Result<Handle, AgentError> {
        let (asks, queue) = sync_channel(QUEUE);
        let (told, told_out) = mpsc::channel(QUEUE);
        let updater = Updater {
            updates: self,
            control,
            told,
            running,
            before: None,
            trial: None,
            since: None,
            ended: false,
        };
        let spawned =
            std::thread::Builder::new().name("update".into()).spawn(move || updater.run(&queue));
        spawned.map_err(AgentError::System)?;
        Ok(Handle { asks, told: told_out })
    }
}

/// Counts when a model took over.
struct Since {
    finished: u64,
    faults: u64,
    budget: Option<Duration>,
}

struct Updater {
    updates: Updates,
    control: Control,
    told: mpsc::Sender<Told>,
    running: Running,
    /// The model before the one on probation, ready to go back to.
    before: Option<(Detector, Running)>,
    trial: Option<Trial>,
    since: Option<Since>,
    ended: bool,
}

impl Updater {
    /// Runs until the service is gone.
    fn run(mut self, queue: &Receiver<Ask>) {
        let running = Digest(self.running.spec.sha256().0);
        let moment = self.moment();
        let actions = self.updates.session.started(self.running.slot, running, &moment);
        if self.updates.session.on_probation() {
            self.watch(None);
        }
        self.perform(actions);
        while !self.ended {
            let wait = if self.trial.is_some() { TRIAL_TICK } else { TICK };
            match queue.recv_timeout(wait) {
                Ok(Ask::Event(event)) => self.handle(event),
                Ok(Ask::Abort(answer)) => {
                    let moment = self.moment();
                    let actions = self.updates.session.abort(&moment);
                    // Who asked may have gone.
                    let _ = answer.send(actions.is_some());
                    self.perform(actions.unwrap_or_default());
                }
                Err(RecvTimeoutError::Timeout) => self.handle(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.poll_trial();
            self.sample();
        }
    }

    fn moment(&self) -> Moment {
        moment(&*self.updates.clock)
    }

    fn handle(&mut self, event: Event) {
        let moment = self.moment();
        let actions = self.updates.session.handle(event, &moment);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Subscribe(topic) => self.tell(Told::Subscribe(topic)),
                Action::Unsubscribe(topic) => self.tell(Told::Unsubscribe(topic)),
                Action::Try(slot) => self.begin_trial(slot),
                Action::StopTrial => self.trial = None,
                Action::Run(slot) => {
                    let outcome = self.swap(slot);
                    self.handle(Event::Running(outcome));
                }
                Action::Tell => {
                    let state = self.updates.session.state();
                    let trust = self.updates.trust(self.running.slot);
                    self.tell(Told::Update(state, trust));
                }
                Action::Audit { subject, detail } => self.tell(Told::Audit { subject, detail }),
            }
        }
        if !self.updates.session.on_probation() {
            (self.before, self.since) = (None, None);
        }
    }

    /// Waits for the service when it is behind; ends this thread when it is gone.
    fn tell(&mut self, told: Told) {
        self.ended |= self.told.blocking_send(told).is_err();
    }

    fn begin_trial(&mut self, slot: Slot) {
        let path = self.updates.folder.join(slot.file());
        match Trial::start(&self.updates.settings.trial, &path, self.updates.clock.now()) {
            Ok(trial) => self.trial = Some(trial),
            Err(failure) => self.handle(Event::Tried(Err(failure))),
        }
    }

    fn poll_trial(&mut self) {
        let now = self.updates.clock.now();
        if let Some(outcome) = self.trial.as_mut().and_then(|trial| trial.poll(now)) {
            self.trial = None;
            self.handle(Event::Tried(outcome));
        }
    }

    /// Lets another model take over between two frames.
    fn swap(&mut self, slot: Option<Slot>) -> Result<Digest, String> {
        let (detector, running) = match self.before.take() {
            Some((detector, running)) if running.slot == slot => (detector, running),
            _ => {
                let loaded =
                    self.updates.load(slot, Misfit::Refuse).map_err(|error| error.to_string())?;
                let Loaded { detector, spec, watch } = loaded;
                (detector, Running { spec, watch, slot, trust: self.updates.trust(slot) })
            }
        };
        let old_p90 = self.percentiles().filter(|seen| seen.count >= 30).map(|seen| seen.p90_us);
        let old = self.control.swap(detector).map_err(|error| error.to_string())?;
        let old = wait(old, &*self.updates.clock)?;
        let before = std::mem::replace(&mut self.running, running.clone());
        self.before = Some((old, before));
        self.watch(old_p90);
        let digest = Digest(running.spec.sha256().0);
        self.tell(Told::Model(Box::new(running)));
        Ok(digest)
    }

    /// Begins to count for a probation.
    fn watch(&mut self, old_p90_us: Option<u64>) {
        let own = self.running.spec.budget(&self.updates.settings.trial.labels).latency_p90_ms;
        let own = own.map(|ms| Duration::from_secs_f32((ms / 1000.0).max(0.0)));
        let old = old_p90_us.map(|us| Duration::from_micros(us + us / 2) + LATENCY_SLACK);
        let (finished, faults) = self.counts();
        self.since = Some(Since { finished, faults, budget: own.or(old) });
    }

    fn counts(&self) -> (u64, u64) {
        let frames = self.control.frames();
        (frames.finished.total(), frames.failed.total() + frames.panicked.total())
    }

    fn percentiles(&self) -> Option<Percentiles> {
        let now = self.updates.clock.now();
        Some(self.control.stages().inference.percentiles(now))
    }

    fn sample(&mut self) {
        let Some(since) = &self.since else { return };
        let (finished, faults) = self.counts();
        let sample = Sample {
            finished: finished.saturating_sub(since.finished),
            faults: faults.saturating_sub(since.faults),
            p90: self.percentiles().map(|seen| Duration::from_micros(seen.p90_us)),
            budget: since.budget,
        };
        self.handle(Event::Sample(sample));
    }
}

/// The detector that looked before, once the inference thread has given it up.
fn wait(mut old: oneshot::Receiver<Detector>, clock: &dyn Clock) -> Result<Detector, String> {
    let end: Instant = clock.now() + SWAP_WAIT;
    loop {
        match old.try_recv() {
            Ok(detector) => return Ok(detector),
            Err(oneshot::error::TryRecvError::Closed) => {
                return Err("the pipeline ended before the swap".to_owned());
            }
            Err(oneshot::error::TryRecvError::Empty) if clock.now() > end => {
                // From here on it cannot happen any more, unless it just has.
                old.close();
                let hangs = || format!("no swap within {} s: inference hangs", SWAP_WAIT.as_secs());
                return old.try_recv().map_err(|_| hangs());
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn moment(clock: &dyn Clock) -> Moment {
    let trusted = match clock_state(std::path::Path::new("/run")) {
        ClockState::Synchronised => update::Clock::Synchronised,
        ClockState::Unverified => update::Clock::Unverified,
    };
    Moment { now: clock.now(), wall: clock.wall(), clock: trusted }
}

/// The child's side of a trial: confines itself, loads the package and looks at its golden pictures.
#[must_use]
pub fn try_model(
    settings: &ModelSettings,
    labels: &[String],
    clock: &Arc<dyn Clock>,
) -> trial::Report {
    const MIB: u64 = 1024 * 1024;
    let failed = |reason: String| trial::Report::Failed { reason };
    // Address space is more than memory: code, stacks and what allocators set aside.
    let limits = trial::Limits { memory_bytes: 2048 * MIB, cpu_seconds: 600 };
    if let Err(error) = trial::confine(limits) {
        let reason = format!("the limits of the trial are refused: {error}");
        return trial::Report::Unable { reason };
    }
    let status = std::path::Path::new("/proc/self/status");
    let before = super::health::peak_bytes(status);
    let loaded = match load(settings, clock) {
        Ok(loaded) => loaded,
        Err(error) => return failed(error.to_string()),
    };
    let memory_bytes = super::health::peak_bytes(status)
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    let budget = loaded.spec.budget(labels).memory_mib;
    if let (Some(used), Some(allowed)) = (memory_bytes, budget)
        && used > u64::from(allowed) * MIB
    {
        return failed(format!("it takes {} MiB, its budget is {allowed} MiB", used / MIB));
    }
    trial::Report::Passed { golden: loaded.spec.golden().len(), memory_bytes }
}
