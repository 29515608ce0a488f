//! What the agent is told before it starts: the settings of each part, put together. Built by the configuration; no
//! file is read here.

use std::path::PathBuf;
use std::time::Duration;

use ocelli_protocol::Id;
use ocelli_protocol::topic::RepoTopics;

use crate::inference::WorkerSettings;
use crate::inference::session::Closeness;
use crate::pipeline::Gate;
use crate::processor::Processor;
use crate::report::OutboxSettings;
use crate::{board, camera, mqtt, store, update};

/// Everything the agent needs to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Cameras, at least one; names are unique.
    pub streams: Vec<StreamSettings>,
    /// What runs on their frames.
    pub model: ModelSettings,
    /// Where results go; `None`: JSON lines on standard output.
    pub delivery: Option<DeliverySettings>,
    /// Signed updates of the model; only with a broker.
    pub updates: Option<UpdateSettings>,
    /// What is wired to the board.
    pub board: board::Settings,
    /// Time between two health reports.
    pub health_interval: Duration,
    /// Limits of the watchdog, see [`super::watchdog`].
    pub watchdog: WatchdogLimits,
}

/// One camera and its stream of results.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// Name of the stream, the last level of its result topic.
    pub name: Id,
    /// The camera. Its `fps` is also the limit of frames looked at.
    pub camera: camera::Settings,
    /// Which frames are looked at.
    pub gate: Gate,
}

/// The model that runs until an update is confirmed.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// Folder or tar of the package.
    pub path: PathBuf,
    /// Delegates in order of preference, of [`crate::inference::delegate_names`]; tract is always last, named or not.
    pub delegates: Vec<String>,
    /// Threads that compute, and their cores.
    pub processor: Processor,
    /// Where the measurement is kept by which `delegates` are ordered; `None`: they are in order.
    pub profile: Option<PathBuf>,
    /// Longest run of the model on one frame before it counts as an overrun.
    pub deadline: Duration,
    /// Plug-ins that `delegates` may name.
    pub accelerators: Accelerators,
}

impl ModelSettings {
    /// The same model on the processor alone.
    pub(super) fn without_accelerators(&self) -> Self {
        let plugin = |name: &String| self.accelerators.plugins.iter().any(|one| one.name == *name);
        let delegates = self.delegates.iter().filter(|name| !plugin(name)).cloned().collect();
        Self { delegates, accelerators: Accelerators::default(), ..self.clone() }
    }
}

/// Plug-ins of accelerators, and how their answers are watched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Accelerators {
    /// Known by the names in their settings.
    pub plugins: Vec<WorkerSettings>,
    /// Frames between two comparisons with the stand-in; 0: only when the model is loaded.
    pub shadow_every: u32,
    /// What may differ.
    pub closeness: Closeness,
    /// When a package's compiled form does not fit.
    pub misfit: Misfit,
}

/// What becomes of a model whose package has a compiled form for an accelerator that is here and does not take it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Misfit {
    /// Other delegates run it: a device whose driver has changed goes on.
    #[default]
    StandIn,
    /// It is refused: a new model does not take the place of one that runs.
    Refuse,
}

/// The way of results to a broker.
#[derive(Debug, Clone)]
pub struct DeliverySettings {
    /// Who this device is.
    pub device: Id,
    /// First levels of every topic, see [`ocelli_protocol::topic::DEFAULT_ROOT`].
    pub root: String,
    /// The connection. The agent sets its last will.
    pub mqtt: mqtt::Settings,
    /// Results that wait for the broker.
    pub outbox: OutboxSettings,
    /// What survives a restart.
    pub store: store::Settings,
    /// Where updates come from.
    pub repository: Option<RepoTopics>,
    /// Longest time that an orderly end may spend on delivering; the rest stays in the store.
    pub flush: Duration,
}

/// Signed updates of the model.
#[derive(Debug, Clone)]
pub struct UpdateSettings {
    /// Folder for slots and metadata.
    pub folder: PathBuf,
    /// What is followed.
    pub session: update::Settings,
    /// How a new model is tried.
    pub trial: update::trial::Settings,
}

/// Longest time without progress of each part before the watchdog is no longer fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchdogLimits {
    /// Capture threads. Above the longest time a driver may take to open a camera.
    pub capture: Duration,
    /// The inference thread: one frame. Above the slowest model on the slowest board.
    pub inference: Duration,
    /// The store's answer. Above the slowest sync of a worn SD card.
    pub store: Duration,
}

impl Default for WatchdogLimits {
    fn default() -> Self {
        let [capture, inference, store] = [30, 60, 120].map(Duration::from_secs);
        Self { capture, inference, store }
    }
}
