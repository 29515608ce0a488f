//! The golden check: a delegate whose answers are wrong is replaced before the model is used.

use std::time::{Duration, Instant};

use super::{Session, SessionError};
pub use crate::inference::delegate::Closeness;
use crate::tensor::{TensorView, Values};

/// Longest run of an accelerator that is being tried.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far an answer may be from the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Largest difference of a real value, in the output's unit.
    pub real: f32,
    /// Largest difference of an integer value, in steps.
    pub steps: u32,
}

impl Closeness {
    /// How an answer is too far from a reference of the same type; `None`: it is near enough.
    pub(super) fn violation(self, answer: Values<'_>, reference: Values<'_>) -> Option<String> {
        let apart = difference(answer, reference).unwrap_or(f64::INFINITY);
        let allowed = match reference {
            Values::F32(values) => {
                let ends = (f32::INFINITY, f32::NEG_INFINITY);
                let (low, high) =
                    values.iter().fold(ends, |(low, high), v| (low.min(*v), high.max(*v)));
                f64::from(self.share) * f64::from((high - low).max(f32::MIN_POSITIVE))
            }
            _ => f64::from(self.steps),
        };
        (apart > allowed).then(|| format!("an answer is off by {apart}, {allowed} is allowed"))
    }
}

/// Why a model did not pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It did not run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Wrong even with tract alone: the model or the expectation is wrong.
    #[error(
        "output `{output}` differs from what is expected by {difference}, {allowed} are allowed"
    )]
    Differs {
        /// Name of the output.
        output: String,
        /// Largest difference found.
        difference: f64,
        /// Largest difference allowed.
        allowed: f64,
    },
    /// An expected tensor has another shape or type than the output.
    #[error("expected output {0} has another shape or type than the model's, or is missing")]
    WrongExpectation(usize),
}

impl Session {
    /// Runs once and compares with `expected`, the reference's outputs in order.
    ///
    /// Where they differ, every segment is compared with tract on the same inputs, and delegates that are wrong are
    /// put aside for good; then once more. May build tract plans on this thread: for use at load, not per frame.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn verify(
        &mut self,
        inputs: &[TensorView<'_>],
        expected: &[TensorView<'_>],
        tolerance: Tolerance,
    ) -> Result<(), VerifyError> {
        self.run(inputs, self.far_ahead())?;
        let Err(first) = self.compare(expected, tolerance) else { return Ok(()) };
        if matches!(first, VerifyError::WrongExpectation(_)) {
            return Err(first);
        }
        loop {
            let mut replaced = false;
            self.check(inputs)?;
            for runner in &mut self.runners {
                replaced |= runner.audit(inputs, &mut self.tensors, &*self.clock, tolerance)?;
            }
            if !replaced {
                return self.compare(expected, tolerance);
            }
        }
    }

    /// Runs once with all the time it takes. A delegate in another process that fails is put aside for good.
    ///
    /// # Errors
    /// [`SessionError`] when nobody can run it.
    pub fn warm_up(&mut self, inputs: &[TensorView<'_>]) -> Result<(), SessionError> {
        self.check(inputs)?;
        for runner in &mut self.runners {
            runner.warm_up(inputs, &mut self.tensors, &*self.clock, PATIENCE)?;
        }
        Ok(())
    }

    /// Runs once and compares each segment that another process ran with its stand-in in this one, within
    /// [`super::SessionOptions::closeness`]. Whoever is too far off, or fails, is put aside for good. Says how many were.
    ///
    /// # Errors
    /// [`SessionError`] when it does not run at all.
    pub fn cross_check(&mut self, inputs: &[TensorView<'_>]) -> Result<usize, SessionError> {
        self.check(inputs)?;
        let mut wrong = 0;
        for runner in &mut self.runners {
            let found = runner.cross_check(inputs, &mut self.tensors, &*self.clock, PATIENCE)?;
            wrong += usize::from(found);
        }
        Ok(wrong)
    }

    fn far_ahead(&self) -> Instant {
        self.clock.now() + Duration::from_secs(3600)
    }

    fn compare(
        &self,
        expected: &[TensorView<'_>],
        tolerance: Tolerance,
    ) -> Result<(), VerifyError> {
        for (place, spec) in self.outputs.iter().enumerate() {
            let found = self.output(place);
            let expected = expected.get(place).filter(|view| view.shape == found.shape);
            let difference =
                expected.and_then(|expected| difference(found.values, expected.values));
            let difference = difference.ok_or(VerifyError::WrongExpectation(place))?;
            let allowed = tolerance.for_values(found.values);
            if difference > allowed {
                let output = spec.name.clone();
                return Err(VerifyError::Differs { output, difference, allowed });
            }
        }
        Ok(())
    }
}

impl Tolerance {
    pub(super) fn for_values(self, values: Values<'_>) -> f64 {
        match values {
            Values::F32(_) => f64::from(self.real),
            _ => f64::from(self.steps),
        }
    }
}

/// Largest difference of two tensors; `None` if their types or lengths differ. A NaN on one side is infinitely far.
pub(super) fn difference(a: Values<'_>, b: Values<'_>) -> Option<f64> {
    fn largest<T: Copy>(a: &[T], b: &[T], apart: impl Fn(T, T) -> f64) -> Option<f64> {
        let apart = a.iter().zip(b).map(|(a, b)| apart(*a, *b));
        (a.len() == b.len()).then(|| apart.fold(0.0, f64::max))
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a difference of i64 this large is wrong anyway"
    )]
    match (a, b) {
        (Values::F32(a), Values::F32(b)) => largest(a, b, |a, b| {
            if a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) {
                return 0.0;
            }
            let apart = f64::from(a) - f64::from(b);
            if apart.is_nan() { f64::INFINITY } else { apart.abs() }
        }),
        (Values::U8(a), Values::U8(b)) => largest(a, b, |a, b| f64::from(a.abs_diff(b))),
        (Values::I8(a), Values::I8(b)) => largest(a, b, |a, b| f64::from(a.abs_diff(b))),
        (Values::I32(a), Values::I32(b)) => largest(a, b, |a, b| f64::from(a.abs_diff(b))),
        (Values::I64(a), Values::I64(b)) => largest(a, b, |a, b| a.abs_diff(b) as f64),
        _ => None,
    }
}
