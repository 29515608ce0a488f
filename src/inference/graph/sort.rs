//! Topological order of the nodes of a file, kept close to the order in which they stand.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::inference::graph::proto::NodeProto;

use super::GraphError;

/// Places of the nodes such that each stands after those whose outputs it reads.
pub(super) fn topological_order(
    nodes: &[NodeProto],
    given: impl Fn(&str) -> bool,
) -> Result<Vec<usize>, GraphError> {
    let mut writer = HashMap::new();
    for (place, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if writer.insert(output.as_str(), place).is_some() || given(output) {
                return Err(GraphError::Invalid(format!("tensor `{output}` is written twice")));
            }
        }
    }
    let mut readers = vec![Vec::new(); nodes.len()];
    let mut missing = vec![0_usize; nodes.len()];
    for (place, node) in nodes.iter().enumerate() {
        for input in node.input.iter().filter(|name| !name.is_empty() && !given(name)) {
            let Some(writer) = writer.get(input.as_str()) else {
                return Err(GraphError::Invalid(format!(
                    "node `{}` ({}) reads `{input}`, which nothing writes",
                    node.name, node.op_type
                )));
            };
            readers[*writer].push(place);
            missing[place] += 1;
        }
    }
    let mut ready: BinaryHeap<_> =
        (0..nodes.len()).filter(|place| missing[*place] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(place)) = ready.pop() {
        order.push(place);
        for reader in &readers[place] {
            missing[*reader] -= 1;
            if missing[*reader] == 0 {
                ready.push(Reverse(*reader));
            }
        }
    }
    if let Some(stuck) = missing.iter().position(|count| *count > 0) {
        let node = &nodes[stuck];
        let what = format!("node `{}` ({}) depends on itself", node.name, node.op_type);
        return Err(GraphError::Invalid(what));
    }
    Ok(order)
}
