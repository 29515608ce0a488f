//! Builds the engine's graph of a segment.

use std::collections::HashMap;
use std::rc::Rc;

use ocelli_int8::{
    Conv, ConvTranspose, FullyConnected, Graph, GraphBuilder, GraphError, InputForm, OutputForm,
    Quantisation, TensorId as Built,
};

use super::recipe::{self, Reader, Recipe, Stored};
use super::weights::{self, Layout};
use crate::inference::delegate::{CompileError, SegmentIo};
use crate::inference::graph::{
    Activation, Arithmetic, GraphView, Node, NodeSet, TensorId, TensorInfo,
};
use crate::tensor::ElementType;

/// A segment for the engine.
pub(super) struct Lowered {
    pub(super) graph: Graph,
    /// For each input of the graph, the segment's input that it takes.
    pub(super) reads: Vec<usize>,
}

/// What stands for a tensor of the segment.
#[derive(Clone)]
enum Value {
    Stored(Built),
    /// Real values of a stored tensor, through a function.
    Real(Built, Option<Function>),
    Softmax(Built),
}

type Function = Rc<dyn Fn(f32) -> f32>;

/// Why it cannot be built after all.
struct Refusal(String);

impl From<GraphError> for Refusal {
    fn from(error: GraphError) -> Self {
        Self(error.to_string())
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

pub(super) fn lower(
    graph: &GraphView<'_>,
    nodes: &NodeSet,
    io: &SegmentIo,
) -> Result<Lowered, CompileError> {
    let mut lowering = Lowering {
        graph,
        io,
        builder: GraphBuilder::new(),
        reads: Vec::new(),
        values: HashMap::new(),
    };
    // What the segment reads is read alike by all recipes.
    let mut reader = Reader::new(graph);
    let refused = |Refusal(reason)| CompileError::Refused(reason);
    for id in nodes.iter() {
        let node = graph.node(id);
        let named =
            |Refusal(reason)| refused(Refusal(format!("{} ({}): {reason}", node.name, node.op)));
        let recipe = reader.read(node).map_err(|reason| named(Refusal(reason)))?;
        lowering.node(node, &recipe).map_err(named)?;
    }
    lowering.outputs(nodes).map_err(refused)?;
    let Lowering { builder, reads, .. } = lowering;
    let graph = builder.build().map_err(|error| refused(error.into()))?;
    Ok(Lowered { graph, reads })
}

struct Lowering<'a> {
    graph: &'a GraphView<'a>,
    io: &'a SegmentIo,
    builder: GraphBuilder,
    reads: Vec<usize>,
    values: HashMap<TensorId, Value>,
}

impl<'a> Lowering<'a> {
    fn tensor(&self, tensor: Option<TensorId>) -> Result<(TensorId, &'a TensorInfo), Refusal> {
        let tensor = tensor.ok_or("an input or output is left out")?;
        Ok((tensor, self.graph.tensor(tensor)))
    }

    /// An input of the segment, as bytes or quantised from floats.
    fn enter(&mut self, tensor: &TensorInfo, stored: Stored) -> Result<Built, Refusal> {
        let place = self.io.inputs.iter().position(|spec| spec.name == tensor.name);
        let place = place.ok_or_else(|| format!("nothing gives `{}`", tensor.name))?;
        let form = match self.io.inputs[place].element {
            ElementType::F32 => InputForm::F32Nchw,
            _ => InputForm::QuantisedNchw,
        };
        self.reads.push(place);
        Ok(self.builder.input(stored.shape, stored.quantisation, form)?)
    }

    /// The bytes of a tensor.
    fn stored(&mut self, tensor: Option<TensorId>) -> Result<Built, Refusal> {
        let (id, tensor) = self.tensor(tensor)?;
        match self.values.get(&id) {
            Some(Value::Stored(built)) => return Ok(*built),
            Some(_) => return Err(format!("`{}` is not stored", tensor.name).into()),
            None => {}
        }
        let built = self.enter(tensor, recipe::stored(tensor)?)?;
        self.values.insert(id, Value::Stored(built));
        Ok(built)
    }

    fn real(&self, tensor: Option<TensorId>) -> Result<(Built, Option<Function>), Refusal> {
        let (id, tensor) = self.tensor(tensor)?;
        match self.values.get(&id) {
            Some(Value::Real(built, function)) => Ok((*built, function.clone())),
            _ => Err(format!(
                "`{}` does not come from a quantised tensor of this segment",
                tensor.name
            )
            .into()),
        }
    }

    fn node(&mut self, node: &Node, recipe: &Recipe) -> Result<(), Refusal> {
        let real = |this: &Self| {
            this.tensor(node.output()).map(|(_, y)| y.element == Some(ElementType::F32))
        };
        match recipe {
            Recipe::Split(parts) => return self.split(node, parts),
            Recipe::Dequantise => {
                let x = self.stored(node.input(0))?;
                return self.give(node, Value::Real(x, None));
            }
            Recipe::Softmax => {
                let (x, function) = self.real(node.input(0))?;
                if function.is_some() {
                    return Err("a function stands before it".into());
                }
                return self.give(node, Value::Softmax(x));
            }
            Recipe::Function(_) if real(self)? => return self.real_function(node),
            Recipe::Reshape if real(self)? => {
                let (x, function) = self.real(node.input(0))?;
                let shape =
                    recipe::shape(&self.tensor(node.output())?.1.shape).ok_or("its shape")?;
                let y = self.builder.reshape(x, shape)?;
                return self.give(node, Value::Real(y, function));
            }
            _ => {}
        }
        let (_, y) = self.tensor(node.output())?;
        let to = recipe::stored(y)?;
        let mut built = self.operator(node, recipe, to)?;
        let found = self.builder.tensor(built)?;
        if found.quantisation != to.quantisation {
            built = self.builder.requantise(built, to.quantisation)?;
        }
        if let Some(activation) = node.activation {
            let (low, high) = limits(activation, to.quantisation);
            built = self.builder.clamp(built, low, high)?;
        }
        if found.shape != to.shape {
            return Err(format!("{:?} instead of {:?}", found.shape, to.shape).into());
        }
        self.give(node, Value::Stored(built))
    }

    fn give(&mut self, node: &Node, value: Value) -> Result<(), Refusal> {
        let (id, _) = self.tensor(node.output())?;
        self.values.insert(id, value);
        Ok(())
    }

    /// A function again, without its box, which only the recipe holds.
    fn real_function(&mut self, node: &Node) -> Result<(), Refusal> {
        let (x, before) = self.real(node.input(0))?;
        let own = crate::inference::function::function(node).ok_or("it is no function")?;
        let function: Function = match before {
            None => own.into(),
            Some(before) => Rc::new(move |value| own(before(value))),
        };
        self.give(node, Value::Real(x, Some(function)))
    }

    fn split(&mut self, node: &Node, parts: &[(usize, usize)]) -> Result<(), Refusal> {
        let x = self.stored(node.input(0))?;
        for (output, (first, channels)) in node.outputs.iter().zip(parts) {
            let (id, y) = self.tensor(*output)?;
            let to = recipe::stored(y)?.quantisation;
            let mut part = self.builder.slice(x, *first, *channels)?;
            if self.builder.tensor(part)?.quantisation != to {
                part = self.builder.requantise(part, to)?;
            }
            if let Some(activation) = node.activation {
                let (low, high) = limits(activation, to);
                part = self.builder.clamp(part, low, high)?;
            }
            self.values.insert(id, Value::Stored(part));
        }
        Ok(())
    }

    /// One operator between stored tensors. Its result may be quantised otherwise than `to`.
    fn operator(&mut self, node: &Node, recipe: &Recipe, to: Stored) -> Result<Built, Refusal> {
        if let Recipe::Quantise = recipe {
            return self.quantise(node, to);
        }
        let x = self.stored(node.input(0))?;
        let y = to.quantisation;
        let builder = &mut self.builder;
        Ok(match recipe {
            Recipe::Conv(_) | Recipe::ConvTranspose(_) | Recipe::Gemm => {
                return self.products(node, recipe, x, to);
            }
            Recipe::Add | Recipe::Mul => return self.pair(node, recipe, x, to),
            Recipe::Concat => return self.concat(node, to),
            Recipe::MaxPool(window) => builder.max_pool(x, *window)?,
            Recipe::AveragePool(window, padding) => {
                builder.average_pool(x, *window, *padding, y)?
            }
            Recipe::GlobalAveragePool => builder.global_average_pool(x, y)?,
            Recipe::Resize(resize, Arithmetic::Plain) => builder.resize(x, *resize)?,
            Recipe::Resize(resize, Arithmetic::Quantised) => builder.resize_real(x, *resize, y)?,
            Recipe::Pad(pads, value) => builder.pad(x, *pads, *value)?,
            Recipe::Function(function) => builder.unary(x, function, y)?,
            Recipe::Reshape => builder.reshape(x, to.shape)?,
            Recipe::Quantise | Recipe::Dequantise | Recipe::Split(_) | Recipe::Softmax => {
                return Err("it is no operator between stored tensors".into());
            }
        })
    }

    fn quantise(&mut self, node: &Node, to: Stored) -> Result<Built, Refusal> {
        let (id, x) = self.tensor(node.input(0))?;
        Ok(match self.values.get(&id) {
            Some(Value::Real(x, None)) => self.builder.requantise(*x, to.quantisation)?,
            Some(Value::Real(x, Some(function))) => {
                self.builder.unary(*x, |value| function(value), to.quantisation)?
            }
            Some(_) => return Err("it quantises what is no plain value".into()),
            None => self.enter(x, to)?,
        })
    }

    fn products(
        &mut self,
        node: &Node,
        recipe: &Recipe,
        x: Built,
        to: Stored,
    ) -> Result<Built, Refusal> {
        let from = self.builder.tensor(x)?.quantisation;
        let (_, w) = self.tensor(node.input(1))?;
        let layout = Layout::of(node).ok_or("its groups")?;
        let weight_scales = weights::scales(w, layout)?.to_vec();
        let bias = match node.input(2) {
            None => Vec::new(),
            Some(bias) => {
                let products: Vec<_> =
                    weight_scales.iter().map(|scale| from.scale() * scale).collect();
                weights::bias(self.graph.tensor(bias), &products).ok_or("its bias")?
            }
        };
        let groups = usize::try_from(node.int("group").unwrap_or(1)).map_err(|_| "its groups")?;
        let channels = layout.extents(&w.shape).ok_or("its weights")?[0];
        let weights = weights::ordered(w, layout).ok_or("its weights")?;
        let y = to.quantisation;
        Ok(match recipe {
            Recipe::Conv(window) => {
                let window = *window;
                let conv = Conv { channels, window, groups, weights, weight_scales, bias };
                self.builder.conv(x, conv, y)?
            }
            Recipe::ConvTranspose(window) => {
                let (window, size) = (*window, [to.shape.h, to.shape.w]);
                let conv =
                    ConvTranspose { channels, size, window, groups, weights, weight_scales, bias };
                self.builder.conv_transpose(x, &conv, y)?
            }
            _ => {
                let layer = FullyConnected { channels, weights, weight_scales, bias };
                self.builder.fully_connected(x, layer, y)?
            }
        })
    }

    fn pair(
        &mut self,
        node: &Node,
        recipe: &Recipe,
        a: Built,
        to: Stored,
    ) -> Result<Built, Refusal> {
        let b = self.stored(node.input(1))?;
        // The engine wants the vector second. A sum may then round a tie the other way.
        let swapped = self.builder.tensor(a)?.shape != to.shape;
        let (a, b) = if swapped { (b, a) } else { (a, b) };
        Ok(match recipe {
            Recipe::Add => self.builder.add(a, b, to.quantisation)?,
            _ => self.builder.mul(a, b, to.quantisation)?,
        })
    }

    /// Each part is brought to the result's quantisation first, so that it can be written into its place.
    fn concat(&mut self, node: &Node, to: Stored) -> Result<Built, Refusal> {
        let mut parts = Vec::new();
        for input in &node.inputs {
            let part = self.stored(*input)?;
            let same = self.builder.tensor(part)?.quantisation == to.quantisation;
            parts.push(if same { part } else { self.builder.requantise(part, to.quantisation)? });
        }
        Ok(self.builder.concat(&parts, to.quantisation)?)
    }

    fn outputs(&mut self, nodes: &NodeSet) -> Result<(), Refusal> {
        let mut written = HashMap::new();
        for output in nodes.iter().flat_map(|node| self.graph.node(node).outputs.iter().flatten()) {
            written.insert(self.graph.tensor(*output).name.as_str(), *output);
        }
        for spec in &self.io.outputs {
            let id = written.get(spec.name.as_str()).copied();
            let value = id.and_then(|id| self.values.get(&id).cloned());
            match value.ok_or_else(|| format!("nothing writes `{}`", spec.name))? {
                Value::Stored(built) => self.builder.output(built, OutputForm::QuantisedNchw)?,
                Value::Real(built, None) => self.builder.output(built, OutputForm::F32Nchw)?,
                Value::Real(built, Some(function)) => {
                    self.builder.output_function(built, |value| function(value))?;
                }
                Value::Softmax(built) => self.builder.output(built, OutputForm::SoftmaxNchw)?,
            }
        }
        Ok(())
    }
}

/// An activation's bounds as stored values.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "clamped to bytes first"
)]
fn limits(activation: Activation, at: Quantisation) -> (i32, i32) {
    let (least, greatest) = at.element().range();
    let zero = at.zero_point();
    let bound = |real: f32| {
        let steps = real / at.scale();
        let steps = steps.clamp((least - zero) as f32, (greatest - zero) as f32);
        steps.round_ties_even() as i32 + zero
    };
    let (low, high) = (bound(activation.min), bound(activation.max));
    (low, high.max(low))
}
