//! Accelerators behind vendor plug-ins, each in a process of its own: `ocelli-npu-worker`.
//!
//! [`Worker`] is the process: started, asked, killed at a deadline. The delegate here asks a worker what it takes, and has it
//! compile; `segment` runs frames. A worker that faults is ended, its segment is not alive any more, and the session goes
//! on with the stand-in and has a new one compiled after a pause. What vendors' code does can hurt only its own process.

mod passage;
mod payload;
mod segment;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ocelli_delegate::wire::{self, Device, Opened, Reply, Request, Sandbox};

pub use self::passage::BlobTensor;
use self::segment::Remote;
use self::worker::{Fault, Worker};
use super::delegate::{
    Closeness, CompileError, CompiledSegment, Delegate, DeviceInfo, Seat, Segment, Unavailable,
    WorkerCounts,
};
use super::graph::{GraphView, NodeId, NodeSet};
use super::partition::partition;
use crate::clock::Clock;

/// Name of the program that hosts plug-ins.
const WORKER_PROGRAM: &str = "ocelli-npu-worker";
/// Longest time that a killed process may take to go; longer means that it is stuck in the kernel.
const BURIAL: Duration = Duration::from_secs(2);

/// One plug-in and its worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSettings {
    /// Name of the delegate, as in the configuration and in results.
    pub name: String,
    /// The plug-in, a shared library.
    pub plugin: PathBuf,
    /// For the plug-in.
    pub options: BTreeMap<String, String>,
    /// The worker's program.
    pub program: PathBuf,
    /// Words before the program, as `["qemu-aarch64-static"]`.
    pub runner: Vec<String>,
    /// How far the worker is fenced in.
    pub sandbox: Sandbox,
    /// Largest address space of the worker, bytes; 0: no limit.
    pub memory_bytes: u64,
    /// Folder for compiled models, the only one that the worker may write in.
    pub cache_dir: Option<PathBuf>,
    /// Longest time for loading the plug-in, and for compiling a model.
    pub patience: Duration,
    /// The vendor's compiled forms of the model that is loaded, from its package, one for each target.
    pub blobs: Vec<Blob>,
}

impl WorkerSettings {
    /// A plug-in with nothing else set: the worker beside this program, strict sandbox, 2 GiB, a minute.
    #[must_use]
    pub fn new(name: &str, plugin: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            plugin: plugin.into(),
            options: BTreeMap::new(),
            program: worker_beside(),
            runner: Vec::new(),
            sandbox: Sandbox::Strict,
            memory_bytes: 2 << 30,
            cache_dir: None,
            patience: Duration::from_secs(60),
            blobs: Vec::new(),
        }
    }
}

/// A compiled model from a package.
#[derive(Debug, Clone, PartialEq)]
pub struct Blob {
    /// The file, its digest checked.
    pub bytes: Arc<[u8]>,
    /// What it was compiled for.
    pub target: String,
    /// What compiled it.
    pub toolchain: Option<String>,
    /// Version of the vendor's runtime that it needs: a range such as `>=2.3.0, <3`, or one exact text.
    pub runtime: Option<String>,
    /// Inputs and outputs that are not as in the model.
    pub io: Vec<BlobTensor>,
    /// What its answers may differ from the stand-in's.
    pub closeness: Option<Closeness>,
}

/// The worker's program beside this one, else by name in the search path.
#[must_use]
pub fn worker_beside() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(std::path::Path::parent);
    let beside = beside.map(|folder| folder.join(WORKER_PROGRAM)).filter(|path| path.exists());
    beside.unwrap_or_else(|| WORKER_PROGRAM.into())
}

/// What the delegate and its segments share.
struct Shared {
    settings: WorkerSettings,
    clock: Arc<dyn Clock>,
    starts: AtomicU64,
    faults: AtomicU64,
    overruns: AtomicU64,
    stuck: AtomicU64,
    /// Killed, not seen to be gone.
    dying: Mutex<Vec<worker::Dying>>,
    /// Loaded, but without a segment yet.
    idle: Mutex<Option<(Worker, Opened)>>,
}

/// The delegate.
pub(super) struct Npu(Arc<Shared>);

impl Npu {
    pub(super) fn new(settings: WorkerSettings, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            settings,
            clock,
            starts: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            overruns: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            dying: Mutex::default(),
            idle: Mutex::default(),
        }))
    }
}

impl Shared {
    /// A worker with the plug-in loaded: the idle one, or a new one.
    fn worker(&self) -> Result<(Worker, Opened), Fault> {
        if let Some(idle) = lock(&self.idle).take() {
            return Ok(idle);
        }
        self.wait_for_the_dying()?;
        self.starts.fetch_add(1, Ordering::Relaxed);
        let mut worker = Worker::start(&self.settings)?;
        let settings = &self.settings;
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let open = wire::Open {
            version: wire::VERSION,
            plugin: path(&settings.plugin),
            options: settings.options.clone(),
            sandbox: settings.sandbox,
            memory_bytes: settings.memory_bytes,
            cache_dir: settings.cache_dir.as_deref().map(path),
        };
        match self.ask(&mut worker, &Request::Open(open), None) {
            Ok(Reply::Opened(opened)) => {
                for what in &opened.unfenced {
                    log::warn!("delegate={} not fenced: {what}", settings.name);
                }
                Ok((worker, opened))
            }
            Ok(other) => Err(self.bury(worker, Fault::Nonsense(format!("{other:?}")))),
            Err(fault) => Err(self.bury(worker, fault)),
        }
    }

    fn ask(
        &self,
        worker: &mut Worker,
        request: &Request,
        file: Option<&std::fs::File>,
    ) -> Result<Reply, Fault> {
        let deadline = self.clock.now() + self.settings.patience;
        worker.ask(request, file, deadline, &*self.clock)
    }

    /// Kills a worker, counts why, and gives the fault back.
    fn bury(&self, worker: Worker, fault: Fault) -> Fault {
        let counter = match fault {
            Fault::TimedOut => &self.overruns,
            _ => &self.faults,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let (fault, dying) = worker.kill(fault, self.clock.now());
        log::warn!("delegate={} worker ended: {fault}", self.settings.name);
        lock(&self.dying).extend(dying);
        fault
    }

    /// Ends a worker that did nothing wrong.
    fn dismiss(&self, worker: Worker) {
        let (_, dying) = worker.kill(Fault::TimedOut, self.clock.now());
        lock(&self.dying).extend(dying);
    }

    /// No new worker while an old one may still hold the device. Not called where frames flow.
    fn wait_for_the_dying(&self) -> Result<(), Fault> {
        let mut dying = lock(&self.dying);
        loop {
            dying.retain_mut(|one| !one.is_gone());
            let now = self.clock.now();
            let Some(oldest) = dying.iter().map(|one| one.killed_at()).min() else { return Ok(()) };
            if now.saturating_duration_since(oldest) > BURIAL {
                self.stuck.store(dying.len() as u64, Ordering::Relaxed);
                return Err(Fault::Stuck(dying[0].id()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn device<'a>(&self, opened: &'a Opened) -> Result<&'a Device, CompileError> {
        let none = || CompileError::Refused("the plug-in names no device".to_owned());
        opened.devices.first().ok_or_else(none)
    }

    /// The package's compiled model for this device and runtime; else what does not fit.
    fn fitting(&self, device: &Device) -> Result<&Blob, CompileError> {
        let blobs = &self.settings.blobs;
        let fits = |blob: &&Blob| device.target.is_empty() || blob.target == device.target;
        let found = blobs.iter().find(fits).ok_or_else(|| {
            let targets: Vec<_> = blobs.iter().map(|blob| blob.target.as_str()).collect();
            CompileError::Refused(format!(
                "the package's file is for target {}, here is {}; compile the model for it too",
                targets.join(" and "),
                device.target
            ))
        })?;
        runs_on(found, device).map(|()| found)
    }
}

/// Whether a compiled model is for the runtime that is here, as far as that tells its version.
fn runs_on(blob: &Blob, device: &Device) -> Result<(), CompileError> {
    let Some(wanted) = &blob.runtime else { return Ok(()) };
    let here = &device.runtime;
    let number = here.split(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    let fits = match (semver::VersionReq::parse(wanted), semver::Version::parse(number)) {
        (Ok(range), Ok(version)) => range.matches(&version),
        _ => wanted == here,
    };
    if here.is_empty() || fits {
        return Ok(());
    }
    let driver = if device.driver.is_empty() { "unknown" } else { &device.driver };
    Err(CompileError::Refused(format!(
        "the package's file is for runtime version {wanted}, here is {here} (driver {driver}); update the runtime, or compile the model anew for it"
    )))
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some((worker, _)) = lock(&self.idle).take() {
            self.dismiss(worker);
        }
        let dying = std::mem::take(&mut *lock(&self.dying));
        worker::bury_later(dying, BURIAL);
    }
}

impl Delegate for Npu {
    fn name(&self) -> &str {
        &self.0.settings.name
    }

    fn probe(&self) -> Result<DeviceInfo, Unavailable> {
        let unavailable = |reason: String| Unavailable { delegate: self.name().to_owned(), reason };
        let (worker, opened) = self.0.worker().map_err(|fault| unavailable(fault.to_string()))?;
        let device = opened.devices.first();
        let info = device.map(|device| DeviceInfo {
            device: describe(device),
            version: version(device),
            simulated: device.simulated,
        });
        *lock(&self.0.idle) = Some((worker, opened));
        info.ok_or_else(|| unavailable("the plug-in names no device".to_owned()))
    }

    /// The largest convex part of what the plug-in accepts: each further segment would cost a process of its own. With a
    /// compiled model in the package, all of it.
    fn claim(&self, graph: &GraphView<'_>) -> NodeSet {
        if !self.0.settings.blobs.is_empty() {
            return (0..graph.nodes().len()).collect();
        }
        match self.accepted(graph) {
            Ok(accepted) => largest_part(graph, accepted),
            Err(error) => {
                log::warn!("delegate={} claims nothing: {error}", self.name());
                NodeSet::default()
            }
        }
    }

    fn compile(&self, segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError> {
        let shared = &self.0;
        let (mut worker, opened) = shared.worker().map_err(|fault| fault.into_compile_error())?;
        let compiled = self.compile_with(&mut worker, &opened, segment);
        match compiled {
            Ok((memory, places)) => {
                Ok(Box::new(Remote::new(Arc::clone(shared), worker, memory, places, segment.io)))
            }
            Err(fault) => Err(shared.bury(worker, fault).into_compile_error()),
        }
    }

    fn seat(&self) -> Seat {
        Seat::Apart
    }

    fn closeness(&self) -> Option<Closeness> {
        // All files of one kind come from one toolchain.
        self.0.settings.blobs.first()?.closeness
    }

    fn workers(&self) -> Option<WorkerCounts> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { starts, faults, overruns, stuck, .. } = &*self.0;
        let [starts, faults, overruns, stuck] = [starts, faults, overruns, stuck].map(read);
        Some(WorkerCounts { starts, faults, overruns, stuck })
    }
}

impl Npu {
    fn accepted(&self, graph: &GraphView<'_>) -> Result<NodeSet, CompileError> {
        let shared = &self.0;
        let all: NodeSet = (0..graph.nodes().len()).collect();
        let payload = payload::graph(graph, &all, None);
        let file = payload.file().map_err(|error| CompileError::Failed(error.to_string()))?;
        let (mut worker, opened) = shared.worker().map_err(|fault| fault.into_compile_error())?;
        let request = Request::Supports { device: 0, graph: payload.graph };
        let reply = shared.ask(&mut worker, &request, Some(&file));
        let accepts = match reply {
            Ok(Reply::Accepts(accepts)) if accepts.len() == all.len() => accepts,
            Ok(other) => {
                let fault = Fault::Nonsense(format!("{other:?}"));
                return Err(shared.bury(worker, fault).into_compile_error());
            }
            Err(fault) => return Err(shared.bury(worker, fault).into_compile_error()),
        };
        *lock(&shared.idle) = Some((worker, opened));
        Ok(all.iter().zip(accepts).filter(|(_, yes)| *yes != 0).map(|(node, _)| node).collect())
    }

    fn compile_with(
        &self,
        worker: &mut Worker,
        opened: &Opened,
        segment: &Segment<'_>,
    ) -> Result<(std::fs::File, segment::Places), Fault> {
        let shared = &self.0;
        let device = shared.device(opened).map_err(Fault::Refused)?;
        let whole = segment.nodes.len() == segment.graph.nodes().len();
        let blob = match shared.settings.blobs.is_empty() {
            true => None,
            false => Some(shared.fitting(device).map_err(Fault::Refused)?),
        };
        let (payload, toolchain) = match blob {
            Some(blob) if whole => (payload::blob(&blob.bytes), blob.toolchain.clone()),
            Some(_) => {
                let what = "the package's file is the whole model, this is a part of it";
                return Err(Fault::Refused(CompileError::Refused(what.to_owned())));
            }
            None => (payload::graph(segment.graph, segment.nodes, Some(segment)), None),
        };
        let file = payload.file().map_err(|error| Fault::Died(error.to_string()))?;
        let compile = wire::Compile {
            device: 0,
            blob: blob.is_some(),
            model: payload.model,
            graph: blob.is_none().then_some(payload.graph),
            toolchain,
        };
        let reply = shared.ask(worker, &Request::Compile(Box::new(compile)), Some(&file))?;
        drop(file);
        let Reply::Compiled { inputs, outputs, device } = reply else {
            return Err(Fault::Nonsense(format!("{reply:?}")));
        };
        if let (Some(blob), Some(device)) = (blob, &device) {
            // Some runtimes tell their version only now.
            runs_on(blob, device).map_err(Fault::Refused)?;
        }
        let listed = blob.map(|blob| &blob.io[..]).unwrap_or_default();
        let places = segment::Places::check(&inputs, &outputs, segment.io, listed)
            .map_err(|what| Fault::Refused(CompileError::Refused(what)))?;
        let memory = ocelli_delegate::link::memory(places.n_bytes);
        let memory = memory.map_err(|error| Fault::Died(error.to_string()))?;
        match shared.ask(worker, &Request::Buffers, Some(&memory))? {
            Reply::Mapped => Ok((memory, places)),
            other => Err(Fault::Nonsense(format!("{other:?}"))),
        }
    }
}

fn version(device: &Device) -> Option<String> {
    let parts = [("runtime", &device.runtime), ("driver", &device.driver)];
    let known = parts.iter().filter(|(_, version)| !version.is_empty());
    let known: Vec<_> = known.map(|(what, version)| format!("{what} {version}")).collect();
    (!known.is_empty()).then(|| known.join(", "))
}

fn describe(device: &Device) -> String {
    let simulated = if device.simulated { " (simulated)" } else { "" };
    let vendor = if device.vendor.is_empty() { "" } else { &device.vendor };
    format!("{vendor} {}{simulated}", device.name).trim().to_owned()
}

fn largest_part(graph: &GraphView<'_>, accepted: NodeSet) -> NodeSet {
    let before: Vec<Vec<NodeId>> =
        (0..graph.nodes().len()).map(|node| graph.predecessors(node).collect()).collect();
    let parts = partition(&before, &[accepted]);
    let size = |nodes: &NodeSet| {
        let macs: u64 = nodes.iter().map(|node| graph.node(node).macs).sum();
        (macs, nodes.len())
    };
    let owned = parts.into_iter().filter(|part| part.owner.is_some()).map(|part| part.nodes);
    owned.max_by_key(size).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
