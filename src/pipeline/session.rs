//! An inference session as the pipeline's network, and a way to ask from outside who runs what.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::inference::Session;
use crate::inference::session::{SessionError, SessionReport};
use crate::pipeline::{Network, NetworkError};
use crate::tensor::{TensorSpec, TensorView};

/// A [`Session`] with one input, run by the pipeline.
pub struct SessionNetwork {
    session: Session,
    backend: Vec<String>,
    watch: Arc<SessionWatch>,
}

/// The last report of a session, renewed by the inference thread after it was asked for.
#[derive(Debug)]
pub struct SessionWatch {
    asked: AtomicBool,
    report: Mutex<SessionReport>,
}

impl SessionNetwork {
    /// Takes over a session with exactly one input.
    #[must_use]
    pub fn new(session: Session) -> (Self, Arc<SessionWatch>) {
        let report = session.report();
        let backend = names(&report);
        let report = Mutex::new(report);
        let watch = Arc::new(SessionWatch { asked: AtomicBool::new(false), report });
        (Self { session, backend, watch: Arc::clone(&watch) }, watch)
    }

    /// Notes who ran, without allocating while that stays the same.
    fn note_backend(&mut self) {
        let running = || self.session.running();
        let mut distinct = 0;
        let mut same = true;
        for (place, name) in running().enumerate() {
            if running().take(place).any(|earlier| earlier == name) {
                continue;
            }
            same &= self.backend.get(distinct).is_some_and(|known| known == name);
            distinct += 1;
        }
        let asked = self.watch.asked.swap(false, Ordering::AcqRel);
        if !same || distinct != self.backend.len() || asked {
            let report = self.session.report();
            self.backend = names(&report);
            *self.watch.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        }
    }
}

impl SessionWatch {
    /// The last report; asks the inference thread for a new one after its next frame.
    #[must_use]
    pub fn report(&self) -> SessionReport {
        self.asked.store(true, Ordering::Release);
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Network for SessionNetwork {
    fn input(&self) -> &TensorSpec {
        &self.session.inputs()[0]
    }

    fn outputs(&self) -> usize {
        self.session.outputs().len()
    }

    fn run(&mut self, input: TensorView<'_>, deadline: Instant) -> Result<(), NetworkError> {
        let result = self.session.run(&[input], deadline);
        self.note_backend();
        result.map_err(|error| match error {
            SessionError::NotReady => NetworkError::NotReady,
            other => NetworkError::Failed(other.to_string()),
        })
    }

    fn output(&self, index: usize) -> TensorView<'_> {
        self.session.output(index)
    }

    fn backend(&self) -> &[String] {
        &self.backend
    }
}

/// Delegates in order of execution, each once.
fn names(report: &SessionReport) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for segment in &report.segments {
        if !names.contains(&segment.delegate) {
            names.push(segment.delegate.clone());
        }
    }
    names
}
