//! The quantised graph: tensors and nodes in topological order, as the builder has checked them.
//!
//! A [`Graph`] is a proof: shapes fit, attributes are in range, scales give finite multipliers. What comes after
//! (reference, planner, kernels) checks none of it again.

use crate::GraphError;
use crate::border::Io;
use crate::operator::{InputForm, Operator, OutputForm};
use crate::tensor::Tensor;

/// A tensor of the graph that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub(crate) usize);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) operator: Operator,
    pub(crate) inputs: Vec<TensorId>,
}

/// A checked graph. Tensor `i` is written by node `i`.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) inputs: Vec<TensorId>,
    pub(crate) outputs: Vec<(TensorId, OutputForm)>,
}

impl Graph {
    /// Shape and quantisation of a tensor.
    ///
    /// # Errors
    /// [`GraphError::UnknownTensor`] for the tensor of another graph.
    pub fn tensor(&self, id: TensorId) -> Result<&Tensor, GraphError> {
        self.tensors.get(id.0).ok_or(GraphError::UnknownTensor(id.0))
    }

    /// Inputs in the order they were added, with their forms.
    pub fn inputs(&self) -> impl Iterator<Item = (&Tensor, InputForm)> {
        self.inputs.iter().filter_map(|id| match self.nodes[id.0].operator {
            Operator::Input(form) => Some((&self.tensors[id.0], form)),
            _ => None,
        })
    }

    /// Outputs in the order they were added, with their forms.
    pub fn outputs(&self) -> impl Iterator<Item = (&Tensor, OutputForm)> {
        self.outputs.iter().map(|(id, form)| (&self.tensors[id.0], form.clone()))
    }

    /// Every tensor, in the order it was built.
    pub fn tensors(&self) -> impl Iterator<Item = TensorId> {
        (0..self.tensors.len()).map(TensorId)
    }

    pub(crate) fn io(&self) -> Io {
        let inputs = self.inputs().map(|(tensor, form)| (*tensor, form)).collect();
        let outputs = self.outputs().map(|(tensor, form)| (*tensor, form)).collect();
        Io { inputs, outputs }
    }

    /// Multiplications of one run.
    #[must_use]
    pub fn macs(&self) -> u64 {
        (0..self.nodes.len()).map(|node| self.node_macs(node)).sum()
    }

    pub(crate) fn node_macs(&self, node: usize) -> u64 {
        match &self.nodes[node].operator {
            Operator::Conv(conv) => {
                let depth = conv.weights.len() / conv.channels;
                self.tensors[node].shape.elements() as u64 * depth as u64
            }
            _ => 0,
        }
    }
}
