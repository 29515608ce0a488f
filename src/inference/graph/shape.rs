//! Static shapes and types of every tensor, operator by operator, in topological order.
//!
//! Integer tensors that only describe shapes (Shape → Gather → Concat → Reshape) are computed here and become
//! constants. An operator without a rule is refused: its memory could not be bounded.

mod fold;
mod layout;
mod window;

use crate::inference::graph::proto::tensor_proto::DataType;

use super::constant::{data_type_of, element_of, integers};
use super::parse::{RawGraph, RawNode, at_most, check_shape, make_names_unique};
use super::{Constant, GraphError, Limits, TensorInfo, tables};
use crate::tensor::{ElementType, TensorBuffer};

/// Shape and ONNX data type of an output.
type Fact = (Vec<usize>, i32);

/// What a rule may look at: a node and the tensors before it.
struct Scope<'a> {
    node: &'a RawNode,
    tensors: &'a [TensorInfo],
    opset: i64,
}

impl<'a> Scope<'a> {
    fn tensor(&self, place: usize) -> Result<&'a TensorInfo, GraphError> {
        let tensor = self.node.input(place);
        tensor
            .map(|tensor| &self.tensors[tensor])
            .ok_or_else(|| self.invalid(&format!("input {place} is missing")))
    }

    fn shape(&self, place: usize) -> Result<&'a [usize], GraphError> {
        Ok(&self.tensor(place)?.shape)
    }

    /// Integers of a constant input; `None` where the input is left out.
    fn list(&self, place: usize) -> Result<Option<Vec<i64>>, GraphError> {
        let Some(tensor) = self.node.input(place) else { return Ok(None) };
        let tensor = &self.tensors[tensor];
        match tensor.constant().and_then(integers) {
            Some(list) => Ok(Some(list)),
            None => Err(GraphError::DynamicShape(format!(
                "input `{}` of node `{}` ({}) is computed while the model runs",
                tensor.name, self.node.name, self.node.op
            ))),
        }
    }

    /// A list that moved from an attribute to an input in a later operator set.
    fn list_or_attribute(
        &self,
        place: usize,
        attribute: &str,
    ) -> Result<Option<Vec<i64>>, GraphError> {
        match self.node.ints(attribute) {
            Some(list) => Ok(Some(list.to_vec())),
            None => self.list(place),
        }
    }

    fn axis(&self, axis: i64, rank: usize) -> Result<usize, GraphError> {
        let wrapped = if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis };
        usize::try_from(wrapped)
            .ok()
            .filter(|axis| *axis < rank)
            .ok_or_else(|| self.invalid(&format!("axis {axis} of a tensor with {rank} dimensions")))
    }

    fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, GraphError> {
        let mut axes =
            axes.iter().map(|axis| self.axis(*axis, rank)).collect::<Result<Vec<_>, _>>()?;
        axes.sort_unstable();
        axes.dedup();
        Ok(axes)
    }

    fn invalid(&self, what: &str) -> GraphError {
        GraphError::Invalid(format!("node `{}` ({}): {what}", self.node.name, self.node.op))
    }

    fn unsupported(&self, what: &str) -> GraphError {
        GraphError::Unsupported(format!("node `{}` ({}): {what}", self.node.name, self.node.op))
    }
}

/// Fills in every tensor's shape and type, and turns computed shape tensors into constants.
pub(super) fn infer(mut graph: RawGraph, limits: &Limits) -> Result<RawGraph, GraphError> {
    make_names_unique(&mut graph.nodes, &graph.tensors);
    let mut total = 0;
    let mut folded = vec![false; graph.nodes.len()];
    for (place, node) in graph.nodes.iter().enumerate() {
        let scope = Scope { node, tensors: &graph.tensors, opset: graph.opset };
        let facts = facts(&scope)?;
        if facts.len() < node.outputs.len() {
            return Err(scope.invalid("it has more outputs than its operator writes"));
        }
        let value = fold::fold(&scope);
        for (output, (shape, data_type)) in node.outputs.iter().zip(facts) {
            let Some(output) = *output else { continue };
            let whose = format!("tensor `{}`", graph.tensors[output].name);
            total += check_shape(&shape, &whose, limits)?;
            at_most("number of elements of all tensors", total, limits.total_elements)?;
            let tensor = &mut graph.tensors[output];
            (tensor.shape, tensor.data_type) = (shape, data_type);
            tensor.element = element_of(data_type);
        }
        if let Some((output, list)) = node.output().zip(value)
            && graph.tensors[output].element == Some(ElementType::I64)
            && graph.tensors[output].len() == list.len()
            && !graph.outputs.contains(&output)
        {
            graph.tensors[output].constant = Some(Constant::Values(TensorBuffer::I64(list)));
            folded[place] = true;
        }
    }
    let mut place = 0;
    graph.nodes.retain(|_| {
        place += 1;
        !folded[place - 1]
    });
    Ok(graph)
}

fn facts(scope: &Scope<'_>) -> Result<Vec<Fact>, GraphError> {
    let node = scope.node;
    let op = tables::plain_of(&node.op).unwrap_or(&node.op);
    if op != node.op {
        return quantised_facts(scope, op);
    }
    let first = || scope.tensor(0).map(|tensor| (tensor.shape.clone(), tensor.data_type));
    if tables::SAME_SHAPE.contains(&op) {
        // Dropout's mask and the running statistics of training have the shape of the data at most.
        let fact = first()?;
        return Ok(vec![fact; node.outputs.len().max(1)]);
    }
    if tables::BROADCAST.contains(&op) {
        return Ok(vec![(broadcast_inputs(scope, 0)?, first()?.1)]);
    }
    if tables::COMPARE.contains(&op) {
        return Ok(vec![(broadcast_inputs(scope, 0)?, DataType::Bool as i32)]);
    }
    if tables::REDUCE.contains(&op) {
        return Ok(vec![(layout::reduce(scope)?, first()?.1)]);
    }
    let float = DataType::Float as i32;
    Ok(match op {
        "Cast" => {
            vec![(first()?.0, i32::try_from(node.int("to", 0)).unwrap_or_default())]
        }
        "DequantizeLinear" => vec![(first()?.0, float)],
        "QuantizeLinear" => {
            let zero_point = node.input(2).map(|tensor| scope.tensors[tensor].data_type);
            let named = i32::try_from(node.int("output_dtype", 0)).unwrap_or_default();
            let named = if named == 0 { DataType::Uint8 as i32 } else { named };
            vec![(first()?.0, zero_point.unwrap_or(named))]
        }
        "Where" => vec![(broadcast_inputs(scope, 0)?, scope.tensor(1)?.data_type)],
        "ArgMax" | "ArgMin" => vec![(layout::arg_reduce(scope)?, DataType::Int64 as i32)],
        "TopK" => {
            let shape = layout::top_k(scope)?;
            vec![(shape.clone(), first()?.1), (shape, DataType::Int64 as i32)]
        }
        "Shape" | "Size" => layout::shape_of(scope)?,
        "ConstantOfShape" => layout::constant_of_shape(scope)?,
        "Split" => {
            let shapes = layout::split(scope)?;
            let data_type = first()?.1;
            shapes.into_iter().map(|shape| (shape, data_type)).collect()
        }
        "MaxPool" => {
            let shape = window::pool(scope)?;
            vec![(shape.clone(), first()?.1), (shape, DataType::Int64 as i32)]
        }
        _ => vec![(plain_shape(scope, op)?, first()?.1)],
    })
}

/// Operators with one output of the first input's type.
fn plain_shape(scope: &Scope<'_>, op: &str) -> Result<Vec<usize>, GraphError> {
    match op {
        "Conv" => window::conv(scope, scope.shape(0)?, scope.shape(1)?),
        "ConvTranspose" => window::conv_transpose(scope),
        "AveragePool" => window::pool(scope),
        "GlobalAveragePool" | "GlobalMaxPool" => window::global_pool(scope),
        "MatMul" => layout::matmul(scope, scope.shape(0)?, scope.shape(1)?),
        "Gemm" => layout::gemm(scope, scope.shape(0)?, scope.shape(1)?),
        "Concat" => {
            let shapes = (0..scope.node.inputs.len()).map(|place| scope.shape(place));
            layout::concat(scope, &shapes.collect::<Result<Vec<_>, _>>()?)
        }
        "Reshape" => layout::reshape(scope),
        "Flatten" => layout::flatten(scope),
        "Transpose" => layout::transpose(scope),
        "Squeeze" => layout::squeeze(scope),
        "Unsqueeze" => layout::unsqueeze(scope),
        "Expand" => layout::expand(scope),
        "Tile" => layout::tile(scope),
        "Slice" => layout::slice(scope),
        "Gather" => layout::gather(scope),
        "Pad" => layout::pad(scope),
        "Resize" => window::resize(scope),
        "DepthToSpace" | "SpaceToDepth" => window::depth_space(scope),
        _ => Err(scope.unsupported("the operator is not among those that Ocelli runs")),
    }
}

/// onnxruntime's quantised operators: data at other places, output of the type of its zero point.
fn quantised_facts(scope: &Scope<'_>, op: &str) -> Result<Vec<Fact>, GraphError> {
    let (shape, zero_point) = match op {
        "Conv" => (window::conv(scope, scope.shape(0)?, scope.shape(3)?)?, 7),
        "MatMul" => (layout::matmul(scope, scope.shape(0)?, scope.shape(3)?)?, 7),
        "Gemm" => (layout::gemm(scope, scope.shape(0)?, scope.shape(3)?)?, 8),
        "Add" | "Mul" => (broadcast(scope, &[scope.shape(0)?, scope.shape(3)?])?, 7),
        "Concat" => {
            let places = (2..scope.node.inputs.len()).step_by(3);
            let shapes = places.map(|place| scope.shape(place)).collect::<Result<Vec<_>, _>>()?;
            (layout::concat(scope, &shapes)?, 1)
        }
        "AveragePool" => (window::pool(scope)?, 4),
        "GlobalAveragePool" => (window::global_pool(scope)?, 4),
        "ReduceMean" => (layout::reduce(scope)?, 4),
        _ => (scope.shape(0)?.to_vec(), 4),
    };
    let data_type = match scope.node.input(zero_point) {
        Some(tensor) => scope.tensors[tensor].data_type,
        // QGemm without an output scale answers floats; elsewhere the zero point is 0 of the input's type.
        None if op == "Gemm" && scope.node.input(7).is_none() => data_type_of(ElementType::F32),
        None => scope.tensor(if op == "Concat" { 2 } else { 0 })?.data_type,
    };
    Ok(vec![(shape, data_type)])
}

fn broadcast_inputs(scope: &Scope<'_>, from: usize) -> Result<Vec<usize>, GraphError> {
    let shapes = (from..scope.node.inputs.len()).map(|place| scope.shape(place));
    broadcast(scope, &shapes.collect::<Result<Vec<_>, _>>()?)
}

fn broadcast(scope: &Scope<'_>, shapes: &[&[usize]]) -> Result<Vec<usize>, GraphError> {
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut result = vec![1; rank];
    for shape in shapes {
        let offset = rank - shape.len();
        for (place, length) in shape.iter().enumerate() {
            let known = &mut result[offset + place];
            match (*known, *length) {
                (a, b) if a == b => {}
                (1, b) => *known = b,
                (_, 1) => {}
                _ => return Err(scope.invalid(&format!("shapes {shapes:?} do not broadcast"))),
            }
        }
    }
    Ok(result)
}
