//! The hook for accelerators: a delegate claims nodes of the graph, compiles segments of it, and runs them.
//!
//! A delegate may be absent, refuse, fault, answer nonsense or overrun its deadline: the session goes on with the
//! next alternative. Nothing here knows tract.

use std::time::Instant;

use crate::inference::graph::{GraphView, NodeSet, slice};
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

    /// The nodes that this delegate can run. The partitioner makes convex segments of them.
    fn claim(&self, graph: &GraphView<'_>) -> NodeSet;

    /// Prepares a segment for running.
    ///
    /// # Errors
    /// [`CompileError`]; the segment then goes to the next alternative.
    fn compile(&self, segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError>;
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
