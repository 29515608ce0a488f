//! The quantised engine as a delegate: claims what `ocelli-int8` can run, lowers segments to its graph, runs them.
//!
//! `recipe` says what a node becomes, or why it stays with the host; `lower` builds. Both read the same recipe, so that
//! what is claimed can be built.

mod lower;
mod recipe;
mod weights;
mod window;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ocelli_int8::{Engine, Input, Output, Pool, Shape};
use smallvec::SmallVec;

use self::recipe::Reader;
use super::delegate::{
    CompileError, CompiledSegment, Delegate, DeviceInfo, Layer, RunError, Segment, SegmentIo,
    Unavailable,
};
use super::graph::{GraphView, NodeSet};
use crate::clock::Clock;
use crate::processor::Processor;
use crate::tensor::{TensorView, TensorViewMut, Values, ValuesMut};

/// As in the config and in results.
pub(super) const NAME: &str = "int8";
/// Tensors at a segment's border that cost no allocation per frame.
const ON_STACK: usize = 16;

/// The delegate.
pub(super) struct Int8 {
    clock: Arc<dyn Clock>,
    /// Helpers of all segments, when there are to be any.
    pool: Mutex<Option<Arc<Pool>>>,
}

impl Int8 {
    /// `clock` is asked between layers whether the deadline has passed; the session gives this delegate a distant one.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, pool: Mutex::default() }
    }
}

impl Delegate for Int8 {
    fn name(&self) -> &str {
        NAME
    }

    fn probe(&self) -> Result<DeviceInfo, Unavailable> {
        let isa = Engine::preferred_instruction_set().map_err(|error| Unavailable {
            delegate: NAME.to_owned(),
            reason: error.to_string(),
        })?;
        let device = format!("CPU with {isa} kernels");
        Ok(DeviceInfo {
            device,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            simulated: false,
        })
    }

    fn use_processor(&self, processor: &Processor) {
        let (threads, kept) = (processor.threads, processor.clone());
        let pool = match Pool::new(threads, move |_| kept.keep()) {
            Ok(pool) => (threads > 1).then(|| Arc::new(pool)),
            Err(error) => {
                log::warn!("delegate=int8 threads={threads}: computing with one thread: {error}");
                None
            }
        };
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = pool;
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
        let mut engine = Engine::consume(lowered.graph)
            .map_err(|error| CompileError::Refused(error.to_string()))?;
        if let Some(pool) = &*self.pool.lock().unwrap_or_else(PoisonError::into_inner) {
            engine.share(pool);
        }
        let io = segment.io.clone();
        Ok(Box::new(Compiled { io, engine, reads: lowered.reads, clock: Arc::clone(&self.clock) }))
    }
}

/// The most 8-bit multiply-accumulates a second that one thread of this machine reached just now, from registers, with
/// the instructions of the engine. `None` where there is no yardstick for them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub fn peak_macs_per_second(clock: &dyn Clock) -> Option<f64> {
    const ROUNDS: u64 = 100_000;
    let rate = |_| {
        let start = clock.now();
        let products = ocelli_int8::multiply_at_peak(ROUNDS);
        let time = clock.now().saturating_duration_since(start);
        products as f64 / time.as_secs_f64().max(1e-9)
    };
    let best = (0..20).map(rate).fold(0.0, f64::max);
    (best > 0.0).then_some(best)
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
        self.run_observed(inputs, outputs, deadline, &mut |_| {})
    }

    fn shares_the_processor(&self) -> bool {
        true
    }

    fn layers(&self) -> Vec<Layer> {
        let layer = |layer: &ocelli_int8::Layer| {
            let Shape { h, w, c, .. } = layer.shape;
            Layer { name: layer.name.clone(), output: format!("{h}x{w}x{c}"), macs: layer.macs }
        };
        self.engine.layers().iter().map(layer).collect()
    }

    fn run_observed(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        deadline: Instant,
        after: &mut dyn FnMut(usize),
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
        let mut go_on = |layer| {
            after(layer);
            clock.now() <= deadline
        };
        match self.engine.run_while(&given, &mut wanted, &mut go_on) {
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
