//! The capture thread of one stream: opens its camera, keeps the newest frame on offer, answers snapshot requests.
//!
//! It never waits longer than [`TICK`] without showing that it is alive, whatever the camera does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::camera::{Camera, CameraError, Capture, Sink};
use crate::frame::Frame;
use crate::pipeline::backoff::Backoff;
use crate::pipeline::inference::panic_message;
use crate::pipeline::latest::Offer;
use crate::pipeline::shared::{CameraState, Shared, StreamShared};
use crate::pipeline::{Gate, OpenCamera, TICK};

/// The body of a capture thread.
pub(super) struct Capturer {
    shared: Arc<Shared>,
    index: usize,
    open: OpenCamera,
    /// Empty between two frames of a stream that runs freely.
    frame: Frame,
    pacer: Pacer,
    backoff: Backoff,
    /// Whether the last state told was [`CameraState::Streaming`].
    streaming: bool,
    /// Damaged frames that the open camera had told of.
    damaged_seen: u64,
}

impl Capturer {
    pub(super) fn new(shared: Arc<Shared>, index: usize, open: OpenCamera) -> Self {
        let frame = Frame::empty(shared.clock.now());
        let (pacer, backoff) = (Pacer::default(), Backoff::new());
        Self { shared, index, open, frame, pacer, backoff, streaming: false, damaged_seen: 0 }
    }

    /// Runs until the pipeline stops or the camera has no more frames. A panic closes the camera and begins again.
    pub(super) fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.stream_frames())) {
                Ok(()) => break,
                Err(panic) => {
                    let message = panic_message(&*panic);
                    let stream = self.stream();
                    log::error!("capture panicked stream={} message={message}", stream.name);
                    stream.telemetry.panics.add_one();
                    self.tell(CameraState::Unavailable(format!("capture panicked: {message}")));
                    let pause = self.backoff.fail();
                    self.pause(pause);
                }
            }
        }
        self.stream().end();
        self.shared.frames.close(self.index);
        self.shared.thread_ended();
    }

    fn stream(&self) -> &StreamShared {
        &self.shared.streams[self.index]
    }

    fn stream_frames(&mut self) {
        let mut camera: Option<Box<dyn Camera>> = None;
        while !self.shared.stopping() {
            let now = self.shared.clock.now();
            self.stream().heartbeat.beat(now);
            let Some(open) = &mut camera else {
                match (self.open)() {
                    Ok(opened) => {
                        self.damaged_seen = 0;
                        camera = Some(opened);
                    }
                    Err(error) => self.be_without_camera(&error),
                }
                continue;
            };
            if open.info().fps.is_none()
                && let Some(wait) = self.nothing_wanted_for(now)
            {
                self.stream().wake.wait(wait.min(TICK));
                continue;
            }
            let captured = open.capture(self, TICK);
            let seen = open.frames_damaged();
            self.note_damaged(seen);
            match captured {
                Ok(Capture::Frame | Capture::Restarted) => self.use_frame(),
                Ok(Capture::Unwanted) => {
                    self.be_streaming();
                    self.stream().telemetry.rate_limited.add_one();
                }
                Ok(Capture::TimedOut) => {}
                Ok(Capture::Ended) => {
                    log::info!("camera ended stream={}", self.stream().name);
                    return self.tell(CameraState::Ended);
                }
                Err(error) => self.be_without_camera(&error),
            }
        }
    }

    /// Adds what the camera tells more than before.
    fn note_damaged(&mut self, seen: u64) {
        for _ in self.damaged_seen..seen {
            self.stream().telemetry.damaged.add_one();
        }
        self.damaged_seen = seen;
    }

    /// How long a source that is as fast as it is asked need not be asked; `None`: a frame is wanted now.
    fn nothing_wanted_for(&self, now: Instant) -> Option<Duration> {
        let stream = self.stream();
        if stream.snapshots.pending() {
            return None;
        }
        if stream.gate == Gate::Triggered && !stream.trigger.is_raised() {
            return Some(TICK);
        }
        let wait = self.pacer.until_due(now, stream.limit.interval()?);
        (!wait.is_zero()).then_some(wait)
    }

    /// Answers snapshot requests and offers the frame, if gate and rate let it through.
    fn use_frame(&mut self) {
        let now = self.shared.clock.now();
        self.be_streaming();
        let stream = &self.shared.streams[self.index];
        if stream.snapshots.pending() {
            for request in stream.snapshots.take() {
                // Who asked may have given up.
                let _ = request.send(self.frame.clone());
            }
        }
        if stream.gate == Gate::Triggered && !stream.trigger.is_raised() {
            return;
        }
        let interval = stream.limit.interval();
        if !self.pacer.is_due(now, interval) {
            return stream.telemetry.rate_limited.add_one();
        }
        if stream.gate == Gate::Triggered && !stream.trigger.answer(self.frame.captured) {
            return;
        }
        self.pacer.admit(now, interval);
        if self.shared.frames.offer(self.index, &mut self.frame, now) == Offer::Replaced {
            stream.telemetry.dropped.add_one();
        }
        if stream.gate == Gate::Open {
            // Grown for a snapshot beside the two that go round.
            self.frame.data = Vec::new();
        }
    }

    /// Notes that the camera brought a frame.
    fn be_streaming(&mut self) {
        self.backoff.succeed();
        if !self.streaming {
            self.tell(CameraState::Streaming);
        }
        self.stream().telemetry.captured.add_one();
    }

    fn be_without_camera(&mut self, error: &CameraError) {
        let message = error.to_string();
        let (state, pause) = match error {
            CameraError::Unusable { .. } => {
                (CameraState::Unusable(message), self.backoff.fail_hard())
            }
            _ => (CameraState::Unavailable(message), self.backoff.fail()),
        };
        self.stream().telemetry.camera_errors.add_one();
        self.tell(state);
        self.pause(pause);
    }

    /// Tells a new state, and logs it when it differs from the last one.
    fn tell(&mut self, state: CameraState) {
        self.streaming = state == CameraState::Streaming;
        let stream = &self.shared.streams[self.index];
        if stream.camera() != state {
            match &state {
                CameraState::Unavailable(why) => {
                    log::warn!("camera away stream={} {why}", stream.name)
                }
                CameraState::Unusable(why) => {
                    log::error!("camera unusable stream={} {why}", stream.name)
                }
                _ => log::info!("camera stream={} state={state:?}", stream.name),
            }
        }
        stream.set_camera(state);
    }

    /// Waits, showing that the thread is alive. Ends early when the pipeline stops.
    fn pause(&self, duration: Duration) {
        let until = self.shared.clock.now() + duration;
        loop {
            let now = self.shared.clock.now();
            self.stream().heartbeat.beat(now);
            let left = until.saturating_duration_since(now);
            if left.is_zero() || self.shared.stopping() {
                return;
            }
            self.stream().wake.wait(left.min(TICK));
        }
    }
}

impl Sink for Capturer {
    /// A frame that comes too early is not copied. One that will be offered goes into the buffer of the frame that it replaces.
    fn buffer(&mut self) -> Option<&mut Frame> {
        let stream = &self.shared.streams[self.index];
        // Behind a trigger a waiting frame answers an edge, and stays until the next edge is answered.
        if stream.gate == Gate::Open {
            if self.pacer.is_due(self.shared.clock.now(), stream.limit.interval()) {
                if self.frame.data.capacity() == 0
                    && self.shared.frames.reclaim(self.index, &mut self.frame, TICK)
                        == Offer::Replaced
                {
                    stream.telemetry.dropped.add_one();
                }
            } else if !stream.snapshots.pending() {
                return None;
            }
        }
        Some(&mut self.frame)
    }
}

/// Keeps a long-run rate over frames that arrive a little early or late.
#[derive(Debug, Default)]
struct Pacer {
    due: Option<Instant>,
}

impl Pacer {
    /// Part of an interval that a frame may be early, so that a camera at the very rate of the limit loses none.
    const EARLY: u32 = 4;

    fn is_due(&self, now: Instant, interval: Option<Duration>) -> bool {
        interval.is_none_or(|interval| self.until_due(now, interval).is_zero())
    }

    /// A frame is due within an interval from now, however far away it was under an older limit.
    fn until_due(&self, now: Instant, interval: Duration) -> Duration {
        let Some(due) = self.due else { return Duration::ZERO };
        let due = due.min(now + interval);
        due.saturating_duration_since(now + interval / Self::EARLY)
    }

    fn admit(&mut self, now: Instant, interval: Option<Duration>) {
        self.due = interval.map(|interval| {
            let planned = self.due.map_or(now, |due| due.min(now + interval)) + interval;
            // After a pause the missed frames are not made up for.
            planned.max(now + interval / 2)
        });
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    /// Frames admitted of a camera with this period and jitter (both µs) in ten seconds.
    fn admitted(period_us: u64, jitter_us: u64, fps: f32) -> usize {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        let interval = Some(Duration::from_secs_f32(1.0 / fps));
        let times = (0..10_000_000 / period_us)
            .map(|n| start + Duration::from_micros(n * period_us + (n % 2) * jitter_us));
        times
            .filter(|now| {
                let due = pacer.is_due(*now, interval);
                if due {
                    pacer.admit(*now, interval);
                }
                due
            })
            .count()
    }

    #[test]
    fn the_limit_holds_in_the_long_run_and_loses_no_frame_of_a_camera_at_that_rate() {
        let cases = [
            (33_333, 0, 10.0, 98..=101),
            (33_333, 5_000, 10.0, 98..=101),
            (100_000, 0, 10.0, 100..=100),
            (100_000, 8_000, 10.0, 100..=100),
            (40_000, 0, 20.0, 195..=201),
            (200_000, 0, 10.0, 50..=50),
            (1_000, 0, 1.0, 10..=11),
        ];
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(period, jitter, fps, want)| (admitted(period, jitter, fps), want))
            .filter(|(got, want)| !want.contains(got))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn a_higher_limit_takes_effect_at_once() {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        pacer.admit(start, Some(Duration::from_secs(100)));
        let tenth = Duration::from_millis(100);
        assert!(pacer.until_due(start, tenth) <= tenth);
    }
}
