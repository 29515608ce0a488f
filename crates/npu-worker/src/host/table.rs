//! The graph as the C ABI wants it: structs that point into lists kept beside them.

use std::ffi::CString;
use std::ptr::null;

use ocelli_delegate::abi::{self, NO_TENSOR};
use ocelli_delegate::wire::{self, AttributeValue};

use super::{list, text};

/// `ocelli_graph` with all that it points to. Boxed contents do not move when the table does.
pub(super) struct Table {
    graph: Box<abi::Graph>,
    _kept: Vec<Box<dyn std::any::Any>>,
}

/// Keeps lists alive and says where they are.
#[derive(Default)]
struct Keep(Vec<Box<dyn std::any::Any>>);

impl Keep {
    fn list<T: 'static>(&mut self, values: Vec<T>) -> *const T {
        if values.is_empty() {
            return null();
        }
        let values = values.into_boxed_slice();
        let at = values.as_ptr();
        self.0.push(Box::new(values));
        at
    }

    fn text(&mut self, text: &str) -> Result<*const std::ffi::c_char, String> {
        let text = CString::new(text).map_err(|_| format!("name {text:?} holds a NUL"))?;
        let at = text.as_ptr();
        self.0.push(Box::new(text));
        Ok(at)
    }
}

impl Table {
    /// `file` holds the constants. Checks that every place in it, and every number of a tensor, is there.
    pub(super) fn new(graph: &wire::Graph, file: &[u8]) -> Result<Self, String> {
        let mut keep = Keep::default();
        let count = graph.tensors.len() as u32;
        let mut numbers =
            graph.nodes.iter().flat_map(|node| node.inputs.iter().chain(&node.outputs));
        if let Some(wrong) = numbers.find(|number| **number >= count && **number != NO_TENSOR) {
            return Err(format!("a node names tensor {wrong} of {count}"));
        }
        if graph.inputs.iter().chain(&graph.outputs).any(|number| *number >= count) {
            return Err("an input or output of the graph is not there".to_owned());
        }
        let mut tensors = Vec::new();
        for tensor in &graph.tensors {
            tensors.push(self::tensor(tensor, file, &mut keep)?);
        }
        let mut nodes = Vec::new();
        for node in &graph.nodes {
            nodes.push(self::node(node, &mut keep)?);
        }
        let tensors = keep.list(tensors);
        let nodes = keep.list(nodes);
        let pointers = (0..graph.tensors.len()).map(|n| tensors.wrapping_add(n)).collect();
        let tensors = keep.list(pointers);
        let pointers = (0..graph.nodes.len()).map(|n| nodes.wrapping_add(n)).collect();
        let nodes = keep.list(pointers);
        let graph = Box::new(abi::Graph {
            size: size_of::<abi::Graph>() as u32,
            opset: graph.opset,
            n_tensors: count,
            n_nodes: graph.nodes.len() as u32,
            n_inputs: graph.inputs.len() as u32,
            n_outputs: graph.outputs.len() as u32,
            tensors,
            nodes,
            inputs: keep.list(graph.inputs.clone()),
            outputs: keep.list(graph.outputs.clone()),
        });
        Ok(Self { graph, _kept: keep.0 })
    }

    pub(super) fn as_ptr(&self) -> *const abi::Graph {
        &raw const *self.graph
    }
}

fn tensor(tensor: &wire::Tensor, file: &[u8], keep: &mut Keep) -> Result<abi::Tensor, String> {
    let wrong = |what: &str| format!("tensor `{}`: {what}", tensor.name);
    if tensor.scale.len() != tensor.zero_point.len() {
        return Err(wrong("scales and zero points differ in number"));
    }
    let slices = tensor.axis.map(|axis| {
        let length = usize::try_from(axis).ok().and_then(|axis| tensor.dims.get(axis));
        length.is_some_and(|length| usize::try_from(*length) == Ok(tensor.scale.len()))
    });
    if slices == Some(false) {
        return Err(wrong("its scales do not fit its axis"));
    }
    let data = match tensor.data {
        None => null(),
        Some(at) => {
            let found = super::part(file, wire::Part { at, n_bytes: tensor.n_bytes });
            found.ok_or_else(|| wrong("its values are not in the file"))?.as_ptr().cast()
        }
    };
    Ok(abi::Tensor {
        size: size_of::<abi::Tensor>() as u32,
        dtype: tensor.dtype,
        rank: tensor.dims.len() as u32,
        layout: tensor.layout,
        dims: keep.list(tensor.dims.clone()),
        name: keep.text(&tensor.name)?,
        quant: if tensor.scale.is_empty() { 0 } else { 1 + u32::from(tensor.axis.is_some()) },
        axis: tensor.axis.unwrap_or(0),
        n_scales: tensor.scale.len() as u32,
        reserved: 0,
        scale: keep.list(tensor.scale.clone()),
        zero_point: keep.list(tensor.zero_point.clone()),
        n_bytes: tensor.n_bytes,
        data,
    })
}

fn node(node: &wire::Node, keep: &mut Keep) -> Result<abi::Node, String> {
    let mut attributes = Vec::new();
    for one in &node.attributes {
        attributes.push(attribute(one, keep)?);
    }
    let count = attributes.len();
    let attributes = keep.list(attributes);
    let pointers = (0..count).map(|place| attributes.wrapping_add(place)).collect();
    Ok(abi::Node {
        size: size_of::<abi::Node>() as u32,
        arithmetic: node.quantised.into(),
        op: keep.text(&node.op)?,
        name: keep.text(&node.name)?,
        n_inputs: node.inputs.len() as u32,
        n_outputs: node.outputs.len() as u32,
        inputs: keep.list(node.inputs.clone()),
        outputs: keep.list(node.outputs.clone()),
        attributes: keep.list(pointers),
        n_attributes: count as u32,
        clip_min: node.clip.0.unwrap_or(f32::NEG_INFINITY),
        clip_max: node.clip.1.unwrap_or(f32::INFINITY),
        reserved: 0,
        macs: node.macs,
    })
}

fn attribute(attribute: &wire::Attribute, keep: &mut Keep) -> Result<abi::Attribute, String> {
    let mut out = abi::Attribute {
        size: size_of::<abi::Attribute>() as u32,
        kind: 0,
        name: keep.text(&attribute.name)?,
        i: 0,
        f: 0.0,
        count: 0,
        ints: null(),
        floats: null(),
        text: null(),
    };
    match &attribute.value {
        AttributeValue::Int(value) => (out.kind, out.i) = (1, *value),
        AttributeValue::Float(value) => (out.kind, out.f) = (2, *value),
        AttributeValue::Ints(values) => {
            (out.kind, out.count, out.ints) = (3, values.len() as u32, keep.list(values.clone()));
        }
        AttributeValue::Floats(values) => {
            (out.kind, out.count, out.floats) = (4, values.len() as u32, keep.list(values.clone()));
        }
        AttributeValue::Text(value) => (out.kind, out.text) = (5, keep.text(value)?),
    }
    Ok(out)
}

/// What a plug-in says of a tensor; `None` when that cannot be.
pub(super) fn read_tensor(tensor: &abi::Tensor) -> Option<wire::Tensor> {
    if (tensor.size as usize) < size_of::<abi::Tensor>() || tensor.rank > 16 {
        return None;
    }
    let scales = if tensor.quant == 0 { 0 } else { tensor.n_scales };
    // SAFETY: the plug-in says how many there are; rank and list lengths have a limit.
    let (dims, scale, zero_point, name) = unsafe {
        let dims = list(tensor.dims, tensor.rank)?;
        (dims, list(tensor.scale, scales)?, list(tensor.zero_point, scales)?, text(tensor.name))
    };
    Some(wire::Tensor {
        name,
        dtype: tensor.dtype,
        layout: tensor.layout,
        dims,
        scale,
        zero_point,
        axis: (tensor.quant == 2).then_some(tensor.axis),
        n_bytes: tensor.n_bytes,
        data: None,
    })
}
