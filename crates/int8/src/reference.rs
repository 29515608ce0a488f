//! The plain truth: one loop per operator over dense NHWC tensors, no layout, no fusion, no reuse of memory.
//!
//! Every planned and vectorised execution must give these bytes. Slow on purpose; for tests and for checking a new
//! kernel, not for products.

use crate::border::{self, Input, Output};
use crate::numerics::{self, AddRule, MulRule};
use crate::operator::{Blend, Conv, CountPadding, InputForm, Operator, OutputForm, Window};
use crate::resize::Sampling;
use crate::tensor::{Shape, Tensor};
use crate::{Graph, RunError, TensorId};

/// Runs a graph and returns every tensor, dense, NHWC, as stored bytes; index by [`Trace::bytes`].
///
/// # Errors
/// [`RunError`] when the buffers do not fit the graph.
pub fn run(
    graph: &Graph,
    inputs: &[Input<'_>],
    outputs: &mut [Output<'_>],
) -> Result<Trace, RunError> {
    graph.io().check(inputs, outputs)?;
    let mut tensors: Vec<Vec<u8>> = Vec::with_capacity(graph.nodes.len());
    let mut given = inputs.iter();
    for (node, y) in graph.nodes.iter().zip(&graph.tensors) {
        let x: Vec<Operand<'_>> = node
            .inputs
            .iter()
            .map(|id| Operand { tensor: &graph.tensors[id.0], bytes: &tensors[id.0] })
            .collect();
        let bytes = match &node.operator {
            Operator::Input(form) => {
                load(given.next().expect("one per input node, checked above"), *form, y)
            }
            operator => evaluate(operator, &x, y),
        };
        tensors.push(bytes);
    }
    for ((id, form), output) in graph.outputs.iter().zip(outputs) {
        let x = Operand { tensor: &graph.tensors[id.0], bytes: &tensors[id.0] };
        store(&x, form, output);
    }
    Ok(Trace { tensors })
}

/// Every tensor of a reference run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    tensors: Vec<Vec<u8>>,
}

impl Trace {
    /// Stored bytes of a tensor, NHWC, dense; `None` for the tensor of another graph.
    #[must_use]
    pub fn bytes(&self, id: TensorId) -> Option<&[u8]> {
        self.tensors.get(id.0).map(Vec::as_slice)
    }
}

struct Operand<'a> {
    tensor: &'a Tensor,
    bytes: &'a [u8],
}

impl Operand<'_> {
    fn byte(&self, n: usize, y: usize, x: usize, c: usize) -> u8 {
        self.bytes[self.tensor.shape.index(n, y, x, c)]
    }

    fn value(&self, n: usize, y: usize, x: usize, c: usize) -> i32 {
        self.tensor.quantisation.element().widen(self.byte(n, y, x, c))
    }

    /// Byte at a place of a larger shape, where a vector stands for every pixel.
    fn broadcast(&self, n: usize, y: usize, x: usize, c: usize) -> u8 {
        let Shape { n: images, h, w, .. } = self.tensor.shape;
        self.byte(n.min(images - 1), y.min(h - 1), x.min(w - 1), c)
    }
}

/// One value of each place of a shape.
fn each(shape: Shape, mut value: impl FnMut(usize, usize, usize, usize) -> u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(shape.elements());
    for n in 0..shape.n {
        for y in 0..shape.h {
            for x in 0..shape.w {
                for c in 0..shape.c {
                    bytes.push(value(n, y, x, c));
                }
            }
        }
    }
    bytes
}

fn evaluate(operator: &Operator, inputs: &[Operand<'_>], y: &Tensor) -> Vec<u8> {
    let a = &inputs[0];
    let from = &a.tensor.quantisation;
    let to = &y.quantisation;
    match operator {
        Operator::Input(_) => unreachable!("inputs are loaded, not evaluated"),
        Operator::Conv(conv) => convolve(conv, a, y),
        Operator::Add => {
            let b = &inputs[1];
            let rule = AddRule::new(from, &b.tensor.quantisation, to);
            let element = b.tensor.quantisation.element();
            each(y.shape, |n, h, w, c| {
                rule.apply(a.value(n, h, w, c), element.widen(b.broadcast(n, h, w, c))) as u8
            })
        }
        Operator::Mul => {
            let b = &inputs[1];
            let rule = MulRule::new(from, &b.tensor.quantisation, to);
            each(y.shape, |n, h, w, c| rule.apply(a.byte(n, h, w, c), b.broadcast(n, h, w, c)))
        }
        Operator::Concat => each(y.shape, |n, h, w, mut c| {
            let mut parts = inputs.iter();
            let mut part = parts.next().expect("the builder wants at least one");
            while c >= part.tensor.shape.c {
                c -= part.tensor.shape.c;
                part = parts.next().expect("the channels add up");
            }
            let byte = part.byte(n, h, w, c);
            if part.tensor.quantisation == *to {
                return byte;
            }
            numerics::quantise(numerics::dequantise(byte, &part.tensor.quantisation), to)
        }),
        Operator::MaxPool(window) => each(y.shape, |n, h, w, c| {
            let greatest = taps(window, a.tensor.shape, h, w).map(|(i, j)| a.value(n, i, j, c));
            greatest.max().expect("a window holds a pixel") as u8
        }),
        Operator::AveragePool(window, padding) => each(y.shape, |n, h, w, c| {
            let mut sum = 0.0;
            let mut count = 0;
            for (i, j) in taps(window, a.tensor.shape, h, w) {
                sum += numerics::dequantise(a.byte(n, i, j, c), from);
                count += 1;
            }
            let count = if *padding == CountPadding::Include { window.taps() } else { count };
            numerics::average(sum, count, to)
        }),
        Operator::GlobalAveragePool => {
            let Shape { h, w, .. } = a.tensor.shape;
            let (scale, zero) = (from.scale(), from.zero_point());
            let multiplier = numerics::global_average_multiplier(scale, to.scale(), h * w);
            let (low, high) = to.range();
            each(y.shape, |n, _, _, c| {
                let places = (0..h).flat_map(|i| (0..w).map(move |j| (i, j)));
                let sum: i32 = places.map(|(i, j)| a.value(n, i, j, c) - zero).sum();
                numerics::requantise(sum, multiplier, to.zero_point(), low, high) as u8
            })
        }
        Operator::Resize(resize, Blend::Real) => {
            let sampling = Sampling::new(resize, a.tensor.shape);
            each(y.shape, |n, h, w, c| {
                let real = |[i, j]: [usize; 2]| numerics::dequantise(a.byte(n, i, j, c), from);
                let neighbours = sampling.neighbours(h, w).map(real);
                numerics::quantise(sampling.corners(h, w).real(neighbours), to)
            })
        }
        Operator::Interleave(steps) => each(y.shape, |n, h, w, c| {
            let part = &inputs[h % steps[0] * steps[1] + w % steps[1]];
            part.byte(n, h / steps[0], w / steps[1], c)
        }),
        Operator::Resize(resize, Blend::Stored) => {
            let sampling = Sampling::new(resize, a.tensor.shape);
            each(y.shape, |n, h, w, c| {
                let neighbours = sampling.neighbours(h, w).map(|[i, j]| a.byte(n, i, j, c));
                if !sampling.is_bilinear() {
                    return neighbours[0];
                }
                let real = |byte| from.element().widen(byte) as f32;
                sampling.corners(h, w).stored(neighbours.map(real)) as u8
            })
        }
        Operator::Pad([top, left, ..], value) => each(y.shape, |n, h, w, c| {
            let inside = |at: usize, before: usize, extent: usize| {
                at.checked_sub(before).filter(|&at| at < extent)
            };
            match (inside(h, *top, a.tensor.shape.h), inside(w, *left, a.tensor.shape.w)) {
                (Some(h), Some(w)) => a.byte(n, h, w, c),
                _ => *value,
            }
        }),
        Operator::Table(table) => each(y.shape, |n, h, w, c| table[a.byte(n, h, w, c) as usize]),
        Operator::Slice(first) => each(y.shape, |n, h, w, c| a.byte(n, h, w, first + c)),
        Operator::Reshape => each(y.shape, |n, h, w, c| {
            let Shape { h: rows, w: columns, c: channels, .. } = a.tensor.shape;
            let at = y.shape.index_nchw(n, h, w, c);
            let (pixel, plane) = (at % (rows * columns), at / (rows * columns));
            a.byte(plane / channels, pixel / columns, pixel % columns, plane % channels)
        }),
    }
}

/// Taps of a window that lie in the picture, row by row.
fn taps(
    window: &Window,
    shape: Shape,
    h: usize,
    w: usize,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let rows = (0..window.kernel[0]).filter_map(move |tap| window.tap(0, h, tap, shape.h));
    rows.flat_map(move |i| {
        (0..window.kernel[1]).filter_map(move |tap| Some((i, window.tap(1, w, tap, shape.w)?)))
    })
}

fn convolve(conv: &Conv, x: &Operand<'_>, y: &Tensor) -> Vec<u8> {
    let Shape { h: rows, w: columns, c: channels, .. } = x.tensor.shape;
    let (from, to) = (&x.tensor.quantisation, &y.quantisation);
    let per_group = channels / conv.groups;
    let [kernel_h, kernel_w] = conv.window.kernel;
    let (low, high) = to.range();
    each(y.shape, |n, h, w, o| {
        let first = o / (conv.channels / conv.groups) * per_group;
        let mut acc = conv.bias.get(o).copied().unwrap_or(0);
        for i in 0..kernel_h {
            for j in 0..kernel_w {
                let row = conv.window.tap(0, h, i, rows);
                let column = conv.window.tap(1, w, j, columns);
                let (Some(row), Some(column)) = (row, column) else { continue };
                for c in 0..per_group {
                    let weight = conv.weights[((o * kernel_h + i) * kernel_w + j) * per_group + c];
                    let value = x.value(n, row, column, first + c) - from.zero_point();
                    acc = acc.wrapping_add(value * i32::from(weight));
                }
            }
        }
        let scale = conv.weight_scales[if conv.weight_scales.len() == 1 { 0 } else { o }];
        let multiplier = numerics::multiplier(from.scale(), scale, to.scale());
        numerics::requantise(acc, multiplier, to.zero_point(), low, high) as u8
    })
}

fn load(input: &Input<'_>, form: InputForm, tensor: &Tensor) -> Vec<u8> {
    let shape = tensor.shape;
    each(shape, |n, h, w, c| {
        let nchw = shape.index_nchw(n, h, w, c);
        let at = if form == InputForm::QuantisedNhwc { shape.index(n, h, w, c) } else { nchw };
        match input {
            Input::F32(values) => numerics::quantise(values[nchw], &tensor.quantisation),
            Input::U8(values) => values[at],
            Input::S8(values) => values[at] as u8,
        }
    })
}

fn store(x: &Operand<'_>, form: &OutputForm, output: &mut Output<'_>) {
    let shape = x.tensor.shape;
    each(shape, |n, h, w, c| {
        let nchw = shape.index_nchw(n, h, w, c);
        let at = if *form == OutputForm::QuantisedNhwc { shape.index(n, h, w, c) } else { nchw };
        let byte = x.byte(n, h, w, c);
        match output {
            Output::F32(values) => {
                values[nchw] = match form {
                    OutputForm::FunctionNchw(table) => table[usize::from(byte)],
                    _ => numerics::dequantise(byte, &x.tensor.quantisation),
                };
            }
            Output::U8(values) => values[at] = byte,
            Output::S8(values) => values[at] = byte as i8,
        }
        byte
    });
    if let (OutputForm::SoftmaxNchw, Output::F32(values)) = (form, output) {
        let pixels = shape.pixels();
        for n in 0..shape.n {
            for pixel in 0..pixels {
                border::softmax(values, n * shape.c * pixels + pixel, pixels, shape.c);
            }
        }
    }
}
