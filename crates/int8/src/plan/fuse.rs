//! Which nodes run inside the epilogue of a convolution. Fusion never changes a bit: the epilogue rounds after each
//! node just as separate steps would; only the trip through memory is saved.

use crate::kernels::{Role, Sum};
use crate::numerics::AddRule;
use crate::operator::{Operator, Window};
use crate::plan::simplify::needed;
use crate::{Graph, TensorId};

/// A convolution and what follows it in registers.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) conv: usize,
    pub(crate) depthwise: bool,
    /// Least and greatest value of the convolution's result.
    pub(crate) limits: (i32, i32),
    pub(crate) sum: Option<FusedSum>,
    /// Applied last.
    pub(crate) table: Option<Box<[u8; 256]>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct FusedSum {
    pub(crate) fused: Sum,
    /// Tensor of the other operand.
    pub(crate) other: usize,
}

/// All chains of a graph, and the order of the steps.
#[derive(Debug)]
pub(crate) struct Fusion {
    /// By the last node of the chain.
    chains: Vec<Option<Chain>>,
    order: Vec<usize>,
}

impl Fusion {
    pub(crate) fn new(graph: &Graph, takes_depthwise: impl Fn(&Window) -> bool) -> Self {
        let needed = needed(graph);
        let readers = readers(graph, &needed);
        let mut chains: Vec<Option<Chain>> = vec![None; graph.nodes.len()];
        let mut inside = vec![false; graph.nodes.len()];
        for node in (0..graph.nodes.len()).filter(|&node| needed[node]) {
            let Operator::Conv(conv) = &graph.nodes[node].operator else { continue };
            let input = graph.tensors[graph.nodes[node].inputs[0].0].shape.c;
            let depthwise =
                conv.groups == input && conv.channels == input && takes_depthwise(&conv.window);
            let limits = graph.tensors[node].quantisation.range();
            let mut chain = Chain { conv: node, depthwise, limits, sum: None, table: None };
            let mut last = node;
            while let Some(next) = readers[last]
                && chain.table.is_none()
                && !inside[next]
                && chains[next].is_none()
                && chain.take(graph, last, next)
            {
                inside[last] = true;
                last = next;
            }
            chains[last] = Some(chain);
        }
        let order = (0..graph.nodes.len()).filter(|&node| needed[node] && !inside[node]).collect();
        Self { chains, order }
    }

    /// Nodes that stand for a step, in order; the others run inside one of these.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The chain that ends with this node.
    pub(crate) fn chain(&self, node: usize) -> Option<&Chain> {
        self.chains[node].as_ref()
    }

    /// Tensors that a step reads.
    pub(crate) fn reads(&self, graph: &Graph, node: usize) -> Vec<TensorId> {
        match self.chain(node) {
            None => graph.nodes[node].inputs.clone(),
            Some(chain) => {
                let mut reads = graph.nodes[chain.conv].inputs.clone();
                reads.extend(chain.sum.map(|sum| TensorId(sum.other)));
                reads
            }
        }
    }
}

impl Chain {
    /// Takes `next`, the only reader of `last`, into the chain if it can run in the epilogue.
    fn take(&mut self, graph: &Graph, last: usize, next: usize) -> bool {
        match &graph.nodes[next].operator {
            Operator::Table(table) => {
                if let Some((low, high)) = limits(table, graph, last, next) {
                    let range = match &mut self.sum {
                        None => (&mut self.limits.0, &mut self.limits.1),
                        Some(sum) => (&mut sum.fused.rule.low, &mut sum.fused.rule.high),
                    };
                    *range.0 = (*range.0).clamp(low, high);
                    *range.1 = (*range.1).clamp(low, high);
                } else {
                    self.table = Some(table.clone());
                }
                true
            }
            Operator::Add if self.sum.is_none() && !self.depthwise => {
                let [a, b] = [graph.nodes[next].inputs[0].0, graph.nodes[next].inputs[1].0];
                if a == b || graph.tensors[a].shape != graph.tensors[b].shape {
                    return false;
                }
                let quantisation = |tensor: usize| &graph.tensors[tensor].quantisation;
                let rule = AddRule::new(quantisation(a), quantisation(b), quantisation(next));
                let (role, other) = if a == last { (Role::First, b) } else { (Role::Second, a) };
                self.sum = Some(FusedSum { fused: Sum { rule, role }, other });
                true
            }
            _ => false,
        }
    }
}

/// The limits, if the table only limits values and keeps their quantisation.
fn limits(table: &[u8; 256], graph: &Graph, from: usize, to: usize) -> Option<(i32, i32)> {
    let quantisation = &graph.tensors[to].quantisation;
    let element = quantisation.element();
    let value = |stored: i32| element.widen(table[usize::from(stored as u8)]);
    let (least, greatest) = quantisation.range();
    let (low, high) = (value(least), value(greatest));
    let limits = low <= high
        && graph.tensors[from].quantisation == *quantisation
        && (least..=greatest).all(|stored| value(stored) == stored.clamp(low, high));
    limits.then_some((low, high))
}

/// For each tensor its only reader; none when it is read more than once, or given out.
fn readers(graph: &Graph, needed: &[bool]) -> Vec<Option<usize>> {
    let mut counts = vec![0usize; graph.nodes.len()];
    let mut readers = vec![None; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().filter(|(index, _)| needed[*index]) {
        for input in &node.inputs {
            counts[input.0] += 1;
            readers[input.0] = Some(index);
        }
    }
    for (id, _) in &graph.outputs {
        counts[id.0] += 2;
    }
    for (reader, count) in readers.iter_mut().zip(counts) {
        if count != 1 {
            *reader = None;
        }
    }
    readers
}
