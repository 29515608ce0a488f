//! What a node of the graph becomes in the engine, or why it is left to the host. Nothing is built here.

use std::collections::HashSet;

use ocelli_int8::{
    Coordinates, CountPadding, ElementType, Interpolation, NearestRounding, Quantisation, Resize,
    Shape, Window,
};

use super::weights::{self, Layout};
use super::window;
use crate::inference::function::function;
use crate::inference::graph::{Arithmetic, GraphView, Node, TensorId, TensorInfo};
use crate::tensor::{ElementType as Element, TensorBuffer};

/// What a node becomes.
pub(super) enum Recipe {
    Quantise,
    Dequantise,
    Conv(Window),
    ConvTranspose(Window),
    /// A matrix of weights times each vector.
    Gemm,
    Add,
    Mul,
    /// Along the channels.
    Concat,
    MaxPool(Window),
    AveragePool(Window, CountPadding),
    GlobalAveragePool,
    /// On stored values, or on the reals behind them.
    Resize(Resize, Arithmetic),
    /// Top, left, bottom, right; the stored value.
    Pad([usize; 4], i32),
    Function(Box<dyn Fn(f32) -> f32>),
    /// First channel and number of channels of each output.
    Split(Vec<(usize, usize)>),
    /// The same elements in the same order.
    Reshape,
    /// Along the channels, at the very end.
    Softmax,
}

/// Reads nodes in topological order.
pub(super) struct Reader<'a> {
    graph: &'a GraphView<'a>,
    /// Float tensors behind which a quantised one stands.
    reals: HashSet<TensorId>,
}

/// A tensor of the engine's kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) shape: Shape,
    pub(super) quantisation: Quantisation,
}

/// Shape of a tensor in the engine: batch and channels, then one or two spatial axes; later ones are taken as one.
pub(super) fn shape(dimensions: &[usize]) -> Option<Shape> {
    let shape = match dimensions {
        [c] => Shape::new(1, 1, 1, *c),
        [n, c] => Shape::new(*n, 1, 1, *c),
        [n, c, w] => Shape::new(*n, 1, *w, *c),
        [n, c, h, rest @ ..] => Shape::new(*n, *h, rest.iter().product(), *c),
        [] => return None,
    };
    shape.ok()
}

/// Scale and zero point of a tensor of bytes, where it has one of each.
pub(super) fn quantisation(tensor: &TensorInfo) -> Option<Quantisation> {
    let element = match tensor.element? {
        Element::U8 => ElementType::U8,
        Element::I8 => ElementType::S8,
        _ => return None,
    };
    let found = tensor.quantisation.as_ref()?.per_tensor()?;
    Quantisation::new(element, found.scale, found.zero_point).ok()
}

pub(super) fn stored(tensor: &TensorInfo) -> Result<Stored, String> {
    let name = &tensor.name;
    if tensor.is_constant() {
        return Err(format!("`{name}` is a constant"));
    }
    let quantisation =
        quantisation(tensor).ok_or_else(|| format!("`{name}` is not quantised as a whole"))?;
    let shape =
        shape(&tensor.shape).ok_or_else(|| format!("shape {:?} of `{name}`", tensor.shape))?;
    Ok(Stored { shape, quantisation })
}

impl<'a> Reader<'a> {
    pub(super) fn new(graph: &'a GraphView<'a>) -> Self {
        Self { graph, reals: HashSet::new() }
    }

    /// What the node becomes.
    ///
    /// # Errors
    /// Why the engine does not run it.
    pub(super) fn read(&mut self, node: &Node) -> Result<Recipe, String> {
        let recipe = match node.arithmetic {
            Arithmetic::Quantised => self.quantised(node)?,
            Arithmetic::Plain => self.plain(node)?,
        };
        if let Some(output) = node.output()
            && self.graph.tensor(output).element == Some(Element::F32)
            && !matches!(recipe, Recipe::Softmax)
        {
            self.reals.insert(output);
        }
        Ok(recipe)
    }

    fn tensor(&self, tensor: Option<TensorId>) -> Result<&'a TensorInfo, String> {
        tensor.map(|tensor| self.graph.tensor(tensor)).ok_or_else(|| "an input is left out".into())
    }

    fn input(&self, node: &Node, place: usize) -> Result<Stored, String> {
        stored(self.tensor(node.input(place))?)
    }

    fn output(&self, node: &Node) -> Result<Stored, String> {
        stored(self.tensor(node.output())?)
    }

    fn quantised(&self, node: &Node) -> Result<Recipe, String> {
        let single = node.outputs.iter().skip(1).all(Option::is_none);
        if !single && node.op != "Split" {
            return Err("more than one output".into());
        }
        let x = self.input(node, 0)?;
        let y = self.output(node)?;
        match node.op.as_str() {
            "Conv" | "ConvTranspose" | "Gemm" | "MatMul" => self.products(node, x, y),
            "Add" | "Mul" => self.pair(node, x, y),
            "Concat" => self.concat(node),
            "MaxPool" => self.window(node).map(Recipe::MaxPool),
            "AveragePool" => {
                let include = node.int("count_include_pad").unwrap_or(0) != 0;
                if include && node.int("ceil_mode").unwrap_or(0) != 0 {
                    return Err("padding is counted in windows beyond it".into());
                }
                let padding = if include { CountPadding::Include } else { CountPadding::Exclude };
                Ok(Recipe::AveragePool(self.window(node)?, padding))
            }
            "GlobalAveragePool" if node.int("channels_last").unwrap_or(0) == 0 => {
                Ok(Recipe::GlobalAveragePool)
            }
            "ReduceMean" => self.mean(node),
            "Resize" => self.resize(node, Arithmetic::Quantised),
            "Pad" => self.pad(node, x.quantisation),
            "Slice" => self.slice(node),
            "Split" => self.split(node),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" => Ok(Recipe::Reshape),
            _ => function(node).map(Recipe::Function).ok_or_else(|| "unknown operator".into()),
        }
    }

    fn plain(&self, node: &Node) -> Result<Recipe, String> {
        let x = self.tensor(node.input(0))?;
        match node.op.as_str() {
            "QuantizeLinear" => {
                let y = self.output(node)?;
                if x.element != Some(Element::F32) || x.is_constant() {
                    return Err("it quantises no float".into());
                }
                self.states(node, y.quantisation).map(|()| Recipe::Quantise)
            }
            "DequantizeLinear" => {
                let x = stored(x)?;
                self.states(node, x.quantisation).map(|()| Recipe::Dequantise)
            }
            "Resize" if quantisation(x).is_some() => {
                let (x, y) = (stored(x)?, self.output(node)?);
                if x.quantisation != y.quantisation {
                    return Err("it changes the quantisation".into());
                }
                self.resize(node, Arithmetic::Plain)
            }
            _ if !node.input(0).is_some_and(|input| self.reals.contains(&input)) => {
                Err("it works on floats".into())
            }
            "Softmax" => self.softmax(node, x),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" => {
                let y = self.tensor(node.output())?;
                shape(&y.shape).map(|_| Recipe::Reshape).ok_or_else(|| "its shape".into())
            }
            _ => function(node).map(Recipe::Function).ok_or_else(|| "it works on floats".into()),
        }
    }

    /// Whether scale and zero point of a QuantizeLinear or DequantizeLinear are those of the tensor.
    fn states(&self, node: &Node, found: Quantisation) -> Result<(), String> {
        let scale = self.tensor(node.input(1))?.constant();
        let zero_point = node.input(2).map(|tensor| self.graph.tensor(tensor).constant());
        let zero_point = match zero_point {
            None => Some(0),
            Some(Some(TensorBuffer::U8(values))) => values.first().map(|value| i32::from(*value)),
            Some(Some(TensorBuffer::I8(values))) => values.first().map(|value| i32::from(*value)),
            Some(_) => None,
        };
        let same = scale == Some(&TensorBuffer::F32(vec![found.scale()]))
            && zero_point == Some(found.zero_point());
        if same { Ok(()) } else { Err("it states another quantisation than the tensor's".into()) }
    }

    fn products(&self, node: &Node, x: Stored, y: Stored) -> Result<Recipe, String> {
        let layout = Layout::of(node).ok_or("its groups")?;
        let w = self.tensor(node.input(1))?;
        weights::check(w, layout)?;
        let [outputs, height, width, depth] = layout.extents(&w.shape).ok_or("its weights")?;
        if height * width * depth > ocelli_int8::MAX_PRODUCTS {
            return Err(format!("{} products a value", height * width * depth));
        }
        if let Some(bias) = node.input(2) {
            let bias = self.graph.tensor(bias);
            let scales: Vec<_> = weights::scales(w, layout)?
                .iter()
                .map(|scale| x.quantisation.scale() * scale)
                .collect();
            if weights::bias(bias, &scales).is_none_or(|found| found.len() != outputs) {
                return Err("its bias".into());
            }
        }
        let (from, to) = ([x.shape.h, x.shape.w], [y.shape.h, y.shape.w]);
        let four = self.tensor(node.input(0))?.shape.len() == 4;
        match node.op.as_str() {
            "Conv" if four => window::sliding(node, [height, width], from, to)
                .map(Recipe::Conv)
                .ok_or_else(|| "its window".into()),
            "ConvTranspose" if four => window::transposed(node, [height, width], from, to)
                .map(Recipe::ConvTranspose)
                .ok_or_else(|| "its window".into()),
            "Gemm" | "MatMul" if self.tensor(node.input(0))?.shape.len() == 2 => {
                let one = |name: &str| node.float(name).unwrap_or(1.0).to_bits() == 1_f32.to_bits();
                if one("alpha") && one("beta") && node.int("transA").unwrap_or(0) == 0 {
                    Ok(Recipe::Gemm)
                } else {
                    Err("it is scaled or transposed".into())
                }
            }
            _ => Err("data of this rank".into()),
        }
    }

    fn pair(&self, node: &Node, a: Stored, y: Stored) -> Result<Recipe, String> {
        let b = self.input(node, 1)?;
        let vector = |x: Shape, of: Shape| {
            x == of || (x.pixels() == 1 && x.c == of.c && (x.n == 1 || x.n == of.n))
        };
        let ranks = [node.input(0), node.input(1), node.output()]
            .map(|tensor| tensor.map(|tensor| self.graph.tensor(tensor).shape.len()));
        if ranks[0] != ranks[1] || ranks[1] != ranks[2] {
            return Err("its inputs have different ranks".into());
        }
        let fits = (a.shape == y.shape && vector(b.shape, a.shape))
            || (b.shape == y.shape && vector(a.shape, b.shape));
        match node.op.as_str() {
            _ if !fits => Err("its shapes".into()),
            "Add" => Ok(Recipe::Add),
            _ => Ok(Recipe::Mul),
        }
    }

    fn concat(&self, node: &Node) -> Result<Recipe, String> {
        for place in 0..node.inputs.len() {
            self.input(node, place)?;
        }
        match self.axis(node, node.int("axis").ok_or("its axis")?)? {
            1 => Ok(Recipe::Concat),
            _ => Err("it joins along another axis than the channels".into()),
        }
    }

    /// An axis of the first input, counted from the front.
    fn axis(&self, node: &Node, axis: i64) -> Result<usize, String> {
        let rank = self.tensor(node.input(0))?.shape.len();
        let axis = if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis };
        usize::try_from(axis).ok().filter(|axis| *axis < rank).ok_or_else(|| "its axis".into())
    }

    fn window(&self, node: &Node) -> Result<Window, String> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let kernel = node.ints("kernel_shape").unwrap_or_default();
        let kernel: Vec<_> = kernel.iter().filter_map(|side| usize::try_from(*side).ok()).collect();
        let (Ok(kernel), &[_, _, h, w], &[_, _, to_h, to_w]) =
            (<[usize; 2]>::try_from(kernel), x.shape.as_slice(), y.shape.as_slice())
        else {
            return Err("data of this rank".into());
        };
        let window = window::sliding(node, kernel, [h, w], [to_h, to_w]).ok_or("its window")?;
        let inside = (0..4).all(|side| window.pads[side] < kernel[side % 2]);
        if window.dilations != [1; 2] || !inside || node.int("storage_order").unwrap_or(0) != 0 {
            return Err("its window is dilated, or may lie beside the picture".into());
        }
        Ok(window)
    }

    fn mean(&self, node: &Node) -> Result<Recipe, String> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let all_pixels = match (x.shape.as_slice(), y.shape.as_slice()) {
            (&[n, c, ..], &[to_n, to_c]) | (&[n, c, ..], &[to_n, to_c, 1, 1]) => {
                (n, c) == (to_n, to_c) && x.shape.len() == 4
            }
            _ => false,
        };
        let axes = match node.ints("axes") {
            Some(axes) => axes.to_vec(),
            None => self.integers(node, 1).unwrap_or_default(),
        };
        let axes = axes.iter().map(|axis| self.axis(node, *axis)).collect::<Result<Vec<_>, _>>()?;
        let spatial = axes.len() == 2 && axes.contains(&2) && axes.contains(&3);
        if all_pixels && spatial { Ok(Recipe::GlobalAveragePool) } else { Err("its axes".into()) }
    }

    /// Integers of a constant input.
    fn integers(&self, node: &Node, place: usize) -> Option<Vec<i64>> {
        match self.graph.tensor(node.input(place)?).constant()? {
            TensorBuffer::I64(values) => Some(values.clone()),
            TensorBuffer::I32(values) => {
                Some(values.iter().map(|value| i64::from(*value)).collect())
            }
            _ => None,
        }
    }

    fn resize(&self, node: &Node, arithmetic: Arithmetic) -> Result<Recipe, String> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let (&[n, c, h, w], &[to_n, to_c, to_h, to_w]) = (x.shape.as_slice(), y.shape.as_slice())
        else {
            return Err("data of this rank".into());
        };
        let special = ["antialias", "exclude_outside", "keep_aspect_ratio_policy", "axes"];
        let changed = special.iter().any(|name| {
            node.int(name).is_some_and(|value| value != 0)
                || node.ints(name).is_some_and(|list| !list.is_empty())
                || node.text(name).is_some_and(|text| !text.is_empty() && text != "stretch")
        });
        if (n, c) != (to_n, to_c) || self.graph.opset() < 11 || changed {
            return Err("its batch, channels or attributes".into());
        }
        let scales = node.input(2).and_then(|scales| self.graph.tensor(scales).constant());
        let scales = match scales {
            Some(TensorBuffer::F32(scales)) if scales.len() == 4 => [scales[2], scales[3]],
            _ if node.input(3).is_some() => [ratio(to_h, h), ratio(to_w, w)],
            _ => return Err("its scales".into()),
        };
        let coordinates = match node.text("coordinate_transformation_mode") {
            None | Some("half_pixel") => Coordinates::HalfPixel,
            Some("pytorch_half_pixel") if to_h > 1 && to_w > 1 => Coordinates::HalfPixel,
            Some("asymmetric") => Coordinates::Asymmetric,
            Some("align_corners") => Coordinates::AlignCorners,
            Some(other) => return Err(format!("coordinates {other}")),
        };
        let mode = match (node.text("mode").unwrap_or("nearest"), node.text("nearest_mode")) {
            ("linear", _) => Interpolation::Bilinear,
            ("nearest", rounding) => Interpolation::Nearest(match rounding {
                None | Some("round_prefer_floor") => NearestRounding::PreferFloor,
                Some("round_prefer_ceil") => NearestRounding::PreferCeil,
                Some("floor") => NearestRounding::Floor,
                Some("ceil") => NearestRounding::Ceil,
                Some(other) => return Err(format!("rounding {other}")),
            }),
            (other, _) => return Err(format!("mode {other}")),
        };
        let resize = Resize { size: [to_h, to_w], scales, mode, coordinates };
        Ok(Recipe::Resize(resize, arithmetic))
    }

    fn pad(&self, node: &Node, x: Quantisation) -> Result<Recipe, String> {
        if node.text("mode").is_some_and(|mode| mode != "constant") || node.input(3).is_some() {
            return Err("its mode".into());
        }
        let pads = self.integers(node, 1).ok_or("its pads")?;
        let pads: Vec<_> = pads.iter().filter_map(|pad| usize::try_from(*pad).ok()).collect();
        let &[0, 0, top, left, 0, 0, bottom, right] = pads.as_slice() else {
            return Err("its pads".into());
        };
        let zero = x.zero_point();
        let value = match node.input(2).map(|value| self.graph.tensor(value)) {
            None => zero,
            Some(value) => {
                let first = match value.constant() {
                    Some(TensorBuffer::F32(values)) => values.first().copied(),
                    _ => None,
                };
                let first = first.filter(|value| *value == 0.0);
                first.map(|_| zero).ok_or("its value is not 0")?
            }
        };
        Ok(Recipe::Pad([top, left, bottom, right], value))
    }

    fn slice(&self, node: &Node) -> Result<Recipe, String> {
        let (x, y) = (self.tensor(node.input(0))?, self.tensor(node.output())?);
        let axes = match node.input(3) {
            None => None,
            Some(_) => Some(self.integers(node, 3).ok_or("its axes")?),
        };
        let steps = match node.input(4) {
            None => vec![1],
            Some(_) => self.integers(node, 4).ok_or("its steps")?,
        };
        let (starts, axes) = (self.integers(node, 1).ok_or("its starts")?, axes.unwrap_or(vec![0]));
        let (&[start], &[axis], &[1]) = (starts.as_slice(), axes.as_slice(), steps.as_slice())
        else {
            return Err("it cuts along several axes, or in steps".into());
        };
        if self.axis(node, axis)? != 1 {
            return Err("it cuts along another axis than the channels".into());
        }
        let channels = x.shape[1];
        let start = if start < 0 { start.saturating_add_unsigned(channels as u64) } else { start };
        let first = usize::try_from(start.max(0)).map_err(|_| "its starts")?.min(channels);
        Ok(Recipe::Split(vec![(first, y.shape[1])]))
    }

    fn split(&self, node: &Node) -> Result<Recipe, String> {
        if self.axis(node, node.int("axis").unwrap_or(0))? != 1 {
            return Err("it splits along another axis than the channels".into());
        }
        let mut first = 0;
        let mut parts = Vec::new();
        for output in &node.outputs {
            let output = self.tensor(*output)?;
            stored(output)?;
            parts.push((first, output.shape[1]));
            first += output.shape[1];
        }
        Ok(Recipe::Split(parts))
    }

    fn softmax(&self, node: &Node, x: &TensorInfo) -> Result<Recipe, String> {
        let default = if self.graph.opset() < 13 { 1 } else { -1 };
        let axis = self.axis(node, node.int("axis").unwrap_or(default))?;
        // Before operator set 13 all later axes were taken together.
        let one = self.graph.opset() >= 13 || x.shape.len() == 2;
        if axis == 1 && one && x.shape.len() >= 2 {
            return Ok(Recipe::Softmax);
        }
        Err("it runs along another axis than the channels".into())
    }
}

#[expect(clippy::cast_precision_loss, reason = "extents of pictures")]
fn ratio(to: usize, from: usize) -> f32 {
    to as f32 / from as f32
}
