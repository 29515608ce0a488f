//! Tensors to findings: one file per head.

use crate::detection::Findings;
use crate::tensor::{TensorSpec, TensorView};
use crate::vision::Geometry;

/// Decodes a model's output tensors.
pub trait Head: Send {
    /// Replaces the content of `findings`, highest score first, boxes in parts of the source picture.
    ///
    /// `outputs` are in the order of the [`TensorSpec`]s the head was built with.
    ///
    /// # Errors
    /// [`HeadError`] when an output has another shape or type than the specification it was built with.
    fn decode(
        &mut self,
        outputs: &[TensorView<'_>],
        geometry: &Geometry,
        findings: &mut Findings,
    ) -> Result<(), HeadError>;
}

/// Why outputs cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// The model's outputs do not fit the head.
    #[error("head {head} expects {expected}, the model has {actual}")]
    Outputs {
        /// Head.
        head: &'static str,
        /// What the head needs.
        expected: String,
        /// What the model has.
        actual: String,
    },
    /// The label file does not fit the model.
    #[error("labels.txt has {labels} labels, the model tells {classes} classes apart")]
    Labels {
        /// Lines of the label file.
        labels: usize,
        /// Classes in the model's output.
        classes: usize,
    },
}

/// Describes outputs for messages: `stride8 f32 [1, 124, 52, 52], …`.
#[must_use]
pub fn describe(outputs: &[TensorSpec]) -> String {
    let one = |spec: &TensorSpec| format!("{} {} {:?}", spec.name, spec.element, spec.shape);
    outputs.iter().map(one).collect::<Vec<_>>().join(", ")
}
