//! Operators of the graph and their attributes. Data only; what they compute stands in `reference.rs`.

use std::sync::Arc;

/// Vertical then horizontal, as in `kernel[0] = rows`.
pub type Pair = [usize; 2];

/// Convolution: weights of one type of kernel over the picture.
///
/// Weights are stored output channel, kernel row, kernel column, input channel of the group (OHWI).
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// Output channels.
    pub channels: usize,
    /// Window, strides, dilations, pads.
    pub window: Window,
    /// Groups; equal to the input channels for a depthwise convolution.
    pub groups: usize,
    /// `channels · kernel rows · kernel columns · input channels / groups` values.
    pub weights: Vec<i8>,
    /// One scale, or one per output channel.
    pub weight_scales: Vec<f32>,
    /// One value per output channel, in units of `x_scale · w_scale`; empty for none.
    pub bias: Vec<i32>,
}

/// Transposed convolution, ONNX's ConvTranspose: every input value is spread over a window of the output.
///
/// Weights are stored output channel, kernel row, kernel column, input channel of the group, as in [`Conv`].
#[derive(Debug, Clone, PartialEq)]
pub struct ConvTranspose {
    /// Output channels.
    pub channels: usize,
    /// Rows and columns of the output.
    pub size: Pair,
    /// Window over the output; its pads are cut off the output.
    pub window: Window,
    /// Groups.
    pub groups: usize,
    /// `channels · kernel rows · kernel columns · input channels / groups` values.
    pub weights: Vec<i8>,
    /// One scale, or one per output channel.
    pub weight_scales: Vec<f32>,
    /// One value per output channel, in units of `x_scale · w_scale`; empty for none.
    pub bias: Vec<i32>,
}

/// A matrix times a vector: `y[o] = Σ w[o][i] · x[i] + bias[o]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FullyConnected {
    /// Outputs.
    pub channels: usize,
    /// `channels · inputs` values, a row per output.
    pub weights: Vec<i8>,
    /// One scale, or one per output.
    pub weight_scales: Vec<f32>,
    /// One value per output; empty for none.
    pub bias: Vec<i32>,
}

/// A window that slides over the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns.
    pub kernel: Pair,
    /// Steps.
    pub strides: Pair,
    /// Distance between taps.
    pub dilations: Pair,
    /// Top, left, bottom, right, as in ONNX.
    pub pads: [usize; 4],
}

impl Window {
    /// A square window of side `kernel`, step `stride`, padded by `pad` on each side.
    #[must_use]
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Self { kernel: [kernel; 2], strides: [stride; 2], dilations: [1; 2], pads: [pad; 4] }
    }

    /// Output extent along an axis (0 rows, 1 columns), if the window fits.
    pub(crate) fn output(&self, axis: usize, extent: usize) -> Option<usize> {
        let reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1;
        let padded = extent + self.pads[axis] + self.pads[axis + 2];
        (padded >= reach).then(|| (padded - reach) / self.strides[axis] + 1)
    }

    /// Input coordinate of a tap, if it lies in the picture.
    pub(crate) fn tap(
        &self,
        axis: usize,
        output: usize,
        tap: usize,
        extent: usize,
    ) -> Option<usize> {
        let padded = output * self.strides[axis] + tap * self.dilations[axis];
        padded.checked_sub(self.pads[axis]).filter(|&at| at < extent)
    }

    /// Kernel and stride, for people: `3x3/2`.
    pub(crate) fn describe(&self) -> String {
        let [rows, columns] = self.kernel;
        format!("{rows}x{columns}/{}", self.strides[0])
    }

    /// Number of taps.
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// What an average at the border divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountPadding {
    /// By the size of the window (`count_include_pad = 1`).
    Include,
    /// By the number of taps in the picture.
    Exclude,
}

/// How a new size takes its values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resize {
    /// Rows and columns of the output.
    pub size: Pair,
    /// Output over input, as the file states it (it may differ from the ratio of the sizes).
    pub scales: [f32; 2],
    /// Nearest or bilinear.
    pub mode: Interpolation,
    /// From output to input coordinates.
    pub coordinates: Coordinates,
}

/// On what a bilinear resize computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blend {
    /// On stored values; the result is cut towards zero.
    Stored,
    /// On real values; the result is quantised.
    Real,
}

/// Interpolation of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The one nearest value, by this rounding.
    Nearest(NearestRounding),
    /// Between four values, in f32, cut towards zero.
    Bilinear,
}

/// `nearest_mode` of ONNX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NearestRounding {
    /// Halves go down.
    PreferFloor,
    /// Halves go up.
    PreferCeil,
    /// Down.
    Floor,
    /// Up.
    Ceil,
}

/// `coordinate_transformation_mode` of ONNX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinates {
    /// `(x + 0.5) / scale − 0.5`
    HalfPixel,
    /// `x / scale`
    Asymmetric,
    /// `x · (input − 1) / (output − 1)`
    AlignCorners,
}

/// Element order and type of a graph input at the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputForm {
    /// Real values, N, C, H, W; quantised on entry.
    F32Nchw,
    /// Stored values, N, C, H, W.
    QuantisedNchw,
    /// Stored values, N, H, W, C.
    QuantisedNhwc,
}

/// Element order and type of a graph output at the border.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputForm {
    /// Real values, N, C, H, W.
    F32Nchw,
    /// Stored values, N, C, H, W.
    QuantisedNchw,
    /// Stored values, N, H, W, C.
    QuantisedNhwc,
    /// Softmax over the channels of the real values, N, C, H, W.
    SoftmaxNchw,
    /// A function of each value, N, C, H, W: its real result for each stored byte.
    FunctionNchw(Arc<[f32; 256]>),
}

impl OutputForm {
    /// Whether real values are given out.
    pub(crate) fn is_real(&self) -> bool {
        !matches!(self, Self::QuantisedNchw | Self::QuantisedNhwc)
    }
}

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operator {
    Input(InputForm),
    Conv(Conv),
    Add,
    Mul,
    Concat,
    MaxPool(Window),
    AveragePool(Window, CountPadding),
    GlobalAveragePool,
    Resize(Resize, Blend),
    /// Steps: output row `r`, column `c` come from part `(r % steps[0]) · steps[1] + c % steps[1]`.
    Interleave(Pair),
    /// Top, left, bottom, right; the byte that fills.
    Pad([usize; 4], u8),
    Table(Box<[u8; 256]>),
    /// First channel.
    Slice(usize),
    Reshape,
}

impl Operator {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Input(_) => "Input",
            Self::Conv(_) => "Conv",
            Self::Add => "Add",
            Self::Mul => "Mul",
            Self::Concat => "Concat",
            Self::MaxPool(_) => "MaxPool",
            Self::AveragePool(..) => "AveragePool",
            Self::GlobalAveragePool => "GlobalAveragePool",
            Self::Resize(..) => "Resize",
            Self::Interleave(_) => "Interleave",
            Self::Pad(..) => "Pad",
            Self::Table(_) => "Table",
            Self::Slice(_) => "Slice",
            Self::Reshape => "Reshape",
        }
    }
}
