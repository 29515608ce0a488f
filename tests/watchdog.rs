//! The service manager's watchdog is fed while frames are finished, and no longer once the model hangs.
//!
//! The hang needs a model that no package can bring, so that process is this test program; the other is the binary.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ocelli::agent::WatchdogLimits;
use ocelli::agent::watchdog::{Notifier, Progress};
use ocelli::camera::{Camera, CameraError, CameraInfo, Capture, Sink};
use ocelli::clock::{Clock, SystemClock};
use ocelli::detection::Findings;
use ocelli::frame::{Frame, PixelFormat};
use ocelli::pipeline::{self, Detector, Gate, Network, NetworkError, Pipeline, Stream};
use ocelli::tensor::{ElementType, TensorSpec, TensorView, TensorViewMut, Values};
use ocelli::vision::Geometry;
use ocelli::vision::postprocess::{Head, HeadError};
use ocelli::vision::preprocess::{Preprocess, PreprocessError};
use ocelli_protocol::message::ModelId;
use support::agent::{Agent, Setup};
use support::broker::Broker;
use support::program;

const CHILD: &str = "OCELLI_TEST_WATCHDOG";
/// Frames before the model hangs: two seconds.
const GOOD_FRAMES: u64 = 100;
/// How long the model hangs before the process ends.
const STUCK: Duration = Duration::from_secs(4);

struct SteadyCamera(CameraInfo, u64);

impl Camera for SteadyCamera {
    fn info(&self) -> &CameraInfo {
        &self.0
    }

    fn capture(&mut self, sink: &mut dyn Sink, _: Duration) -> Result<Capture, CameraError> {
        let Some(frame) = sink.buffer() else { return Ok(Capture::Unwanted) };
        frame.number = self.1;
        self.1 += 1;
        Ok(Capture::Frame)
    }
}

struct Nothing;

impl Preprocess for Nothing {
    fn run(&mut self, _: &Frame, _: &mut TensorViewMut<'_>) -> Result<Geometry, PreprocessError> {
        Ok(Geometry {
            scale_x: 1.0,
            scale_y: 1.0,
            offset_x: 0.0,
            offset_y: 0.0,
            source_width: 1,
            source_height: 1,
        })
    }
}

impl Head for Nothing {
    fn decode(
        &mut self,
        _: &[TensorView<'_>],
        _: &Geometry,
        _: &mut Findings,
    ) -> Result<(), HeadError> {
        Ok(())
    }
}

/// Runs a few frames, then never returns.
struct Hanging(TensorSpec, u64);

impl Network for Hanging {
    fn input(&self) -> &TensorSpec {
        &self.0
    }

    fn outputs(&self) -> usize {
        1
    }

    fn run(&mut self, _: TensorView<'_>, _: std::time::Instant) -> Result<(), NetworkError> {
        self.1 += 1;
        if self.1 > GOOD_FRAMES {
            loop {
                std::thread::park();
            }
        }
        Ok(())
    }

    fn output(&self, _: usize) -> TensorView<'_> {
        TensorView { shape: &[], values: Values::U8(&[]) }
    }

    fn backend(&self) -> &[String] {
        &[]
    }
}

/// The process under the watchdog: does nothing unless it is started as such. Ends when it is no longer fed for long.
#[test]
fn watched_process() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let info = CameraInfo {
        source: "steady".to_owned(),
        description: "as fast as asked".to_owned(),
        format: PixelFormat::Gray8,
        width: 1,
        height: 1,
        fps: None,
    };
    let stream = Stream {
        name: "front".parse().unwrap(),
        fps: Some(50.0),
        gate: Gate::Open,
        open: Box::new(move || Ok(Box::new(SteadyCamera(info.clone(), 0)))),
    };
    let input = TensorSpec {
        name: "input".to_owned(),
        element: ElementType::U8,
        shape: vec![1],
        quantisation: None,
    };
    let model = ModelId { name: "hangs".to_owned(), version: "1.0.0".to_owned() };
    let network = Box::new(Hanging(input, 0));
    let detector = Detector::new(Box::new(Nothing), network, Box::new(Nothing), model).unwrap();
    let (pipeline, mut reports) =
        Pipeline::start(pipeline::Settings::default(), vec![stream], detector, Arc::clone(&clock))
            .unwrap();
    let control = pipeline.control();
    let limits = WatchdogLimits { inference: Duration::from_millis(600), ..Default::default() };
    let mut notifier = Notifier::from_environment(None);
    notifier.ready();
    let mut stuck = Duration::ZERO;
    while stuck < STUCK {
        while reports.try_recv().is_ok() {}
        let progress = control.progress(clock.now());
        let (capture, inference) = (progress.capture, progress.inference);
        stuck = inference.expect("the inference thread hangs and does not end");
        let progress = Progress { capture, inference, store: Some(Duration::ZERO) };
        notifier.tick(&progress, &limits, clock.now());
        std::thread::park_timeout(notifier.tick_interval());
    }
    notifier.stopping();
    // The inference thread hangs for ever, as a broken driver would.
    std::process::exit(0);
}

#[test]
fn a_hung_model_ends_the_feeding() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "watched_process"])
        .env(CHILD, "1")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    let mut buffer = [0; 512];
    loop {
        let length = socket.recv(&mut buffer).expect("a word from the process");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        told.push((SystemClock.now(), text.trim().to_owned()));
        if told.last().is_some_and(|(_, text)| text.contains("STOPPING=1")) {
            break;
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(told[0].1.contains("READY=1"), "{told:?}");
    let fed: Vec<_> = told.iter().filter(|(_, text)| text.contains("WATCHDOG=1")).collect();
    assert!(fed.len() >= 3, "fed while frames are finished: {told:?}");
    let stopping = told.last().unwrap().0;
    let starved = stopping - fed.last().unwrap().0;
    assert!(starved > Duration::from_secs(1), "fed until {starved:?} before the end: {told:?}");
}

#[test]
fn the_binary_tells_the_service_manager_that_it_is_ready_lives_and_stops() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let config = Setup::new(folder.path(), broker.port).write();
    let mut command = program::ocelli();
    command.arg("run").arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
    let agent = Agent::start_notifying(&mut command, &path, Duration::from_millis(600));
    let hear = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("a word from the agent");
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert!(hear().contains("READY=1"), "the first word");
    let (mut fed, mut working) = (0, false);
    while fed < 5 || !working {
        let word = hear();
        fed += u32::from(word.contains("WATCHDOG=1"));
        working |=
            word.contains("STATUS=tiny-classifier 0.1.0") && word.contains("broker connected");
    }
    agent.terminate();
    while !hear().contains("STOPPING=1") {}
}
