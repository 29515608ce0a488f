//! Fewer nodes for the same bytes: chains of tables become one table, and so do sums and products of a tensor with
//! functions of itself (x · sigmoid(x), x · hard-sigmoid(x)). Nodes that nobody reads any more are dropped.

use crate::graph::{Graph, Node, TensorId};
use crate::numerics::{AddRule, MulRule};
use crate::operator::Operator;

/// The graph with each node in its simplest form; numbers of tensors stay.
pub(crate) fn simplify(mut graph: Graph) -> Graph {
    let reads = reads(&graph);
    for node in 0..graph.nodes.len() {
        if let Some((source, table)) = as_table(&graph, &reads, node) {
            let operator = Operator::Table(table);
            graph.nodes[node] = Node { operator, inputs: vec![TensorId(source)] };
        }
    }
    graph
}

/// How often each tensor is read or given out.
fn reads(graph: &Graph) -> Vec<usize> {
    let mut reads = vec![0; graph.nodes.len()];
    let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    for id in inputs.chain(graph.outputs.iter().map(|(id, _)| id)) {
        reads[id.0] += 1;
    }
    reads
}

/// Which nodes are needed for the outputs.
pub(crate) fn needed(graph: &Graph) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes.len()];
    for (id, _) in &graph.outputs {
        needed[id.0] = true;
    }
    for node in (0..graph.nodes.len()).rev() {
        if needed[node] {
            graph.nodes[node].inputs.iter().for_each(|input| needed[input.0] = true);
        }
    }
    for id in &graph.inputs {
        needed[id.0] = true;
    }
    needed
}

/// A node as a table over the bytes of a tensor that is none itself, where it is that.
fn as_table(graph: &Graph, reads: &[usize], node: usize) -> Option<(usize, Box<[u8; 256]>)> {
    let Node { operator, inputs } = &graph.nodes[node];
    let [(source, first), (same, second)] = match (operator, inputs.as_slice()) {
        (Operator::Table(table), [x]) => {
            let (source, before) = behind(graph, reads, x.0);
            let before = before?;
            return Some((source, each(|byte| table[usize::from(before[usize::from(byte)])])));
        }
        (Operator::Add | Operator::Mul, [a, b]) => {
            [behind(graph, reads, a.0), behind(graph, reads, b.0)]
        }
        _ => return None,
    };
    // A vector stands for every pixel: only tensors of one shape are functions of one another.
    let shapes = inputs.iter().map(|input| graph.tensors[input.0].shape);
    if source != same || shapes.into_iter().any(|shape| shape != graph.tensors[node].shape) {
        return None;
    }
    let at = |place: usize| &graph.tensors[inputs[place].0].quantisation;
    let (a, b, y) = (at(0), at(1), &graph.tensors[node].quantisation);
    let pair = |byte: u8| {
        let through =
            |table: Option<&[u8; 256]>| table.map_or(byte, |table| table[usize::from(byte)]);
        (through(first), through(second))
    };
    let table = if matches!(operator, Operator::Add) {
        let rule = AddRule::new(a, b, y);
        each(|byte| {
            let (first, second) = pair(byte);
            rule.apply(a.element().widen(first), b.element().widen(second)) as u8
        })
    } else {
        let rule = MulRule::new(a, b, y);
        each(|byte| {
            let (first, second) = pair(byte);
            rule.apply(first, second)
        })
    };
    Some((source, table))
}

/// The tensor behind a table, and the table, if only one node reads it: else it must be there for the others, and is
/// the better source. Earlier nodes are simple already.
fn behind<'a>(graph: &'a Graph, reads: &[usize], tensor: usize) -> (usize, Option<&'a [u8; 256]>) {
    match &graph.nodes[tensor] {
        Node { operator: Operator::Table(table), inputs } if reads[tensor] == 1 => {
            (inputs[0].0, Some(table))
        }
        _ => (tensor, None),
    }
}

fn each(entry: impl Fn(u8) -> u8) -> Box<[u8; 256]> {
    Box::new(std::array::from_fn(|byte| entry(byte as u8)))
}
