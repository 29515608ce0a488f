//! What a frame costs beside inference: frames one at a time through the agent's own threads and tasks, from the camera
//! to the channel of the MQTT connection. Only the two ends, camera and connection, belong to the bench.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::time::{Duration, Instant};

use ocelli_protocol::Id;
use ocelli_protocol::message::FrameResult;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::agent::{self, Loaded};
use crate::camera::{Camera, CameraError, CameraInfo, Capture, Sink};
use crate::clock::Clock;
use crate::frame::{Frame, PixelFormat};
use crate::model::GoldenSample;
use crate::mqtt::{self, Incoming, Outgoing, Retain, Wire};
use crate::pipeline::{self, Gate, Pipeline, Stream};
use crate::report;
use crate::store;
use crate::vision::annotate::Picture;

/// Longest wait for the result of one frame.
const PATIENCE: Duration = Duration::from_secs(120);
/// Size of the raw frame: what cameras deliver by default.
const RAW: (usize, usize) = (1280, 720);

/// Stages of the frames of one kind.
#[derive(Debug, Serialize)]
pub(super) struct StageTable {
    /// What the frames were.
    #[serde(skip)]
    pub(super) source: &'static str,
    /// How many counted.
    pub(super) frames: usize,
    /// From the camera's time stamp to the inference thread: copy, newest-frame exchange, wake-up.
    pub(super) capture: Spread,
    /// Picture to tensor.
    pub(super) preprocess: Spread,
    /// The model.
    pub(super) inference: Spread,
    /// Tensors to findings.
    pub(super) postprocess: Spread,
    /// Result to JSON, measured on its own.
    pub(super) json: Spread,
    /// From the findings to the connection's channel, through report queue, reporter and outbox; without `json`.
    pub(super) mqtt: Spread,
    /// The whole way of each frame without its inference.
    pub(super) not_inference: Spread,
}

/// Times of one stage, µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Spread {
    pub(super) min_us: u64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
}

/// How many frames of a kind run, and how many of them count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frames {
    pub(super) warmup: usize,
    pub(super) counted: usize,
}

/// One frame's way, µs.
#[derive(Debug, Clone, Copy)]
struct Way {
    capture: u64,
    preprocess: u64,
    inference: u64,
    postprocess: u64,
    json: u64,
    mqtt: u64,
}

impl Way {
    fn not_inference(&self) -> u64 {
        self.capture + self.preprocess + self.postprocess + self.json + self.mqtt
    }
}

/// Runs frames of both kinds: a raw one as a camera delivers it, and the golden pictures as JPEG or PNG files.
///
/// # Errors
/// One line: which part of the agent did not start, or that a result did not come.
pub(super) fn measure(
    loaded: Loaded,
    frames: Frames,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<StageTable>, String> {
    let folder = Scratch::new()?;
    let golden = golden_frames(loaded.spec.golden(), &**clock)?;
    let mut kinds = vec![("yuyv-1280x720", vec![raw_frame(loaded.spec.golden(), &**clock)?])];
    if !golden.is_empty() {
        kinds.push(("golden", golden));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| format!("no timers for the stage table: {error}"))?;
    runtime.block_on(async {
        let mut line = Line::start(loaded, &folder.0, clock)?;
        let mut tables = Vec::new();
        for (source, pictures) in &kinds {
            tables.push(line.table(source, pictures, frames).await?);
        }
        line.end().await;
        Ok(tables)
    })
}

/// A running agent between a camera and a connection that the bench holds.
struct Line {
    clock: Arc<dyn Clock>,
    pipeline: Pipeline,
    frames: std_mpsc::Sender<Frame>,
    captured: std_mpsc::Receiver<Instant>,
    wire: Wire,
    handle: report::ReporterHandle,
    reporter: tokio::task::JoinHandle<()>,
}

impl Line {
    /// As the agent with a broker does it, see `agent/service.rs`.
    fn start(loaded: Loaded, folder: &Path, clock: &Arc<dyn Clock>) -> Result<Self, String> {
        let (frames, waiting) = std_mpsc::channel();
        let (stamps, captured) = std_mpsc::channel();
        let mut camera = Some(BenchCamera::new(waiting, stamps, Arc::clone(clock)));
        let open = move || -> Result<Box<dyn Camera>, CameraError> {
            let camera = camera.take().ok_or_else(|| CameraError::Unusable {
                device: "bench".to_owned(),
                detail: "closed by an error before".to_owned(),
                cure: "run the bench again".to_owned(),
            })?;
            Ok(Box::new(camera))
        };
        let name: Id = "bench".parse().expect("a name of small letters");
        let stream =
            Stream { name: name.clone(), fps: None, gate: Gate::Open, open: Box::new(open) };
        let settings = pipeline::Settings { deadline: PATIENCE, ..Default::default() };
        let (pipeline, reports) =
            Pipeline::start(settings, vec![stream], loaded.detector, Arc::clone(clock))
                .map_err(|error| error.to_string())?;
        let (store, recovered) = store::start(store::Settings::in_dir(folder), Arc::clone(clock))
            .map_err(|error| error.to_string())?;
        let (port, wire) = mqtt::port();
        let reporting = report::Settings::new(name.clone(), "ocelli", "bench");
        let (handle, events, reporter) =
            report::start(reporting, store, &recovered, port, Arc::clone(clock));
        // Nothing is received, so nothing is told.
        drop(events);
        tokio::spawn(agent::forward(reports, vec![name], handle.clone()));
        let reporter = tokio::spawn(reporter.run());
        // Room for this and for all that follows one frame.
        let _ = wire.incoming.try_send(Incoming::Connected(1));
        let clock = Arc::clone(clock);
        Ok(Self { clock, pipeline, frames, captured, wire, handle, reporter })
    }

    async fn table(
        &mut self,
        source: &'static str,
        pictures: &[Frame],
        frames: Frames,
    ) -> Result<StageTable, String> {
        let mut ways = Vec::with_capacity(frames.counted);
        for number in 0..frames.warmup + frames.counted {
            let way = self.send(pictures[number % pictures.len()].clone()).await?;
            if number >= frames.warmup {
                ways.push(way);
            }
        }
        let spread = |stage: fn(&Way) -> u64| Spread::of(ways.iter().map(stage).collect());
        Ok(StageTable {
            source,
            frames: ways.len(),
            capture: spread(|way| way.capture),
            preprocess: spread(|way| way.preprocess),
            inference: spread(|way| way.inference),
            postprocess: spread(|way| way.postprocess),
            json: spread(|way| way.json),
            mqtt: spread(|way| way.mqtt),
            not_inference: spread(Way::not_inference),
        })
    }

    /// One frame, from the camera to the connection's channel.
    async fn send(&mut self, frame: Frame) -> Result<Way, String> {
        let late = || format!("no result within {} s", PATIENCE.as_secs());
        self.frames.send(frame).map_err(|_| "the capture thread has ended".to_owned())?;
        let waited = tokio::time::timeout(PATIENCE, next_result(&mut self.wire)).await;
        let payload = waited.map_err(|_| late())?.ok_or("the reporter has ended")?;
        let arrived = self.clock.now();
        let captured = self.captured.recv_timeout(Duration::ZERO).map_err(|_| late())?;
        let result: FrameResult = serde_json::from_slice(&payload)
            .map_err(|error| format!("the result is no JSON: {error}"))?;
        let start = self.clock.now();
        let again = serde_json::to_vec(&result);
        let json = micros(self.clock.now() - start);
        drop(again);
        let spent = result.latency_us;
        let detector = spent.preprocess + spent.inference + spent.postprocess;
        let rest = micros(arrived - captured).saturating_sub(spent.total);
        Ok(Way {
            capture: spent.total.saturating_sub(detector),
            preprocess: spent.preprocess,
            inference: spent.inference,
            postprocess: spent.postprocess,
            json,
            mqtt: rest.saturating_sub(json),
        })
    }

    /// In order: the pipeline first, then what waits in the reporter.
    async fn end(mut self) {
        drop(self.frames);
        if let Err(stuck) = self.pipeline.stop(Duration::from_secs(2)) {
            log::warn!("bench: {stuck}");
        }
        if self.handle.shutdown().await.is_err() {
            return;
        }
        while tokio::select! {
            ended = &mut self.reporter => { drop(ended); false }
            asked = self.wire.outgoing.recv() => acknowledge(&self.wire.incoming, asked.as_ref()),
        } {}
    }
}

/// The payload of the next result; everything else that the reporter sends is acknowledged and forgotten.
async fn next_result(wire: &mut Wire) -> Option<Arc<[u8]>> {
    loop {
        let asked = wire.outgoing.recv().await?;
        acknowledge(&wire.incoming, Some(&asked));
        if let Outgoing::Publish(_, publish) = asked
            && publish.retain == Retain::No
        {
            return Some(publish.payload);
        }
    }
}

/// Answers as a broker does; `false` when nothing more will be asked.
fn acknowledge(events: &mpsc::Sender<Incoming>, asked: Option<&Outgoing>) -> bool {
    if let Some(Outgoing::Publish(_, publish)) = asked {
        // Channels hold more than the few messages that can be under way.
        let _ = events.try_send(Incoming::Acked(publish.token));
    }
    !matches!(asked, None | Some(Outgoing::Disconnect))
}

impl Spread {
    /// Of at least one time.
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
        Self { min_us: times[0], p50_us: at(50), p99_us: at(99) }
    }
}

/// Delivers the frames it is sent, copied into the pipeline's buffer as a driver's buffer is.
struct BenchCamera {
    info: CameraInfo,
    waiting: std_mpsc::Receiver<Frame>,
    stamps: std_mpsc::Sender<Instant>,
    clock: Arc<dyn Clock>,
    number: u64,
}

impl BenchCamera {
    fn new(
        waiting: std_mpsc::Receiver<Frame>,
        stamps: std_mpsc::Sender<Instant>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let info = CameraInfo {
            source: "bench".to_owned(),
            description: "frames of the bench".to_owned(),
            format: PixelFormat::Yuyv,
            width: RAW.0,
            height: RAW.1,
            fps: None,
        };
        Self { info, waiting, stamps, clock, number: 0 }
    }
}

impl Camera for BenchCamera {
    fn info(&self) -> &CameraInfo {
        &self.info
    }

    fn capture(&mut self, sink: &mut dyn Sink, timeout: Duration) -> Result<Capture, CameraError> {
        let source = match self.waiting.recv_timeout(timeout) {
            Ok(source) => source,
            Err(RecvTimeoutError::Timeout) => return Ok(Capture::TimedOut),
            Err(RecvTimeoutError::Disconnected) => return Ok(Capture::Ended),
        };
        let captured = self.clock.now();
        self.number += 1;
        let Some(frame) = sink.buffer() else { return Ok(Capture::Unwanted) };
        frame.data.clear();
        frame.data.extend_from_slice(&source.data);
        let data = std::mem::take(&mut frame.data);
        let captured_at = self.clock.wall();
        *frame = Frame { data, number: self.number, captured_at, captured, ..source };
        // The bench may have given up.
        let _ = self.stamps.send(captured);
        Ok(Capture::Frame)
    }
}

/// The first golden picture as a camera delivers it: YUYV, 1280x720. Grey for a package without.
fn raw_frame(samples: &[GoldenSample], clock: &dyn Clock) -> Result<Frame, String> {
    let picture = match samples.first() {
        Some(sample) => {
            Picture::decode(&sample.image).map_err(|error| format!("{}: {error}", sample.name))?
        }
        None => Picture { width: 1, height: 1, rgb: vec![128; 3] },
    };
    let (width, height) = RAW;
    let mut data = Vec::with_capacity(width * height * 2);
    for y in 0..height {
        for x in (0..width).step_by(2) {
            let at = |x: usize| {
                let (x, y) = (x * picture.width / width, y * picture.height / height);
                let start = (y * picture.width + x) * 3;
                let [r, g, b] = [0, 1, 2].map(|channel| i32::from(picture.rgb[start + channel]));
                // BT.601, limited range, in 256ths.
                let luma = (66 * r + 129 * g + 25 * b + 128) / 256 + 16;
                let blue = (112 * b - 38 * r - 74 * g + 128) / 256 + 128;
                let red = (112 * r - 94 * g - 18 * b + 128) / 256 + 128;
                [luma, blue, red].map(|value| value.clamp(0, 255) as u8)
            };
            let ([first, blue, red], [second, ..]) = (at(x), at(x + 1));
            data.extend_from_slice(&[first, blue, second, red]);
        }
    }
    let (stride, format) = (width * 2, PixelFormat::Yuyv);
    Ok(Frame { data, width, height, stride, format, ..Frame::empty(clock.now()) })
}

fn golden_frames(samples: &[GoldenSample], clock: &dyn Clock) -> Result<Vec<Frame>, String> {
    let frame = |sample: &GoldenSample| {
        agent::picture(&sample.image, clock).map_err(|error| format!("{}: {error}", sample.name))
    };
    samples.iter().map(frame).collect()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A folder for the outbox that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, String> {
        let place = std::env::temp_dir();
        let wrong = |error: &dyn std::fmt::Display| {
            format!("{}: {error}; set TMPDIR to a folder that can be written", place.display())
        };
        let name = report::new_boot_id(crate::clock::UnixTime::default());
        let folder = place.join(format!("ocelli-bench-{name}"));
        std::fs::create_dir(&folder).map_err(|error| wrong(&error))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::warn!("bench: {}: {error}", self.0.display());
        }
    }
}
