//! Writes ONNX: a part of a graph as a self-contained file, in QDQ form, with operators of the default domain.

use std::collections::HashSet;

use crate::inference::graph::proto::attribute_proto::AttributeType;
use crate::inference::graph::proto::tensor_shape_proto::{Dimension, dimension};
use crate::inference::graph::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use prost::Message as _;

use super::constant::data_type_of;
use super::{
    Activation, Arithmetic, Constant, GraphView, Node, NodeSet, TensorId, TensorInfo,
    TensorQuantisation,
};
use crate::inference::delegate::SegmentIo;
use crate::tensor::{ElementType, TensorBuffer, TensorSpec};

/// A model under construction. Initializers of one name are written once.
#[derive(Debug, Default)]
pub(in crate::inference) struct Encoder {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    written: HashSet<String>,
}

impl Encoder {
    /// Adds a node; every output name must be new.
    pub(in crate::inference) fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            name: format!("{}/{op}/{}", outputs.first().unwrap_or(&""), self.nodes.len()),
            input: owned(inputs),
            output: owned(outputs),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    /// Whether a name was given by [`Encoder::claim`], as the caller's mark that a tensor is there.
    pub(in crate::inference) fn claim(&mut self, name: &str) -> bool {
        self.written.insert(name.to_owned())
    }

    /// Adds a constant, unless its name is there.
    pub(in crate::inference) fn constant(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &TensorBuffer,
    ) {
        if self.claim(name) {
            self.initializers.push(initializer(name, shape, values));
        }
    }

    /// Adds a tensor of the graph if it is a constant of the file.
    pub(in crate::inference) fn graph_constant(&mut self, tensor: &TensorInfo) {
        match &tensor.constant {
            Some(Constant::Values(values)) => self.constant(&tensor.name, &tensor.shape, values),
            Some(Constant::Other(proto)) if self.claim(&tensor.name) => {
                self.initializers.push(proto.as_ref().clone());
            }
            _ => {}
        }
    }

    /// The model with its border.
    pub(in crate::inference) fn finish(self, name: &str, opset: i64, io: &SegmentIo) -> ModelProto {
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
            producer_name: "ocelli".to_owned(),
            graph: Some(GraphProto {
                name: name.to_owned(),
                node: self.nodes,
                initializer: self.initializers,
                input: io.inputs.iter().map(value_info).collect(),
                output: io.outputs.iter().map(value_info).collect(),
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }
}

fn value_info(spec: &TensorSpec) -> ValueInfoProto {
    let length = |length: &usize| Dimension {
        value: i64::try_from(*length).ok().map(dimension::Value::DimValue),
    };
    let tensor = type_proto::Tensor {
        elem_type: data_type_of(spec.element),
        shape: Some(TensorShapeProto { dim: spec.shape.iter().map(length).collect() }),
    };
    let value = Some(type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value });
    ValueInfoProto { name: spec.name.clone(), r#type }
}

fn initializer(name: &str, shape: &[usize], values: &TensorBuffer) -> TensorProto {
    let raw_data = match values {
        TensorBuffer::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        TensorBuffer::U8(values) => values.clone(),
        TensorBuffer::I8(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        TensorBuffer::I32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        TensorBuffer::I64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    TensorProto {
        name: name.to_owned(),
        dims: shape.iter().filter_map(|length| i64::try_from(*length).ok()).collect(),
        data_type: data_type_of(values.as_values().element()),
        raw_data,
        ..TensorProto::default()
    }
}

/// An integer attribute.
pub(in crate::inference) fn int_attribute(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.to_owned(), r#type, i: Some(i), ..AttributeProto::default() }
}

/// Nodes of a graph as an ONNX file of their own.
pub(in crate::inference) fn slice(
    graph: &GraphView<'_>,
    nodes: &NodeSet,
    io: &SegmentIo,
) -> Vec<u8> {
    let mut slicer = Slicer { graph, encoder: Encoder::default() };
    for node in nodes.iter() {
        slicer.node(graph.node(node));
    }
    slicer.encoder.finish(graph.name, graph.opset(), io).encode_to_vec()
}

struct Slicer<'a> {
    graph: &'a GraphView<'a>,
    encoder: Encoder,
}

impl Slicer<'_> {
    fn node(&mut self, node: &Node) {
        let quantised = node.arithmetic == Arithmetic::Quantised;
        let mut inputs = Vec::new();
        for input in &node.inputs {
            inputs.push(match input {
                None => String::new(),
                Some(input) if quantised => self.dequantised(*input),
                Some(input) => self.plain(*input),
            });
        }
        let mut outputs = Vec::new();
        let mut quantise = Vec::new();
        for output in &node.outputs {
            let Some(output) = output else {
                outputs.push(String::new());
                continue;
            };
            let tensor = self.graph.tensor(*output);
            match &tensor.quantisation {
                Some(found) if quantised => {
                    let float = format!("{}::float", tensor.name);
                    quantise.push((
                        float.clone(),
                        tensor.name.clone(),
                        found.clone(),
                        tensor.element,
                    ));
                    outputs.push(float);
                }
                _ => outputs.push(tensor.name.clone()),
            }
        }
        let inputs: Vec<_> = inputs.iter().map(String::as_str).collect();
        let names: Vec<_> = outputs.iter().map(String::as_str).collect();
        self.encoder.node(&node.op, &inputs, &names, node.attributes().to_vec());
        for (mut float, name, found, element) in quantise {
            if let Some(activation) = node.activation {
                float = clip(&mut self.encoder, &float, activation, self.graph.opset());
            }
            let (scale, zero_point) = self.parameters(&name, &found, element);
            self.encoder.node("QuantizeLinear", &[&float, &scale, &zero_point], &[&name], vec![]);
        }
    }

    fn plain(&mut self, tensor: TensorId) -> String {
        let tensor = self.graph.tensor(tensor);
        self.encoder.graph_constant(tensor);
        tensor.name.clone()
    }

    fn dequantised(&mut self, tensor: TensorId) -> String {
        let name = self.plain(tensor);
        let tensor = self.graph.tensor(tensor);
        let Some(found) = &tensor.quantisation else { return name };
        let float = format!("{name}::dequantised");
        if self.encoder.claim(&float) {
            let (scale, zero_point) = self.parameters(&name, found, tensor.element);
            let axis = found.axis.and_then(|axis| i64::try_from(axis).ok());
            let attributes = axis.map(|axis| int_attribute("axis", axis)).into_iter().collect();
            let inputs = [name.as_str(), &scale, &zero_point];
            self.encoder.node("DequantizeLinear", &inputs, &[&float], attributes);
        }
        float
    }

    fn parameters(
        &mut self,
        name: &str,
        found: &TensorQuantisation,
        element: Option<ElementType>,
    ) -> (String, String) {
        let (scale, zero_point) = (format!("{name}::scale"), format!("{name}::zero_point"));
        let shape: &[usize] = if found.axis.is_some() { &[found.scales.len()] } else { &[] };
        self.encoder.constant(&scale, shape, &TensorBuffer::F32(found.scales.clone()));
        let values = &found.zero_points;
        let zero_points = match element {
            Some(ElementType::I8) => TensorBuffer::I8(
                values.iter().map(|value| i8::try_from(*value).unwrap_or(0)).collect(),
            ),
            Some(ElementType::I32) => TensorBuffer::I32(values.clone()),
            _ => TensorBuffer::U8(
                values.iter().map(|value| u8::try_from(*value).unwrap_or(0)).collect(),
            ),
        };
        self.encoder.constant(&zero_point, shape, &zero_points);
        (scale, zero_point)
    }
}

/// Writes an activation behind a float tensor and returns the new name.
fn clip(
    encoder: &mut Encoder,
    float: &str,
    Activation { min, max }: Activation,
    opset: i64,
) -> String {
    let clipped = format!("{float}::clipped");
    if min.to_bits() == 0 && max == f32::INFINITY {
        encoder.node("Relu", &[float], &[&clipped], vec![]);
    } else if opset < 11 {
        // The bounds became inputs in operator set 11.
        let bounds = vec![float_attribute("min", min), float_attribute("max", max)];
        encoder.node("Clip", &[float], &[&clipped], bounds);
    } else {
        let (low, high) = (format!("{clipped}::min"), format!("{clipped}::max"));
        encoder.constant(&low, &[], &TensorBuffer::F32(vec![min]));
        encoder.constant(&high, &[], &TensorBuffer::F32(vec![max]));
        encoder.node("Clip", &[float, &low, &high], &[&clipped], vec![]);
    }
    clipped
}

fn float_attribute(name: &str, f: f32) -> AttributeProto {
    let r#type = AttributeType::Float as i32;
    AttributeProto { name: name.to_owned(), r#type, f: Some(f), ..AttributeProto::default() }
}
