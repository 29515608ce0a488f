//! Who takes which nodes: convex segments in topological order, as large as they get.
//!
//! Each node goes to the first delegate that claims it, the rest to the host. A segment is convex: no path leaves it
//! and comes back, so that all its inputs are there before it starts.

use std::collections::BTreeSet;

use super::graph::{NodeId, NodeSet};

/// Nodes that one delegate, or the host, runs in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Place of the delegate in the order of preference; `None` for the host.
    pub owner: Option<usize>,
    /// Its nodes.
    pub nodes: NodeSet,
}

/// Splits a graph of `predecessors.len()` nodes in topological order (all predecessors of a node have lower numbers).
///
/// `claims` are in order of preference. Parts come in an order in which they can run.
#[must_use]
pub fn partition(predecessors: &[Vec<NodeId>], claims: &[NodeSet]) -> Vec<Part> {
    let owner = |node| claims.iter().position(|claim| claim.contains(node));
    let owners: Vec<_> = (0..predecessors.len()).map(owner).collect();
    // A node's level grows only where an edge changes owner: nodes of one owner and level are convex together.
    let mut levels = vec![0_usize; predecessors.len()];
    for node in 0..predecessors.len() {
        let level =
            |before: &NodeId| levels[*before] + usize::from(owners[*before] != owners[node]);
        levels[node] = predecessors[node].iter().map(level).max().unwrap_or(0);
    }
    let keys: BTreeSet<_> = levels.iter().copied().zip(owners.iter().copied()).collect();
    let parts = keys.into_iter().map(|(level, owner)| Part {
        owner,
        nodes: (0..predecessors.len())
            .filter(|node| levels[*node] == level && owners[*node] == owner)
            .collect(),
    });
    merge(parts.collect(), predecessors)
}

/// Joins parts of one owner as long as no path between them leads through a third.
fn merge(mut parts: Vec<Part>, predecessors: &[Vec<NodeId>]) -> Vec<Part> {
    loop {
        let after = successors(&parts, predecessors);
        let reach = reachable(&after);
        let pair = (0..parts.len())
            .flat_map(|a| (a + 1..parts.len()).map(move |b| (a, b)))
            .filter(|(a, b)| parts[*a].owner == parts[*b].owner)
            .find(|(a, b)| !detour(*a, *b, &after, &reach) && !detour(*b, *a, &after, &reach));
        let Some((a, b)) = pair else { return ordered(parts, &after) };
        let joined = parts.remove(b);
        parts[a].nodes.0.extend(joined.nodes.0);
    }
}

/// Parts that read what a part writes.
fn successors(parts: &[Part], predecessors: &[Vec<NodeId>]) -> Vec<BTreeSet<usize>> {
    let mut part_of = vec![0; predecessors.len()];
    for (part, found) in parts.iter().enumerate() {
        found.nodes.iter().for_each(|node| part_of[node] = part);
    }
    let mut after = vec![BTreeSet::new(); parts.len()];
    for (node, before) in predecessors.iter().enumerate() {
        for before in before {
            if part_of[*before] != part_of[node] {
                after[part_of[*before]].insert(part_of[node]);
            }
        }
    }
    after
}

fn reachable(after: &[BTreeSet<usize>]) -> Vec<BTreeSet<usize>> {
    let walk = |start: usize| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<_> = after[start].iter().copied().collect();
        while let Some(part) = open.pop() {
            if seen.insert(part) {
                open.extend(&after[part]);
            }
        }
        seen
    };
    (0..after.len()).map(walk).collect()
}

/// Whether a path from `a` to `b` leads through another part.
fn detour(a: usize, b: usize, after: &[BTreeSet<usize>], reach: &[BTreeSet<usize>]) -> bool {
    after[a].iter().any(|next| *next != b && reach[*next].contains(&b))
}

/// Parts in an order in which they can run; of those that could, the one with the earliest node.
fn ordered(parts: Vec<Part>, after: &[BTreeSet<usize>]) -> Vec<Part> {
    let mut waiting = vec![0_usize; parts.len()];
    after.iter().flatten().for_each(|part| waiting[*part] += 1);
    let first = |part: usize| parts[part].nodes.0.first().copied();
    let mut ready: BTreeSet<_> = (0..parts.len())
        .filter(|part| waiting[*part] == 0)
        .map(|part| (first(part), part))
        .collect();
    let mut order = Vec::new();
    while let Some((_, part)) = ready.pop_first() {
        order.push(part);
        for next in &after[part] {
            waiting[*next] -= 1;
            if waiting[*next] == 0 {
                ready.insert((first(*next), *next));
            }
        }
    }
    let mut parts: Vec<_> = parts.into_iter().map(Some).collect();
    order.into_iter().filter_map(|part| parts[part].take()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A random DAG and two claims.
    fn graphs() -> impl Strategy<Value = (Vec<Vec<NodeId>>, Vec<NodeSet>)> {
        (1_usize..24).prop_flat_map(|count| {
            let edges = proptest::collection::vec(proptest::bool::weighted(0.2), count * count);
            let owners = proptest::collection::vec(0_u8..3, count);
            (edges, owners).prop_map(move |(edges, owners)| {
                let before = |node: usize| {
                    (0..node).filter(|before| edges[node * count + before]).collect::<Vec<_>>()
                };
                let claim =
                    |owner| (0..count).filter(|node| owners[*node] == owner).collect::<NodeSet>();
                ((0..count).map(before).collect(), vec![claim(0), claim(1)])
            })
        })
    }

    proptest! {
        #[test]
        fn every_node_is_in_exactly_one_part_of_its_owner((graph, claims) in graphs()) {
            let parts = partition(&graph, &claims);
            for node in 0..graph.len() {
                let homes: Vec<_> = parts.iter().filter(|part| part.nodes.contains(node)).collect();
                prop_assert_eq!(homes.len(), 1);
                let owner = claims.iter().position(|claim| claim.contains(node));
                prop_assert_eq!(homes[0].owner, owner);
            }
        }

        #[test]
        fn parts_are_convex_and_in_order((graph, claims) in graphs()) {
            let parts = partition(&graph, &claims);
            let place = |node| parts.iter().position(|part| part.nodes.contains(node));
            for (node, before) in graph.iter().enumerate() {
                for before in before {
                    // An order of whole parts that every edge follows leaves no path out and back in.
                    prop_assert!(place(*before) <= place(node), "{} -> {}", before, node);
                }
            }
        }

        #[test]
        fn no_two_parts_could_be_one((graph, claims) in graphs()) {
            let parts = partition(&graph, &claims);
            let after = successors(&parts, &graph);
            let reach = reachable(&after);
            for a in 0..parts.len() {
                for b in a + 1..parts.len() {
                    let apart = parts[a].owner != parts[b].owner
                        || detour(a, b, &after, &reach)
                        || detour(b, a, &after, &reach);
                    prop_assert!(apart, "{} and {} of {:?}", a, b, parts);
                }
            }
        }
    }

    #[test]
    fn a_diamond_around_the_host_splits_its_ends() {
        // 0 -> 1 -> 3 and 0 -> 2 -> 3; the host has 2.
        let graph = [vec![], vec![0], vec![0], vec![1, 2]];
        let parts = partition(&graph, &[[0, 1, 3].into_iter().collect()]);
        let nodes: Vec<Vec<_>> = parts.iter().map(|part| part.nodes.iter().collect()).collect();
        assert_eq!(nodes, [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(parts[1].owner, None);
    }
}
