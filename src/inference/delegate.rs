//! The hook for accelerators: a delegate claims nodes of the graph, compiles segments of it, and runs them.
//!
//! A delegate may be absent, refuse, fault, answer nonsense or overrun its deadline: the session goes on with the
//! next alternative. Nothing here knows tract.

use std::time::Instant;

use crate::inference::graph::{GraphView, NodeSet, slice};
use crate::processor::Processor;
use crate::tensor::{TensorSpec, TensorView, TensorViewMut};

/// An execution provider for parts of a graph.
pub trait Delegate: Send + Sync {
    /// Short name, as in the config and in results: `int8`, `rknn`.
    fn name(&self) -> &str;

    /// Whether the device is there, and what it is.
    ///
    /// # Errors
    /// [`Unavailable`] says what is missing and what to do.
    fn probe(&self) -> Result<DeviceInfo, Unavailable>;

    /// Threads that segments compiled from now on may compute with, and their cores. One that cannot use several ignores it.
    fn use_processor(&self, _processor: &Processor) {}

    /// The nodes that this delegate can run. The partitioner makes convex segments of them.
    fn claim(&self, graph: &GraphView<'_>) -> NodeSet;

    /// Prepares a segment for running.
    ///
    /// # Errors
    /// [`CompileError`]; the segment then goes to the next alternative.
    fn compile(&self, segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError>;

    /// Whether it runs in this process or in one that may die.
    fn seat(&self) -> Seat {
        Seat::Inside
    }

    /// What its answers may differ from the stand-in's, where that is not the session's to say.
    fn closeness(&self) -> Option<Closeness> {
        None
    }

    /// What became of its workers so far; `None` for a delegate without any.
    fn workers(&self) -> Option<WorkerCounts> {
        None
    }
}

/// Where a delegate runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// In this process.
    Inside,
    /// In a process of its own: its stand-in is built together with it, and its answers are compared with the stand-in's.
    Apart,
}

/// How near an accelerator's answer must be to the stand-in's. Neither is wrong when they differ a little: devices round
/// in their own ways.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Closeness {
    /// Integer values: largest difference, in steps.
    pub steps: u32,
    /// Real values: largest difference, as a share of the span from the least to the greatest value of the stand-in.
    pub share: f32,
}

impl Default for Closeness {
    fn default() -> Self {
        Self { steps: 8, share: 0.05 }
    }
}

/// What became of the processes of a delegate since the model was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// Started.
    pub starts: u64,
    /// Ended by a crash, an error of the device, or an answer that made no sense.
    pub faults: u64,
    /// Ended because a run took too long.
    pub overruns: u64,
    /// Killed, but still there: stuck in the kernel.
    pub stuck: u64,
}

/// What a delegate's process, and the device behind it, tell of themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerStats {
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// Power that the device draws, where it tells.
    pub power_watt: Option<f32>,
}

/// A segment, ready to run. Owns its scratch memory; runs do not allocate.
pub trait CompiledSegment: Send {
    /// Tensors at the segment's border.
    fn io(&self) -> &SegmentIo;

    /// Runs once. Inputs and outputs are in the order of [`SegmentIo`].
    ///
    /// # Errors
    /// [`RunError`]; outputs are then undefined and the session runs the next alternative.
    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        deadline: Instant,
    ) -> Result<(), RunError>;

    /// Whether it computes on the processor that tract would use. Then being late is no reason to go to tract, which would
    /// be later still: it is given all the time it needs.
    fn shares_the_processor(&self) -> bool {
        false
    }

    /// Whether another run makes sense; if not, the segment is compiled anew.
    fn is_alive(&self) -> bool {
        true
    }

    /// How its process and device are, where it has them. Not while a frame waits.
    fn stats(&mut self) -> Option<WorkerStats> {
        None
    }

    /// Its layers in the order in which they run, where it can say when each is done.
    fn layers(&self) -> Vec<Layer> {
        Vec::new()
    }

    /// As [`CompiledSegment::run`], and tells `after` each layer its place in [`CompiledSegment::layers`].
    ///
    /// # Errors
    /// As [`CompiledSegment::run`].
    fn run_observed(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        deadline: Instant,
        after: &mut dyn FnMut(usize),
    ) -> Result<(), RunError> {
        let _ = after;
        self.run(inputs, outputs, deadline)
    }
}

/// A layer of a compiled segment, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it computes, for people: `Conv 3x3/2 +Add`.
    pub name: String,
    /// Rows, columns and channels of what it writes: `112x112x32`.
    pub output: String,
    /// Multiply-accumulates of a run.
    pub macs: u64,
}

/// What a delegate runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device, for people: `RK3588 NPU, 3 cores`.
    pub device: String,
    /// Driver or runtime version, where there is one.
    pub version: Option<String>,
    /// Its answers are right, its times mean nothing.
    pub simulated: bool,
}

/// A device that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("delegate {delegate} is not available: {reason}")]
pub struct Unavailable {
    /// Name of the delegate.
    pub delegate: String,
    /// What is missing, and what to do.
    pub reason: String,
}

/// Tensors at a segment's border.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentIo {
    /// Tensors read, without constants.
    pub inputs: Vec<TensorSpec>,
    /// Tensors written that others read.
    pub outputs: Vec<TensorSpec>,
}

/// A convex part of a graph, to be compiled.
#[derive(Debug)]
pub struct Segment<'a> {
    /// The whole graph.
    pub graph: &'a GraphView<'a>,
    /// Nodes of the segment.
    pub nodes: &'a NodeSet,
    /// Tensors at its border.
    pub io: &'a SegmentIo,
}

impl Segment<'_> {
    /// The segment as a self-contained ONNX file, for runtimes behind a process or C boundary. Written anew each time.
    #[must_use]
    pub fn onnx(&self) -> Vec<u8> {
        slice(self.graph, self.nodes, self.io)
    }
}

/// Why a segment was not compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The delegate does not run this after all.
    #[error("refused: {0}")]
    Refused(String),
    /// The device or its driver failed.
    #[error("failed: {0}")]
    Failed(String),
}

/// Why a run brought no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The device or its driver failed.
    #[error("fault: {0}")]
    Fault(String),
    /// The deadline passed.
    #[error("deadline overrun")]
    DeadlineOverrun,
    /// An input or output has another shape or type than agreed.
    #[error("wrong tensor: {0}")]
    WrongTensor(String),
}
