//! The bounded queue between the inference thread and its one consumer, and the buffers that go round in it.
//!
//! When every buffer waits for the consumer, the inference thread waits: frames are then dropped before inference.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ocelli_protocol::message::{ModelId, StageLatency};
use tokio::sync::Notify;

use crate::clock::UnixTime;
use crate::detection::Findings;
use crate::pipeline::shared::Shared;

/// What one frame brought.
#[derive(Debug, Clone)]
pub struct Report {
    /// Index of the stream.
    pub stream: usize,
    /// Number of the frame, see [`crate::frame::Frame::number`].
    pub frame: u64,
    /// When the frame was captured, time of day.
    pub captured_at: UnixTime,
    /// When the frame was captured.
    pub captured: Instant,
    /// The model that ran.
    pub model: Arc<ModelId>,
    /// Delegates that ran, each named once.
    pub backend: Vec<String>,
    /// Time of each stage.
    pub latency: StageLatency,
    /// What was found.
    pub findings: Findings,
}

impl Report {
    fn empty(now: Instant) -> Self {
        let nothing = ModelId { name: String::new(), version: String::new() };
        Self {
            stream: 0,
            frame: 0,
            captured_at: UnixTime::default(),
            captured: now,
            model: Arc::new(nothing),
            backend: Vec::new(),
            latency: StageLatency::default(),
            findings: Findings::Detections(Vec::new()),
        }
    }
}

/// Queue and buffers, seen from both ends.
pub(super) struct Queue {
    state: Mutex<State>,
    /// For the inference thread: a buffer came back.
    room: Condvar,
    /// For the consumer: a report waits, or none will come.
    ready: Notify,
}

#[expect(clippy::vec_box, reason = "a report goes between the two lists as one pointer")]
struct State {
    ready: VecDeque<Box<Report>>,
    free: Vec<Box<Report>>,
    closed: bool,
    consumer_gone: bool,
}

/// What came of asking for a buffer.
pub(super) enum Buffer {
    Free(Box<Report>),
    /// All wait for the consumer.
    NoneFree,
    /// Nobody will read reports any more.
    ConsumerGone,
}

impl Queue {
    pub(super) fn new(buffers: usize, now: Instant) -> Self {
        let mut ready = VecDeque::new();
        ready.reserve_exact(buffers);
        let free = std::iter::repeat_with(|| Box::new(Report::empty(now))).take(buffers).collect();
        let state = State { ready, free, closed: false, consumer_gone: false };
        Self { state: Mutex::new(state), room: Condvar::new(), ready: Notify::new() }
    }

    /// Waits for a buffer to fill.
    pub(super) fn buffer(&self, timeout: Duration) -> Buffer {
        let full = |state: &mut State| state.free.is_empty() && !state.consumer_gone;
        let waited = self.room.wait_timeout_while(self.lock(), timeout, full);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.free.pop() {
            _ if state.consumer_gone => Buffer::ConsumerGone,
            Some(report) => Buffer::Free(report),
            None => Buffer::NoneFree,
        }
    }

    /// Hands a filled buffer to the consumer.
    pub(super) fn push(&self, report: Box<Report>) {
        self.lock().ready.push_back(report);
        self.ready.notify_one();
    }

    /// Gives a buffer back unread.
    pub(super) fn give_back(&self, report: Box<Report>) {
        self.lock().free.push(report);
        self.room.notify_one();
    }

    /// Says that no more reports will come.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
    }

    pub(super) fn waiting(&self) -> usize {
        self.lock().ready.len()
    }

    // A panic of a holder leaves the queue whole: every change is one push or pop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The consumer's end of the queue.
pub struct Reports {
    shared: Arc<Shared>,
}

impl Reports {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared) }
    }

    /// The next report, oldest first; `None` when the pipeline has ended and all were read. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Delivered> {
        loop {
            match self.try_recv() {
                Ok(report) => return Some(report),
                Err(Empty::Ended) => return None,
                Err(Empty::NotYet) => self.shared.queue.ready.notified().await,
            }
        }
    }

    /// The next report, if one waits.
    ///
    /// # Errors
    /// [`Empty`] says whether one may come.
    pub fn try_recv(&mut self) -> Result<Delivered, Empty> {
        let mut state = self.shared.queue.lock();
        match state.ready.pop_front() {
            Some(report) => {
                Ok(Delivered { report: Some(report), shared: Arc::clone(&self.shared) })
            }
            None if state.closed => Err(Empty::Ended),
            None => Err(Empty::NotYet),
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.shared.queue.lock().consumer_gone = true;
        self.shared.queue.room.notify_one();
    }
}

/// Why no report is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// None waits.
    NotYet,
    /// None will come.
    Ended,
}

/// A report in the consumer's hands. Its buffer goes back to the pipeline on drop.
pub struct Delivered {
    report: Option<Box<Report>>,
    shared: Arc<Shared>,
}

impl Deref for Delivered {
    type Target = Report;

    fn deref(&self) -> &Report {
        self.report.as_deref().expect("taken only on drop")
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            self.shared.queue.give_back(report);
        }
    }
}
