//! The inference thread: takes the newest frame of each stream in turn, looks at it, hands the report over.
//!
//! A frame is finished before the next is taken, so a new detector takes over between two frames. An error or panic
//! costs the frame, never the thread; panics in a row end it, and the process with it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli_protocol::message::StageLatency;

use crate::frame::Frame;
use crate::pipeline::backoff::Backoff;
use crate::pipeline::detector::Spent;
use crate::pipeline::latest::Taken;
use crate::pipeline::reports::{Buffer, Report};
use crate::pipeline::shared::Shared;
use crate::pipeline::{DetectError, Detector, NetworkError, TICK};
use crate::vision::preprocess::PreprocessError;

/// Panics without a finished frame between them after which another try is pointless.
const MOST_PANICS: u32 = 5;
/// Different reasons of failure that are logged for one detector.
const MOST_REASONS: usize = 8;

/// The body of the inference thread.
pub(super) struct Inference {
    shared: Arc<Shared>,
    deadline: Duration,
    detector: Detector,
    /// The frame of each stream that was looked at last.
    frames: Vec<Frame>,
    reasons: Vec<String>,
    panics: u32,
    backoff: Backoff,
}

impl Inference {
    pub(super) fn new(shared: Arc<Shared>, deadline: Duration, detector: Detector) -> Self {
        let now = shared.clock.now();
        let frames = shared.streams.iter().map(|_| Frame::empty(now)).collect();
        let (reasons, backoff) = (Vec::new(), Backoff::new());
        Self { shared, deadline, detector, frames, reasons, panics: 0, backoff }
    }

    /// Runs until the pipeline stops or all streams have ended.
    pub(super) fn run(mut self) {
        while !self.shared.stopping() && self.panics < MOST_PANICS {
            self.shared.inference.beat(self.shared.clock.now());
            // The buffer comes first: a frame taken before would grow old while the consumer has no room.
            let mut report = match self.shared.queue.buffer(TICK) {
                Buffer::Free(report) => report,
                Buffer::NoneFree => {
                    self.swap();
                    continue;
                }
                Buffer::ConsumerGone => break,
            };
            let taken = self.shared.frames.take(&mut self.frames, TICK);
            self.swap();
            let Taken::Frame { stream, offered } = taken else {
                self.shared.queue.give_back(report);
                if taken == Taken::Closed {
                    break;
                }
                continue;
            };
            if self.look_at(stream, offered, &mut report) {
                self.shared.queue.push(report);
            } else {
                self.shared.queue.give_back(report);
            }
        }
        self.end();
    }

    fn end(self) {
        if self.panics >= MOST_PANICS {
            let model = self.detector.model();
            let message = format!(
                "{} {} panicked on {MOST_PANICS} frames in a row",
                model.name, model.version
            );
            log::error!("inference gives up: {message}");
            self.shared.fail(message);
        }
        self.shared.queue.close();
        self.shared.inference_ended();
        self.shared.thread_ended();
    }

    /// Lets a waiting detector take over. The old one goes to who asked, to be dropped off this thread.
    fn swap(&mut self) {
        let Some((detector, sender)) = self.shared.swap.take() else { return };
        let old = std::mem::replace(&mut self.detector, detector);
        // Times of the old model say nothing about the new one.
        self.shared.stages.inference.clear();
        if let Err(old) = sender.send(old) {
            // Who asked has given up meanwhile and says that the old one goes on.
            self.detector = old;
            return;
        }
        self.shared.counters.swaps.add_one();
        self.reasons.clear();
        self.panics = 0;
        let model = self.detector.model();
        log::info!("model swapped name={} version={}", model.name, model.version);
    }

    /// Fills `report` from the frame of a stream; `false` when the frame brought none.
    fn look_at(&mut self, stream: usize, offered: Instant, report: &mut Report) -> bool {
        let frame = &self.frames[stream];
        let (detector, deadline) = (&mut self.detector, self.deadline);
        let clock = &*self.shared.clock;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            detector.detect(frame, deadline, clock, &mut report.findings)
        }));
        match outcome {
            Ok(Ok(spent)) => {
                self.panics = 0;
                self.backoff.succeed();
                self.fill(stream, offered, spent, report);
                true
            }
            Ok(Err(error)) => {
                self.note(stream, &error);
                false
            }
            Err(panic) => {
                self.panicked(stream, &*panic);
                false
            }
        }
    }

    fn fill(&self, stream: usize, offered: Instant, spent: Spent, report: &mut Report) {
        let now = self.shared.clock.now();
        let frame = &self.frames[stream];
        let captured = offered.saturating_duration_since(frame.captured);
        let total = now.saturating_duration_since(frame.captured);
        report.stream = stream;
        report.frame = frame.number;
        report.captured_at = frame.captured_at;
        report.captured = frame.captured;
        report.model = Arc::clone(self.detector.model());
        copy_names(self.detector.backend(), &mut report.backend);
        report.latency = StageLatency {
            capture: micros(captured),
            preprocess: micros(spent.preprocess),
            inference: micros(spent.inference),
            postprocess: micros(spent.postprocess),
            total: micros(total),
        };
        let stages = &self.shared.stages;
        stages.capture.record(now, captured);
        stages.preprocess.record(now, spent.preprocess);
        stages.inference.record(now, spent.inference);
        stages.postprocess.record(now, spent.postprocess);
        stages.total.record(now, total);
        self.shared.counters.finished.add_one();
        self.shared.streams[stream].telemetry.reports.mark(now);
    }

    /// Counts a frame without findings, and logs each reason once for a detector.
    fn note(&mut self, stream: usize, error: &DetectError) {
        let counters = &self.shared.counters;
        let reason = match error {
            DetectError::Network(NetworkError::NotReady) => {
                counters.skipped.add_one();
                error.to_string()
            }
            DetectError::Preprocess(PreprocessError::BadFrame { format, detail, .. }) => {
                counters.undecodable.add_one();
                format!("{format}: {detail}")
            }
            _ => {
                counters.failed.add_one();
                error.to_string()
            }
        };
        if self.reasons.len() < MOST_REASONS && !self.reasons.contains(&reason) {
            log::warn!("no findings stream={} {error}", self.shared.streams[stream].name);
            self.reasons.push(reason);
        }
    }

    fn panicked(&mut self, stream: usize, panic: &(dyn Any + Send)) {
        let (name, message) = (&self.shared.streams[stream].name, panic_message(panic));
        log::error!("inference panicked stream={name} message={message}");
        self.shared.counters.panicked.add_one();
        self.panics += 1;
        let until = self.shared.clock.now() + self.backoff.fail();
        while !self.shared.stopping() {
            let now = self.shared.clock.now();
            self.shared.inference.beat(now);
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

/// Copies names into strings that are there already.
fn copy_names(from: &[String], to: &mut Vec<String>) {
    to.resize_with(from.len(), String::new);
    to.iter_mut().zip(from).for_each(|(to, from)| to.clone_from(from));
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The text of a panic, where it has one.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
