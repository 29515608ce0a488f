//! A run of a session costs no allocation besides tract's own: none where a delegate runs the whole net, and with
//! tract as many in each frame as in the one before.

#[path = "support/allocations.rs"]
mod allocations;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allocations::{Requests, Watched, during, note};
use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::delegate::{
    CompileError, CompiledSegment, Delegate, DeviceInfo, RunError, Segment, SegmentIo, Unavailable,
};
use ocelli::inference::graph::{GraphView, NodeSet};
use ocelli::inference::{Session, SessionOptions};
use ocelli::tensor::{Tensor, TensorView, TensorViewMut, ValuesMut};

#[global_allocator]
static ALLOCATOR: Watched = Watched(note);

const NOTHING: Requests = Requests { count: 0, bytes: 0 };

/// Claims all nodes, and answers the first value of its input everywhere.
struct Everything;

impl Delegate for Everything {
    fn name(&self) -> &str {
        "everything"
    }

    fn probe(&self) -> Result<DeviceInfo, Unavailable> {
        Ok(DeviceInfo { device: "a number".to_owned(), version: None, simulated: false })
    }

    fn claim(&self, graph: &GraphView<'_>) -> NodeSet {
        (0..graph.nodes().len()).collect()
    }

    fn compile(&self, segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError> {
        Ok(Box::new(First(segment.io.clone())))
    }
}

struct First(SegmentIo);

impl CompiledSegment for First {
    fn io(&self) -> &SegmentIo {
        &self.0
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        _deadline: Instant,
    ) -> Result<(), RunError> {
        let first = inputs[0].values.as_f32().map_or(0.0, |values| values[0]);
        for output in outputs {
            if let ValuesMut::F32(values) = &mut output.values {
                values.fill(first);
            }
        }
        Ok(())
    }
}

/// Requests of each of some runs, after two that do not count.
fn cost_of_runs(model: &str, delegates: &[Arc<dyn Delegate>]) -> Vec<Requests> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model).join("model.onnx");
    let onnx = std::fs::read(file).expect("a model of the zoo");
    let clock = Arc::new(SystemClock);
    let options = SessionOptions::default();
    let session = Session::load(&onnx, delegates, options, clock.clone());
    let mut session = session.expect("the zoo loads");
    let input = Tensor::zeros(session.inputs()[0].clone());
    let mut costs = Vec::with_capacity(6);
    for _ in 0..costs.capacity() {
        let deadline = clock.now() + Duration::from_secs(60);
        let (result, requests) = during(|| session.run(&[input.view()], deadline).map(drop));
        result.expect("it runs");
        costs.push(requests);
    }
    costs.split_off(2)
}

#[test]
fn a_session_allocates_nothing_around_a_delegate() {
    for model in ["efficientnet-lite0", "nanodet-g-coco", "centerface"] {
        assert_eq!(cost_of_runs(model, &[Arc::new(Everything)]), [NOTHING; 4], "{model}");
    }
}

#[test]
fn the_int8_engine_allocates_nothing() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    for model in ["efficientnet-lite0", "nanodet-g-coco", "centerface"] {
        let engine = ocelli::inference::delegates(&["int8".to_owned()], &clock);
        assert_eq!(cost_of_runs(model, &engine), [NOTHING; 4], "{model}");
    }
}

#[test]
fn tract_allocates_the_same_in_each_frame() {
    let costs = cost_of_runs("efficientnet-lite0", &[]);
    println!("efficientnet-lite0: allocations and bytes of a run {costs:?}");
    assert!(costs[0].count > 0, "the allocator counts");
    assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
}
