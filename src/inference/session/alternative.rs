//! One way to run a segment: a delegate or the host, built or not, trusted or not.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::segment::Plan;
use crate::inference::delegate::{
    Closeness, CompileError, CompiledSegment, Delegate, Seat, WorkerCounts,
};
use crate::inference::tract;

type Built = Result<Box<dyn CompiledSegment>, CompileError>;

pub(super) struct Alternative {
    /// `None` is tract.
    delegate: Option<Arc<dyn Delegate>>,
    state: State,
    failures_in_a_row: u32,
    /// Not before this.
    retry_at: Option<Instant>,
}

enum State {
    Unbuilt,
    Building(Receiver<Built>),
    Built(Box<dyn CompiledSegment>),
    /// Refused, or failed too often.
    Gone,
}

/// Whether an alternative can run now.
pub(super) enum Readiness {
    Ready,
    /// Gone, or pausing after a failure.
    NotNow,
    /// On its way.
    Building,
    /// It has just turned out that it cannot be built.
    Failed(String),
    /// After a fault, building it anew has failed; it may be tried again.
    Relapsed(String),
}

impl Alternative {
    pub(super) fn of(delegate: Arc<dyn Delegate>) -> Self {
        Self { delegate: Some(delegate), ..Self::host() }
    }

    pub(super) fn host() -> Self {
        Self { delegate: None, state: State::Unbuilt, failures_in_a_row: 0, retry_at: None }
    }

    pub(super) fn name(&self) -> &str {
        self.delegate.as_ref().map_or(tract::NAME, |delegate| delegate.name())
    }

    pub(super) fn seat(&self) -> Seat {
        self.delegate.as_ref().map_or(Seat::Inside, |delegate| delegate.seat())
    }

    pub(super) fn closeness(&self) -> Option<Closeness> {
        self.delegate.as_ref()?.closeness()
    }

    pub(super) fn workers(&self) -> Option<WorkerCounts> {
        self.delegate.as_ref()?.workers()
    }

    /// For a report.
    pub(super) fn state(&self, now: Instant) -> &'static str {
        match &self.state {
            State::Gone => "gone",
            State::Building(_) => "starting",
            _ if self.retry_at.is_some_and(|at| now < at) => "paused",
            State::Unbuilt => "idle",
            State::Built(_) => "ready",
        }
    }

    pub(super) fn is_host(&self) -> bool {
        self.delegate.is_none()
    }

    /// Compiles on this thread.
    pub(super) fn build_now(&mut self, plan: &Plan) -> Result<(), CompileError> {
        let built = plan.compile(self.delegate.as_ref());
        self.settle(built)
    }

    fn settle(&mut self, built: Built) -> Result<(), CompileError> {
        match built {
            Ok(segment) => {
                self.state = State::Built(segment);
                Ok(())
            }
            Err(error) => {
                self.state = State::Gone;
                Err(error)
            }
        }
    }

    /// Whether it can run at `now`; starts building it if nobody has.
    pub(super) fn readiness(&mut self, plan: &Arc<Plan>, now: Instant) -> Readiness {
        if self.retry_at.is_some_and(|at| now < at) {
            return Readiness::NotNow;
        }
        match &self.state {
            State::Built(_) => Readiness::Ready,
            State::Gone => Readiness::NotNow,
            State::Unbuilt => match self.start_building(plan) {
                Ok(()) => Readiness::Building,
                Err(error) => Readiness::Failed(format!("{}: {error}", self.name())),
            },
            State::Building(coming) => {
                let built = match coming.try_recv() {
                    Ok(built) => built,
                    Err(TryRecvError::Empty) => return Readiness::Building,
                    Err(TryRecvError::Disconnected) => {
                        Err(CompileError::Failed("the building thread died".to_owned()))
                    }
                };
                if self.failures_in_a_row > 0
                    && let Err(CompileError::Failed(reason)) = built
                {
                    self.state = State::Unbuilt;
                    return Readiness::Relapsed(reason);
                }
                match self.settle(built) {
                    Ok(()) => Readiness::Ready,
                    Err(error) => Readiness::Failed(format!("{}: {error}", self.name())),
                }
            }
        }
    }

    fn start_building(&mut self, plan: &Arc<Plan>) -> Result<(), std::io::Error> {
        log::info!("node={} building={}", plan.first_node(), self.name());
        let (sender, receiver) = sync_channel(1);
        let (plan, delegate) = (Arc::clone(plan), self.delegate.clone());
        thread::Builder::new().name("stand-in".to_owned()).spawn(move || {
            // Nobody waits for it any more when the session is gone.
            drop(sender.send(plan.compile(delegate.as_ref())));
        })?;
        self.state = State::Building(receiver);
        Ok(())
    }

    pub(super) fn segment(&mut self) -> Option<&mut dyn CompiledSegment> {
        match &mut self.state {
            State::Built(segment) => Some(segment.as_mut()),
            _ => None,
        }
    }

    /// Whether no other one would be quicker, on a busy machine or a slow one.
    pub(super) fn may_be_late(&mut self) -> bool {
        self.is_host() || self.segment().is_some_and(|segment| segment.shares_the_processor())
    }

    pub(super) fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
        self.retry_at = None;
    }

    /// Notes a failure, and says whether it was the last one allowed.
    pub(super) fn failed(&mut self, now: Instant, back_off: Duration, allowed: u32) -> bool {
        if self.is_host() {
            // Nothing stands behind it; a panic may have left its state half-done.
            self.state = State::Unbuilt;
            return false;
        }
        self.failures_in_a_row += 1;
        let doublings = (self.failures_in_a_row - 1).min(16);
        self.retry_at = now.checked_add(back_off.saturating_mul(1 << doublings));
        if self.failures_in_a_row >= allowed {
            self.quarantine();
        } else if self.segment().is_some_and(|segment| !segment.is_alive()) {
            self.state = State::Unbuilt;
        }
        self.failures_in_a_row >= allowed
    }

    /// Whether it is built or to be built, and its last run failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures_in_a_row > 0 && !matches!(self.state, State::Gone)
    }

    /// Never again in this session.
    pub(super) fn quarantine(&mut self) {
        self.state = State::Gone;
    }
}
