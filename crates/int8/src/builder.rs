//! The only way to a graph: operators one at a time, each checked against everything before it.
//!
//! What comes after (reference, planner, kernels) relies on these checks and makes none of them again.

use std::sync::Arc;

use crate::GraphError;
use crate::graph::{Graph, Node, TensorId};
use crate::numerics::{self, AddRule, MulRule};
use crate::operator::{
    Blend, Conv, ConvTranspose, CountPadding, FullyConnected, InputForm, Interpolation, Operator,
    OutputForm, Resize, Window,
};
use crate::tensor::{Quantisation, Shape, Tensor};
use crate::transposed;

/// Largest kernel side, stride, dilation and pad.
const MAX_WINDOW: usize = 1 << 12;
/// Largest side and stride of a transposed convolution.
const MAX_TRANSPOSED: usize = 64;
/// Most products summed into one i32 accumulator: 255 · 128 · 2¹⁶ < 2³¹.
pub const MAX_PRODUCTS: usize = 1 << 16;

/// Builds a [`Graph`], one operator at a time; each method checks what it is given.
///
/// ```
/// # use ocelli_int8::*;
/// let mut builder = GraphBuilder::new();
/// let q = Quantisation::new(ElementType::U8, 0.02, 128)?;
/// let x = builder.input(Shape::new(1, 8, 8, 3)?, q, InputForm::F32Nchw)?;
/// let y = builder.max_pool(x, Window::square(2, 2, 0))?;
/// builder.output(y, OutputForm::F32Nchw)?;
/// assert_eq!(builder.build()?.outputs().next().unwrap().0.shape.h, 4);
/// # Ok::<(), GraphError>(())
/// ```
#[derive(Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    tensors: Vec<Tensor>,
    inputs: Vec<TensorId>,
    outputs: Vec<(TensorId, OutputForm)>,
}

impl GraphBuilder {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Shape and quantisation of a tensor built so far.
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`]
    pub fn tensor(&self, id: TensorId) -> Result<Tensor, GraphError> {
        self.tensors.get(id.0).copied().ok_or(GraphError::UnknownTensor(id.0))
    }

    /// A graph input.
    ///
    /// # Errors
    /// [`GraphError::Shape`] for a shape that [`Shape::new`] would refuse.
    pub fn input(
        &mut self,
        shape: Shape,
        quantisation: Quantisation,
        form: InputForm,
    ) -> Result<TensorId, GraphError> {
        let shape = Shape::new(shape.n, shape.h, shape.w, shape.c)?;
        let id = self.push(Operator::Input(form), &[], shape, quantisation);
        self.inputs.push(id);
        Ok(id)
    }

    /// Convolution. Any kernel, strides, dilations, pads and groups; depthwise when groups = input channels = output
    /// channels.
    ///
    /// # Errors
    /// [`GraphError`] when weights, scales or bias do not fit the shapes, or the window does not fit the picture.
    pub fn conv(
        &mut self,
        x: TensorId,
        conv: Conv,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        let shape = slide(&conv.window, input.shape, conv.channels)?;
        let groups = conv.groups;
        let divides = |channels: usize| channels.is_multiple_of(groups);
        if groups == 0 || !divides(input.shape.c) || !divides(conv.channels) {
            return Err(GraphError::Attribute(format!(
                "{groups} groups do not divide {} input and {} output channels",
                input.shape.c, conv.channels
            )));
        }
        let depth = conv.window.taps() * (input.shape.c / groups);
        if depth > MAX_PRODUCTS {
            return Err(GraphError::Attribute(format!("{depth} products a value; at most 65536")));
        }
        if conv.channels.checked_mul(depth) != Some(conv.weights.len()) {
            return Err(GraphError::Attribute(format!(
                "{} weights for {} channels of {depth}",
                conv.weights.len(),
                conv.channels
            )));
        }
        self.check_scales(&conv, &input.quantisation, &y)?;
        Ok(self.push(Operator::Conv(conv), &[x], shape, y))
    }

    fn check_scales(
        &self,
        conv: &Conv,
        x: &Quantisation,
        y: &Quantisation,
    ) -> Result<(), GraphError> {
        if !conv.bias.is_empty() && conv.bias.len() != conv.channels {
            return Err(GraphError::Attribute(format!(
                "{} bias values for {} channels",
                conv.bias.len(),
                conv.channels
            )));
        }
        if conv.weight_scales.len() != 1 && conv.weight_scales.len() != conv.channels {
            return Err(GraphError::Attribute(format!(
                "{} weight scales for {} channels",
                conv.weight_scales.len(),
                conv.channels
            )));
        }
        let wrong = conv.weight_scales.iter().find(|&&scale| {
            let multiplier = numerics::multiplier(x.scale(), scale, y.scale());
            !scale.is_finite() || scale < 0.0 || !multiplier.is_finite()
        });
        wrong.map_or(Ok(()), |scale| {
            Err(GraphError::Quantisation(format!(
                "weight scale {scale} gives no finite multiplier"
            )))
        })
    }

    /// Transposed convolution without dilation. The window's last two pads are not read: `size` says where the output
    /// ends.
    ///
    /// # Errors
    /// As [`GraphBuilder::conv`]; also when `size` is not between what the window gives without and with one more
    /// stride.
    pub fn conv_transpose(
        &mut self,
        x: TensorId,
        conv: &ConvTranspose,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?.shape;
        let Window { kernel, strides, dilations, pads } = conv.window;
        let sides = kernel.iter().chain(&strides);
        let sound = dilations == [1, 1]
            && sides.copied().all(|side| (1..=MAX_TRANSPOSED).contains(&side))
            && (0..2).all(|axis| pads[axis] < kernel[axis].max(strides[axis]))
            && conv.groups > 0
            && input.c.is_multiple_of(conv.groups);
        if !sound {
            return Err(GraphError::Attribute(format!("{:?} of a ConvTranspose", conv.window)));
        }
        let depth = input.c / conv.groups;
        let shape = Shape::new(input.n, conv.size[0], conv.size[1], conv.channels)?;
        let reach = |axis: usize| {
            let extent = [input.h, input.w][axis];
            let whole = (extent - 1) * strides[axis] + kernel[axis];
            conv.size[axis] >= strides[axis] && conv.size[axis] < whole + strides[axis]
        };
        if !reach(0)
            || !reach(1)
            || conv.weights.len() != conv.channels * kernel[0] * kernel[1] * depth
        {
            return Err(GraphError::Attribute(format!(
                "{} weights, {:?} from {input:?}",
                conv.weights.len(),
                conv.size
            )));
        }
        let phases = transposed::phases(conv, depth, [input.h, input.w]).ok_or_else(|| {
            GraphError::Shape(format!("{:?} cut from a ConvTranspose of {input:?}", conv.size))
        })?;
        let parts = phases.into_iter().map(|phase| self.conv(x, phase, y));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        Ok(match parts.as_slice() {
            [only] => *only,
            parts => self.push(Operator::Interleave(strides), parts, shape, y),
        })
    }

    /// Matrix times vector; the input is N×1×1×C.
    ///
    /// # Errors
    /// As [`GraphBuilder::conv`].
    pub fn fully_connected(
        &mut self,
        x: TensorId,
        layer: FullyConnected,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let shape = self.tensor(x)?.shape;
        if shape.pixels() != 1 {
            return Err(GraphError::Shape(format!("a vector is needed, not {shape:?}; reshape")));
        }
        let FullyConnected { channels, weights, weight_scales, bias } = layer;
        let window = Window::square(1, 1, 0);
        let conv = Conv { channels, window, groups: 1, weights, weight_scales, bias };
        self.conv(x, conv, y)
    }

    /// Sum of two tensors of one shape; `b` may also be 1×1×1×C, or N×1×1×C, added to every pixel.
    ///
    /// # Errors
    /// [`GraphError::Shape`], or [`GraphError::Quantisation`] when the ratio of the scales overflows.
    pub fn add(
        &mut self,
        a: TensorId,
        b: TensorId,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let shape = self.broadcast(a, b)?;
        let rule = AddRule::new(&self.quantisation(a), &self.quantisation(b), &y);
        if !rule.is_finite() {
            return Err(GraphError::Quantisation("the ratio of the scales is too large".into()));
        }
        Ok(self.push(Operator::Add, &[a, b], shape, y))
    }

    /// Product of two tensors; shapes as for [`GraphBuilder::add`].
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn mul(
        &mut self,
        a: TensorId,
        b: TensorId,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let shape = self.broadcast(a, b)?;
        if !MulRule::new(&self.quantisation(a), &self.quantisation(b), &y).is_finite() {
            return Err(GraphError::Quantisation("the ratio of the scales is too large".into()));
        }
        Ok(self.push(Operator::Mul, &[a, b], shape, y))
    }

    /// Joins tensors along the channels; each is requantised to `y` where it differs.
    ///
    /// # Errors
    /// [`GraphError::Shape`] when fewer than one is given, or N, H, W differ.
    pub fn concat(&mut self, parts: &[TensorId], y: Quantisation) -> Result<TensorId, GraphError> {
        let first = *parts.first().ok_or(GraphError::Shape("nothing to join".into()))?;
        let head = self.tensor(first)?.shape;
        let mut channels = 0;
        for &part in parts {
            let shape = self.tensor(part)?.shape;
            if (shape.n, shape.h, shape.w) != (head.n, head.h, head.w) {
                return Err(GraphError::Shape(format!("{shape:?} does not join {head:?}")));
            }
            channels += shape.c;
        }
        let shape = Shape::new(head.n, head.h, head.w, channels)?;
        Ok(self.push(Operator::Concat, parts, shape, y))
    }

    /// Greatest value of each window; padding never wins. Scale and zero point stay.
    ///
    /// # Errors
    /// [`GraphError`] when the window does not fit, or may lie wholly in the padding.
    pub fn max_pool(&mut self, x: TensorId, window: Window) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        check_pool(&window)?;
        let shape = slide(&window, input.shape, input.shape.c)?;
        Ok(self.push(Operator::MaxPool(window), &[x], shape, input.quantisation))
    }

    /// Mean of each window.
    ///
    /// # Errors
    /// As [`GraphBuilder::max_pool`].
    pub fn average_pool(
        &mut self,
        x: TensorId,
        window: Window,
        padding: CountPadding,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        check_pool(&window)?;
        let shape = slide(&window, input.shape, input.shape.c)?;
        Ok(self.push(Operator::AveragePool(window, padding), &[x], shape, y))
    }

    /// Mean over all pixels, N×1×1×C.
    ///
    /// # Errors
    /// [`GraphError::Quantisation`] when the scales give no finite multiplier, [`GraphError::Shape`] above 2²³ pixels.
    pub fn global_average_pool(
        &mut self,
        x: TensorId,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        let pixels = input.shape.pixels();
        if pixels >= 1 << 23 {
            return Err(GraphError::Shape(format!("{pixels} pixels; at most 2^23 - 1")));
        }
        let scale = input.quantisation.scale();
        if !numerics::global_average_multiplier(scale, y.scale(), pixels).is_finite() {
            return Err(GraphError::Quantisation("the ratio of the scales is too large".into()));
        }
        let shape = Shape::vector(input.shape.n, input.shape.c)?;
        Ok(self.push(Operator::GlobalAveragePool, &[x], shape, y))
    }

    /// Another size. Scale and zero point stay.
    ///
    /// # Errors
    /// [`GraphError`] for an empty size or scales that are not positive numbers.
    pub fn resize(&mut self, x: TensorId, resize: Resize) -> Result<TensorId, GraphError> {
        let y = self.tensor(x)?.quantisation;
        self.resize_as(x, resize, Blend::Stored, y)
    }

    /// Another size, on real values: dequantised, resized, quantised.
    ///
    /// # Errors
    /// As [`GraphBuilder::resize`].
    pub fn resize_real(
        &mut self,
        x: TensorId,
        resize: Resize,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        if resize.mode == Interpolation::Bilinear {
            return self.resize_as(x, resize, Blend::Real, y);
        }
        let same = self.resize(x, resize)?;
        if self.tensor(same)?.quantisation == y { Ok(same) } else { self.requantise(same, y) }
    }

    fn resize_as(
        &mut self,
        x: TensorId,
        resize: Resize,
        blend: Blend,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        if resize.scales.iter().any(|scale| !scale.is_normal() || *scale < 0.0) {
            return Err(GraphError::Attribute(format!("resize scales {:?}", resize.scales)));
        }
        let [h, w] = resize.size;
        let shape = Shape::new(input.shape.n, h, w, input.shape.c)?;
        Ok(self.push(Operator::Resize(resize, blend), &[x], shape, y))
    }

    /// Rows and columns of a stored value around the picture: top, left, bottom, right.
    ///
    /// # Errors
    /// [`GraphError`] when the value is none of the element type, or the result is too large.
    pub fn pad(
        &mut self,
        x: TensorId,
        pads: [usize; 4],
        value: i32,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        let (low, high) = input.quantisation.range();
        if !(low..=high).contains(&value) || pads.iter().any(|&pad| pad > MAX_WINDOW) {
            return Err(GraphError::Attribute(format!("pads {pads:?} with {value}")));
        }
        let Shape { n, h, w, c } = input.shape;
        let shape = Shape::new(n, h + pads[0] + pads[2], w + pads[1] + pads[3], c)?;
        Ok(self.push(Operator::Pad(pads, value as u8), &[x], shape, input.quantisation))
    }

    /// Any function of one value, as a table indexed by the stored byte (two's complement for s8).
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`]
    pub fn table(
        &mut self,
        x: TensorId,
        table: [u8; 256],
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let shape = self.tensor(x)?.shape;
        Ok(self.push(Operator::Table(Box::new(table)), &[x], shape, y))
    }

    /// Any function of real values: dequantised, applied, quantised, for each of the 256 stored values.
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`]
    pub fn unary(
        &mut self,
        x: TensorId,
        function: impl Fn(f32) -> f32,
        y: Quantisation,
    ) -> Result<TensorId, GraphError> {
        let from = self.tensor(x)?.quantisation;
        let table = std::array::from_fn(|byte| {
            numerics::quantise(function(numerics::dequantise(byte as u8, &from)), &y)
        });
        self.table(x, table, y)
    }

    /// The same real values in another quantisation.
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`]
    pub fn requantise(&mut self, x: TensorId, y: Quantisation) -> Result<TensorId, GraphError> {
        self.unary(x, |value| value, y)
    }

    /// Limits stored values to `low..=high`; Clip, ReLU and ReLU6 between tensors of one quantisation.
    ///
    /// # Errors
    /// [`GraphError::Attribute`] when the range is empty or leaves the element type.
    pub fn clamp(&mut self, x: TensorId, low: i32, high: i32) -> Result<TensorId, GraphError> {
        let q = self.tensor(x)?.quantisation;
        let (least, greatest) = q.range();
        if low > high || low < least || high > greatest {
            return Err(GraphError::Attribute(format!("clamp to {low}..={high}")));
        }
        let table =
            std::array::from_fn(|byte| q.element().widen(byte as u8).clamp(low, high) as u8);
        self.table(x, table, q)
    }

    /// Some of the channels. A split is one slice per part.
    ///
    /// # Errors
    /// [`GraphError::Shape`] when they are not there.
    pub fn slice(
        &mut self,
        x: TensorId,
        first: usize,
        channels: usize,
    ) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        if channels == 0 || first.checked_add(channels).is_none_or(|end| end > input.shape.c) {
            return Err(GraphError::Shape(format!(
                "channels {first}..+{channels} of {}",
                input.shape.c
            )));
        }
        let shape = Shape { c: channels, ..input.shape };
        Ok(self.push(Operator::Slice(first), &[x], shape, input.quantisation))
    }

    /// The same elements in N, C, H, W order under another shape; Flatten gives `Shape::vector(n, c · h · w)`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] when the number of elements differs.
    pub fn reshape(&mut self, x: TensorId, shape: Shape) -> Result<TensorId, GraphError> {
        let input = self.tensor(x)?;
        let shape = Shape::new(shape.n, shape.h, shape.w, shape.c)?;
        if input.shape.elements() != shape.elements() {
            return Err(GraphError::Shape(format!("{:?} cannot become {shape:?}", input.shape)));
        }
        Ok(self.push(Operator::Reshape, &[x], shape, input.quantisation))
    }

    /// A graph output. A tensor may be given out more than once.
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`]
    pub fn output(&mut self, x: TensorId, form: OutputForm) -> Result<(), GraphError> {
        self.tensor(x)?;
        self.outputs.push((x, form));
        Ok(())
    }

    /// A graph output: a function of the real values, N, C, H, W, worked out here for each of the 256 stored values.
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`]
    pub fn output_function(
        &mut self,
        x: TensorId,
        function: impl Fn(f32) -> f32,
    ) -> Result<(), GraphError> {
        let from = self.tensor(x)?.quantisation;
        let reals = std::array::from_fn(|byte| function(numerics::dequantise(byte as u8, &from)));
        self.output(x, OutputForm::FunctionNchw(Arc::new(reals)))
    }

    /// The finished graph.
    ///
    /// # Errors
    /// [`GraphError::Incomplete`] without an input or an output.
    pub fn build(self) -> Result<Graph, GraphError> {
        let Self { nodes, tensors, inputs, outputs } = self;
        if inputs.is_empty() {
            return Err(GraphError::Incomplete("no input"));
        }
        if outputs.is_empty() {
            return Err(GraphError::Incomplete("no output"));
        }
        Ok(Graph { nodes, tensors, inputs, outputs })
    }

    fn push(
        &mut self,
        operator: Operator,
        inputs: &[TensorId],
        shape: Shape,
        quantisation: Quantisation,
    ) -> TensorId {
        self.nodes.push(Node { operator, inputs: inputs.to_vec() });
        self.tensors.push(Tensor { shape, quantisation });
        TensorId(self.tensors.len() - 1)
    }

    /// Of a tensor that the caller has looked up already.
    fn quantisation(&self, id: TensorId) -> Quantisation {
        self.tensors[id.0].quantisation
    }

    fn broadcast(&self, a: TensorId, b: TensorId) -> Result<Shape, GraphError> {
        let (a, b) = (self.tensor(a)?.shape, self.tensor(b)?.shape);
        let vector = b.pixels() == 1 && b.c == a.c && (b.n == 1 || b.n == a.n);
        if a == b || vector {
            return Ok(a);
        }
        Err(GraphError::Shape(format!("{b:?} is neither {a:?} nor a vector of its channels")))
    }
}

/// Output shape of a window, with all its numbers in range.
fn slide(window: &Window, input: Shape, channels: usize) -> Result<Shape, GraphError> {
    let steps = window.kernel.iter().chain(&window.strides).chain(&window.dilations);
    if steps.copied().any(|value| value == 0 || value > MAX_WINDOW)
        || window.pads.iter().any(|&pad| pad > MAX_WINDOW)
    {
        return Err(GraphError::Attribute(format!("{window:?} is out of range")));
    }
    let size = window.output(0, input.h).zip(window.output(1, input.w));
    let (h, w) =
        size.ok_or_else(|| GraphError::Shape(format!("{window:?} is larger than {input:?}")))?;
    let [top, left, bottom, right] = window.pads;
    Shape::new(input.n, input.h + top + bottom, input.w + left + right, input.c)?;
    Shape::new(input.n, h, w, channels)
}

/// A pool's window has no dilation here and always holds a pixel of the picture.
fn check_pool(window: &Window) -> Result<(), GraphError> {
    let inside = (0..4).all(|side| window.pads[side] < window.kernel[side % 2]);
    if window.dilations != [1, 1] || !inside {
        return Err(GraphError::Attribute(format!(
            "{window:?}: a pool needs dilation 1 and pads smaller than the kernel"
        )));
    }
    Ok(())
}
