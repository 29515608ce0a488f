//! Tensors to findings: one file per head.
//!
//! Limits: the best 1000 pairs of cell and class go into suppression, at most [`MOST_DETECTIONS`] come out of it.
//! A score or box that is not finite never reaches the findings, nor does a box outside the picture.

mod boxes;
mod centerface;
mod distribution;
mod nanodet;
mod reals;
mod shortlist;
mod softmax;
mod yolov8;

use std::sync::Arc;

use ocelli_protocol::manifest::{self, Task};

pub use boxes::Thresholds;
pub use centerface::Centerface;
pub use nanodet::nanodet;
pub use softmax::{Row, Softmax};
pub use yolov8::yolov8;

use crate::Geometry;
use crate::tensor::{TensorSpec, TensorView};
use ocelli_protocol::message::Findings;

/// Most detections reported for a picture.
pub const MOST_DETECTIONS: usize = 100;

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

/// The head that a manifest asks for, built for these outputs.
///
/// `outputs` are the model's, in its order; `input_width` and `input_height` are those of its input, pixels.
///
/// # Errors
/// [`HeadError`] says what the head expects and what the model, the label file or the manifest has.
pub fn head(
    head: &manifest::Head,
    task: Task,
    labels: Arc<[String]>,
    outputs: &[TensorSpec],
    input_width: usize,
    input_height: usize,
) -> Result<Box<dyn Head>, HeadError> {
    let input = [input_width, input_height];
    let thresholds = |score: &f32, iou: &f32| Thresholds { score: *score, iou: *iou };
    let (name, right_task) = match head {
        manifest::Head::Softmax { .. } => ("softmax", Task::Classification),
        manifest::Head::Nanodet { .. } => ("nanodet", Task::Detection),
        manifest::Head::Yolov8 { .. } => ("yolov8", Task::Detection),
        manifest::Head::Centerface { .. } => ("centerface", Task::Detection),
    };
    if task != right_task {
        let word = |task| if task == Task::Detection { "detection" } else { "classification" };
        return Err(HeadError::setting(name, "task", word(task), word(right_task)));
    }
    match head {
        manifest::Head::Softmax { probabilities, top_k } => {
            let row = if *probabilities { Row::Probabilities } else { Row::Logits };
            Ok(Box::new(Softmax::new(row, *top_k, labels, outputs)?))
        }
        manifest::Head::Nanodet { strides, score_threshold, iou_threshold } => {
            nanodet(strides, thresholds(score_threshold, iou_threshold), labels, outputs, input)
        }
        manifest::Head::Yolov8 { strides, score_threshold, iou_threshold } => {
            yolov8(strides, thresholds(score_threshold, iou_threshold), labels, outputs, input)
        }
        manifest::Head::Centerface { score_threshold, iou_threshold } => {
            let thresholds = thresholds(score_threshold, iou_threshold);
            Ok(Box::new(Centerface::new(thresholds, labels, outputs, input)?))
        }
    }
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
    /// A key of the manifest does not fit the head.
    #[error("head {head}: {setting} is {value}, it must be {expected}")]
    Setting {
        /// Head.
        head: &'static str,
        /// Key of the manifest.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl HeadError {
    fn outputs(head: &'static str, expected: String, specs: &[TensorSpec]) -> Self {
        Self::Outputs { head, expected, actual: describe(specs) }
    }

    fn setting(
        head: &'static str,
        setting: &'static str,
        value: &str,
        expected: &'static str,
    ) -> Self {
        Self::Setting { head, setting, value: value.to_owned(), expected }
    }
}

/// Describes outputs for messages: `stride8 f32 [1, 124, 52, 52], …`.
#[must_use]
pub fn describe(outputs: &[TensorSpec]) -> String {
    let one = |spec: &TensorSpec| format!("{} {} {:?}", spec.name, spec.element, spec.shape);
    outputs.iter().map(one).collect::<Vec<_>>().join(", ")
}
