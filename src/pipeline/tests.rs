//! The pipeline as a whole, with cameras and networks that do as they are told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};

use ocelli_protocol::message::{Detection, Findings, ModelId};

use super::*;
use crate::camera::{CameraInfo, Capture, Sink};
use crate::clock::{SystemClock, UnixTime};
use crate::detection::BoundingBox;
use crate::frame::PixelFormat;
use crate::tensor::{ElementType, TensorSpec, TensorView, TensorViewMut, Values, ValuesMut};
use crate::vision::Geometry;
use crate::vision::postprocess::{Head, HeadError};
use crate::vision::preprocess::{Preprocess, PreprocessError};

/// Longer than anything here takes; a failing test ends by it.
const LONG: Duration = Duration::from_secs(20);

/// What a scripted camera does on one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Frame,
    BadFrame,
    Away,
    Unusable,
    Panic,
    End,
}

/// Delivers what the test sends; without a step it times out.
struct ScriptedCamera {
    info: CameraInfo,
    steps: Arc<Mutex<mpsc::Receiver<Step>>>,
    number: Arc<AtomicU64>,
}

impl Camera for ScriptedCamera {
    fn info(&self) -> &CameraInfo {
        &self.info
    }

    fn capture(&mut self, sink: &mut dyn Sink, timeout: Duration) -> Result<Capture, CameraError> {
        let error = || ("fake".to_owned(), "as told".to_owned(), "tell otherwise".to_owned());
        let step = self.steps.lock().unwrap().recv_timeout(timeout);
        match step {
            Ok(step @ (Step::Frame | Step::BadFrame)) => {
                let number = self.number.fetch_add(1, Ordering::SeqCst);
                let Some(frame) = sink.buffer() else { return Ok(Capture::Unwanted) };
                frame.data.clear();
                frame.data.resize(16, if step == Step::Frame { (number % 200) as u8 } else { 255 });
                (frame.width, frame.height, frame.stride) = (4, 4, 4);
                frame.format = PixelFormat::Gray8;
                frame.number = number;
                frame.captured = SystemClock.now();
                frame.captured_at = UnixTime::from_micros(number);
                Ok(Capture::Frame)
            }
            Ok(Step::Away) => {
                let (device, detail, cure) = error();
                Err(CameraError::Unavailable { device, detail, cure })
            }
            Ok(Step::Unusable) => {
                let (device, detail, cure) = error();
                Err(CameraError::Unusable { device, detail, cure })
            }
            Ok(Step::Panic) => panic!("told to"),
            Ok(Step::End) => Ok(Capture::Ended),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(Capture::TimedOut),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(Capture::Ended),
        }
    }
}

/// A stream and the sender of its camera's steps.
fn scripted(name: &str, fps: Option<f32>, gate: Gate) -> (Stream, mpsc::Sender<Step>) {
    let (sender, receiver) = mpsc::channel();
    let (steps, number) = (Arc::new(Mutex::new(receiver)), Arc::new(AtomicU64::new(0)));
    let open: OpenCamera = Box::new(move || {
        let info = CameraInfo {
            source: "fake".to_owned(),
            description: "scripted".to_owned(),
            format: PixelFormat::Gray8,
            width: 4,
            height: 4,
            fps: Some(30.0),
        };
        let (steps, number) = (Arc::clone(&steps), Arc::clone(&number));
        Ok(Box::new(ScriptedCamera { info, steps, number }))
    });
    (Stream { name: name.parse().unwrap(), fps, gate, open }, sender)
}

/// Copies the first byte; 255 is a damaged picture.
struct FirstByte;

impl Preprocess for FirstByte {
    fn run(
        &mut self,
        frame: &Frame,
        output: &mut TensorViewMut<'_>,
    ) -> Result<Geometry, PreprocessError> {
        if frame.data[0] == 255 {
            let detail = "truncated".to_owned();
            return Err(PreprocessError::BadFrame { number: frame.number, format: "gray", detail });
        }
        let ValuesMut::U8(values) = &mut output.values else { panic!("a u8 tensor") };
        values[0] = frame.data[0];
        let (source_width, source_height) = (frame.width, frame.height);
        Ok(Geometry {
            scale_x: 1.0,
            scale_y: 1.0,
            offset_x: 0.0,
            offset_y: 0.0,
            source_width,
            source_height,
        })
    }
}

/// What a scripted network does on one run.
enum Run {
    Fine,
    NotReady,
    Fail,
    Panic,
    /// Waits for the gate to open.
    Hang(Arc<Latch>),
}

/// Copies its input to its output, unless told otherwise. Without a script every run is fine.
struct ScriptedNetwork {
    input: TensorSpec,
    value: [u8; 1],
    script: VecDeque<Run>,
    backend: Vec<String>,
    runs: Arc<AtomicUsize>,
}

impl Network for ScriptedNetwork {
    fn input(&self) -> &TensorSpec {
        &self.input
    }

    fn outputs(&self) -> usize {
        1
    }

    fn run(&mut self, input: TensorView<'_>, _: Instant) -> Result<(), NetworkError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let Values::U8(values) = input.values else { panic!("a u8 tensor") };
        self.value[0] = values[0];
        match self.script.pop_front() {
            None | Some(Run::Fine) => Ok(()),
            Some(Run::NotReady) => Err(NetworkError::NotReady),
            Some(Run::Fail) => Err(NetworkError::Failed("told to".to_owned())),
            Some(Run::Panic) => panic!("told to"),
            Some(Run::Hang(latch)) => {
                latch.wait();
                Ok(())
            }
        }
    }

    fn output(&self, _: usize) -> TensorView<'_> {
        TensorView { shape: &[1], values: Values::U8(&self.value) }
    }

    fn backend(&self) -> &[String] {
        &self.backend
    }
}

/// One detection whose class is the output's value.
struct ClassIsValue;

impl Head for ClassIsValue {
    fn decode(
        &mut self,
        outputs: &[TensorView<'_>],
        _: &Geometry,
        findings: &mut Findings,
    ) -> Result<(), HeadError> {
        let Values::U8(values) = outputs[0].values else { panic!("a u8 tensor") };
        *findings = Findings::Detections(vec![Detection {
            label: String::new(),
            class: usize::from(values[0]),
            score: 1.0,
            bounding_box: BoundingBox { x: 0.0, y: 0.0, w: 1.0, h: 1.0 },
            landmarks: Vec::new(),
        }]);
        Ok(())
    }
}

fn detector(version: &str, script: Vec<Run>) -> (Detector, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let network = ScriptedNetwork {
        input: TensorSpec {
            name: "input".to_owned(),
            element: ElementType::U8,
            shape: vec![1],
            quantisation: None,
        },
        value: [0],
        script: script.into(),
        backend: vec!["fake".to_owned()],
        runs: Arc::clone(&runs),
    };
    let model = ModelId { name: "m".to_owned(), version: version.to_owned() };
    let parts =
        Detector::new(Box::new(FirstByte), Box::new(network), Box::new(ClassIsValue), model);
    (parts.unwrap(), runs)
}

#[derive(Debug, Default)]
struct Latch {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_timeout_while(open, LONG, |open| !*open).unwrap());
    }
}

fn start(streams: Vec<Stream>, detector: Detector) -> (Pipeline, Reports) {
    Pipeline::start(Settings::default(), streams, detector, Arc::new(SystemClock)).unwrap()
}

/// The next report; panics when none comes.
fn next(reports: &mut Reports) -> Delivered {
    next_or_end(reports).expect("a report, not the end")
}

/// Frame number of the next report, whose buffer is given back at once.
fn next_frame(reports: &mut Reports) -> u64 {
    next(reports).frame
}

fn next_or_end(reports: &mut Reports) -> Option<Delivered> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let report = async { tokio::time::timeout(LONG, reports.recv()).await };
    runtime.block_on(report).expect("in time")
}

/// Waits until `condition` holds; panics when it never does.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = SystemClock.now() + LONG;
    while !condition() {
        assert!(SystemClock.now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_frame_becomes_a_report_with_its_stages() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", vec![]).0);
    steps.send(Step::Frame).unwrap();
    let report = next(&mut reports);
    assert_eq!((report.stream, report.frame, report.captured_at.as_micros()), (0, 0, 0));
    assert_eq!(
        (report.model.version.as_str(), report.backend.as_slice()),
        ("1.0.0", &["fake".to_owned()][..])
    );
    let latency = report.latency;
    let parts = latency.capture + latency.preprocess + latency.inference + latency.postprocess;
    assert!(parts <= latency.total + 4, "{latency:?}");
    let Findings::Detections(found) = &report.findings else { panic!("detections") };
    assert_eq!(found.len(), 1);
    let control = pipeline.control();
    assert_eq!(control.stages().total.percentiles(SystemClock.now()).count, 1);
    assert_eq!(control.streams(SystemClock.now())[0].camera, CameraState::Streaming);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_slow_network_gets_the_newest_frame_and_drops_are_counted() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let latch = Arc::new(Latch::default());
    let (detector, runs) = detector("1.0.0", vec![Run::Hang(Arc::clone(&latch))]);
    let (pipeline, mut reports) = start(vec![stream], detector);
    let control = pipeline.control();
    steps.send(Step::Frame).unwrap();
    eventually("the first frame is looked at", || runs.load(Ordering::SeqCst) == 1);
    for _ in 0..10 {
        steps.send(Step::Frame).unwrap();
    }
    eventually("ten more are captured", || control.streams(SystemClock.now())[0].captured == 11);
    eventually("nine are dropped", || control.streams(SystemClock.now())[0].dropped == 9);
    latch.open();
    assert_eq!([next_frame(&mut reports), next_frame(&mut reports)], [0, 10]);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_hot_swap_loses_and_doubles_no_frame() {
    const FRAMES: u64 = 600;
    let (stream, steps) = scripted("front", None, Gate::Open);
    let (first, _) = detector("1.0.0", vec![]);
    let (pipeline, mut reports) = start(vec![stream], first);
    let control = pipeline.control();
    let mut versions = Vec::new();
    let mut old = Vec::new();
    for frame in 0..FRAMES {
        steps.send(Step::Frame).unwrap();
        // Half of the swaps meet the frame on its way, the others an idle pipeline.
        if frame % 3 == 0 {
            old.push(control.swap(detector(&format!("1.0.{}", frame + 1), vec![]).0).unwrap());
        }
        let report = next(&mut reports);
        assert_eq!(report.frame, frame, "in order, none lost, none doubled");
        versions.push(report.model.version.clone());
    }
    steps.send(Step::End).unwrap();
    assert!(next_or_end(&mut reports).is_none());
    let number = |version: &String| version.rsplit('.').next().unwrap().parse::<u64>().unwrap();
    assert!(versions.iter().map(number).is_sorted(), "a model that was replaced never comes back");
    let counters = control.frames();
    assert_eq!((counters.finished.total(), counters.swaps.total()), (FRAMES, FRAMES / 3));
    let returned: Vec<_> = old.into_iter().map(|old| old.blocking_recv().unwrap()).collect();
    assert_eq!(returned[0].model().version, "1.0.0");
    assert_eq!(returned[1].model().version, "1.0.1");
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_swap_that_was_given_up_never_happens() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let latch = Arc::new(Latch::default());
    let (first, runs) = detector("1.0.0", vec![Run::Hang(Arc::clone(&latch))]);
    let (pipeline, mut reports) = start(vec![stream], first);
    let control = pipeline.control();
    steps.send(Step::Frame).unwrap();
    eventually("the first frame is looked at", || runs.load(Ordering::SeqCst) == 1);
    drop(control.swap(detector("2.0.0", vec![]).0).unwrap());
    latch.open();
    next(&mut reports);
    steps.send(Step::Frame).unwrap();
    assert_eq!(next(&mut reports).model.version, "1.0.0");
    assert_eq!(control.frames().swaps.total(), 0);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn an_unplugged_camera_is_told_and_comes_back() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", vec![]).0);
    let control = pipeline.control();
    let state = || control.streams(SystemClock.now()).remove(0);
    steps.send(Step::Away).unwrap();
    eventually("the camera is away", || matches!(state().camera, CameraState::Unavailable(_)));
    let progress = control.progress(SystemClock.now());
    assert!(progress.capture.unwrap() < Duration::from_secs(5), "a thread without camera lives");
    steps.send(Step::Frame).unwrap();
    assert_eq!(next_frame(&mut reports), 0);
    assert_eq!((state().camera, state().camera_errors), (CameraState::Streaming, 1));
    pipeline.stop(LONG).unwrap();
}

#[test]
fn an_unusable_camera_does_not_end_the_others() {
    let (broken, broken_steps) = scripted("broken", None, Gate::Open);
    let (good, steps) = scripted("good", None, Gate::Open);
    let (pipeline, mut reports) = start(vec![broken, good], detector("1.0.0", vec![]).0);
    let control = pipeline.control();
    broken_steps.send(Step::Unusable).unwrap();
    eventually("the camera is unusable", || {
        matches!(control.streams(SystemClock.now())[0].camera, CameraState::Unusable(_))
    });
    steps.send(Step::Frame).unwrap();
    assert_eq!(next(&mut reports).stream, 1);
    // The pause of five seconds does not delay the end.
    let asked = SystemClock.now();
    pipeline.stop(LONG).unwrap();
    assert!(SystemClock.now() - asked < Duration::from_secs(4));
}

#[test]
fn a_capture_thread_that_panics_opens_its_camera_again() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", vec![]).0);
    steps.send(Step::Panic).unwrap();
    steps.send(Step::Frame).unwrap();
    assert_eq!(next_frame(&mut reports), 0);
    assert_eq!(pipeline.control().streams(SystemClock.now())[0].panics, 1);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_frame_without_findings_is_counted_by_its_reason() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let script = vec![Run::NotReady, Run::Fail, Run::Panic, Run::Fine];
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", script).0);
    let control = pipeline.control();
    let counters = control.frames();
    let counts = || {
        let all = [&counters.undecodable, &counters.skipped, &counters.failed, &counters.panicked];
        all.map(|counter| counter.total())
    };
    let steps_and_counts = [
        (Step::BadFrame, [1, 0, 0, 0]),
        (Step::Frame, [1, 1, 0, 0]),
        (Step::Frame, [1, 1, 1, 0]),
        (Step::Frame, [1, 1, 1, 1]),
    ];
    for (step, want) in steps_and_counts {
        steps.send(step).unwrap();
        eventually(&format!("{want:?}"), || counts() == want);
    }
    steps.send(Step::Frame).unwrap();
    assert_eq!(next_frame(&mut reports), 4);
    assert_eq!(control.failure(), None);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn panics_in_a_row_end_inference_with_a_reason() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let script = (0..5).map(|_| Run::Panic).collect();
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", script).0);
    let control = pipeline.control();
    for panics in 1..=5 {
        steps.send(Step::Frame).unwrap();
        eventually("the frame costs a panic", || control.frames().panicked.total() == panics);
    }
    assert!(next_or_end(&mut reports).is_none());
    assert!(control.failure().unwrap().contains("m 1.0.0 panicked"));
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_full_queue_pauses_inference_without_stopping_its_heart() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let (detector, runs) = detector("1.0.0", vec![]);
    let settings = Settings { report_buffers: 2, ..Settings::default() };
    let (pipeline, mut reports) =
        Pipeline::start(settings, vec![stream], detector, Arc::new(SystemClock)).unwrap();
    let control = pipeline.control();
    for run in 1..=2 {
        steps.send(Step::Frame).unwrap();
        eventually("a report waits", || control.reports_waiting() == run);
    }
    for _ in 0..3 {
        steps.send(Step::Frame).unwrap();
    }
    eventually("newer frames replace older", || control.streams(SystemClock.now())[0].dropped == 2);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert!(control.progress(SystemClock.now()).inference.unwrap() < Duration::from_secs(5));
    let frames = [next_frame(&mut reports), next_frame(&mut reports), next_frame(&mut reports)];
    assert_eq!(frames, [0, 1, 4]);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_hung_network_shows_no_progress_and_does_not_hold_up_the_end() {
    let (stream, steps) = scripted("front", None, Gate::Open);
    let latch = Arc::new(Latch::default());
    let (detector, runs) = detector("1.0.0", vec![Run::Hang(Arc::clone(&latch))]);
    let (pipeline, _reports) = start(vec![stream], detector);
    let control = pipeline.control();
    steps.send(Step::Frame).unwrap();
    eventually("the network hangs", || runs.load(Ordering::SeqCst) == 1);
    let hung = control.progress(SystemClock.now() + Duration::from_secs(30));
    assert!(hung.inference.unwrap() >= Duration::from_secs(29));
    let stuck = pipeline.stop(Duration::from_millis(300)).unwrap_err();
    assert_eq!(stuck.threads, "inference");
    latch.open();
}

#[test]
fn a_rate_limit_changes_while_frames_flow() {
    let (stream, steps) = scripted("front", Some(1000.0), Gate::Open);
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", vec![]).0);
    let control = pipeline.control();
    steps.send(Step::Frame).unwrap();
    assert_eq!(next_frame(&mut reports), 0);
    control.set_rate("front", Some(0.01)).unwrap();
    steps.send(Step::Frame).unwrap();
    steps.send(Step::Frame).unwrap();
    eventually("the limit holds frames back", || {
        control.streams(SystemClock.now())[0].rate_limited >= 1
    });
    control.set_rate("front", None).unwrap();
    eventually("both were captured", || control.streams(SystemClock.now())[0].captured == 3);
    steps.send(Step::Frame).unwrap();
    eventually("the fourth comes through", || next_frame(&mut reports) == 3);

    assert!(matches!(control.set_rate("back", None), Err(ControlError::UnknownStream { .. })));
    for fps in [0.0, -1.0, f32::NAN, f32::INFINITY, 1001.0] {
        let answer = control.set_rate("front", Some(fps));
        assert!(matches!(answer, Err(ControlError::Rate { .. })), "{fps}: {answer:?}");
    }
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_gate_lets_one_frame_through_for_each_edge() {
    let (stream, steps) = scripted("front", None, Gate::Triggered);
    let (pipeline, mut reports) = start(vec![stream], detector("1.0.0", vec![]).0);
    let control = pipeline.control();
    let captured = |count| {
        eventually("captured", || control.streams(SystemClock.now())[0].captured == count);
    };
    steps.send(Step::Frame).unwrap();
    captured(1);
    control.trigger("front", SystemClock.now()).unwrap();
    control.trigger("front", SystemClock.now()).unwrap();
    steps.send(Step::Frame).unwrap();
    steps.send(Step::Frame).unwrap();
    captured(3);
    // Taken before the next edge: a newer frame would replace it while it waits.
    assert_eq!(next_frame(&mut reports), 1);
    control.trigger("front", SystemClock.now()).unwrap();
    steps.send(Step::Frame).unwrap();
    assert_eq!(next_frame(&mut reports), 3);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn a_snapshot_is_the_next_frame_and_passes_every_gate() {
    let (stream, steps) = scripted("front", None, Gate::Triggered);
    let (pipeline, _reports) = start(vec![stream], detector("1.0.0", vec![]).0);
    let control = pipeline.control();
    let snapshot = control.snapshot("front").unwrap();
    let another = control.snapshot("front").unwrap();
    steps.send(Step::Frame).unwrap();
    assert_eq!(snapshot.blocking_recv().unwrap().data, [0; 16]);
    assert_eq!(another.blocking_recv().unwrap().number, 0);
    let unanswered = control.snapshot("front").unwrap();
    steps.send(Step::End).unwrap();
    assert!(unanswered.blocking_recv().is_err(), "the end answers too");
    pipeline.stop(LONG).unwrap();
}

#[test]
fn streams_share_the_network_fairly() {
    let (left, left_steps) = scripted("left", None, Gate::Open);
    let (right, right_steps) = scripted("right", None, Gate::Open);
    let (pipeline, mut reports) = start(vec![left, right], detector("1.0.0", vec![]).0);
    for _ in 0..2000 {
        left_steps.send(Step::Frame).unwrap();
    }
    right_steps.send(Step::Frame).unwrap();
    // The one frame of the slow stream waits for at most one frame of the fast one once it is offered.
    let mut seen = Vec::new();
    while seen.last() != Some(&1) {
        seen.push(next(&mut reports).stream);
    }
    assert!(pipeline.control().streams(SystemClock.now())[1].dropped == 0);
    pipeline.stop(LONG).unwrap();
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let start = |settings, streams| {
        let started =
            Pipeline::start(settings, streams, detector("1.0.0", vec![]).0, Arc::new(SystemClock));
        started.map(|_| ()).unwrap_err().to_string()
    };
    let stream = |name, fps| scripted(name, fps, Gate::Open).0;
    let none = start(Settings::default(), vec![]);
    let twice = start(Settings::default(), vec![stream("a", None), stream("a", None)]);
    let rate = start(Settings::default(), vec![stream("a", Some(0.0))]);
    let buffers = Settings { report_buffers: 0, ..Settings::default() };
    let buffers = start(buffers, vec![stream("a", None)]);
    for (message, says) in
        [(none, "no stream"), (twice, "\"a\""), (rate, "fps = 0"), (buffers, "report buffer")]
    {
        assert!(message.contains(says), "{message}");
    }
}
