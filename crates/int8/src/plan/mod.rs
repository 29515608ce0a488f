//! From a graph to steps: what is fused, where tensors lie, and weights in the order the kernels read them.
//!
//! Everything that can be decided once is decided here; `execute.rs` only walks the steps.

mod fuse;
mod place;
mod simplify;

use std::sync::Arc;

use crate::kernels::depthwise::DepthwiseWeights;
use crate::kernels::gather::OVERRUN;
use crate::kernels::lookup::Lookup;
use crate::kernels::walk::Taps;
use crate::kernels::winograd::Form;
use crate::kernels::{self, BLOCK, Epilogue, Kernels, PANEL_ROWS, PackedWeights, Packing, SLACK};
use crate::numerics::{self, AddRule, MulRule, Quantiser};
use crate::operator::{Blend, Conv, CountPadding, Operator, OutputForm, Pair, Window};
use crate::plan::fuse::{Chain, Fusion};
use crate::plan::place::Places;
use crate::resize::Sampling;
use crate::tensor::{ElementType, Quantisation};
use crate::view::View;
use crate::{Graph, GraphError, Layer};

/// Values of a panel: what stays in a second-level cache beside the weights that stream through.
const PANEL_VALUES: usize = 256 << 10;

/// Bytes of pixels that one multiplication walks through: what stays in a first-level cache beside weights.
const WALK_BYTES: usize = 12 << 10;
/// Pixels of one at most.
const WALK_ROWS: usize = 480;
/// Columns of the output of a window that is walked through.
const WALK_WIDTH: usize = 12;

/// Steps in order, and the memory they need.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: Vec<Leaving>,
    pub(crate) arena_bytes: usize,
    /// Scratch memory of the convolutions.
    pub(crate) panel_bytes: usize,
    pub(crate) panel_rows: usize,
    pub(crate) most_channels: usize,
    /// Of the longest row of a tensor.
    pub(crate) row_bytes: usize,
    /// Of the longest row that is blended with another one.
    pub(crate) blended_values: usize,
    /// Of the largest window that is pooled.
    pub(crate) most_taps: usize,
    /// What the steps are, for people.
    pub(crate) layers: Vec<Layer>,
}

/// A tensor that is given out.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) view: View,
    pub(crate) form: OutputForm,
    /// The real value of each stored byte.
    pub(crate) reals: Arc<[f32; 256]>,
}

impl Leaving {
    fn new(view: View, form: &OutputForm, from: &Quantisation) -> Self {
        let reals = match form {
            OutputForm::FunctionNchw(reals) => Arc::clone(reals),
            _ => Arc::new(std::array::from_fn(|byte| numerics::dequantise(byte as u8, from))),
        };
        Self { view, form: form.clone(), reals }
    }
}

/// One step, and the node whose tensor it completes.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) node: usize,
    pub(crate) action: Action,
    /// Bytes of border to fill first: the buffer with its border, and the value.
    pub(crate) border: Option<Border>,
}

/// A buffer's border, filled when the buffer comes to life in memory that others have used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Border {
    /// The interior.
    pub(crate) view: View,
    /// Top, left, bottom, right.
    pub(crate) widths: [usize; 4],
    pub(crate) byte: u8,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum Action {
    /// A graph input, by position.
    Load {
        input: usize,
        y: View,
        to: Quantiser,
        form: crate::InputForm,
    },
    Conv(Box<ConvStep>),
    Depthwise(Box<DepthwiseStep>),
    Add {
        rule: AddRule,
        a: View,
        b: View,
        y: View,
    },
    Mul {
        rule: MulRule,
        a: View,
        b: View,
        y: View,
    },
    /// Bytes to another place, through a table or as they are.
    Copy {
        x: View,
        y: View,
        table: Option<Lookup>,
    },
    MaxPool {
        window: Window,
        element: ElementType,
        x: View,
        y: View,
    },
    AveragePool {
        window: Window,
        padding: CountPadding,
        from: Quantisation,
        to: Quantisation,
        x: View,
        y: View,
    },
    GlobalAveragePool {
        multiplier: f32,
        from: Quantisation,
        to: Quantisation,
        x: View,
        y: View,
    },
    Resize {
        sampling: Sampling,
        /// As if stored values were real ones.
        from: Quantisation,
        x: View,
        y: View,
    },
    ResizeReal {
        sampling: Sampling,
        from: Quantisation,
        to: Quantiser,
        x: View,
        y: View,
    },
    /// Every `steps`-th row and column of the output, from `first` on.
    Spread {
        first: Pair,
        steps: Pair,
        x: View,
        y: View,
    },
    Pad {
        before: [usize; 2],
        byte: u8,
        x: View,
        y: View,
    },
    Reshape {
        x: View,
        y: View,
    },
}

#[derive(Debug)]
pub(crate) struct ConvStep {
    pub(crate) window: Window,
    pub(crate) from: Quantisation,
    pub(crate) x: View,
    pub(crate) y: View,
    pub(crate) other: Option<View>,
    pub(crate) groups: Vec<(PackedWeights, Epilogue)>,
    pub(crate) table: Option<Lookup>,
    /// Panel values from one row to the next.
    pub(crate) stride: usize,
    /// Output pixels of one panel.
    pub(crate) rows: usize,
    /// Whether stored values are multiplied as they are, so that a panel can be the arena itself.
    pub(crate) in_place: bool,
    /// The taps of each group, if the multiplication walks.
    pub(crate) taps: Option<Taps>,
    /// How the weights are transformed, if they are.
    pub(crate) form: Option<Form>,
}

impl ConvStep {
    fn scratch_bytes(&self, packing: Packing) -> usize {
        match self.form {
            Some(form) => form.scratch_bytes(self.x.shape.c / self.groups.len()),
            None if self.taps.is_some() => 0,
            None => self.rows * self.stride * packing.value_bytes(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct DepthwiseStep {
    pub(crate) window: Window,
    pub(crate) element: ElementType,
    pub(crate) x: View,
    pub(crate) y: View,
    pub(crate) weights: DepthwiseWeights,
    pub(crate) epilogue: Epilogue,
    pub(crate) table: Option<Lookup>,
}

impl Plan {
    /// # Errors
    /// [`GraphError::Shape`] when the tensors alive at one time need more than 1 GiB.
    /// Takes the graph, so that each layer's weights can go once they are packed.
    pub(crate) fn new(graph: Graph, kernels: &Kernels) -> Result<Self, GraphError> {
        let mut graph = simplify::simplify(graph);
        let fusion = Fusion::new(&graph, |window| (kernels.takes_depthwise)(window));
        let places = Places::new(&graph, &fusion, kernels)?;
        let mut planner = Planner { graph: &mut graph, kernels, fusion: &fusion, places: &places };
        let mut steps = Vec::new();
        for &node in fusion.order() {
            planner.push_steps(node, &mut steps);
        }
        places.mark_borders(&mut steps);
        let outputs = graph.outputs.iter().map(|(id, form)| {
            Leaving::new(places.view(id.0), form, &graph.tensors[id.0].quantisation)
        });
        let convs = || {
            steps.iter().filter_map(|step| match &step.action {
                Action::Conv(conv) => Some(conv),
                _ => None,
            })
        };
        let blended = |step: &Step| match &step.action {
            Action::Resize { x, .. } | Action::ResizeReal { x, .. } => x.shape.w * x.shape.c,
            _ => 0,
        };
        let taps = |step: &Step| match &step.action {
            Action::MaxPool { window, .. } | Action::AveragePool { window, .. } => window.taps(),
            _ => 0,
        };
        Ok(Self {
            outputs: outputs.collect(),
            blended_values: steps.iter().map(blended).max().unwrap_or(0),
            most_taps: steps.iter().map(taps).max().unwrap_or(0),
            arena_bytes: places.arena_bytes() + SLACK,
            panel_bytes: convs().map(|conv| conv.scratch_bytes(kernels.packing)).max().unwrap_or(0)
                + 2 * (SLACK + OVERRUN),
            panel_rows: convs().map(|conv| conv.rows).max().unwrap_or(0),
            row_bytes: graph.tensors.iter().map(|t| t.shape.w * t.shape.c).max().unwrap_or(0),
            most_channels: graph.tensors.iter().map(|tensor| tensor.shape.c).max().unwrap_or(0),
            layers: layers(&steps, &graph),
            steps,
        })
    }
}

/// What the steps are, for people.
fn layers(steps: &[Step], graph: &Graph) -> Vec<Layer> {
    let describe = |step: &Step| {
        let operator = graph.nodes[step.node].operator.name();
        match &step.action {
            Action::Conv(conv) => {
                let sum = if conv.other.is_some() { " +Add" } else { "" };
                let table = if conv.table.is_some() { " +Table" } else { "" };
                format!("Conv {}{sum}{table}", conv.window.describe())
            }
            Action::Depthwise(conv) => format!("Depthwise {}", conv.window.describe()),
            _ => operator.to_owned(),
        }
    };
    let macs = |step: &Step| {
        let weights = match &step.action {
            Action::Conv(conv) => conv.groups[0].0.depth_given as u64,
            Action::Depthwise(conv) => conv.window.taps() as u64,
            _ => 0,
        };
        graph.tensors[step.node].shape.elements() as u64 * weights
    };
    let layer = |step: &Step| Layer {
        name: describe(step),
        shape: graph.tensors[step.node].shape,
        macs: macs(step),
    };
    steps.iter().map(layer).collect()
}

struct Planner<'a> {
    graph: &'a mut Graph,
    kernels: &'a Kernels,
    fusion: &'a Fusion,
    places: &'a Places,
}

impl Planner<'_> {
    /// The steps that complete tensor `node`: none when it is only another view of memory that is already written.
    fn push_steps(&mut self, node: usize, steps: &mut Vec<Step>) {
        if let Some(chain) = self.fusion.chain(node) {
            let conv = self.take_conv(chain.conv);
            let action = self.conv(conv, chain, node);
            steps.push(Step { node, action, border: None });
            return;
        }
        let inputs = &self.graph.nodes[node].inputs;
        if matches!(self.graph.nodes[node].operator, Operator::Concat) {
            let mut first = 0;
            for part in inputs {
                let channels = self.graph.tensors[part.0].shape.c;
                if !self.places.is_joined(part.0, node, first) {
                    let y = self.places.view(node).channels(first, channels);
                    let table = self.requantise(part.0, node).map(Lookup::new);
                    let action = Action::Copy { x: self.places.view(part.0), y, table };
                    steps.push(Step { node, action, border: None });
                }
                first += channels;
            }
            return;
        }
        if let Operator::Interleave(by) = self.graph.nodes[node].operator {
            for (place, part) in inputs.iter().enumerate() {
                let first = [place / by[1], place % by[1]];
                let (x, y) = (self.places.view(part.0), self.places.view(node));
                let action = Action::Spread { first, steps: by, x, y };
                steps.push(Step { node, action, border: None });
            }
            return;
        }
        if !self.places.is_alias(node) {
            steps.push(Step { node, action: self.action(node), border: None });
        }
    }

    fn requantise(&self, from: usize, to: usize) -> Option<Box<[u8; 256]>> {
        let (from, to) = (self.quantisation(from), self.quantisation(to));
        (from != to).then(|| {
            Box::new(std::array::from_fn(|byte| {
                numerics::quantise(numerics::dequantise(byte as u8, &from), &to)
            }))
        })
    }

    fn quantisation(&self, tensor: usize) -> Quantisation {
        self.graph.tensors[tensor].quantisation
    }

    fn action(&self, node: usize) -> Action {
        let inputs = &self.graph.nodes[node].inputs;
        let y = self.places.view(node);
        let to = self.quantisation(node);
        let view = |index: usize| self.places.view(inputs[index].0);
        let given = |index: usize| self.quantisation(inputs[index].0);
        match &self.graph.nodes[node].operator {
            Operator::Input(form) => {
                let position = self.graph.inputs.iter().position(|id| id.0 == node);
                let input = position.expect("the builder lists every input");
                Action::Load { input, y, to: Quantiser::new(&to), form: *form }
            }
            Operator::Conv(_) | Operator::Concat | Operator::Interleave(_) | Operator::Slice(_) => {
                unreachable!("convolutions are chains, joins and slices are views or copies")
            }
            Operator::Add => {
                let rule = AddRule::new(&given(0), &given(1), &to);
                Action::Add { rule, a: view(0), b: view(1), y }
            }
            Operator::Mul => {
                let rule = MulRule::new(&given(0), &given(1), &to);
                Action::Mul { rule, a: view(0), b: view(1), y }
            }
            Operator::Table(table) => {
                Action::Copy { x: view(0), y, table: Some(Lookup::new(table.clone())) }
            }
            Operator::MaxPool(window) => {
                Action::MaxPool { window: *window, element: to.element(), x: view(0), y }
            }
            Operator::AveragePool(window, padding) => Action::AveragePool {
                window: *window,
                padding: *padding,
                from: given(0),
                to,
                x: view(0),
                y,
            },
            Operator::GlobalAveragePool => {
                let (x, from) = (view(0), given(0));
                let pixels = x.shape.pixels();
                let multiplier =
                    numerics::global_average_multiplier(from.scale(), to.scale(), pixels);
                Action::GlobalAveragePool { multiplier, from, to, x, y }
            }
            Operator::Resize(resize, Blend::Real) => {
                let x = view(0);
                let sampling = Sampling::new(resize, x.shape);
                let to = Quantiser::new(&to);
                Action::ResizeReal { sampling, from: given(0), to, x, y }
            }
            Operator::Resize(resize, Blend::Stored) => {
                let x = view(0);
                let sampling = Sampling::new(resize, x.shape);
                let from = Quantisation::plain(to.element());
                Action::Resize { sampling, from, x, y }
            }
            Operator::Pad([top, left, ..], byte) => {
                Action::Pad { before: [*top, *left], byte: *byte, x: view(0), y }
            }
            Operator::Reshape => Action::Reshape { x: view(0), y },
        }
    }

    /// The attributes of a convolution, which the graph then has no more.
    fn take_conv(&mut self, node: usize) -> Conv {
        match std::mem::replace(&mut self.graph.nodes[node].operator, Operator::Reshape) {
            Operator::Conv(conv) => conv,
            _ => unreachable!("a chain starts with a convolution"),
        }
    }

    /// A convolution with all that is fused behind it; `node` is the last of the chain.
    fn conv(&self, conv: Conv, chain: &Chain, node: usize) -> Action {
        let input = self.graph.nodes[chain.conv].inputs[0].0;
        let from = self.quantisation(input);
        let (x, y) = (self.places.view(input), self.places.view(node));
        let table = chain.table.clone().map(Lookup::new);
        if chain.depthwise {
            let form = self.kernels.depthwise_form;
            let depthwise = Conv { groups: 1, ..conv };
            let epilogue = self.epilogue(&depthwise, chain, &from, 0, false);
            let Conv { weights, channels, window, .. } = &depthwise;
            let weights = DepthwiseWeights::new(weights, *channels, window, form, &epilogue);
            let (window, element) = (depthwise.window, from.element());
            return Action::Depthwise(Box::new(DepthwiseStep {
                window,
                element,
                x,
                y,
                weights,
                epilogue,
                table,
            }));
        }
        let channels = conv.channels / conv.groups;
        let groups = conv.weights.chunks_exact(conv.weights.len() / conv.groups).enumerate();
        let per_group = [x.shape.c / conv.groups, channels];
        let form = self.kernels.winograd.and_then(|_| {
            Form::choose(&conv.window, per_group, y.shape, from.element(), &conv.weights)
        });
        let input = x.channels(0, per_group[0]);
        let border = self.places.border_of(self.graph.nodes[chain.conv].inputs[0].0);
        let has_border = border.iter().zip(&conv.window.pads).all(|(width, pad)| width >= pad);
        let taps = self.kernels.taps(&conv.window, &input).filter(|_| has_border);
        // Spans of short rows make low tiles.
        let taps =
            taps.filter(|_| conv.window.taps() == 1 || y.shape.w == 1 || y.shape.w >= WALK_WIDTH);
        let depth = conv.weights.len() / conv.channels;
        let pack = |weights| match (form, &taps) {
            (Some(form), _) => PackedWeights::winograd(form, weights, channels),
            (None, None) => PackedWeights::new(weights, channels, self.kernels),
            (None, Some(taps)) => {
                let weights = taps.spread(weights, depth);
                let packed = PackedWeights::new(&weights, channels, self.kernels);
                PackedWeights { depth_given: depth, ..packed }
            }
        };
        let groups = groups.map(|(group, weights)| {
            let packed = pack(weights);
            let epilogue = self.epilogue(&conv, chain, &from, group, packed.crossed);
            (packed, epilogue)
        });
        let groups = groups.collect();
        let stride = depth.next_multiple_of(16);
        let tile = self.kernels.tile_rows;
        let (pixels, width) = (y.shape.pixels(), y.shape.w);
        let evenly = |most: usize| pixels.div_ceil(pixels.div_ceil(most)).next_multiple_of(tile);
        let rows = match taps {
            // A span ends with its row.
            Some(_) if conv.window.taps() > 1 && (2..=WALK_ROWS).contains(&width) => {
                width * (PANEL_ROWS / width).max(1)
            }
            Some(_) => evenly((WALK_BYTES / stride).clamp(PANEL_ROWS, WALK_ROWS)),
            None => evenly((PANEL_VALUES / stride).clamp(tile, PANEL_ROWS) / tile * tile),
        };
        Action::Conv(Box::new(ConvStep {
            window: conv.window,
            from,
            x,
            y,
            other: chain.sum.map(|sum| self.places.view(sum.other)),
            groups,
            table,
            stride,
            rows: rows.min(pixels),
            in_place: self.kernels.takes_as_stored(from.element()),
            taps,
            form,
        }))
    }

    /// `crossed` as [`PackedWeights::crossed`].
    fn epilogue(
        &self,
        conv: &Conv,
        chain: &Chain,
        from: &Quantisation,
        group: usize,
        crossed: bool,
    ) -> Epilogue {
        let to = self.quantisation(chain.conv);
        let per_group = conv.channels / conv.groups;
        let padded = per_group.next_multiple_of(BLOCK);
        let (mut bias, mut multipliers) = (vec![0; padded], vec![0.0; padded]);
        let depth = conv.weights.len() / conv.channels;
        let zero_point = from.zero_point() - self.kernels.centre(from.element());
        for lane in 0..per_group {
            let channel = group * per_group + lane;
            let weights = &conv.weights[channel * depth..][..depth];
            let sum: i32 = weights.iter().map(|&weight| i32::from(weight)).sum();
            let given = conv.bias.get(channel).copied().unwrap_or(0);
            let cross = if crossed { kernels::cross(weights) } else { 0 };
            bias[lane] = given.wrapping_sub(sum.wrapping_mul(zero_point)).wrapping_sub(cross);
            let scale = conv.weight_scales[if conv.weight_scales.len() == 1 { 0 } else { channel }];
            multipliers[lane] = numerics::multiplier(from.scale(), scale, to.scale());
        }
        let sum = chain.sum.map(|sum| sum.fused);
        let (low, high) = chain.limits;
        let fits = multipliers.iter().all(|&multiplier| multiplier < 1.0);
        Epilogue { bias, multipliers, zero_point: to.zero_point(), low, high, fits, sum }
    }
}
