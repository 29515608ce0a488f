//! A normalised, read-only view of an ONNX graph: nodes, static shapes, quantisation per tensor.

use std::collections::BTreeSet;

/// Index of a node in [`GraphView`] order (topological).
pub type NodeId = usize;

/// A set of nodes of one graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSet(pub BTreeSet<NodeId>);

/// The graph that delegates see.
#[derive(Debug)]
pub struct GraphView<'a> {
    /// Name of the graph.
    pub name: &'a str,
}
