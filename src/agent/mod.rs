//! Wires the parts into the agent that runs on a device: settings in, threads and one tokio runtime, orderly end.
//!
//! Decisions live in the parts and in the sans-I/O files beside this one; here is only who talks to whom.

mod accelerators;
mod audit;
mod choice;
pub mod commands;
mod gate;
mod hardware;
mod health;
mod load;
mod local;
mod service;
mod settings;
mod signals;
mod updater;
pub mod watchdog;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use ocelli_protocol::model_state::Trust;

use crate::board;
use crate::clock::Clock;
use crate::pipeline::{self, OpenCamera, Pipeline, Stream};
use crate::report::new_boot_id;
use crate::store::{FolderLock, StoreError};
use updater::Updates;

pub(crate) use gate::plugins_for;
pub(crate) use load::picture;
pub use load::{Loaded, ModelError, load};
pub use local::DEVICE as LOCAL_DEVICE;
pub(crate) use service::forward;
pub use settings::{
    Accelerators, DeliverySettings, Misfit, ModelSettings, Settings, StreamSettings,
    UpdateSettings, WatchdogLimits,
};
pub use updater::try_model;

/// Longest wait for threads of the pipeline at the end.
const THREADS_END: Duration = Duration::from_secs(2);

/// Why the agent ended, other than by one signal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configured model cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The streams make no sense, or there are no threads for them.
    #[error(transparent)]
    Pipeline(#[from] pipeline::StartError),
    /// The store belongs to a newer agent, is used by another one, or has no thread.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no folder for updates.
    #[error("updates: {}: {error}; make it writable or change store.dir", folder.display())]
    Updates {
        /// The folder.
        folder: std::path::PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A required part of the board is not there.
    #[error(transparent)]
    Board(#[from] board::Error),
    /// The system gives no timers, sockets or signals.
    #[error("cannot start: {0}")]
    System(io::Error),
    /// Standard output takes no results.
    #[error("cannot write results to standard output: {0}")]
    Output(io::Error),
    /// Without a broker: no camera can be used.
    #[error("{0}")]
    Camera(String),
    /// Inference gave up; a new start may help.
    #[error("{0}; the agent ends so that it is started anew")]
    Inference(String),
    /// A task that must live ended.
    #[error("the {0} task ended by itself; the agent ends so that it is started anew")]
    Task(&'static str),
    /// A second signal came before the orderly end was through.
    #[error("ended at once by a second signal")]
    Interrupted,
}

/// Runs the agent until SIGTERM, SIGINT or SIGHUP. Results go to the broker, or as JSON lines to `out` when there is none.
///
/// # Errors
/// [`AgentError`]: at the start for a model, board or store that cannot be used; later when a new start is the cure.
pub fn run(
    settings: Settings,
    clock: Arc<dyn Clock>,
    out: &mut dyn Write,
) -> Result<(), AgentError> {
    let boot_id = new_boot_id(clock.wall());
    let folder = settings.delivery.as_ref().map(|delivery| delivery.store.dir.as_path());
    // Held until the agent has ended.
    let _lock = folder.map(FolderLock::take).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(AgentError::System)?;
    let mut updates = match settings.updates {
        Some(updates) => Some(Updates::open(updates, settings.model.clone(), Arc::clone(&clock))?),
        None => None,
    };
    let (loaded, slot) = match &mut updates {
        Some(updates) => updates.load_first()?,
        None => (load(&settings.model, &clock)?, None),
    };
    let id = loaded.spec.id();
    let golden = loaded.spec.golden().len();
    log::info!("model name={} version={} golden pictures passed={golden}", id.name, id.version);
    let hardware = hardware::Hardware::open(&settings.board, clock.now())?;
    let Loaded { detector, spec, watch } = loaded;
    let streams = open_streams(&settings.streams, &clock);
    let limits = pipeline::Settings {
        deadline: settings.model.deadline,
        processor: settings.model.processor.clone(),
        ..Default::default()
    };
    let (pipeline, reports) = Pipeline::start(limits, streams, detector, Arc::clone(&clock))?;
    let control = pipeline.control();
    let gates = settings.streams.iter().map(|stream| (stream.name.to_string(), stream.gate));
    hardware::watch_trigger(&settings.board, gates.collect(), control.clone(), Arc::clone(&clock))?;
    let outcome = match settings.delivery {
        Some(delivery) => {
            let trust = updates.as_ref().map_or(Trust::Confirmed, |updates| updates.trust(slot));
            let model = updater::Running { spec, watch, slot, trust };
            let updates = match updates {
                Some(updates) => Some(updates.start(model.clone(), control.clone())?),
                None => None,
            };
            let running = service::Running {
                boot_id,
                control,
                model,
                updates,
                hardware,
                health_interval: settings.health_interval,
                watchdog: settings.watchdog,
                hardware_watchdog: hardware::arm_watchdog(&settings.board)?,
            };
            runtime.block_on(service::serve(running, delivery, reports, &clock))
        }
        None => runtime.block_on(local::print(reports, &control, &boot_id, &*clock, out)),
    };
    if let Err(stuck) = pipeline.stop(THREADS_END) {
        log::warn!("ending without waiting for threads: {stuck}");
    }
    // A task that waits for a snapshot is not waited for.
    runtime.shutdown_background();
    outcome
}

fn open_streams(settings: &[StreamSettings], clock: &Arc<dyn Clock>) -> Vec<Stream> {
    let one = |stream: &StreamSettings| {
        let (camera, clock) = (stream.camera.clone(), Arc::clone(clock));
        let open: OpenCamera = Box::new(move || crate::camera::open(&camera, Arc::clone(&clock)));
        Stream { name: stream.name.clone(), fps: stream.camera.fps, gate: stream.gate, open }
    };
    settings.iter().map(one).collect()
}
