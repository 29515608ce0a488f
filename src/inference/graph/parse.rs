//! From bytes to nodes and tensors by number: caps, names, order. Shapes of computed tensors come later.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::inference::graph::proto::tensor_shape_proto::dimension::Value as Dimension;
use crate::inference::graph::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, type_proto,
};
use prost::Message as _;

use super::constant::{self, element_of};
use super::sort::topological_order;
use super::{Constant, GraphError, Limits, TensorId, TensorInfo, tables, wire};

/// A node with its tensors by number.
#[derive(Debug)]
pub(super) struct RawNode {
    pub name: String,
    pub op: String,
    pub attributes: Vec<AttributeProto>,
    pub inputs: Vec<Option<TensorId>>,
    pub outputs: Vec<Option<TensorId>>,
}

impl RawNode {
    pub(super) fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.i())
    }

    pub(super) fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|attribute| attribute.ints.as_slice())
    }

    pub(super) fn text(&self, name: &str) -> &str {
        let text = self.attribute(name).and_then(|found| std::str::from_utf8(&found.s).ok());
        text.unwrap_or("")
    }

    pub(super) fn input(&self, place: usize) -> Option<TensorId> {
        self.inputs.get(place).copied().flatten()
    }

    pub(super) fn output(&self) -> Option<TensorId> {
        self.outputs.first().copied().flatten()
    }
}

/// The graph before shapes are known. Nodes are in topological order.
#[derive(Debug)]
pub(super) struct RawGraph {
    pub name: String,
    pub opset: i64,
    pub nodes: Vec<RawNode>,
    pub tensors: Vec<TensorInfo>,
    pub inputs: Vec<TensorId>,
    pub outputs: Vec<TensorId>,
}

pub(super) fn parse(onnx: &[u8], limits: &Limits) -> Result<RawGraph, GraphError> {
    at_most("bytes of the model file", onnx.len(), limits.model_bytes)?;
    wire::check(onnx)?;
    let model = ModelProto::decode(onnx).map_err(|error| {
        GraphError::Malformed(format!("{error}; the file may be truncated, or no ONNX file"))
    })?;
    let opset = opset(&model)?;
    if !model.functions.is_empty() {
        return Err(GraphError::Unsupported("model-local functions; inline them".into()));
    }
    let Some(graph) = model.graph else {
        return Err(GraphError::Malformed("it holds no graph".into()));
    };
    at_most("number of nodes", graph.node.len(), limits.nodes)?;
    at_most("number of initializers", graph.initializer.len(), limits.initializers)?;
    if !graph.sparse_initializer.is_empty() {
        return Err(GraphError::Unsupported("sparse initializers; store them dense".into()));
    }
    Names::default().read(graph, opset, limits)
}

fn opset(model: &ModelProto) -> Result<i64, GraphError> {
    let version = model
        .opset_import
        .iter()
        .find(|import| matches!(import.domain.as_str(), "" | "ai.onnx"))
        .map(|import| import.version)
        .ok_or_else(|| GraphError::Invalid("no operator set of the default domain named".into()))?;
    if tables::OPSETS.contains(&version) {
        return Ok(version);
    }
    Err(GraphError::Unsupported(format!(
        "operator set {version}; export with one from {} to {}",
        tables::OPSETS.start(),
        tables::OPSETS.end()
    )))
}

pub(super) fn at_most(what: &str, found: usize, limit: usize) -> Result<(), GraphError> {
    if found <= limit {
        return Ok(());
    }
    Err(GraphError::TooLarge { what: what.into(), found: found as u128, limit: limit as u128 })
}

/// Gives every tensor name a number.
#[derive(Default)]
struct Names {
    ids: HashMap<String, TensorId>,
    tensors: Vec<TensorInfo>,
    elements: usize,
}

impl Names {
    fn read(
        mut self,
        graph: GraphProto,
        opset: i64,
        limits: &Limits,
    ) -> Result<RawGraph, GraphError> {
        for proto in graph.initializer {
            let name = proto.name.clone();
            let constant = constant::decode(proto, limits)?;
            self.add_constant(&name, constant, limits)?;
        }
        let mut inputs = Vec::new();
        for info in &graph.input {
            if !self.ids.contains_key(&info.name) {
                inputs.push(self.add_input(info, limits)?);
            }
        }
        let mut nodes = Vec::new();
        let order = topological_order(&graph.node, |name| self.ids.contains_key(name))?;
        let mut protos: Vec<_> = graph.node.into_iter().map(Some).collect();
        for place in order {
            let proto = protos[place].take().expect("an order names each node once");
            if proto.op_type == "Constant" {
                self.add_constant_node(proto, limits)?;
            } else {
                nodes.push(self.add_node(proto)?);
            }
        }
        let outputs = graph.output.iter().map(|info| self.known(&info.name, "the graph's outputs"));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let distinct: HashSet<_> = outputs.iter().collect();
        if outputs.is_empty() || distinct.len() != outputs.len() {
            return Err(GraphError::Invalid("it has no output, or one twice".into()));
        }
        Ok(RawGraph { name: graph.name, opset, nodes, tensors: self.tensors, inputs, outputs })
    }

    fn add(&mut self, name: &str, tensor: TensorInfo) -> Result<TensorId, GraphError> {
        if name.is_empty() || name.contains('\0') {
            return Err(GraphError::Invalid("a tensor without a name".into()));
        }
        if self.ids.insert(name.to_owned(), self.tensors.len()).is_some() {
            return Err(GraphError::Invalid(format!("tensor `{name}` is written twice")));
        }
        self.tensors.push(tensor);
        Ok(self.tensors.len() - 1)
    }

    fn add_constant(
        &mut self,
        name: &str,
        (shape, data_type, constant): (Vec<usize>, i32, Constant),
        limits: &Limits,
    ) -> Result<TensorId, GraphError> {
        self.elements += shape.iter().product::<usize>();
        at_most("number of elements of all constants", self.elements, limits.total_elements)?;
        let constant = Some(constant);
        self.add(name, TensorInfo { shape, data_type, constant, ..empty(name, data_type) })
    }

    fn add_constant_node(&mut self, proto: NodeProto, limits: &Limits) -> Result<(), GraphError> {
        let [name] = proto.output.as_slice() else {
            return Err(GraphError::Invalid(format!("Constant `{}` has no output", proto.name)));
        };
        let name = name.clone();
        let constant = constant::of_node(proto, limits)?;
        self.add_constant(&name, constant, limits).map(|_| ())
    }

    fn add_input(
        &mut self,
        info: &ValueInfoProto,
        limits: &Limits,
    ) -> Result<TensorId, GraphError> {
        let name = &info.name;
        let Some(type_proto::Value::TensorType(tensor)) =
            info.r#type.as_ref().and_then(|found| found.value.as_ref())
        else {
            return Err(GraphError::Unsupported(format!("input `{name}` is no tensor")));
        };
        let Some(dimensions) = &tensor.shape else {
            return Err(GraphError::DynamicShape(format!("input `{name}` has no shape")));
        };
        let mut shape = Vec::new();
        for (place, dimension) in dimensions.dim.iter().enumerate() {
            shape.push(match &dimension.value {
                Some(Dimension::DimValue(length)) if *length > 0 => {
                    usize::try_from(*length).unwrap_or(usize::MAX)
                }
                // A batch of unknown size: we run one picture at a time.
                Some(Dimension::DimParam(_)) | None if place == 0 => 1,
                Some(Dimension::DimValue(0)) if place == 0 => 1,
                Some(Dimension::DimParam(symbol)) => {
                    let what = format!("dimension {place} of input `{name}` is `{symbol}`");
                    return Err(GraphError::DynamicShape(what));
                }
                _ => {
                    let what = format!("dimension {place} of input `{name}` is not a number");
                    return Err(GraphError::DynamicShape(what));
                }
            });
        }
        check_shape(&shape, &format!("input `{name}`"), limits)?;
        self.add(name, TensorInfo { shape, ..empty(name, tensor.elem_type) })
    }

    fn add_node(&mut self, proto: NodeProto) -> Result<RawNode, GraphError> {
        let first = proto.output.iter().find(|name| !name.is_empty());
        let Some(name) = Some(&proto.name).filter(|name| !name.is_empty()).or(first).cloned()
        else {
            return Err(GraphError::Invalid(format!("a node {} has no output", proto.op_type)));
        };
        if !tables::known_domain(&proto.domain) {
            let what = format!("domain `{}` of node `{name}` ({})", proto.domain, proto.op_type);
            return Err(GraphError::Unsupported(what));
        }
        let nested = |attribute: &AttributeProto| {
            attribute.g.is_some()
                || !attribute.graphs.is_empty()
                || attribute.sparse_tensor.is_some()
        };
        if proto.attribute.iter().any(nested) {
            let what = format!("node `{name}` ({}) holds a graph of its own", proto.op_type);
            return Err(GraphError::Unsupported(what));
        }
        let mut inputs = Vec::new();
        for input in &proto.input {
            let named = (!input.is_empty()).then_some(input);
            inputs
                .push(named.map(|input| self.known(input, &format!("node `{name}`"))).transpose()?);
        }
        let mut outputs = Vec::new();
        for output in &proto.output {
            let named = (!output.is_empty()).then_some(output);
            outputs.push(named.map(|output| self.add(output, empty(output, 0))).transpose()?);
        }
        let (op, attributes) = (proto.op_type, proto.attribute);
        Ok(RawNode { name, op, attributes, inputs, outputs })
    }

    fn known(&self, name: &str, reader: &str) -> Result<TensorId, GraphError> {
        self.ids.get(name).copied().ok_or_else(|| {
            GraphError::Invalid(format!("{reader} reads `{name}`, which nothing writes"))
        })
    }
}

fn empty(name: &str, data_type: i32) -> TensorInfo {
    TensorInfo {
        name: name.to_owned(),
        element: element_of(data_type),
        shape: Vec::new(),
        quantisation: None,
        producer: None,
        consumers: Vec::new(),
        data_type,
        constant: None,
    }
}

/// Checks rank and number of elements, and returns the latter.
pub(super) fn check_shape(
    shape: &[usize],
    whose: &str,
    limits: &Limits,
) -> Result<usize, GraphError> {
    at_most(&format!("number of dimensions of {whose}"), shape.len(), limits.rank)?;
    let elements =
        shape.iter().try_fold(1_u128, |product, length| product.checked_mul(*length as u128));
    let elements = elements.unwrap_or(u128::MAX);
    if elements > limits.tensor_elements as u128 {
        return Err(GraphError::TooLarge {
            what: format!("number of elements of {whose}"),
            found: elements,
            limit: limits.tensor_elements as u128,
        });
    }
    Ok(usize::try_from(elements).expect("at most the limit"))
}

/// Duplicate node names would confuse reports and tract; the second gets its output's name.
pub(super) fn make_names_unique(nodes: &mut [RawNode], tensors: &[TensorInfo]) {
    let mut seen = BTreeMap::new();
    for node in nodes {
        if seen.insert(node.name.clone(), ()).is_some()
            && let Some(output) = node.output()
        {
            node.name.clone_from(&tensors[output].name);
        }
    }
}
