//! A model, ready to run frame after frame: segments in order, each with its alternatives.
//!
//! A segment's first alternative is compiled when the model is loaded. When it faults, is late or answers in the wrong
//! shape, the next one runs in the same frame if it is there; if not, it is built on a thread of its own, and frames
//! meanwhile end in [`SessionError::NotReady`]. The failed one is tried again after a pause that doubles each time,
//! and never after [`SessionOptions::quarantine_after`] failures in a row. tract, the reference, is always the last.

mod alternative;
mod segment;
mod source;
mod verify;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::segment::Runner;
pub use self::source::Reread;
use self::source::Source;
pub use self::verify::{Closeness, Tolerance, VerifyError};
use super::delegate::{Delegate, Layer, SegmentIo, WorkerCounts, WorkerStats};
use super::graph::{Graph, GraphError, Limits, NodeId, NodeSet, TensorId};
use super::partition::partition;
use crate::clock::Clock;
use crate::model::Sha256;
use crate::tensor::{Tensor, TensorSpec, TensorView};

/// How a session behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionOptions {
    /// Caps on the model file.
    pub limits: Limits,
    /// Pause before a delegate that failed is tried again; doubles with each further failure in a row.
    pub back_off: Duration,
    /// Failures in a row after which a delegate is not tried again, at least 1.
    pub quarantine_after: u32,
    /// Every so many frames the answer of a delegate in another process is compared with its stand-in's; 0: never.
    pub shadow_every: u32,
    /// What may differ then.
    pub closeness: Closeness,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            back_off: Duration::from_secs(1),
            quarantine_after: 5,
            shadow_every: 0,
            closeness: Closeness::default(),
        }
    }
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is not a graph that we run.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A tensor of a type that cannot pass between segments or to the outside.
    #[error(
        "tensor `{0}` has an element type that cannot leave a segment; use f32, u8, i8, i32 or i64"
    )]
    ElementType(String),
    /// Nothing computes an output.
    #[error("output `{0}` is an input or a constant; remove it from the model's outputs")]
    IdleOutput(String),
    /// No delegate and not even tract could prepare a segment.
    #[error("segment with node `{node}`: {reason}")]
    Segment {
        /// The first node of the segment.
        node: String,
        /// What each alternative said.
        reason: String,
    },
}

/// Why a frame has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The stand-in for a failed delegate is still being built; the frame is skipped.
    #[error("the stand-in for a failed delegate is still being built")]
    NotReady,
    /// An input has another shape or type than the model's.
    #[error("input `{name}`: expected {expected}, found {found}")]
    WrongInput {
        /// Name of the input.
        name: String,
        /// Its type and shape in the model.
        expected: String,
        /// What was given.
        found: String,
    },
    /// No alternative is left for a segment.
    #[error("segment with node `{node}` failed: {reason}")]
    Failed {
        /// The first node of the segment.
        node: String,
        /// What the last alternative said.
        reason: String,
    },
}

/// Which delegate runs which nodes, and how that went.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionReport {
    /// In the order in which they run.
    pub segments: Vec<SegmentReport>,
}

/// One segment of a [`SessionReport`].
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentReport {
    /// The delegate that ran it last, or would run it now.
    pub delegate: String,
    /// Names of its nodes.
    pub nodes: Vec<String>,
    /// Multiply-accumulates of a run, from shapes.
    pub macs: u64,
    /// Frames for which the first alternative was not the one that ran.
    pub fallbacks: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Duration of the last run.
    pub last_run: Duration,
    /// Delegates of it that run in processes of their own.
    pub workers: Vec<WorkerReport>,
}

/// A delegate in another process, of a [`SegmentReport`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerReport {
    /// The delegate.
    pub delegate: String,
    /// `ready`, `starting`, `paused` after a fault, `idle`, or `gone` for good.
    pub state: &'static str,
    /// What became of its processes.
    pub counts: WorkerCounts,
}

/// How long a layer took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTime {
    /// The layer.
    pub layer: Layer,
    /// Its time in one run.
    pub time: Duration,
}

/// Where a segment's tensor lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// In the caller's inputs.
    Input(usize),
    /// In the session's tensors.
    Tensor(usize),
}

/// A loaded model.
///
/// ```no_run
/// # use std::{sync::Arc, time::Duration};
/// # use ocelli::{clock::{Clock, SystemClock}, inference::{Session, SessionOptions}, tensor::Tensor};
/// let clock = Arc::new(SystemClock);
/// let onnx = std::fs::read("model.onnx")?;
/// let mut session = Session::load(&onnx, &[], SessionOptions::default(), clock.clone())?;
/// let input = Tensor::zeros(session.inputs()[0].clone());
/// session.run(&[input.view()], clock.now() + Duration::from_secs(1))?;
/// println!("{:?}", session.output(0).values);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Session {
    clock: Arc<dyn Clock>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    runners: Vec<Runner>,
    tensors: Vec<Tensor>,
    output_slots: Vec<usize>,
}

impl Session {
    /// Reads, checks, splits and compiles a model.
    ///
    /// `delegates` are in order of preference; tract is always last and need not be named.
    ///
    /// # Errors
    /// [`LoadError`] says what is wrong with the file, or why nobody can run it.
    pub fn load(
        onnx: &[u8],
        delegates: &[Arc<dyn Delegate>],
        options: SessionOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LoadError> {
        let graph = Graph::parse(onnx, &options.limits)?;
        let graph = Arc::new(graph);
        let source = Source::new(Arc::clone(&graph), options.limits, None);
        Self::build(&graph, &source, delegates, &options, clock)
    }

    /// As [`Session::load`], from a file that can be read again: memory that only a stand-in would need is given back.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn open(
        onnx: impl AsRef<[u8]>,
        reread: Reread,
        delegates: &[Arc<dyn Delegate>],
        options: SessionOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LoadError> {
        let graph = Graph::parse(onnx.as_ref(), &options.limits)?;
        let sha256 = Sha256::of(onnx.as_ref());
        drop(onnx);
        let graph = Arc::new(graph);
        let source = Source::new(Arc::clone(&graph), options.limits, Some((reread, sha256)));
        let session = Self::build(&graph, &source, delegates, &options, clock);
        source.release();
        session
    }

    fn build(
        graph: &Graph,
        source: &Arc<Source>,
        delegates: &[Arc<dyn Delegate>],
        options: &SessionOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LoadError> {
        let view = graph.view();
        let present: Vec<_> = delegates.iter().filter(|delegate| is_there(delegate)).collect();
        let claims: Vec<NodeSet> = present.iter().map(|delegate| delegate.claim(&view)).collect();
        let before: Vec<Vec<NodeId>> =
            (0..view.nodes().len()).map(|node| view.predecessors(node).collect()).collect();

        let spec = |tensor: TensorId| {
            let tensor = view.tensor(tensor);
            tensor.spec().ok_or_else(|| LoadError::ElementType(tensor.name.clone()))
        };
        let specs = |tensors: &[TensorId]| tensors.iter().map(|tensor| spec(*tensor)).collect();
        let (inputs, outputs): (Result<Vec<_>, _>, Result<Vec<_>, _>) =
            (specs(view.inputs()), specs(view.outputs()));
        let (inputs, outputs) = (inputs?, outputs?);

        let mut places = Places::new(view.inputs(), view.tensors().len());
        let mut tensors = Vec::new();
        let mut runners = Vec::new();
        for part in partition(&before, &claims) {
            let border = Border::of(graph, &part.nodes);
            let io = SegmentIo { inputs: specs(&border.reads)?, outputs: specs(&border.writes)? };
            let reads = border.reads.iter().filter_map(|tensor| places.0[*tensor]).collect();
            let first = tensors.len();
            for (place, (tensor, spec)) in border.writes.iter().zip(&io.outputs).enumerate() {
                places.0[*tensor] = Some(Slot::Tensor(first + place));
                tensors.push(Tensor::zeros(spec.clone()));
            }
            let willing = claims.iter().zip(&present);
            let willing = willing.filter(|(claim, _)| part.nodes.0.is_subset(&claim.0));
            let willing = willing.map(|(_, delegate)| Arc::clone(*delegate)).collect();
            let plan = segment::Plan::new(Arc::clone(source), &view, part.nodes, io);
            runners.push(Runner::load(plan, willing, options, reads, first)?);
        }
        let slot = |tensor: &TensorId| match places.0[*tensor] {
            Some(Slot::Tensor(slot)) => Ok(slot),
            _ => Err(LoadError::IdleOutput(view.tensor(*tensor).name.clone())),
        };
        let output_slots = view.outputs().iter().map(slot).collect::<Result<_, _>>()?;
        Ok(Self { clock, inputs, outputs, runners, tensors, output_slots })
    }

    /// What a run reads, in this order.
    #[must_use]
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// What a run writes, in this order.
    #[must_use]
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Runs once. Delegates give up at `deadline`; tract does not.
    ///
    /// # Errors
    /// [`SessionError`]; outputs are then undefined.
    pub fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        deadline: Instant,
    ) -> Result<(), SessionError> {
        self.check(inputs)?;
        let allowance = deadline.saturating_duration_since(self.clock.now());
        for runner in &mut self.runners {
            runner.run(inputs, &mut self.tensors, &*self.clock, allowance, deadline)?;
        }
        Ok(())
    }

    /// Runs once and says how long each layer of each segment took; a segment that knows no layers has none.
    ///
    /// # Errors
    /// [`SessionError`]; no stand-in is tried.
    pub fn profile(
        &mut self,
        inputs: &[TensorView<'_>],
    ) -> Result<Vec<Vec<LayerTime>>, SessionError> {
        self.check(inputs)?;
        let mut times = Vec::new();
        for runner in &mut self.runners {
            times.push(runner.profile(inputs, &mut self.tensors, &*self.clock)?);
        }
        Ok(times)
    }

    /// An output of the last run.
    ///
    /// # Panics
    /// When the model has no output of that number.
    #[must_use]
    pub fn output(&self, place: usize) -> TensorView<'_> {
        self.tensors[self.output_slots[place]].view()
    }

    /// Which delegate runs which nodes.
    #[must_use]
    pub fn report(&self) -> SessionReport {
        let now = self.clock.now();
        SessionReport { segments: self.runners.iter().map(|runner| runner.report(now)).collect() }
    }

    /// How the processes and devices that run segments are. Asks them: for reports and benchmarks, not per frame.
    pub fn worker_stats(&mut self) -> Vec<WorkerStats> {
        self.runners.iter_mut().filter_map(Runner::stats).collect()
    }

    /// The delegate of each segment, in order of execution. Does not allocate.
    pub fn running(&self) -> impl Iterator<Item = &str> {
        self.runners.iter().map(Runner::running)
    }

    fn check(&self, inputs: &[TensorView<'_>]) -> Result<(), SessionError> {
        for (place, spec) in self.inputs.iter().enumerate() {
            let given = inputs.get(place);
            let fits = given.is_some_and(|view| {
                view.shape == spec.shape
                    && view.values.element() == spec.element
                    && view.values.len() == spec.len()
            });
            if !fits {
                let found = given.map_or("nothing".to_owned(), |view| {
                    format!("{} {:?}", view.values.element(), view.shape)
                });
                return Err(SessionError::WrongInput {
                    name: spec.name.clone(),
                    expected: format!("{} {:?}", spec.element, spec.shape),
                    found,
                });
            }
        }
        Ok(())
    }
}

fn is_there(delegate: &Arc<dyn Delegate>) -> bool {
    match delegate.probe() {
        Ok(device) => {
            log::info!("delegate={} device={:?}", delegate.name(), device.device);
            true
        }
        Err(unavailable) => {
            log::warn!("{unavailable}");
            false
        }
    }
}

/// Where each tensor of the graph lies, once it is known.
struct Places(Vec<Option<Slot>>);

impl Places {
    fn new(inputs: &[TensorId], tensors: usize) -> Self {
        let mut places = vec![None; tensors];
        for (place, tensor) in inputs.iter().enumerate() {
            places[*tensor] = Some(Slot::Input(place));
        }
        Self(places)
    }
}

/// Tensors that pass a segment's border.
struct Border {
    reads: Vec<TensorId>,
    writes: Vec<TensorId>,
}

impl Border {
    fn of(graph: &Graph, nodes: &NodeSet) -> Self {
        let view = graph.view();
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for node in nodes.iter() {
            for input in view.node(node).inputs.iter().flatten() {
                let tensor = view.tensor(*input);
                let inside = tensor.producer.is_some_and(|producer| nodes.contains(producer));
                if !inside && !tensor.is_constant() && !reads.contains(input) {
                    reads.push(*input);
                }
            }
            for output in view.node(node).outputs.iter().flatten() {
                let tensor = view.tensor(*output);
                let read_outside = tensor.consumers.iter().any(|reader| !nodes.contains(*reader));
                if read_outside || view.outputs().contains(output) {
                    writes.push(*output);
                }
            }
        }
        Self { reads, writes }
    }
}

#[cfg(test)]
mod tests;
