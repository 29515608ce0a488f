//! Where tensors lie: which share a buffer, how wide its border is, when it lives, and its offset in the arena.

use crate::kernels::Kernels;
use crate::operator::Operator;
use crate::plan::fuse::Fusion;
use crate::plan::{Border, Step};
use crate::tensor::Shape;
use crate::view::View;
use crate::{Graph, GraphError};

/// Most bytes of an arena.
const MAX_ARENA: u64 = 1 << 30;

/// Bytes of a border that need not be weighed.
const MOST_SPENT: u64 = 64 << 10;

/// Places of all tensors.
#[derive(Debug)]
pub(crate) struct Places {
    /// Per tensor: its buffer and first channel in it.
    homes: Vec<(usize, usize)>,
    /// Per tensor: the join that it is written into, and its first channel there.
    joined: Vec<Option<(usize, usize)>>,
    shapes: Vec<Shape>,
    buffers: Vec<Option<Buffer>>,
    arena_bytes: usize,
}

/// Memory of one tensor and of those that lie within it; named by the tensor.
#[derive(Debug, Clone)]
struct Buffer {
    shape: Shape,
    /// Top, left, bottom, right.
    border: [usize; 4],
    zero: u8,
    /// Positions in the order of steps, inclusive.
    life: (usize, usize),
    bytes: u64,
    offset: u64,
}

impl Buffer {
    /// Bytes of the tensor and a border, rounded up to whole cache lines.
    fn bytes_within(&self, [top, left, bottom, right]: [usize; 4]) -> u64 {
        let Shape { n, h, w, c } = self.shape;
        let extents = [n, h + top + bottom, w + left + right, c];
        let bytes = extents.iter().fold(1u64, |bytes, &e| bytes.saturating_mul(e as u64));
        bytes.saturating_add(63) / 64 * 64
    }

    /// Whether a border is worth its memory where a panel could be gathered instead.
    fn affords(&self, border: [usize; 4]) -> bool {
        self.bytes_within(border) <= 2 * self.bytes_within([0; 4]) + MOST_SPENT
    }
}

impl Places {
    pub(crate) fn new(
        graph: &Graph,
        fusion: &Fusion,
        kernels: &Kernels,
    ) -> Result<Self, GraphError> {
        let joined = join(graph, fusion);
        let count = graph.nodes.len();
        let mut homes = vec![(0, 0); count];
        // A part of a join comes before it, a slice after its source: two passes settle both.
        for tensor in (0..count).rev() {
            homes[tensor] = match joined[tensor] {
                Some((join, first)) => (homes[join].0, homes[join].1 + first),
                None => (tensor, 0),
            };
        }
        for tensor in 0..count {
            if let Some((source, first)) = alias(graph, tensor) {
                homes[tensor] = (homes[source].0, homes[source].1 + first);
            }
        }
        let mut places = Self {
            homes,
            joined,
            shapes: graph.tensors.iter().map(|tensor| tensor.shape).collect(),
            buffers: vec![None; count],
            arena_bytes: 0,
        };
        places.live(graph, fusion);
        places.border(graph, fusion, kernels);
        places.arrange()?;
        Ok(places)
    }

    /// Buffers, from first write to last read.
    fn live(&mut self, graph: &Graph, fusion: &Fusion) {
        let end = fusion.order().len();
        for (at, &node) in fusion.order().iter().enumerate() {
            let home = self.homes[node].0;
            let buffer = self.buffers[home].get_or_insert_with(|| Buffer {
                shape: graph.tensors[home].shape,
                border: [0; 4],
                zero: graph.tensors[home].quantisation.zero_byte(),
                life: (at, at),
                bytes: 0,
                offset: 0,
            });
            buffer.life.1 = at;
            for read in fusion.reads(graph, node) {
                let home = self.homes[read.0].0;
                let buffer = self.buffers[home].as_mut().expect("written before it is read");
                buffer.life.1 = at;
            }
        }
        for (id, _) in &graph.outputs {
            let home = self.homes[id.0].0;
            self.buffers[home].as_mut().expect("every output is written").life.1 = end;
        }
    }

    /// Depthwise convolutions and those that walk read past the edges; the latter can be told not to.
    fn border(&mut self, graph: &Graph, fusion: &Fusion, kernels: &Kernels) {
        for &node in fusion.order() {
            let Some(chain) = fusion.chain(node) else { continue };
            let Operator::Conv(conv) = &graph.nodes[chain.conv].operator else { continue };
            let input = graph.nodes[chain.conv].inputs[0].0;
            let home = self.homes[input].0;
            let buffer = self.buffers[home].as_mut().expect("written before it is read");
            let channels = graph.tensors[input].shape.c;
            let mut wider = buffer.border;
            for (width, pad) in wider.iter_mut().zip(conv.window.pads) {
                *width = pad.max(*width);
            }
            let joined = channels == buffer.shape.c;
            let walks = kernels.may_walk(conv, channels, joined) && buffer.affords(wider);
            if chain.depthwise || walks {
                buffer.border = wider;
            }
        }
    }

    /// Border of the buffer that a tensor lies in: top, left, bottom, right.
    pub(crate) fn border_of(&self, tensor: usize) -> [usize; 4] {
        let buffer = self.buffers[self.homes[tensor].0].as_ref();
        buffer.expect("a home has a buffer").border
    }

    /// Largest first, each at the lowest offset that no buffer alive at the same time covers.
    fn arrange(&mut self) -> Result<(), GraphError> {
        let mut waiting: Vec<usize> =
            (0..self.buffers.len()).filter(|&home| self.buffers[home].is_some()).collect();
        for buffer in self.buffers.iter_mut().flatten() {
            buffer.bytes = buffer.bytes_within(buffer.border);
        }
        let bytes = |home: &usize| self.buffers[*home].as_ref().map_or(0, |buffer| buffer.bytes);
        waiting.sort_by_key(|home| (std::cmp::Reverse(bytes(home)), *home));
        let mut placed: Vec<Buffer> = Vec::with_capacity(waiting.len());
        for home in waiting {
            let Some(buffer) = self.buffers[home].as_mut() else { continue };
            let mut taken: Vec<(u64, u64)> = placed
                .iter()
                .filter(|other| other.life.0 <= buffer.life.1 && buffer.life.0 <= other.life.1)
                .map(|other| (other.offset, other.offset + other.bytes))
                .collect();
            taken.sort_unstable();
            for (start, end) in taken {
                if buffer.offset.saturating_add(buffer.bytes) > start {
                    buffer.offset = buffer.offset.max(end);
                }
            }
            let end = buffer.offset.saturating_add(buffer.bytes);
            if end > MAX_ARENA {
                return Err(GraphError::Shape(format!("tensors of {end} bytes; at most 1 GiB")));
            }
            self.arena_bytes = self.arena_bytes.max(end as usize);
            placed.push(buffer.clone());
        }
        Ok(())
    }

    pub(crate) fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Place of a tensor.
    pub(crate) fn view(&self, tensor: usize) -> View {
        let (home, first) = self.homes[tensor];
        let inner = self.interior(home);
        View { shape: self.shapes[tensor], offset: inner.offset + first, ..inner }
    }

    fn interior(&self, home: usize) -> View {
        let buffer = self.buffers[home].as_ref().expect("a home has a buffer");
        let Shape { h, w, c: pixel, .. } = buffer.shape;
        let [top, left, bottom, right] = buffer.border;
        let row = (w + left + right) * pixel;
        View {
            shape: buffer.shape,
            offset: buffer.offset as usize + top * row + left * pixel,
            image: (h + top + bottom) * row,
            row,
            pixel,
        }
    }

    /// Whether a tensor is written straight into this join, at this channel.
    pub(crate) fn is_joined(&self, part: usize, join: usize, first: usize) -> bool {
        self.joined[part] == Some((join, first))
    }

    /// Whether a tensor is memory that another one's step has written.
    pub(crate) fn is_alias(&self, tensor: usize) -> bool {
        self.homes[tensor].0 != tensor && self.joined[tensor].is_none()
    }

    /// Gives the first step that writes into a buffer its border.
    pub(crate) fn mark_borders(&self, steps: &mut [Step]) {
        let mut seen = vec![false; self.buffers.len()];
        for step in steps {
            let home = self.homes[step.node].0;
            let Some(buffer) = &self.buffers[home] else { continue };
            if !std::mem::replace(&mut seen[home], true) && buffer.border != [0; 4] {
                let view = self.interior(home);
                step.border = Some(Border { view, widths: buffer.border, byte: buffer.zero });
            }
        }
    }
}

/// For each tensor the join it can be written into, and its first channel there: same quantisation, a step of its own,
/// one join only.
fn join(graph: &Graph, fusion: &Fusion) -> Vec<Option<(usize, usize)>> {
    let mut joined: Vec<Option<(usize, usize)>> = vec![None; graph.nodes.len()];
    for (node, join) in graph.nodes.iter().enumerate() {
        let is_step = fusion.order().binary_search(&node).is_ok();
        if !is_step || !matches!(join.operator, Operator::Concat) {
            continue;
        }
        let mut first = 0;
        for part in &join.inputs {
            let own_step =
                fusion.order().binary_search(&part.0).is_ok() && alias(graph, part.0).is_none();
            let same = graph.tensors[part.0].quantisation == graph.tensors[node].quantisation;
            if own_step && same && joined[part.0].is_none() {
                joined[part.0] = Some((node, first));
            }
            first += graph.tensors[part.0].shape.c;
        }
    }
    joined
}

/// Source and first channel of a tensor that is only a view.
fn alias(graph: &Graph, tensor: usize) -> Option<(usize, usize)> {
    let node = &graph.nodes[tensor];
    let source = node.inputs.first()?.0;
    match node.operator {
        Operator::Slice(first) => Some((source, first)),
        Operator::Reshape => {
            let vectors = graph.tensors[tensor].shape.pixels() == 1
                && graph.tensors[source].shape == graph.tensors[tensor].shape;
            vectors.then_some((source, 0))
        }
        _ => None,
    }
}
