//! Spells a part of a graph out in operators on floats, quantised tensors as steps (see `steps`).

use std::collections::HashSet;

use super::resize::Resize;
use super::steps::Kernel;
use crate::inference::delegate::SegmentIo;
use crate::inference::function::function;
use crate::inference::graph::{
    Activation, Arithmetic, GraphView, Node, NodeSet, TensorId, TensorInfo,
};
use crate::tensor::{ElementType, Quantisation, TensorBuffer};

/// Operators that only move steps around.
const MOVES: &[&str] = &[
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// A part of a graph, spelled out: constants, and calls in an order in which they can run.
#[derive(Default)]
pub(super) struct Lowered<'a> {
    pub(super) constants: Vec<(String, Constant<'a>)>,
    pub(super) calls: Vec<Call<'a>>,
    /// Tensors that are there already.
    names: HashSet<String>,
}

pub(super) enum Constant<'a> {
    /// As it lies in the file.
    OfGraph(&'a TensorInfo),
    /// Shape and values.
    Floats(Vec<usize>, Vec<f32>),
}

/// An operator on named tensors; a name is empty where an optional one is left out.
pub(super) struct Call<'a> {
    pub(super) operator: Operator<'a>,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

pub(super) enum Operator<'a> {
    /// As ONNX defines it, on plain values or on steps.
    Onnx(&'a Node),
    Steps(Kernel),
    Resize(Resize),
    /// Steps to the reals behind them.
    Scale(f32),
    Clamp(Activation),
    Identity,
}

impl<'a> Lowered<'a> {
    /// Whether a name is new; it is taken from now on.
    fn claim(&mut self, name: &str) -> bool {
        self.names.insert(name.to_owned())
    }

    fn call(&mut self, operator: Operator<'a>, inputs: &[&str], outputs: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        self.calls.push(Call { operator, inputs: owned(inputs), outputs: owned(outputs) });
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: impl FnOnce() -> Vec<f32>) {
        if self.claim(name) {
            let constant = Constant::Floats(shape.to_vec(), values());
            self.constants.push((name.to_owned(), constant));
        }
    }
}

pub(super) fn lower<'a>(graph: &GraphView<'a>, nodes: &NodeSet, io: &SegmentIo) -> Lowered<'a> {
    let mut lowering = Lowering { graph: *graph, result: Lowered::default() };
    for input in &io.inputs {
        lowering.result.claim(&input.name);
    }
    for node in nodes.iter() {
        lowering.node(graph.node(node));
    }
    for node in nodes.iter() {
        for output in graph.node(node).outputs.iter().flatten() {
            let tensor = graph.tensor(*output);
            if io.outputs.iter().any(|spec| spec.name == tensor.name) {
                lowering.stored(tensor);
            }
        }
    }
    lowering.result
}

struct Lowering<'a> {
    graph: GraphView<'a>,
    result: Lowered<'a>,
}

/// A tensor of bytes with one scale and zero point.
fn quantised(tensor: &TensorInfo) -> Option<Quantisation> {
    let small = matches!(tensor.element, Some(ElementType::U8 | ElementType::I8));
    tensor.quantisation.as_ref().filter(|_| small)?.per_tensor()
}

/// Steps that a tensor can hold, narrowed by an activation.
#[expect(clippy::cast_precision_loss, reason = "bytes")]
fn range(tensor: &TensorInfo, at: Quantisation, activation: Option<Activation>) -> (f32, f32) {
    let (low, high) = if tensor.element == Some(ElementType::I8) { (-128, 127) } else { (0, 255) };
    let (low, high) = ((low - at.zero_point) as f32, (high - at.zero_point) as f32);
    let Some(activation) = activation else { return (low, high) };
    let bound = |real: f32| (real / at.scale).round_ties_even().clamp(low, high);
    (bound(activation.min), bound(activation.max))
}

fn steps_of(tensor: &TensorInfo) -> String {
    format!("{}::steps", tensor.name)
}

impl<'a> Lowering<'a> {
    fn node(&mut self, node: &'a Node) {
        if node.arithmetic == Arithmetic::Plain {
            return self.plain(node);
        }
        let done = match node.op.as_str() {
            "Conv" | "ConvTranspose" | "MatMul" | "Gemm" => self.products(node),
            "AveragePool" => self.average(node),
            "GlobalAveragePool" | "ReduceMean" => self.mean(node),
            "Add" => self.add(node),
            "Concat" => self.concat(node),
            "Resize" => self.resize(node),
            op if MOVES.contains(&op) => self.moves(node),
            _ => self.lookup(node),
        };
        if done.is_none() {
            self.on_reals(node);
        }
    }

    fn tensor(&self, tensor: Option<TensorId>) -> Option<&'a TensorInfo> {
        Some(self.graph.tensor(tensor?))
    }

    /// The name under which a tensor's steps are there.
    fn steps(&mut self, tensor: &'a TensorInfo) -> String {
        let name = steps_of(tensor);
        let zero_point = quantised(tensor).map_or(0, |found| found.zero_point);
        if let Some(values) = tensor.constant() {
            self.result.floats(&name, &tensor.shape, || step_values(tensor, values));
        } else if self.result.claim(&name) {
            let load = Operator::Steps(Kernel::Load { zero_point });
            self.result.call(load, &[&tensor.name], &[&name]);
        }
        name
    }

    /// The name under which a tensor's bytes, or other values as they are, are there.
    fn stored(&mut self, tensor: &'a TensorInfo) -> String {
        if tensor.is_constant() {
            if self.result.claim(&tensor.name) {
                self.result.constants.push((tensor.name.clone(), Constant::OfGraph(tensor)));
            }
        } else if let Some(found) = quantised(tensor)
            && self.result.claim(&tensor.name)
        {
            let signed = tensor.element == Some(ElementType::I8);
            let store = Operator::Steps(Kernel::Store { zero_point: found.zero_point, signed });
            self.result.call(store, &[&steps_of(tensor)], &[&tensor.name]);
        }
        tensor.name.clone()
    }

    /// The name under which the reals behind a tensor are there.
    fn reals(&mut self, tensor: &'a TensorInfo) -> String {
        let Some(found) = &tensor.quantisation else { return self.stored(tensor) };
        let name = format!("{}::reals", tensor.name);
        if let Some(values) = tensor.constant() {
            self.result.floats(&name, &tensor.shape, || {
                let mut reals = step_values(tensor, values);
                scale_along(&mut reals, tensor, &found.scales);
                reals
            });
        } else if let Some(found) = quantised(tensor) {
            let steps = self.steps(tensor);
            if self.result.claim(&name) {
                self.result.call(Operator::Scale(found.scale), &[&steps], &[&name]);
            }
        } else {
            return self.stored(tensor);
        }
        name
    }

    /// Gives a tensor its steps from a float tensor of reals.
    fn quantise(&mut self, reals: &str, output: &TensorInfo, at: Quantisation) {
        let (low, high) = range(output, at, None);
        let name = steps_of(output);
        self.result.claim(&name);
        let quantise = Kernel::Quantise { scale: at.scale, low, high, inside: 0.0 };
        self.result.call(Operator::Steps(quantise), &[reals], &[&name]);
    }

    fn requantise(
        &mut self,
        raw: &str,
        output: &TensorInfo,
        (axis, factors): (usize, Vec<f32>),
        (low, high): (f32, f32),
    ) {
        let name = steps_of(output);
        self.result.claim(&name);
        let requantise = Kernel::Requantise { factors: factors.into(), axis, low, high };
        self.result.call(Operator::Steps(requantise), &[raw], &[&name]);
    }

    fn plain(&mut self, node: &'a Node) {
        let output = self.tensor(node.output());
        if let (Some(x), Some(y)) = (self.tensor(node.input(0)), output) {
            if node.op == "QuantizeLinear"
                && let Some(found) = quantised(y)
            {
                let reals = self.stored(x);
                return self.quantise(&reals, y, found);
            }
            if node.op == "DequantizeLinear" && self.states_own(node, x) {
                let reals = self.reals(x);
                return self.result.call(Operator::Identity, &[&reals], &[&y.name]);
            }
        }
        let inputs: Vec<_> = node
            .inputs
            .iter()
            .map(|input| self.tensor(*input).map_or(String::new(), |tensor| self.stored(tensor)))
            .collect();
        let outputs: Vec<_> = node
            .outputs
            .iter()
            .map(|output| self.tensor(*output).map_or("", |tensor| tensor.name.as_str()))
            .collect();
        outputs.iter().for_each(|name| {
            self.result.claim(name);
        });
        self.emit(node, &inputs, &outputs);
    }

    fn emit(&mut self, node: &'a Node, inputs: &[String], outputs: &[&str]) {
        let inputs: Vec<_> = inputs.iter().map(String::as_str).collect();
        self.result.call(Operator::Onnx(node), &inputs, outputs);
    }

    /// Whether a DequantizeLinear reads a tensor by the quantisation that the graph gives it.
    fn states_own(&self, node: &Node, x: &TensorInfo) -> bool {
        let Some(found) = &x.quantisation else { return false };
        let scales = self.tensor(node.input(1)).and_then(TensorInfo::constant);
        let zero_points = self.tensor(node.input(2)).and_then(TensorInfo::constant);
        let same_zeros = match zero_points {
            None => node.input(2).is_none() && found.zero_points.iter().all(|value| *value == 0),
            Some(TensorBuffer::U8(values)) => same(values, &found.zero_points),
            Some(TensorBuffer::I8(values)) => same(values, &found.zero_points),
            Some(TensorBuffer::I32(values)) => *values == found.zero_points,
            Some(_) => false,
        };
        let usable = x.is_constant() || quantised(x).is_some();
        usable && same_zeros && scales == Some(&TensorBuffer::F32(found.scales.clone()))
    }

    /// Operators that sum products of data and weights.
    fn products(&mut self, node: &'a Node) -> Option<()> {
        let (x, w) = (self.tensor(node.input(0))?, self.tensor(node.input(1))?);
        let y = self.tensor(node.output())?;
        let (at_x, at_y) = (quantised(x)?, quantised(y)?);
        let found = w.quantisation.as_ref()?;
        let scaled =
            |name| node.float(name).is_some_and(|factor| factor.to_bits() != 1_f32.to_bits());
        let channels = channel_axes(node, w, y)?;
        let fits = found.axis.is_none_or(|axis| axis == channels.0)
            && (w.is_constant() || quantised(w).is_some())
            && !(node.op == "Gemm" && (scaled("alpha") || scaled("beta")));
        if !fits {
            return None;
        }
        let products: Vec<_> = found.scales.iter().map(|scale| at_x.scale * scale).collect();
        let mut inputs = vec![steps_of(x), steps_of(w)];
        if let Some(bias) = self.tensor(node.input(2)) {
            let values = bias_steps(bias, &products)?;
            let name = format!("{}::bias", y.name);
            self.result.floats(&name, &bias.shape, || values);
            inputs.push(name);
        }
        self.steps(x);
        self.steps(w);
        let raw = format!("{}::sums", y.name);
        self.emit(node, &inputs, &[&raw]);
        let factors = products.iter().map(|product| product / at_y.scale).collect();
        self.requantise(&raw, y, (channels.1, factors), range(y, at_y, node.activation));
        Some(())
    }

    fn mean(&mut self, node: &'a Node) -> Option<()> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let (at_x, at_y) = (quantised(x)?, quantised(y)?);
        let raw = format!("{}::means", y.name);
        let mut inputs = vec![self.steps(x)];
        for axes in node.inputs.iter().skip(1) {
            inputs.push(self.tensor(*axes).map_or(String::new(), |axes| self.stored(axes)));
        }
        self.emit(node, &inputs, &[&raw]);
        let range = range(y, at_y, node.activation);
        self.requantise(&raw, y, (0, vec![at_x.scale / at_y.scale]), range);
        Some(())
    }

    /// On reals, and with the zero point inside the rounding, as onnxruntime's QLinearAveragePool.
    fn average(&mut self, node: &'a Node) -> Option<()> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        quantised(x)?;
        let at_y = quantised(y)?;
        let raw = format!("{}::means", y.name);
        let inputs = vec![self.reals(x)];
        self.emit(node, &inputs, &[&raw]);
        let (low, high) = range(y, at_y, node.activation);
        #[expect(clippy::cast_precision_loss, reason = "a byte")]
        let inside = at_y.zero_point as f32;
        let name = steps_of(y);
        self.result.claim(&name);
        let quantise = Kernel::Quantise { scale: at_y.scale, low, high, inside };
        self.result.call(Operator::Steps(quantise), &[&raw], &[&name]);
        Some(())
    }

    fn add(&mut self, node: &'a Node) -> Option<()> {
        let (a, b) = (self.tensor(node.input(0))?, self.tensor(node.input(1))?);
        let y = self.tensor(node.output())?;
        let (at_a, at_b, at_y) = (quantised(a)?, quantised(b)?, quantised(y)?);
        if a.shape != b.shape || a.name == b.name {
            return None;
        }
        let (low, high) = range(y, at_y, node.activation);
        #[expect(clippy::cast_precision_loss, reason = "bytes")]
        let zero_points = [at_a, at_b, at_y].map(|found| found.zero_point as f32);
        let factors = [at_a.scale / at_y.scale, at_b.scale / at_y.scale];
        let (a, b, name) = (self.steps(a), self.steps(b), steps_of(y));
        self.result.claim(&name);
        let add = Kernel::Add { factors, zero_points, low, high };
        self.result.call(Operator::Steps(add), &[&a, &b], &[&name]);
        Some(())
    }

    /// Bilinear at half-pixel centres, as nets enlarge their maps; others are tract's.
    fn resize(&mut self, node: &'a Node) -> Option<()> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let (at_x, at_y) = (quantised(x)?, quantised(y)?);
        let (&[n, c, height, width], &[same_n, same_c, to_height, to_width]) =
            (x.shape.as_slice(), y.shape.as_slice())
        else {
            return None;
        };
        let half_pixel = node.text("coordinate_transformation_mode");
        let plain = node.attributes().iter().all(|attribute| {
            matches!(
                attribute.name.as_str(),
                "coordinate_transformation_mode" | "mode" | "cubic_coeff_a" | "nearest_mode"
            )
        });
        let factors =
            match self.tensor(node.input(2)).map(|scales| (scales.len(), scales.constant())) {
                Some((4, Some(TensorBuffer::F32(scales)))) => [scales[2], scales[3]],
                _ => return None,
            };
        let fits = self.graph.opset() >= 11
            && plain
            && half_pixel.is_none_or(|mode| mode == "half_pixel")
            && node.text("mode") == Some("linear")
            && node.activation.is_none()
            && (n, c) == (same_n, same_c)
            && ![height, width, to_height, to_width].contains(&0);
        if !fits {
            return None;
        }
        let (low, high) = range(y, at_y, None);
        let resize = Resize {
            scales: [at_x.scale, at_y.scale],
            factors,
            lengths: [to_height, to_width],
            range: [low, high],
        };
        let (from, to) = (self.steps(x), steps_of(y));
        self.result.claim(&to);
        self.result.call(Operator::Resize(resize), &[&from], &[&to]);
        Some(())
    }

    fn concat(&mut self, node: &'a Node) -> Option<()> {
        let y = self.tensor(node.output())?;
        let at_y = quantised(y).filter(|_| node.activation.is_none())?;
        let parts = node.inputs.iter().map(|input| self.tensor(*input));
        let parts = parts.collect::<Option<Vec<_>>>()?;
        let found = parts.iter().map(|part| quantised(part)).collect::<Option<Vec<_>>>()?;
        let mut inputs = Vec::new();
        for (place, (part, at)) in parts.iter().zip(found).enumerate() {
            let steps = self.steps(part);
            if at.scale.to_bits() == at_y.scale.to_bits()
                && range(part, at, None) == range(y, at_y, None)
            {
                inputs.push(steps);
                continue;
            }
            let name = format!("{}::part{place}", y.name);
            let table = self.table((part, at), (y, at_y), None, |x| x);
            self.result.call(table, &[&steps], &[&name]);
            inputs.push(name);
        }
        let name = steps_of(y);
        self.result.claim(&name);
        self.emit(node, &inputs, &[&name]);
        Some(())
    }

    fn moves(&mut self, node: &'a Node) -> Option<()> {
        let x = self.tensor(node.input(0))?;
        let at_x = quantised(x)?;
        let mut inputs = vec![self.steps(x)];
        for other in node.inputs.iter().skip(1) {
            inputs.push(self.tensor(*other).map_or(String::new(), |tensor| self.stored(tensor)));
        }
        let mut outputs = Vec::new();
        let mut lookups = Vec::new();
        for output in &node.outputs {
            let Some(y) = self.tensor(*output) else {
                outputs.push(String::new());
                continue;
            };
            let at_y = quantised(y)?;
            let same = at_x == at_y && x.element == y.element && node.activation.is_none();
            let name = if same { steps_of(y) } else { format!("{}::moved", y.name) };
            if !same {
                lookups.push((name.clone(), y, at_y));
            }
            outputs.push(name);
        }
        for name in &outputs {
            self.result.claim(name);
        }
        let outputs: Vec<_> = outputs.iter().map(String::as_str).collect();
        self.emit(node, &inputs, &outputs);
        for (name, y, at_y) in lookups {
            let table = self.table((x, at_x), (y, at_y), node.activation, |x| x);
            let steps = steps_of(y);
            self.result.claim(&steps);
            self.result.call(table, &[&name], &[&steps]);
        }
        Some(())
    }

    /// A function of one tensor: 256 answers, computed here.
    fn lookup(&mut self, node: &'a Node) -> Option<()> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let (at_x, at_y) = (quantised(x)?, quantised(y)?);
        let function = function(node)?;
        let table = self.table((x, at_x), (y, at_y), node.activation, function);
        let (from, to) = (self.steps(x), steps_of(y));
        self.result.claim(&to);
        self.result.call(table, &[&from], &[&to]);
        Some(())
    }

    fn table(
        &self,
        (x, at_x): (&TensorInfo, Quantisation),
        (y, at_y): (&TensorInfo, Quantisation),
        activation: Option<Activation>,
        function: impl Fn(f32) -> f32,
    ) -> Operator<'a> {
        let (first, _) = range(x, at_x, None);
        let (low, high) = range(y, at_y, activation);
        let step = |index: u16| {
            let real = function((first + f32::from(index)) * at_x.scale);
            (real / at_y.scale).max(low).min(high).round_ties_even()
        };
        Operator::Steps(Kernel::Lookup { first, table: (0..256).map(step).collect() })
    }

    /// Dequantise, apply, quantise.
    fn on_reals(&mut self, node: &'a Node) {
        let mut inputs = Vec::new();
        for input in &node.inputs {
            inputs.push(self.tensor(*input).map_or(String::new(), |tensor| self.reals(tensor)));
        }
        let mut outputs = Vec::new();
        let mut later = Vec::new();
        for output in &node.outputs {
            let Some(y) = self.tensor(*output) else {
                outputs.push(String::new());
                continue;
            };
            let name = match quantised(y) {
                Some(found) => {
                    let name = format!("{}::answer", y.name);
                    later.push((name.clone(), y, found));
                    name
                }
                None => y.name.clone(),
            };
            self.result.claim(&name);
            outputs.push(name);
        }
        let names: Vec<_> = outputs.iter().map(String::as_str).collect();
        self.emit(node, &inputs, &names);
        for (mut name, y, found) in later {
            if let Some(activation) = node.activation {
                let clamped = format!("{name}::clamped");
                self.result.call(Operator::Clamp(activation), &[&name], &[&clamped]);
                name = clamped;
            }
            self.quantise(&name, y, found);
        }
    }
}

fn same<T: Copy + Into<i32>>(values: &[T], others: &[i32]) -> bool {
    values.iter().map(|value| (*value).into()).eq(others.iter().copied())
}

/// The axis of the output channels in the weights and in the output.
fn channel_axes(node: &Node, w: &TensorInfo, y: &TensorInfo) -> Option<(usize, usize)> {
    let last = w.shape.len().checked_sub(1)?;
    Some(match node.op.as_str() {
        "Conv" => (0, 1),
        "ConvTranspose" if node.int("group").unwrap_or(1) == 1 => (1, 1),
        "ConvTranspose" => (usize::MAX, 1),
        "Gemm" if node.int("transB").unwrap_or(0) != 0 => (0, 1),
        _ => (last, y.shape.len().checked_sub(1)?),
    })
}

/// A bias in units of the products that it is added to.
#[expect(
    clippy::cast_precision_loss,
    reason = "biases beyond 2^24 lose less than a product's rounding"
)]
fn bias_steps(bias: &TensorInfo, products: &[f32]) -> Option<Vec<f32>> {
    let product =
        |place: usize| products[if products.len() == 1 { 0 } else { place % products.len() }];
    match (bias.constant()?, &bias.quantisation) {
        (TensorBuffer::I32(values), Some(found)) => {
            let scale = |place: usize| found.scales[place % found.scales.len()];
            let step = |(place, value): (usize, &i32)| {
                let (own, needed) = (scale(place), product(place));
                let value = *value as f32;
                if (own - needed).abs() <= 1e-6 * needed { value } else { value * own / needed }
            };
            Some(values.iter().enumerate().map(step).collect())
        }
        (TensorBuffer::F32(values), None) => {
            Some(values.iter().enumerate().map(|(place, value)| value / product(place)).collect())
        }
        _ => None,
    }
}

/// Constant values less their zero points.
#[expect(clippy::cast_precision_loss, reason = "weights are bytes; i32 only holds biases")]
fn step_values(tensor: &TensorInfo, values: &TensorBuffer) -> Vec<f32> {
    let zero_points = tensor.quantisation.as_ref().map_or(&[0][..], |found| &found.zero_points);
    let mut steps: Vec<f32> = match values {
        TensorBuffer::U8(values) => values.iter().map(|value| f32::from(*value)).collect(),
        TensorBuffer::I8(values) => values.iter().map(|value| f32::from(*value)).collect(),
        TensorBuffer::I32(values) => values.iter().map(|value| *value as f32).collect(),
        TensorBuffer::I64(values) => values.iter().map(|value| *value as f32).collect(),
        TensorBuffer::F32(values) => values.clone(),
    };
    let zero_points: Vec<_> = zero_points.iter().map(|value| *value as f32).collect();
    along(&mut steps, tensor, &zero_points, |step, zero_point| *step -= zero_point);
    steps
}

fn scale_along(steps: &mut [f32], tensor: &TensorInfo, scales: &[f32]) {
    along(steps, tensor, scales, |step, scale| *step *= scale);
}

fn along(values: &mut [f32], tensor: &TensorInfo, list: &[f32], apply: impl Fn(&mut f32, f32)) {
    let axis = tensor.quantisation.as_ref().and_then(|found| found.axis);
    let inner = axis.map_or(values.len(), |axis| tensor.shape[axis + 1..].iter().product());
    for (slice, parameter) in values.chunks_mut(inner.max(1)).zip(list.iter().cycle()) {
        slice.iter_mut().for_each(|value| apply(value, *parameter));
    }
}
