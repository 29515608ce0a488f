//! From cameras to findings: a capture thread per camera, the newest frame of each, one inference thread, and a
//! bounded queue of reports to one consumer.
//!
//! ```text
//! Camera -> Frame -> LatestFrames (drop-oldest) -> Preprocess -> Network -> Head -> Report -> queue (waits) -> consumer
//! ```
//! Buffers belong to the pipeline and go round; a frame is swapped, not copied. Nobody here knows MQTT or the disk.

mod backoff;
mod capture;
mod detector;
mod inference;
mod latest;
mod reports;
mod session;
mod shared;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ocelli_protocol::Id;
use tokio::sync::oneshot;

use crate::camera::{Camera, CameraError};
use crate::clock::Clock;
use crate::frame::Frame;
use crate::processor::Processor;

pub use detector::{DetectError, Detector, DetectorError, MAX_OUTPUTS, Network, NetworkError};
pub use reports::{Delivered, Empty, Report, Reports};
pub use session::{SessionNetwork, SessionWatch};
pub use shared::{CameraState, FrameCounters, Progress, Stages, StreamStatus, StreamTelemetry};

use shared::Shared;

/// Longest wait of any pipeline thread before it shows that it is alive and looks for requests.
const TICK: Duration = Duration::from_millis(200);

/// Frames a second that a stream can be limited to.
pub const FPS_RANGE: std::ops::RangeInclusive<f32> = 0.01..=1000.0;

/// What a pipeline is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Longest run of the model on one frame.
    pub deadline: Duration,
    /// Where the inference thread runs.
    pub processor: Processor,
    /// Reports that may wait for the consumer. When all wait, inference pauses and frames are dropped, oldest first.
    pub report_buffers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(2),
            processor: Processor::default(),
            report_buffers: 8,
        }
    }
}

/// Opens a camera, again after the capture thread failed. Calls are paced by the capture thread.
pub type OpenCamera = Box<dyn FnMut() -> Result<Box<dyn Camera>, CameraError> + Send>;

/// One camera of a pipeline.
pub struct Stream {
    /// Name, unique in the pipeline.
    pub name: Id,
    /// Frames a second at most, within [`FPS_RANGE`].
    pub fps: Option<f32>,
    /// Which frames are looked at.
    pub gate: Gate,
    /// The camera.
    pub open: OpenCamera,
}

/// Which frames of a stream are looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gate {
    /// All, up to the rate limit.
    #[default]
    Open,
    /// The first one captured after each [`Control::trigger`].
    Triggered,
}

/// Why a pipeline does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No stream, two of one name, or a limit outside its range.
    #[error("{0}")]
    Settings(String),
    /// The system gives no thread.
    #[error("cannot start the {thread} thread: {source}")]
    Thread {
        /// What the thread is for.
        thread: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Why a request to a stream was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no such stream.
    #[error("there is no stream \"{name}\"; there is {known}")]
    UnknownStream {
        /// The name as given.
        name: String,
        /// The names of this pipeline.
        known: String,
    },
    /// The limit is outside [`FPS_RANGE`].
    #[error("a rate of {fps} frames a second is outside 0.01 to 1000")]
    Rate {
        /// The rate as given.
        fps: String,
    },
    /// The pipeline has ended.
    #[error("the pipeline has ended")]
    Ended,
}

/// Running threads of a pipeline. Dropping it asks them to end without waiting.
#[must_use]
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Requests to a running pipeline, and what it tells of itself. Cheap to clone; any thread may hold one.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Pipeline {
    /// Starts the threads. Cameras open on their own threads: one that is away does not delay the others.
    ///
    /// # Errors
    /// [`StartError`] for streams that make no sense, or when the system gives no thread.
    pub fn start(
        settings: Settings,
        streams: Vec<Stream>,
        detector: Detector,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Reports), StartError> {
        check(&settings, &streams)?;
        let shared = Arc::new(Shared::new(&settings, &streams, clock));
        let reports = Reports::new(&shared);
        let mut pipeline = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let inference = inference::Inference::new(Arc::clone(&shared), settings.deadline, detector);
        let body = move || {
            settings.processor.keep();
            inference.run();
        };
        pipeline.spawn("inference".to_owned(), body)?;
        for (index, stream) in streams.into_iter().enumerate() {
            let name = format!("capture-{}", stream.name);
            let capture = capture::Capturer::new(Arc::clone(&shared), index, stream.open);
            pipeline.spawn(name, move || capture.run())?;
        }
        Ok((pipeline, reports))
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let handle = std::thread::Builder::new().name(name.clone()).spawn(body);
        self.threads.push(handle.map_err(|source| StartError::Thread { thread: name, source })?);
        Ok(())
    }

    /// A handle for requests.
    #[must_use]
    pub fn control(&self) -> Control {
        Control { shared: Arc::clone(&self.shared) }
    }

    /// Asks all threads to end and waits for them, at most `timeout`. Reports already made stay in the queue.
    ///
    /// # Errors
    /// [`Stuck`] names threads that still run, in a driver or a model; the process can end without them.
    pub fn stop(mut self, timeout: Duration) -> Result<(), Stuck> {
        self.shared.request_stop();
        self.shared.wait_for_threads(timeout);
        let mut stuck = Vec::new();
        for thread in std::mem::take(&mut self.threads) {
            let name = thread.thread().name().unwrap_or("unnamed").to_owned();
            // The body catches its own panics; an end by panic all the same counts as stuck.
            let ended = self.shared.all_ended() || thread.is_finished();
            if !ended || thread.join().is_err() {
                stuck.push(name);
            }
        }
        if stuck.is_empty() { Ok(()) } else { Err(Stuck { threads: stuck.join(", ") }) }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.request_stop();
    }
}

/// Threads that did not end in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("still running: {threads}")]
pub struct Stuck {
    /// Names of the threads.
    pub threads: String,
}

impl Control {
    /// Asks all threads to end; does not wait.
    pub fn request_stop(&self) {
        self.shared.request_stop();
    }

    /// Whether the threads were asked to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.shared.stopping()
    }

    /// Limits a stream to `fps` frames a second from its next frame on; `None`: as many as the camera has.
    ///
    /// # Errors
    /// [`ControlError`] for an unknown stream or a rate outside [`FPS_RANGE`].
    pub fn set_rate(&self, stream: &str, fps: Option<f32>) -> Result<(), ControlError> {
        let stream = self.shared.stream(stream)?;
        if let Some(fps) = fps
            && !FPS_RANGE.contains(&fps)
        {
            return Err(ControlError::Rate { fps: fps.to_string() });
        }
        stream.limit.set(fps);
        stream.wake.notify();
        Ok(())
    }

    /// Asks for a copy of the stream's next frame, whatever its gate and rate. The receiver gets it from the capture
    /// thread; it gets nothing while the camera is away, so wait with a limit.
    ///
    /// # Errors
    /// [`ControlError`] for an unknown stream, or after the end.
    pub fn snapshot(&self, stream: &str) -> Result<oneshot::Receiver<Frame>, ControlError> {
        let stream = self.shared.stream(stream)?;
        if self.shared.stopping() || stream.has_ended() {
            return Err(ControlError::Ended);
        }
        let receiver = stream.snapshots.ask();
        stream.wake.notify();
        Ok(receiver)
    }

    /// Lets the first frame captured at or after `edge` through a gate that waits for triggers. Edges before that
    /// frame count as one.
    ///
    /// # Errors
    /// [`ControlError`] for an unknown stream.
    pub fn trigger(&self, stream: &str, edge: Instant) -> Result<(), ControlError> {
        let stream = self.shared.stream(stream)?;
        stream.trigger.raise(edge);
        stream.wake.notify();
        Ok(())
    }

    /// Makes `detector` look at every frame from the next on. No frame is lost or looked at twice for it. The receiver
    /// gets the detector that looked before; it gets nothing when another swap or the end came first. Without the
    /// receiver there is no swap: who drops or closes it before has taken the offer back.
    ///
    /// # Errors
    /// [`ControlError::Ended`] after the end.
    pub fn swap(&self, detector: Detector) -> Result<oneshot::Receiver<Detector>, ControlError> {
        if self.shared.stopping() {
            return Err(ControlError::Ended);
        }
        Ok(self.shared.swap.offer(detector))
    }

    /// Names of the streams, in order.
    pub fn stream_names(&self) -> impl Iterator<Item = &Id> {
        self.shared.streams.iter().map(|stream| &stream.name)
    }

    /// Latency of each stage over the last minute.
    #[must_use]
    pub fn stages(&self) -> &Stages {
        &self.shared.stages
    }

    /// What became of frames after capture.
    #[must_use]
    pub fn frames(&self) -> &FrameCounters {
        &self.shared.counters
    }

    /// State and counts of each stream.
    #[must_use]
    pub fn streams(&self, now: Instant) -> Vec<StreamStatus> {
        self.shared.streams.iter().map(|stream| stream.status(now)).collect()
    }

    /// Reports that wait for the consumer.
    #[must_use]
    pub fn reports_waiting(&self) -> usize {
        self.shared.queue.waiting()
    }

    /// How long ago each thread last showed progress, for the watchdog.
    #[must_use]
    pub fn progress(&self, now: Instant) -> Progress {
        self.shared.progress(now)
    }

    /// Why inference gave up for good, where it did: the process should end and be started again.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }
}

fn check(settings: &Settings, streams: &[Stream]) -> Result<(), StartError> {
    let refuse = |message: String| Err(StartError::Settings(message));
    if streams.is_empty() {
        return refuse("there is no stream; add a [[stream]] with a camera".to_owned());
    }
    if settings.report_buffers == 0 {
        return refuse("a pipeline needs at least one report buffer".to_owned());
    }
    for (index, stream) in streams.iter().enumerate() {
        if streams[..index].iter().any(|other| other.name == stream.name) {
            return refuse(format!("two streams are named \"{}\"; rename one", stream.name));
        }
        if let Some(fps) = stream.fps
            && !FPS_RANGE.contains(&fps)
        {
            let name = &stream.name;
            return refuse(format!("stream \"{name}\": fps = {fps} is outside 0.01 to 1000"));
        }
    }
    Ok(())
}
