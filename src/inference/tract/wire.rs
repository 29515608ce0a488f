//! Wires a lowered part of a graph into a tract model.
//!
//! Every shape is known, so nothing is inferred; only the operators of tract that are named here and in `operators` are
//! linked into the binary.

use std::collections::HashMap;

use tract_core::internal::*;
use tract_core::ops::identity::Identity;
use tract_core::ops::math;

use super::lower::{Call, Constant, Lowered, Operator};
use super::operators;
use crate::inference::delegate::SegmentIo;
use crate::inference::graph::{Activation, GraphView, Node, TensorInfo};
use crate::tensor::{ElementType, TensorBuffer};

/// A model with the inputs and outputs of `io`.
pub(super) fn wire(
    lowered: Lowered<'_>,
    graph: &GraphView<'_>,
    io: &SegmentIo,
) -> TractResult<TypedModel> {
    let mut wiring = Wiring::default();
    for input in &io.inputs {
        let fact = datum_type(input.element).fact(&input.shape);
        let outlet = wiring.model.add_source(&input.name, fact)?;
        wiring.outlets.insert(input.name.clone(), outlet);
    }
    for (name, constant) in lowered.constants {
        let outlet = wiring.model.add_const(&name, tensor(constant)?)?;
        wiring.outlets.insert(name, outlet);
    }
    for call in lowered.calls {
        wiring.call(call, graph)?;
    }
    let outputs = io.outputs.iter().map(|output| wiring.outlet(&output.name));
    let outputs = outputs.collect::<TractResult<Vec<_>>>()?;
    wiring.model.select_output_outlets(&outputs)?;
    Ok(wiring.model)
}

#[derive(Default)]
struct Wiring {
    model: TypedModel,
    outlets: HashMap<String, OutletId>,
}

impl Wiring {
    fn outlet(&self, name: &str) -> TractResult<OutletId> {
        self.outlets.get(name).copied().with_context(|| format!("nothing writes `{name}`"))
    }

    fn call(&mut self, call: Call<'_>, graph: &GraphView<'_>) -> TractResult<()> {
        let inputs = call.inputs.iter().map(|name| match name.as_str() {
            "" => Ok(None),
            name => self.outlet(name).map(Some),
        });
        let inputs = inputs.collect::<TractResult<Vec<_>>>()?;
        let name = call.outputs.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default();
        let mut site = Site { model: &mut self.model, name, inputs };
        let outlets = match call.operator {
            Operator::Onnx(node) => {
                let call = OnnxCall {
                    node,
                    opset: graph.opset(),
                    outputs: node.outputs.iter().map(|id| id.map(|id| graph.tensor(id))).collect(),
                };
                operators::wire(&mut site, &call)
                    .with_context(|| format!("node `{}` ({})", node.name, node.op))?
            }
            Operator::Steps(kernel) => {
                let inputs: TVec<_> = site.inputs.iter().copied().flatten().collect();
                tvec!(site.wire(kernel, &inputs)?)
            }
            Operator::Resize(resize) => tvec!(site.wire(resize, &[site.input(0)?])?),
            Operator::Scale(factor) => {
                let factor = site.scalar(factor, site.input(0)?)?;
                tvec!(site.wire(math::mul(), &[site.input(0)?, factor])?)
            }
            Operator::Clamp(activation) => tvec!(site.clamp(activation)?),
            Operator::Identity => tvec!(site.wire(Identity, &[site.input(0)?])?),
        };
        for (name, outlet) in call.outputs.into_iter().zip(outlets) {
            self.outlets.insert(name, outlet);
        }
        Ok(())
    }
}

/// A node of the graph that becomes operators of tract.
pub(super) struct OnnxCall<'a> {
    pub(super) node: &'a Node,
    /// Version of the default domain.
    pub(super) opset: i64,
    /// What it writes; `None` where an optional output is left out.
    pub(super) outputs: Vec<Option<&'a TensorInfo>>,
}

impl OnnxCall<'_> {
    /// Shape of an output.
    pub(super) fn shape(&self, place: usize) -> TractResult<&[usize]> {
        let output = self.outputs.get(place).copied().flatten();
        output.map(|tensor| tensor.shape.as_slice()).with_context(|| format!("no output {place}"))
    }

    /// Refuses a second and further output that somebody reads.
    pub(super) fn one_output(&self) -> TractResult<()> {
        let more = self.outputs.iter().skip(1).flatten().next();
        ensure!(more.is_none(), "output `{}` is not supported", more.map_or("", |t| &t.name));
        Ok(())
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.node.int(name).unwrap_or(0) != 0
    }

    /// A list of lengths in an attribute.
    pub(super) fn lengths(&self, name: &str) -> TractResult<Option<TVec<usize>>> {
        let list = self.node.ints(name);
        list.map(|list| list.iter().map(|length| Ok(usize::try_from(*length)?)).collect())
            .transpose()
    }

    /// Groups of channels.
    pub(super) fn group(&self) -> TractResult<usize> {
        Ok(usize::try_from(self.node.int("group").unwrap_or(1))?)
    }

    /// An axis in an attribute, counted from the end where negative.
    pub(super) fn axis(&self, name: &str, default: i64, rank: usize) -> TractResult<usize> {
        axis(self.node.int(name).unwrap_or(default), rank)
    }
}

/// An axis of a tensor with `rank` dimensions, counted from the end where negative.
pub(super) fn axis(axis: i64, rank: usize) -> TractResult<usize> {
    let wrapped = if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis };
    Ok(usize::try_from(wrapped)?)
}

/// Where a call's operators are wired: the model, its inputs, and a prefix for names.
pub(super) struct Site<'a> {
    pub(super) model: &'a mut TypedModel,
    name: String,
    pub(super) inputs: Vec<Option<OutletId>>,
}

impl Site<'_> {
    pub(super) fn input(&self, place: usize) -> TractResult<OutletId> {
        self.optional(place).with_context(|| format!("no input {place}"))
    }

    pub(super) fn optional(&self, place: usize) -> Option<OutletId> {
        self.inputs.get(place).copied().flatten()
    }

    /// Adds an operator; its first output.
    pub(super) fn wire(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        Ok(self.wire_all(op, inputs)?[0])
    }

    /// Adds an operator; all its outputs.
    pub(super) fn wire_all(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let name = self.model.unique_name(&self.name);
        self.model.wire_node(name, op, inputs)
    }

    /// Adds an operator on inputs that are broadcast together.
    pub(super) fn broadcast(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        let inputs = wire_rank_broadcast(&self.name, self.model, inputs)?;
        self.wire(op, &inputs)
    }

    pub(super) fn constant(&mut self, tensor: Tensor) -> TractResult<OutletId> {
        let name = self.model.unique_name(format!("{}::constant", self.name));
        self.model.add_const(name, tensor)
    }

    /// A number of the type and rank of another tensor.
    pub(super) fn scalar(&mut self, value: f32, like: OutletId) -> TractResult<OutletId> {
        let fact = self.model.outlet_fact(like)?;
        let (to, rank) = (fact.datum_type, fact.rank());
        let value = tensor0(value).cast_to_dt(to)?.into_owned().broadcast_into_rank(rank)?;
        self.constant(value)
    }

    /// An operator of two inputs, the second a number.
    pub(super) fn with(
        &mut self,
        op: impl Into<Box<dyn TypedOp>>,
        x: OutletId,
        value: f32,
    ) -> TractResult<OutletId> {
        let value = self.scalar(value, x)?;
        self.wire(op, &[x, value])
    }

    pub(super) fn datum_type(&self, outlet: OutletId) -> TractResult<DatumType> {
        Ok(self.model.outlet_fact(outlet)?.datum_type)
    }

    pub(super) fn shape(&self, outlet: OutletId) -> TractResult<TVec<usize>> {
        let shape = &self.model.outlet_fact(outlet)?.shape;
        Ok(shape.as_concrete().context("every shape is known")?.into())
    }

    pub(super) fn rank(&self, outlet: OutletId) -> TractResult<usize> {
        Ok(self.model.outlet_fact(outlet)?.rank())
    }

    pub(super) fn reshape(&mut self, x: OutletId, shape: &[usize]) -> TractResult<OutletId> {
        let from = self.model.outlet_fact(x)?.shape.to_tvec();
        let to: TVec<TDim> = shape.iter().map(ToDim::to_dim).collect();
        let mut x = x;
        if from != to {
            for op in AxisOp::Reshape(0, from, to).simplify() {
                x = self.wire(op, &[x])?;
            }
        }
        Ok(x)
    }

    /// Values of a constant input.
    pub(super) fn value(&self, place: usize) -> TractResult<Option<Arc<Tensor>>> {
        let Some(outlet) = self.optional(place) else { return Ok(None) };
        let constant = self.model.outlet_fact(outlet)?.konst.clone();
        constant.map(Some).with_context(|| format!("input {place} is not constant"))
    }

    /// Values of a constant input, as integers.
    pub(super) fn integers(&self, place: usize) -> TractResult<Option<Vec<i64>>> {
        let Some(value) = self.value(place)? else { return Ok(None) };
        let value = value.cast_to::<i64>()?;
        Ok(Some(value.try_as_plain_ram()?.as_slice::<i64>()?.to_vec()))
    }

    /// A list of integers, an input in new operator sets and an attribute in old ones.
    pub(super) fn list(
        &self,
        place: usize,
        call: &OnnxCall<'_>,
        attribute: &str,
    ) -> TractResult<Option<Vec<i64>>> {
        match call.node.ints(attribute) {
            Some(list) => Ok(Some(list.to_vec())),
            None => self.integers(place),
        }
    }

    fn clamp(&mut self, activation: Activation) -> TractResult<OutletId> {
        let mut x = self.with(math::max(), self.input(0)?, activation.min)?;
        if activation.max != f32::INFINITY {
            x = self.with(math::min(), x, activation.max)?;
        }
        Ok(x)
    }
}

pub(super) fn datum_type(element: ElementType) -> DatumType {
    match element {
        ElementType::F32 => DatumType::F32,
        ElementType::U8 => DatumType::U8,
        ElementType::I8 => DatumType::I8,
        ElementType::I32 => DatumType::I32,
        ElementType::I64 => DatumType::I64,
    }
}

fn tensor(constant: Constant<'_>) -> TractResult<Tensor> {
    let tensor = match constant {
        Constant::Floats(shape, values) => return Tensor::from_shape(&shape, &values),
        Constant::OfGraph(tensor) => tensor,
    };
    let shape = &tensor.shape;
    match tensor.constant() {
        Some(TensorBuffer::F32(values)) => Tensor::from_shape(shape, values),
        Some(TensorBuffer::U8(values)) => Tensor::from_shape(shape, values),
        Some(TensorBuffer::I8(values)) => Tensor::from_shape(shape, values),
        Some(TensorBuffer::I32(values)) => Tensor::from_shape(shape, values),
        Some(TensorBuffer::I64(values)) => Tensor::from_shape(shape, values),
        None => operators::proto_tensor(tensor.other_constant().context("a constant")?, shape),
    }
}
