//! What the threads of a pipeline and its handles share: requests going in, state and counts coming out.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ocelli_protocol::Id;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::frame::Frame;
use crate::pipeline::latest::LatestFrames;
use crate::pipeline::reports::Queue;
use crate::pipeline::{ControlError, Detector, Gate, Settings, Stream};
use crate::telemetry::{Counter, Heartbeat, Histogram, Meter};

/// Latency of each stage, as [`ocelli_protocol::message::StageLatency`].
#[derive(Debug)]
#[expect(missing_docs, reason = "named after the stages")]
pub struct Stages {
    pub capture: Histogram,
    pub preprocess: Histogram,
    pub inference: Histogram,
    pub postprocess: Histogram,
    pub total: Histogram,
}

/// What became of frames after capture.
#[derive(Debug, Default)]
pub struct FrameCounters {
    /// Became a report.
    pub finished: Counter,
    /// Not looked at because a model was not ready.
    pub skipped: Counter,
    /// Bytes that make no picture.
    pub undecodable: Counter,
    /// The model or its head failed on it.
    pub failed: Counter,
    /// The inference thread panicked on it.
    pub panicked: Counter,
    /// Changes of the detector.
    pub swaps: Counter,
}

/// Counts of one stream.
#[derive(Debug)]
pub struct StreamTelemetry {
    /// Frames the camera delivered.
    pub captured: Counter,
    /// Frames replaced by a newer one before inference.
    pub dropped: Counter,
    /// Frames not looked at because of the rate limit.
    pub rate_limited: Counter,
    /// Frames that arrived damaged and were skipped by the camera.
    pub damaged: Counter,
    /// Times the camera was found away or unusable.
    pub camera_errors: Counter,
    /// Panics of the capture thread.
    pub panics: Counter,
    /// Reports a second.
    pub reports: Meter,
}

/// Where a stream's camera is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CameraState {
    /// Not yet open.
    Opening,
    /// Delivers frames.
    Streaming,
    /// Away; tried again. With the reason.
    Unavailable(String),
    /// There, but cannot deliver what is asked; tried again now and then. With the reason.
    Unusable(String),
    /// Has no more frames.
    Ended,
}

/// One stream as the health report tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamStatus {
    /// Name.
    pub name: Id,
    /// Its camera.
    pub camera: CameraState,
    /// Rate limit, frames a second.
    pub limit_fps: Option<f32>,
    /// Reports a second over the last minute.
    pub fps: f32,
    /// See [`StreamTelemetry`].
    pub captured: u64,
    /// See [`StreamTelemetry`].
    pub dropped: u64,
    /// See [`StreamTelemetry`].
    pub rate_limited: u64,
    /// See [`StreamTelemetry`].
    pub damaged: u64,
    /// See [`StreamTelemetry`].
    pub camera_errors: u64,
    /// See [`StreamTelemetry`].
    pub panics: u64,
}

/// Time since the last progress of the threads, for the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The capture thread that is longest without; `None` when all streams have ended.
    pub capture: Option<Duration>,
    /// The inference thread: a frame finished, none offered, or the consumer has no room. `None` when it has ended.
    pub inference: Option<Duration>,
}

pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) streams: Vec<StreamShared>,
    pub(super) frames: LatestFrames,
    pub(super) queue: Queue,
    pub(super) swap: Swap,
    pub(super) stages: Stages,
    pub(super) counters: FrameCounters,
    pub(super) inference: Heartbeat,
    stopping: AtomicBool,
    inference_ended: AtomicBool,
    running: Mutex<usize>,
    ended: Condvar,
    failure: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(settings: &Settings, streams: &[Stream], clock: Arc<dyn Clock>) -> Self {
        let now = clock.now();
        Self {
            streams: streams.iter().map(|stream| StreamShared::new(stream, now)).collect(),
            frames: LatestFrames::new(streams.len(), now),
            queue: Queue::new(settings.report_buffers, now),
            swap: Swap::default(),
            stages: Stages {
                capture: Histogram::new(now),
                preprocess: Histogram::new(now),
                inference: Histogram::new(now),
                postprocess: Histogram::new(now),
                total: Histogram::new(now),
            },
            counters: FrameCounters::default(),
            inference: Heartbeat::new(now),
            stopping: AtomicBool::new(false),
            inference_ended: AtomicBool::new(false),
            running: Mutex::new(streams.len() + 1),
            ended: Condvar::new(),
            failure: Mutex::new(None),
            clock,
        }
    }

    pub(super) fn stream(&self, name: &str) -> Result<&StreamShared, ControlError> {
        let found = self.streams.iter().find(|stream| stream.name.as_str() == name);
        found.ok_or_else(|| ControlError::UnknownStream {
            name: name.chars().take(80).collect(),
            known: self.streams.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    pub(super) fn request_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.streams.iter().for_each(|stream| stream.wake.notify());
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// To be called by each thread as the last thing it does.
    pub(super) fn thread_ended(&self) {
        let mut running = lock(&self.running);
        *running = running.saturating_sub(1);
        self.ended.notify_all();
    }

    pub(super) fn inference_ended(&self) {
        self.inference_ended.store(true, Ordering::Release);
    }

    pub(super) fn wait_for_threads(&self, timeout: Duration) {
        let waited = self.ended.wait_timeout_while(lock(&self.running), timeout, |n| *n > 0);
        drop(waited);
    }

    pub(super) fn all_ended(&self) -> bool {
        *lock(&self.running) == 0
    }

    pub(super) fn fail(&self, reason: String) {
        *lock(&self.failure) = Some(reason);
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    pub(super) fn progress(&self, now: Instant) -> Progress {
        let alive = self.streams.iter().filter(|stream| !stream.has_ended());
        let inference =
            (!self.inference_ended.load(Ordering::Acquire)).then(|| self.inference.age(now));
        Progress { capture: alive.map(|stream| stream.heartbeat.age(now)).max(), inference }
    }
}

/// The part of [`Shared`] that belongs to one stream.
pub(super) struct StreamShared {
    pub(super) name: Id,
    pub(super) gate: Gate,
    pub(super) limit: RateLimit,
    pub(super) trigger: Edge,
    pub(super) snapshots: Snapshots,
    pub(super) wake: Wake,
    pub(super) heartbeat: Heartbeat,
    pub(super) telemetry: StreamTelemetry,
    camera: Mutex<CameraState>,
    ended: AtomicBool,
}

impl StreamShared {
    fn new(stream: &Stream, now: Instant) -> Self {
        let limit = RateLimit::default();
        limit.set(stream.fps);
        Self {
            name: stream.name.clone(),
            gate: stream.gate,
            limit,
            trigger: Edge::new(now),
            snapshots: Snapshots::default(),
            wake: Wake::default(),
            heartbeat: Heartbeat::new(now),
            telemetry: StreamTelemetry {
                captured: Counter::default(),
                dropped: Counter::default(),
                rate_limited: Counter::default(),
                damaged: Counter::default(),
                camera_errors: Counter::default(),
                panics: Counter::default(),
                reports: Meter::new(now),
            },
            camera: Mutex::new(CameraState::Opening),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn set_camera(&self, state: CameraState) {
        *lock(&self.camera) = state;
    }

    pub(super) fn camera(&self) -> CameraState {
        lock(&self.camera).clone()
    }

    /// The capture thread is gone: nobody answers requests for snapshots.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.snapshots.take().clear();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn status(&self, now: Instant) -> StreamStatus {
        StreamStatus {
            name: self.name.clone(),
            camera: self.camera(),
            limit_fps: self.limit.fps(),
            fps: self.telemetry.reports.per_second(now),
            captured: self.telemetry.captured.total(),
            dropped: self.telemetry.dropped.total(),
            rate_limited: self.telemetry.rate_limited.total(),
            damaged: self.telemetry.damaged.total(),
            camera_errors: self.telemetry.camera_errors.total(),
            panics: self.telemetry.panics.total(),
        }
    }
}

/// A limit in frames a second that changes while frames flow.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    /// Interval in microseconds; 0: no limit.
    interval_us: AtomicU64,
}

impl RateLimit {
    pub(super) fn set(&self, fps: Option<f32>) {
        let interval_us = fps.map_or(0, |fps| (1e6 / f64::from(fps)).round().max(1.0) as u64);
        self.interval_us.store(interval_us, Ordering::Relaxed);
    }

    pub(super) fn interval(&self) -> Option<Duration> {
        let interval_us = self.interval_us.load(Ordering::Relaxed);
        (interval_us > 0).then(|| Duration::from_micros(interval_us))
    }

    fn fps(&self) -> Option<f32> {
        self.interval().map(|interval| 1.0 / interval.as_secs_f32())
    }
}

/// The last edge of a trigger that no frame has answered yet.
#[derive(Debug)]
pub(super) struct Edge {
    start: Instant,
    /// Microseconds since the start, plus one; 0: none.
    raised_us: AtomicU64,
}

impl Edge {
    fn new(start: Instant) -> Self {
        Self { start, raised_us: AtomicU64::new(0) }
    }

    pub(super) fn raise(&self, at: Instant) {
        let since_start = at.saturating_duration_since(self.start).as_micros();
        let raised_us = u64::try_from(since_start).unwrap_or(u64::MAX - 1) + 1;
        self.raised_us.store(raised_us, Ordering::Release);
    }

    pub(super) fn is_raised(&self) -> bool {
        self.raised_us.load(Ordering::Acquire) != 0
    }

    /// Answers the edge with a frame captured at `captured`; `false` when there is none, or only a later one.
    pub(super) fn answer(&self, captured: Instant) -> bool {
        let raised_us = self.raised_us.load(Ordering::Acquire);
        let captured_us = captured.saturating_duration_since(self.start).as_micros();
        let due = raised_us != 0 && captured_us >= u128::from(raised_us - 1);
        let swap =
            |from| self.raised_us.compare_exchange(from, 0, Ordering::AcqRel, Ordering::Relaxed);
        due && swap(raised_us).is_ok()
    }
}

/// Requests for a copy of the next frame.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    waiting: Mutex<Vec<oneshot::Sender<Frame>>>,
    count: AtomicUsize,
}

impl Snapshots {
    pub(super) fn ask(&self) -> oneshot::Receiver<Frame> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        // Requests that were given up on must not pile up while the camera is away.
        waiting.retain(|sender| !sender.is_closed());
        waiting.push(sender);
        self.count.store(waiting.len(), Ordering::Release);
        receiver
    }

    /// Whether somebody waits; one atomic load.
    pub(super) fn pending(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    pub(super) fn take(&self) -> Vec<oneshot::Sender<Frame>> {
        let mut waiting = lock(&self.waiting);
        self.count.store(0, Ordering::Release);
        std::mem::take(&mut *waiting)
    }
}

/// Wakes a capture thread that waits for something to do.
#[derive(Debug, Default)]
pub(super) struct Wake {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    pub(super) fn notify(&self) {
        *lock(&self.woken) = true;
        self.changed.notify_one();
    }

    /// Waits until notified, at most `timeout`. A notification that came before is not lost.
    pub(super) fn wait(&self, timeout: Duration) {
        let waited = self.changed.wait_timeout_while(lock(&self.woken), timeout, |woken| !*woken);
        let (mut woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}

/// A detector that waits to take over.
#[derive(Default)]
pub(super) struct Swap {
    offered: Mutex<Option<(Detector, oneshot::Sender<Detector>)>>,
    pending: AtomicBool,
}

impl Swap {
    pub(super) fn offer(&self, detector: Detector) -> oneshot::Receiver<Detector> {
        let (sender, receiver) = oneshot::channel();
        let mut offered = lock(&self.offered);
        let superseded = offered.replace((detector, sender));
        self.pending.store(true, Ordering::Release);
        drop(offered);
        drop(superseded);
        receiver
    }

    /// The waiting detector, once; one atomic load when there is none.
    pub(super) fn take(&self) -> Option<(Detector, oneshot::Sender<Detector>)> {
        if !self.pending.swap(false, Ordering::AcqRel) {
            return None;
        }
        lock(&self.offered).take()
    }
}

// A panic of a holder leaves each of these values whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
