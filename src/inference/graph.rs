//! A normalised, read-only view of an ONNX graph: nodes, static shapes, quantisation per tensor.
//!
//! QDQ and QOperator files come out in one form: an operator on tensors that carry their own quantisation. A node
//! with [`Arithmetic::Quantised`] means "dequantise the inputs, apply the operator and its activation, quantise the
//! outputs"; the DequantizeLinear and QuantizeLinear nodes around it are folded into it, weights included. What does
//! not fit that form stays as written, on floats. Every tensor has a static shape: a file for which that cannot be
//! said is refused, and so is anything above the [`Limits`], before memory is spent on it.

mod constant;
mod normalise;
mod parse;
pub(in crate::inference) mod proto;
mod shape;
mod slice;
mod sort;
mod tables;
mod wire;

use std::collections::BTreeSet;

use self::proto::{AttributeProto, TensorProto};
use crate::tensor::{ElementType, Quantisation, TensorBuffer, TensorSpec};

pub(in crate::inference) use slice::slice;
#[cfg(test)]
pub(in crate::inference) use slice::{Encoder, int_attribute};

/// Index of a node in [`GraphView`] order (topological).
pub type NodeId = usize;

/// Index of a tensor of a graph.
pub type TensorId = usize;

/// A set of nodes of one graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSet(pub BTreeSet<NodeId>);

impl NodeSet {
    /// The members in topological order.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }

    /// Whether a node belongs to the set.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.contains(&node)
    }

    /// Number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        Self(nodes.into_iter().collect())
    }
}

/// Caps on what a model file may ask for. They hold before any buffer of that size exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub model_bytes: usize,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Constants of the graph.
    pub initializers: usize,
    /// Dimensions of a tensor.
    pub rank: usize,
    /// Elements of one tensor.
    pub tensor_elements: usize,
    /// Elements of all tensors together.
    pub total_elements: usize,
    /// Multiply-accumulates of one run.
    pub macs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            model_bytes: 256 << 20,
            nodes: 20_000,
            initializers: 50_000,
            rank: 8,
            tensor_elements: 64 << 20,
            total_elements: 512 << 20,
            macs: 1 << 40,
        }
    }
}

/// Why a file is not a graph that we run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The bytes are not an ONNX file.
    #[error("not an ONNX file: {0}")]
    Malformed(String),
    /// Larger than we allow.
    #[error("{what} is {found}, at most {limit} are allowed")]
    TooLarge {
        /// What is counted, and where.
        what: String,
        /// How many there are.
        found: u128,
        /// The cap.
        limit: u128,
    },
    /// The graph contradicts itself: cycles, dangling or duplicate names, shapes that do not fit.
    #[error("invalid graph: {0}")]
    Invalid(String),
    /// Legal ONNX that we do not run.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A shape that is not known before the model runs.
    #[error("{0}; export the model with static shapes")]
    DynamicShape(String),
}

/// How an integer tensor stands for reals: per tensor, or per slice along one axis.
///
/// `real = scales[i] * (value - zero_points[i])`
#[derive(Debug, Clone, PartialEq)]
pub struct TensorQuantisation {
    /// One scale, or one per slice.
    pub scales: Vec<f32>,
    /// As many as scales.
    pub zero_points: Vec<i32>,
    /// The axis of the slices; `None` per tensor.
    pub axis: Option<usize>,
}

impl TensorQuantisation {
    /// The one scale and zero point; `None` per axis.
    #[must_use]
    pub fn per_tensor(&self) -> Option<Quantisation> {
        match (self.scales.as_slice(), self.zero_points.as_slice()) {
            ([scale], [zero_point]) => {
                Some(Quantisation { scale: *scale, zero_point: *zero_point })
            }
            _ => None,
        }
    }
}

/// A tensor of the graph.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Unique name, as in the file.
    pub name: String,
    /// Type of the elements; `None` for types that cannot pass a segment's border (bool, f16, …).
    pub element: Option<ElementType>,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// How its integers stand for reals, where they do.
    pub quantisation: Option<TensorQuantisation>,
    /// The node that writes it; `None` for inputs and constants.
    pub producer: Option<NodeId>,
    /// Nodes that read it, in order.
    pub consumers: Vec<NodeId>,
    data_type: i32,
    constant: Option<Constant>,
}

impl TensorInfo {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether its values are in the file.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.constant.is_some()
    }

    /// Its values, where they are in the file and of an [`ElementType`].
    #[must_use]
    pub fn constant(&self) -> Option<&TensorBuffer> {
        match &self.constant {
            Some(Constant::Values(values)) => Some(values),
            _ => None,
        }
    }

    /// A constant of a type that cannot pass a border, as in the file.
    pub(in crate::inference) fn other_constant(&self) -> Option<&TensorProto> {
        match &self.constant {
            Some(Constant::Other(proto)) => Some(proto),
            _ => None,
        }
    }

    /// Name, type, shape and per-tensor quantisation; `None` for an element type that cannot pass a border.
    #[must_use]
    pub fn spec(&self) -> Option<TensorSpec> {
        Some(TensorSpec {
            name: self.name.clone(),
            element: self.element?,
            shape: self.shape.clone(),
            quantisation: self.quantisation.as_ref().and_then(TensorQuantisation::per_tensor),
        })
    }

    fn is_small_int(&self) -> bool {
        matches!(self.element, Some(ElementType::U8 | ElementType::I8))
    }
}

#[derive(Debug, Clone)]
enum Constant {
    Values(TensorBuffer),
    Other(Box<TensorProto>),
}

/// What an operator works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// On the values as they are.
    Plain,
    /// On the reals that quantised tensors stand for: dequantise, apply, quantise.
    Quantised,
}

/// A clamp between an operator and the quantisation of its output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// Lower bound, in reals.
    pub min: f32,
    /// Upper bound, in reals.
    pub max: f32,
}

/// An operator of the graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name, as in the file; the first output's name where it has none.
    pub name: String,
    /// ONNX operator without its quantised spelling: `Conv`, also for QLinearConv.
    pub op: String,
    /// Tensors read, at the places of the ONNX operator; `None` where an optional one is left out.
    pub inputs: Vec<Option<TensorId>>,
    /// Tensors written; `None` where an optional one is left out.
    pub outputs: Vec<Option<TensorId>>,
    /// On raw values or on the reals behind them.
    pub arithmetic: Arithmetic,
    /// Relu or Clip folded in after the operator; only with [`Arithmetic::Quantised`].
    pub activation: Option<Activation>,
    /// Multiply-accumulates of a run.
    pub macs: u64,
    attributes: Vec<AttributeProto>,
}

impl Node {
    /// An integer attribute.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(|attribute| attribute.i())
    }

    /// A float attribute.
    #[must_use]
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).map(|attribute| attribute.f())
    }

    /// A list of integers.
    #[must_use]
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|attribute| attribute.ints.as_slice())
    }

    /// A text attribute.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attribute(name).and_then(|attribute| std::str::from_utf8(&attribute.s).ok())
    }

    /// The tensor at an input place.
    #[must_use]
    pub fn input(&self, place: usize) -> Option<TensorId> {
        self.inputs.get(place).copied().flatten()
    }

    /// The first output.
    #[must_use]
    pub fn output(&self) -> Option<TensorId> {
        self.outputs.first().copied().flatten()
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub(in crate::inference) fn attributes(&self) -> &[AttributeProto] {
        &self.attributes
    }
}

/// A checked graph with everything static about it.
#[derive(Debug)]
pub struct Graph {
    name: String,
    nodes: Vec<Node>,
    tensors: Vec<TensorInfo>,
    inputs: Vec<TensorId>,
    outputs: Vec<TensorId>,
    opset: i64,
}

impl Graph {
    /// Reads and checks an ONNX file.
    ///
    /// A batch dimension (the first of an input) that is symbolic or 0 is taken as 1; every other dimension must be a number.
    ///
    /// # Errors
    /// [`GraphError`] says what is wrong, and at which node or tensor.
    pub fn parse(onnx: &[u8], limits: &Limits) -> Result<Self, GraphError> {
        let raw = parse::parse(onnx, limits)?;
        let raw = shape::infer(raw, limits)?;
        normalise::normalise(raw, limits)
    }

    /// What delegates see.
    #[must_use]
    pub fn view(&self) -> GraphView<'_> {
        GraphView { name: &self.name, graph: self }
    }

    pub(in crate::inference) fn opset(&self) -> i64 {
        self.opset
    }
}

/// The graph that delegates see.
#[derive(Debug, Clone, Copy)]
pub struct GraphView<'a> {
    /// Name of the graph.
    pub name: &'a str,
    graph: &'a Graph,
}

impl<'a> GraphView<'a> {
    /// All nodes in topological order; a node's place is its [`NodeId`].
    #[must_use]
    pub fn nodes(&self) -> &'a [Node] {
        &self.graph.nodes
    }

    /// A node.
    ///
    /// # Panics
    /// When `node` is not of this graph.
    #[must_use]
    pub fn node(&self, node: NodeId) -> &'a Node {
        &self.graph.nodes[node]
    }

    /// A tensor.
    ///
    /// # Panics
    /// When `tensor` is not of this graph.
    #[must_use]
    pub fn tensor(&self, tensor: TensorId) -> &'a TensorInfo {
        &self.graph.tensors[tensor]
    }

    /// All tensors; a tensor's place is its [`TensorId`].
    #[must_use]
    pub fn tensors(&self) -> &'a [TensorInfo] {
        &self.graph.tensors
    }

    /// Inputs of the graph, without constants.
    #[must_use]
    pub fn inputs(&self) -> &'a [TensorId] {
        &self.graph.inputs
    }

    /// Outputs of the graph.
    #[must_use]
    pub fn outputs(&self) -> &'a [TensorId] {
        &self.graph.outputs
    }

    /// Nodes whose outputs a node reads.
    pub fn predecessors(&self, node: NodeId) -> impl Iterator<Item = NodeId> + 'a {
        let graph = self.graph;
        graph.nodes[node].inputs.iter().flatten().filter_map(|input| graph.tensors[*input].producer)
    }

    pub(in crate::inference) fn opset(&self) -> i64 {
        self.graph.opset()
    }
}

#[cfg(test)]
mod tests;
