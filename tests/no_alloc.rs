//! A frame costs no allocation: capture thread, hand-over, real preprocessing, network, real head, report queue.
//!
//! The allocator counts what the pipeline's threads ask for while frames flow, after some frames that fill the buffers.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "support/allocations.rs"]
#[expect(dead_code, reason = "counts its own threads")]
mod allocations;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use allocations::Watched;
use ocelli::camera::{Camera, CameraError, CameraInfo, Capture, Sink};
use ocelli::clock::{Clock, SystemClock};
use ocelli::detection::Findings;
use ocelli::frame::PixelFormat;
use ocelli::pipeline::{self, Detector, Gate, Network, NetworkError, Pipeline, Stream};
use ocelli::tensor::{ElementType, TensorSpec, TensorView, Values};
use ocelli::vision::postprocess::head;
use ocelli::vision::preprocess::Preprocessor;
use ocelli_protocol::manifest::{self, Color, Input, Interpolation, Resize, Task};
use ocelli_protocol::message::ModelId;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Threads of the pipeline are counted; the test's own and the harness's are not.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn count(_: usize) {
    let exempt = EXEMPT.try_with(Cell::get).unwrap_or(true);
    if COUNTING.load(Ordering::Relaxed) && !exempt {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched(count);

/// 640x480 YUYV, another brightness each frame.
struct Synthetic(CameraInfo, u64);

impl Camera for Synthetic {
    fn info(&self) -> &CameraInfo {
        &self.0
    }

    fn capture(&mut self, sink: &mut dyn Sink, _: Duration) -> Result<Capture, CameraError> {
        let Some(frame) = sink.buffer() else { return Ok(Capture::Unwanted) };
        frame.data.resize(640 * 480 * 2, 0);
        frame.data.fill(self.1 as u8);
        (frame.width, frame.height, frame.stride) = (640, 480, 640 * 2);
        frame.format = PixelFormat::Yuyv;
        frame.number = self.1;
        frame.captured = SystemClock.now();
        self.1 += 1;
        Ok(Capture::Frame)
    }
}

/// Fixed logits.
struct Fixed(TensorSpec, Vec<f32>, Vec<String>);

impl Network for Fixed {
    fn input(&self) -> &TensorSpec {
        &self.0
    }

    fn outputs(&self) -> usize {
        1
    }

    fn run(&mut self, input: TensorView<'_>, _: Instant) -> Result<(), NetworkError> {
        self.1[3] = input.values.as_f32().map_or(0.0, |values| values[0]);
        Ok(())
    }

    fn output(&self, _: usize) -> TensorView<'_> {
        TensorView { shape: &[1, 10], values: Values::F32(&self.1) }
    }

    fn backend(&self) -> &[String] {
        &self.2
    }
}

fn detector() -> Detector {
    let spec = |name: &str, shape: Vec<usize>| TensorSpec {
        name: name.to_owned(),
        element: ElementType::F32,
        shape,
        quantisation: None,
    };
    let input = Input {
        tensor: "input".to_owned(),
        width: 224,
        height: 224,
        color: Color::Rgb,
        resize: Resize::Crop,
        interpolation: Interpolation::Bilinear,
        anchor: None,
        crop_fraction: Some(0.875),
        fill: None,
        mean: vec![127.0; 3],
        std: vec![128.0; 3],
    };
    let labels: Arc<[String]> = (0..10).map(|class| format!("class {class}")).collect();
    let kind = manifest::Head::Softmax { probabilities: false, top_k: 5 };
    let outputs = [spec("logits", vec![1, 10])];
    let head = head(&kind, Task::Classification, labels, &outputs, 224, 224).unwrap();
    let logits = (0..10).map(|class| class as f32).collect();
    let network = Fixed(spec("input", vec![1, 3, 224, 224]), logits, vec!["fixed".to_owned()]);
    let model = ModelId { name: "m".to_owned(), version: "1.0.0".to_owned() };
    Detector::new(Box::new(Preprocessor::new(&input)), Box::new(network), head, model).unwrap()
}

#[test]
fn a_frame_costs_no_allocation() {
    EXEMPT.set(true);
    let info = CameraInfo {
        source: "synthetic".to_owned(),
        description: "as fast as asked".to_owned(),
        format: PixelFormat::Yuyv,
        width: 640,
        height: 480,
        fps: None,
    };
    let stream = Stream {
        name: "front".parse().unwrap(),
        fps: Some(500.0),
        gate: Gate::Open,
        open: Box::new(move || Ok(Box::new(Synthetic(info.clone(), 0)))),
    };
    let (pipeline, mut reports) = Pipeline::start(
        pipeline::Settings::default(),
        vec![stream],
        detector(),
        Arc::new(SystemClock),
    )
    .unwrap();
    let mut receive = |frames: u64| {
        let end = SystemClock.now() + Duration::from_secs(60);
        let mut seen = 0;
        while seen < frames {
            match reports.try_recv() {
                Ok(report) => {
                    let Findings::Classes(classes) = &report.findings else { panic!("classes") };
                    assert_eq!(classes.len(), 5);
                    seen += 1;
                }
                Err(_) => std::thread::yield_now(),
            }
            assert!(SystemClock.now() < end, "{seen} of {frames} frames");
        }
    };
    // Every buffer of the queue and of the frames has its turn before the count: all wait, full, for the consumer.
    let control = pipeline.control();
    let end = SystemClock.now() + Duration::from_secs(60);
    while control.reports_waiting() < pipeline::Settings::default().report_buffers {
        assert!(SystemClock.now() < end, "the queue never fills");
        std::thread::yield_now();
    }
    receive(100);
    COUNTING.store(true, Ordering::SeqCst);
    receive(300);
    COUNTING.store(false, Ordering::SeqCst);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
    COUNTING.store(true, Ordering::SeqCst);
    drop(std::thread::spawn(|| std::hint::black_box(vec![0_u8; 1000])).join().unwrap());
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > 0, "the allocator counts");
    pipeline.stop(Duration::from_secs(20)).unwrap();
}
