//! Picture to tensor: colour, fit, normalise (and quantise) in one pass over the picture.
//!
//! Every step but the colour conversion's clamp is linear, so planes are shrunk as the camera delivers them, and
//! colours are made at the small size.

mod fit;
mod normalise;
mod plan;
mod resample;
mod source;
#[cfg(test)]
mod tests;

use ocelli_protocol::manifest::Input;

use self::normalise::Normaliser;
use self::plan::Plan;
use self::source::{Layout, Source};
use crate::Geometry;
use crate::frame::{Frame, PixelFormat};
use crate::jpeg::{self, Components};
use crate::tensor::{Quantisation, TensorViewMut};

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

/// Preprocessing as a manifest's `[input]` describes it; `docs/vision.md` says what each key means.
///
/// ```
/// use ocelli_vision::frame::{Frame, PixelFormat};
/// use ocelli_vision::tensor::{ElementType, Tensor, TensorSpec};
/// use ocelli_vision::preprocess::{Preprocess, Preprocessor};
/// use ocelli_protocol::manifest::{Color, Input, Interpolation, Resize};
///
/// let input = Input {
///     tensor: "input".to_owned(),
///     width: 4,
///     height: 2,
///     color: Color::Rgb,
///     resize: Resize::Stretch,
///     interpolation: Interpolation::Bilinear,
///     anchor: None,
///     crop_fraction: None,
///     fill: None,
///     mean: vec![127.0; 3],
///     std: vec![128.0; 3],
/// };
/// let mut tensor = Tensor::zeros(TensorSpec {
///     name: "input".to_owned(),
///     element: ElementType::F32,
///     shape: vec![1, 3, 2, 4],
///     quantisation: None,
/// });
/// let white = Frame {
///     data: vec![255; 8 * 4 * 3],
///     width: 8,
///     height: 4,
///     stride: 8 * 3,
///     format: PixelFormat::Rgb24,
///     ..Frame::empty(std::time::Instant::now())
/// };
/// let geometry = Preprocessor::new(&input).run(&white, &mut tensor.view_mut())?;
/// assert_eq!(geometry.scale_x, 0.5);
/// assert_eq!(tensor.view().values.as_f32(), Some(&[1.0; 24][..]));
/// # Ok::<(), ocelli_vision::preprocess::PreprocessError>(())
/// ```
#[derive(Debug)]
pub struct Preprocessor {
    input: Input,
    normaliser: Normaliser,
    plan: Option<Plan>,
    /// Decoded MJPEG.
    pixels: Vec<u8>,
}

impl Preprocessor {
    /// Preprocessing into `f32` tensors.
    #[must_use]
    pub fn new(input: &Input) -> Self {
        Self::with_normaliser(input, Normaliser::new(input, None))
    }

    /// Preprocessing into `u8`, `i8` or `f32` tensors, whichever the output of [`Preprocess::run`] is. Integers are
    /// those of ONNX QuantizeLinear on the normalised values: halves go to the even neighbour.
    #[must_use]
    pub fn quantised(input: &Input, quantisation: Quantisation) -> Self {
        Self::with_normaliser(input, Normaliser::new(input, Some(quantisation)))
    }

    fn with_normaliser(input: &Input, normaliser: Normaliser) -> Self {
        Self { input: input.clone(), normaliser, plan: None, pixels: Vec::new() }
    }

    fn check_output(&self, output: &TensorViewMut<'_>) -> Result<(), PreprocessError> {
        let expected = [1, self.normaliser.channels(), self.input.height, self.input.width];
        let values = output.values.as_values();
        let complete = values.len() == expected.iter().product::<usize>();
        if output.shape == expected && complete && self.normaliser.writes(values.element()) {
            return Ok(());
        }
        let (element, shape, length) = (values.element(), output.shape, values.len());
        let elements = self.normaliser.elements();
        Err(PreprocessError::Shape {
            actual: format!("{element} {shape:?} with {length} values"),
            expected: format!("{elements} {expected:?}"),
        })
    }
}

impl Preprocess for Preprocessor {
    fn run(
        &mut self,
        frame: &Frame,
        output: &mut TensorViewMut<'_>,
    ) -> Result<Geometry, PreprocessError> {
        self.check_output(output)?;
        let source = source_of(frame, &mut self.pixels)?;
        let plan = match &mut self.plan {
            Some(plan) if plan.fits(&source) => plan,
            plan => plan.insert(Plan::new(&self.input, &source)),
        };
        let target = plan.fit.target;
        self.normaliser.write_border(&target, &mut output.values);
        plan.resample(&source, |row, samples| {
            self.normaliser.write_row(source.layout, samples, (&target, row), &mut output.values);
        });
        Ok(plan.fit.geometry(source.width, source.height))
    }
}

/// Width, height and 8-bit RGB pixels of a frame of any format, for people to look at.
pub(super) fn frame_to_rgb(frame: &Frame) -> Result<(usize, usize, Vec<u8>), PreprocessError> {
    let mut pixels = Vec::new();
    let source = source_of(frame, &mut pixels)?;
    let mut rgb = Vec::with_capacity(source.width * source.height * 3);
    for y in 0..source.height {
        for x in 0..source.width {
            rgb.extend(match (source.layout, source.pixel(x, y)) {
                (Layout::Rgb, pixel) => pixel,
                (Layout::Gray, [gray, ..]) => [gray; 3],
                (Layout::Yuyv | Layout::Nv12, [y, u, v]) => {
                    normalise::bt601(y, u, v).map(|value| value.round() as u8)
                }
            });
        }
    }
    Ok((source.width, source.height, rgb))
}

/// The frame's picture, decoded into `pixels` where it is compressed.
fn source_of<'a>(frame: &'a Frame, pixels: &'a mut Vec<u8>) -> Result<Source<'a>, PreprocessError> {
    let bad = |detail| PreprocessError::BadFrame {
        number: frame.number,
        format: name(frame.format),
        detail,
    };
    if frame.format != PixelFormat::Mjpeg {
        // What the golden pictures needed, the camera does not.
        *pixels = Vec::new();
        return Source::of_frame(frame).map_err(bad);
    }
    let picture = jpeg::decode(&frame.data, pixels).map_err(|error| bad(error.to_string()))?;
    let (layout, bytes) = match picture.components {
        Components::Rgb => (Layout::Rgb, 3),
        Components::Gray => (Layout::Gray, 1),
    };
    Source::new(layout, picture.width, picture.height, picture.width * bytes, pixels).map_err(bad)
}

fn name(format: PixelFormat) -> &'static str {
    match format {
        PixelFormat::Rgb24 => "RGB24",
        PixelFormat::Yuyv => "YUYV",
        PixelFormat::Nv12 => "NV12",
        PixelFormat::Gray8 => "GRAY8",
        PixelFormat::Mjpeg => "MJPEG",
    }
}
