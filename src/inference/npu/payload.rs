//! What goes to a worker to be compiled: the graph as a table, its constants, and the ONNX file or the vendor's blob, in
//! one memory file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ocelli_delegate::abi::NO_TENSOR;
use ocelli_delegate::link::memory;
use ocelli_delegate::wire::{self, Attribute, AttributeValue, Part};

use super::passage::bytes;
use crate::inference::delegate::Segment;
use crate::inference::graph::proto::AttributeProto;
use crate::inference::graph::proto::attribute_proto::AttributeType;
use crate::inference::graph::{Arithmetic, GraphView, Node, NodeSet, TensorId, TensorInfo};
use crate::tensor::ElementType;

/// A memory file to be, and where its parts lie.
#[derive(Default)]
pub(super) struct Payload<'a> {
    parts: Vec<(u64, std::borrow::Cow<'a, [u8]>)>,
    end: u64,
    pub(super) graph: Part,
    pub(super) model: Part,
}

impl<'a> Payload<'a> {
    fn add(&mut self, part: impl Into<std::borrow::Cow<'a, [u8]>>) -> Part {
        let part = part.into();
        let place = Part { at: self.end, n_bytes: part.len() as u64 };
        self.end = (self.end + part.len() as u64).next_multiple_of(64);
        self.parts.push((place.at, part));
        place
    }

    pub(super) fn file(&self) -> io::Result<File> {
        let file = memory(self.end.max(1))?;
        self.parts.iter().try_for_each(|(at, part)| file.write_all_at(part, *at))?;
        Ok(file)
    }
}

/// A compiled model.
pub(super) fn blob(bytes: &[u8]) -> Payload<'_> {
    let mut payload = Payload::default();
    payload.model = payload.add(bytes);
    payload
}

/// Nodes of a graph; with `segment`, also as an ONNX file.
pub(super) fn graph<'a>(
    view: &GraphView<'a>,
    nodes: &NodeSet,
    segment: Option<&Segment<'_>>,
) -> Payload<'a> {
    let mut writer = Writer {
        view: *view,
        payload: Payload::default(),
        numbers: BTreeMap::new(),
        graph: wire::Graph {
            opset: u32::try_from(view.opset()).unwrap_or(0),
            ..wire::Graph::default()
        },
    };
    for node in nodes.iter() {
        let node = writer.node(view.node(node));
        writer.graph.nodes.push(node);
    }
    let (inputs, outputs) = match segment {
        None => (view.inputs().to_vec(), view.outputs().to_vec()),
        Some(segment) => {
            let named = |specs: &[crate::tensor::TensorSpec]| {
                let of = |spec: &crate::tensor::TensorSpec| {
                    view.tensors().iter().position(|tensor| tensor.name == spec.name)
                };
                specs.iter().filter_map(of).collect::<Vec<_>>()
            };
            (named(&segment.io.inputs), named(&segment.io.outputs))
        }
    };
    writer.graph.inputs = inputs.into_iter().map(|tensor| writer.tensor(tensor)).collect();
    writer.graph.outputs = outputs.into_iter().map(|tensor| writer.tensor(tensor)).collect();
    let Writer { mut payload, graph, .. } = writer;
    let json = serde_json::to_vec(&graph).expect("a graph is a tree of plain values");
    payload.graph = payload.add(json);
    payload.model = payload.add(segment.map(Segment::onnx).unwrap_or_default());
    payload
}

struct Writer<'a> {
    view: GraphView<'a>,
    payload: Payload<'a>,
    numbers: BTreeMap<TensorId, u32>,
    graph: wire::Graph,
}

impl Writer<'_> {
    fn node(&mut self, node: &Node) -> wire::Node {
        let mut all = |tensors: &[Option<TensorId>]| {
            let number = |tensor: &Option<TensorId>| tensor.map(|tensor| self.tensor(tensor));
            tensors.iter().map(number).map(|number| number.unwrap_or(NO_TENSOR)).collect()
        };
        let (inputs, outputs) = (all(&node.inputs), all(&node.outputs));
        let finite = |bound: f32| bound.is_finite().then_some(bound);
        wire::Node {
            op: node.op.clone(),
            name: node.name.clone(),
            quantised: node.arithmetic == Arithmetic::Quantised,
            inputs,
            outputs,
            attributes: node.attributes().iter().filter_map(attribute).collect(),
            clip: node.activation.map_or((None, None), |clip| (finite(clip.min), finite(clip.max))),
            macs: node.macs,
        }
    }

    fn tensor(&mut self, id: TensorId) -> u32 {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let tensor: &TensorInfo = self.view.tensor(id);
        let quantisation = tensor.quantisation.as_ref();
        let data = tensor.constant().map(|values| self.payload.add(bytes(values.as_values())));
        let width = tensor.element.map_or(0, width);
        self.graph.tensors.push(wire::Tensor {
            name: tensor.name.clone(),
            dtype: tensor.element.map_or(0, dtype),
            layout: 0,
            dims: tensor.shape.iter().map(|length| *length as i64).collect(),
            scale: quantisation.map(|found| found.scales.clone()).unwrap_or_default(),
            zero_point: quantisation.map(|found| found.zero_points.clone()).unwrap_or_default(),
            axis: quantisation.and_then(|found| found.axis).map(|axis| axis as i32),
            n_bytes: (tensor.len() * width) as u64,
            data: data.map(|part| part.at),
        });
        let number = (self.graph.tensors.len() - 1) as u32;
        self.numbers.insert(id, number);
        number
    }
}

fn attribute(attribute: &AttributeProto) -> Option<Attribute> {
    let value = match attribute.r#type {
        kind if kind == AttributeType::Int as i32 => AttributeValue::Int(attribute.i()),
        kind if kind == AttributeType::Float as i32 => AttributeValue::Float(attribute.f()),
        kind if kind == AttributeType::Ints as i32 => AttributeValue::Ints(attribute.ints.clone()),
        kind if kind == AttributeType::Floats as i32 => {
            AttributeValue::Floats(attribute.floats.clone())
        }
        kind if kind == AttributeType::String as i32 => {
            AttributeValue::Text(String::from_utf8(attribute.s.clone()).ok()?)
        }
        _ => return None,
    };
    Some(Attribute { name: attribute.name.clone(), value })
}

/// ONNX's number of a type.
pub(super) fn dtype(element: ElementType) -> u32 {
    match element {
        ElementType::F32 => 1,
        ElementType::U8 => 2,
        ElementType::I8 => 3,
        ElementType::I32 => 6,
        ElementType::I64 => 7,
    }
}

/// Bytes of an element.
pub(super) fn width(element: ElementType) -> usize {
    match element {
        ElementType::U8 | ElementType::I8 => 1,
        ElementType::F32 | ElementType::I32 => 4,
        ElementType::I64 => 8,
    }
}
