//! The quantised engine as a delegate: claims what `ocelli-int8` can run, lowers segments to its graph, runs them.
//!
//! `recipe` says what a node becomes, or why it stays with the host; `lower` builds. Both read the same recipe, so that
//! what is claimed can be built.

mod lower;
mod recipe;
mod weights;
mod window;

use std::sync::Arc;
use std::time::Instant;

use ocelli_int8::{Engine, Input, Output};
use smallvec::SmallVec;

use self::recipe::Reader;
use super::delegate::{
    CompileError, CompiledSegment, Delegate, DeviceInfo, RunError, Segment, SegmentIo, Unavailable,
};
use super::graph::{GraphView, NodeSet};
use crate::clock::Clock;
use crate::tensor::{TensorView, TensorViewMut, Values, ValuesMut};

/// As in the config and in results.
pub(super) const NAME: &str = "int8";
/// Tensors at a segment's border that cost no allocation per frame.
const ON_STACK: usize = 16;

/// The delegate.
pub(super) struct Int8 {
    clock: Arc<dyn Clock>,
}

impl Int8 {
    /// `clock` is asked between layers whether the deadline has passed.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }
}

impl Delegate for Int8 {
    fn name(&self) -> &str {
        NAME
    }

    fn probe(&self) -> Result<DeviceInfo, Unavailable> {
        let isa = Engine::preferred().map_err(|error| Unavailable {
            delegate: NAME.to_owned(),
            reason: error.to_string(),
        })?;
        let device = format!("CPU with {isa} kernels");
        Ok(DeviceInfo { device, version: Some(env!("CARGO_PKG_VERSION").to_owned()) })
    }

    fn claim(&self, graph: &GraphView<'_>) -> NodeSet {
        let mut reader = Reader::new(graph);
        let mut claimed = NodeSet::default();
        for (id, node) in graph.nodes().iter().enumerate() {
            match reader.read(node) {
                Ok(_) => {
                    claimed.0.insert(id);
                }
                Err(reason) => {
                    log::debug!("delegate=int8 leaves {} ({}): {reason}", node.name, node.op)
                }
            }
        }
        claimed
    }

    fn compile(&self, segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError> {
        let lowered = lower::lower(segment.graph, segment.nodes, segment.io)?;
        let engine = Engine::consume(lowered.graph)
            .map_err(|error| CompileError::Refused(error.to_string()))?;
        let io = segment.io.clone();
        Ok(Box::new(Compiled { io, engine, reads: lowered.reads, clock: Arc::clone(&self.clock) }))
    }
}

/// A segment, planned, with its memory.
struct Compiled {
    io: SegmentIo,
    engine: Engine,
    /// For each input of the engine, the segment's input that it takes.
    reads: Vec<usize>,
    clock: Arc<dyn Clock>,
}

impl CompiledSegment for Compiled {
    fn io(&self) -> &SegmentIo {
        &self.io
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        deadline: Instant,
    ) -> Result<(), RunError> {
        let given = self.reads.iter().map(|place| inputs.get(*place).and_then(given));
        let given = given.collect::<Option<SmallVec<[Input<'_>; ON_STACK]>>>();
        let wanted = outputs.iter_mut().map(wanted);
        let wanted = wanted.collect::<Option<SmallVec<[Output<'_>; ON_STACK]>>>();
        let (Some(given), Some(mut wanted)) = (given, wanted) else {
            return Err(RunError::WrongTensor(
                "an input or output is of 32 or 64 bit integers".into(),
            ));
        };
        let clock = &*self.clock;
        match self.engine.run_while(&given, &mut wanted, &mut |_| clock.now() <= deadline) {
            Ok(()) => Ok(()),
            Err(ocelli_int8::RunError::Stopped { .. }) => Err(RunError::DeadlineOverrun),
            Err(error) => Err(RunError::WrongTensor(error.to_string())),
        }
    }
}

fn given<'a>(view: &TensorView<'a>) -> Option<Input<'a>> {
    match view.values {
        Values::F32(values) => Some(Input::F32(values)),
        Values::U8(values) => Some(Input::U8(values)),
        Values::I8(values) => Some(Input::S8(values)),
        Values::I32(_) | Values::I64(_) => None,
    }
}

fn wanted<'a>(view: &'a mut TensorViewMut<'_>) -> Option<Output<'a>> {
    match &mut view.values {
        ValuesMut::F32(values) => Some(Output::F32(values)),
        ValuesMut::U8(values) => Some(Output::U8(values)),
        ValuesMut::I8(values) => Some(Output::S8(values)),
        ValuesMut::I32(_) | ValuesMut::I64(_) => None,
    }
}

#[cfg(test)]
mod tests;
