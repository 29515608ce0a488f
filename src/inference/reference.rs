//! A delegate for tests: claims chosen operators, runs them in plain scalar code, and fails in every way on demand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::delegate::{
    CompileError, CompiledSegment, Delegate, DeviceInfo, RunError, Segment, SegmentIo, Unavailable,
};
use super::graph::{Arithmetic, GraphView, Node, NodeSet, TensorId, TensorInfo};
use crate::tensor::{ElementType, TensorBuffer, TensorView, TensorViewMut, Values, ValuesMut};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Absent,
    Refuse,
    PanicAtCompile,
    OtherShape,
    OtherType,
    Device,
    Overrun,
    Late,
    PanicAtRun,
    WrongTensor,
    WrongValues,
}

/// The delegate. `fault` may change while it runs.
pub(super) struct Reference {
    name: String,
    ops: Vec<&'static str>,
    fault: Arc<Mutex<Fault>>,
    pub(super) runs: Arc<AtomicUsize>,
    /// Called when a run is to be late.
    dawdle: Arc<dyn Fn() + Send + Sync>,
}

impl Reference {
    pub(super) fn new(name: &str, ops: &[&'static str], fault: Fault) -> Self {
        Self {
            name: name.to_owned(),
            ops: ops.to_vec(),
            fault: Arc::new(Mutex::new(fault)),
            runs: Arc::default(),
            dawdle: Arc::new(|| ()),
        }
    }

    pub(super) fn dawdling(mut self, dawdle: impl Fn() + Send + Sync + 'static) -> Self {
        self.dawdle = Arc::new(dawdle);
        self
    }

    pub(super) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }
}

impl Delegate for Reference {
    fn name(&self) -> &str {
        &self.name
    }

    fn probe(&self) -> Result<DeviceInfo, Unavailable> {
        if self.fault() == Fault::Absent {
            let reason = "no such device; plug it in".to_owned();
            return Err(Unavailable { delegate: self.name.clone(), reason });
        }
        Ok(DeviceInfo { device: "plain scalar code".to_owned(), version: None, simulated: false })
    }

    fn claim(&self, graph: &GraphView<'_>) -> NodeSet {
        let claimed = |(_, node): &(usize, &Node)| self.ops.contains(&node.op.as_str());
        graph.nodes().iter().enumerate().filter(claimed).map(|(id, _)| id).collect()
    }

    fn compile(&self, segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError> {
        let mut io = segment.io.clone();
        match self.fault() {
            Fault::Refuse => return Err(CompileError::Refused("not this one".to_owned())),
            Fault::PanicAtCompile => panic!("compiler bug"),
            Fault::OtherShape => io.outputs[0].shape.push(1),
            Fault::OtherType => io.outputs[0].element = ElementType::I64,
            _ => {}
        }
        Ok(Box::new(Compiled {
            io,
            nodes: segment.nodes.iter().map(|node| segment.graph.node(node).clone()).collect(),
            tensors: segment.graph.tensors().to_vec(),
            fault: Arc::clone(&self.fault),
            runs: Arc::clone(&self.runs),
            dawdle: Arc::clone(&self.dawdle),
        }))
    }
}

struct Compiled {
    io: SegmentIo,
    nodes: Vec<Node>,
    tensors: Vec<TensorInfo>,
    fault: Arc<Mutex<Fault>>,
    runs: Arc<AtomicUsize>,
    dawdle: Arc<dyn Fn() + Send + Sync>,
}

impl CompiledSegment for Compiled {
    fn io(&self) -> &SegmentIo {
        &self.io
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        _deadline: Instant,
    ) -> Result<(), RunError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let fault = *self.fault.lock().unwrap();
        match fault {
            Fault::Device => return Err(RunError::Fault("device reset".to_owned())),
            Fault::Overrun => return Err(RunError::DeadlineOverrun),
            Fault::WrongTensor => return Err(RunError::WrongTensor("7 outputs".to_owned())),
            Fault::PanicAtRun => panic!("driver bug"),
            Fault::Late => (self.dawdle)(),
            _ => {}
        }
        let mut reals: HashMap<TensorId, Vec<f32>> = HashMap::new();
        for (id, tensor) in self.tensors.iter().enumerate() {
            let given = self.io.inputs.iter().position(|spec| spec.name == tensor.name);
            let values = given.map(|place| inputs[place].values);
            let constant = tensor.constant().map(TensorBuffer::as_values);
            if let Some(values) = values.or(constant) {
                reals.insert(id, dequantised(tensor, values));
            }
        }
        for node in &self.nodes {
            let result = apply(node, &self.tensors, &reals);
            let id = node.output().unwrap();
            reals.insert(id, requantised(node, &self.tensors[id], result));
        }
        for (spec, output) in self.io.outputs.iter().zip(outputs) {
            let id = self.tensors.iter().position(|tensor| tensor.name == spec.name).unwrap();
            let nudge = if fault == Fault::WrongValues { 8.0 } else { 0.0 };
            write(&self.tensors[id], &reals[&id], nudge, &mut output.values);
        }
        Ok(())
    }
}

fn dequantised(tensor: &TensorInfo, values: Values<'_>) -> Vec<f32> {
    let integers: Vec<i32> = match values {
        Values::F32(values) => return values.to_vec(),
        Values::U8(values) => values.iter().map(|value| i32::from(*value)).collect(),
        Values::I8(values) => values.iter().map(|value| i32::from(*value)).collect(),
        Values::I32(values) => values.to_vec(),
        Values::I64(values) => values.iter().map(|value| *value as i32).collect(),
    };
    let Some(found) = &tensor.quantisation else {
        return integers.iter().map(|value| *value as f32).collect();
    };
    let inner = found.axis.map_or(integers.len(), |axis| tensor.shape[axis + 1..].iter().product());
    let real = |(place, value): (usize, &i32)| {
        let slice = place / inner % found.scales.len();
        (value - found.zero_points[slice]) as f32 * found.scales[slice]
    };
    integers.iter().enumerate().map(real).collect()
}

fn requantised(node: &Node, tensor: &TensorInfo, mut reals: Vec<f32>) -> Vec<f32> {
    let Some(found) = tensor.quantisation.as_ref().and_then(|found| found.per_tensor()) else {
        return reals;
    };
    assert_eq!(node.arithmetic, Arithmetic::Quantised);
    let (low, high) = if tensor.element == Some(ElementType::I8) { (-128, 127) } else { (0, 255) };
    for real in &mut reals {
        let clipped = node.activation.map_or(*real, |bounds| real.clamp(bounds.min, bounds.max));
        let value = (clipped / found.scale).round_ties_even() as i32 + found.zero_point;
        *real = (value.clamp(low, high) - found.zero_point) as f32 * found.scale;
    }
    reals
}

fn write(tensor: &TensorInfo, reals: &[f32], nudge: f32, to: &mut ValuesMut<'_>) {
    let found = tensor.quantisation.as_ref().and_then(|found| found.per_tensor());
    let raw = |real: &f32| {
        let raw = found.map_or(*real, |found| real / found.scale + found.zero_point as f32);
        if nudge > 0.0 && raw > 100.0 { raw - nudge } else { raw + nudge }
    };
    match to {
        ValuesMut::F32(to) => to.iter_mut().zip(reals).for_each(|(to, real)| *to = raw(real)),
        ValuesMut::U8(to) => {
            to.iter_mut().zip(reals).for_each(|(to, real)| *to = raw(real).round() as u8);
        }
        ValuesMut::I8(to) => {
            to.iter_mut().zip(reals).for_each(|(to, real)| *to = raw(real).round() as i8);
        }
        other => panic!("{other:?}"),
    }
}

fn apply(node: &Node, tensors: &[TensorInfo], reals: &HashMap<TensorId, Vec<f32>>) -> Vec<f32> {
    let input = |place| node.input(place).map(|tensor| (&tensors[tensor], &reals[&tensor]));
    let (x_info, x) = input(0).unwrap();
    match node.op.as_str() {
        "Relu" => x.iter().map(|x| x.max(0.0)).collect(),
        "Sigmoid" => x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        "Add" => x.iter().zip(input(1).unwrap().1).map(|(a, b)| a + b).collect(),
        "Conv" => {
            let (w_info, w) = input(1).unwrap();
            let bias = input(2).map(|(_, bias)| bias);
            conv((&x_info.shape, x), (&w_info.shape, w), bias, node.ints("pads"))
        }
        other => panic!("the reference does not run {other}"),
    }
}

/// Stride 1, one group, zero padding.
fn conv(
    (x_shape, x): (&[usize], &[f32]),
    (w_shape, w): (&[usize], &[f32]),
    bias: Option<&Vec<f32>>,
    pads: Option<&[i64]>,
) -> Vec<f32> {
    let &[_, depth, height, width] = x_shape else { panic!("{x_shape:?}") };
    let &[channels, _, rows, columns] = w_shape else { panic!("{w_shape:?}") };
    let pad = pads.map_or(0, |pads| pads[0] as usize);
    let (out_height, out_width) = (height + 2 * pad + 1 - rows, width + 2 * pad + 1 - columns);
    let mut result = Vec::new();
    for channel in 0..channels {
        for place in 0..out_height * out_width {
            let (top, left) = (place / out_width, place % out_width);
            let mut sum = bias.map_or(0.0, |bias| bias[channel]);
            for tap in 0..depth * rows * columns {
                let (plane, tap_row, tap_column) =
                    (tap / (rows * columns), tap / columns % rows, tap % columns);
                let (row, column) = (top + tap_row, left + tap_column);
                if (pad..height + pad).contains(&row) && (pad..width + pad).contains(&column) {
                    let at = (plane * height + row - pad) * width + column - pad;
                    sum += x[at] * w[channel * depth * rows * columns + tap];
                }
            }
            result.push(sum);
        }
    }
    result
}
