//! Picture to tensor: colour, fit, normalise (and quantise) in one pass over the picture.

use crate::frame::Frame;
use crate::tensor::TensorViewMut;
use crate::vision::Geometry;

/// Turns frames into model input. Scratch buffers are allocated for the first frame of a size, then reused.
pub trait Preprocess: Send {
    /// Writes the frame into `output` (`1 x channels x height x width`) and says where the picture lies in it.
    ///
    /// # Errors
    /// [`PreprocessError`] when the frame's bytes do not make a picture, or `output` has another shape or type.
    fn run(
        &mut self,
        frame: &Frame,
        output: &mut TensorViewMut<'_>,
    ) -> Result<Geometry, PreprocessError>;
}

/// Why a frame did not become a tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessError {
    /// The frame's bytes are damaged or do not fit its format and size.
    #[error("frame {number} is no {format} picture: {detail}")]
    BadFrame {
        /// Frame number.
        number: u64,
        /// Format it should have.
        format: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The tensor is not what the model specification says.
    #[error("model input is {actual}, the preprocessing makes {expected}")]
    Shape {
        /// What was given.
        actual: String,
        /// What would be right.
        expected: String,
    },
}
