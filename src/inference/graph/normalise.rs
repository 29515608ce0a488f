//! Brings QDQ and QOperator files to one form.
//!
//! One pass gives every tensor its quantisation, a second folds DequantizeLinear and QuantizeLinear into the operator
//! between them where all of it is quantised: all float data come out of a DequantizeLinear, and every output goes
//! into exactly one QuantizeLinear (Relu or Clip may stand before it).

use std::collections::HashMap;

use super::parse::{RawGraph, RawNode};
use super::{
    Activation, Arithmetic, Graph, GraphError, Limits, Node, TensorId, TensorInfo,
    TensorQuantisation, tables,
};
use crate::tensor::{ElementType, TensorBuffer};

pub(super) fn normalise(raw: RawGraph, limits: &Limits) -> Result<Graph, GraphError> {
    let mut state = Normaliser::new(raw);
    for place in 0..state.raw.nodes.len() {
        state.spread_quantisation(place)?;
    }
    let folds: Vec<_> = (0..state.raw.nodes.len()).map(|place| state.fold_at(place)).collect();
    state.finish(folds, limits)
}

struct Normaliser {
    raw: RawGraph,
    readers: Vec<Vec<usize>>,
    /// Float tensors that a DequantizeLinear writes, and what it reads.
    dequantised: HashMap<TensorId, TensorId>,
}

/// A quantised operator with what it swallows.
struct Fold {
    outputs: Vec<Option<TensorId>>,
    activation: Option<Activation>,
    swallowed: Vec<usize>,
}

impl Normaliser {
    fn new(raw: RawGraph) -> Self {
        let mut readers = vec![Vec::new(); raw.tensors.len()];
        for (place, node) in raw.nodes.iter().enumerate() {
            for input in node.inputs.iter().flatten() {
                readers[*input].push(place);
            }
        }
        Self { raw, readers, dequantised: HashMap::new() }
    }

    fn spread_quantisation(&mut self, place: usize) -> Result<(), GraphError> {
        let node = &self.raw.nodes[place];
        let (op, input, output) = (node.op.as_str(), node.input(0), node.output());
        let (Some(input), Some(output)) = (input, output) else { return Ok(()) };
        if op == "QuantizeLinear" {
            if let Some(found) = self.parameters(node, output, 1, 2, node.int("axis", 1)) {
                self.raw.tensors[output].quantisation = Some(found);
            }
        } else if op == "DequantizeLinear" {
            if let Some(found) = self.parameters(node, input, 1, 2, node.int("axis", 1)) {
                let known = self.raw.tensors[input].quantisation.get_or_insert(found.clone());
                if *known == found {
                    self.dequantised.insert(output, input);
                }
            }
        } else if let Some(plain) = tables::plain_of(op) {
            for (tensor, found) in self.operator_parameters(node, plain)? {
                let tensor = &mut self.raw.tensors[tensor];
                if *tensor.quantisation.get_or_insert(found.clone()) != found {
                    let what = format!("tensor `{}` is read with two quantisations", tensor.name);
                    return Err(GraphError::Unsupported(what));
                }
            }
        } else if tables::MOVES_VALUES.contains(&op)
            && self.raw.tensors[input].is_small_int()
            && let Some(found) = self.raw.tensors[input].quantisation.clone()
            && found.axis.is_none()
        {
            for output in node.outputs.clone().into_iter().flatten() {
                if self.raw.tensors[output].is_small_int() {
                    self.raw.tensors[output].quantisation = Some(found.clone());
                }
            }
        }
        Ok(())
    }

    /// Quantisation of `tensor` by constant scale and zero point at two places of a node.
    fn parameters(
        &self,
        node: &RawNode,
        tensor: TensorId,
        scale: usize,
        zero_point: usize,
        axis: i64,
    ) -> Option<TensorQuantisation> {
        let TensorBuffer::F32(scales) = self.raw.tensors[node.input(scale)?].constant()? else {
            return None;
        };
        let zero_points: Vec<i32> = match node.input(zero_point) {
            None => vec![0; scales.len()],
            Some(zero_point) => match self.raw.tensors[zero_point].constant()? {
                TensorBuffer::U8(values) => values.iter().map(|value| i32::from(*value)).collect(),
                TensorBuffer::I8(values) => values.iter().map(|value| i32::from(*value)).collect(),
                TensorBuffer::I32(values) => values.clone(),
                _ => return None,
            },
        };
        let sound = scales.iter().all(|scale| scale.is_finite() && *scale > 0.0)
            && zero_points.len() == scales.len()
            && node.int("block_size", 0) == 0;
        let tensor = &self.raw.tensors[tensor];
        let axis = if scales.len() == 1 {
            None
        } else {
            let rank = tensor.shape.len();
            let axis = if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis };
            let axis = usize::try_from(axis).ok().filter(|axis| *axis < rank)?;
            (tensor.shape[axis] == scales.len()).then_some(Some(axis))?
        };
        sound.then(|| TensorQuantisation { scales: scales.clone(), zero_points, axis })
    }

    /// Quantisations that a QOperator node states: of its data, its weights, its bias and its output.
    fn operator_parameters(
        &self,
        node: &RawNode,
        plain: &str,
    ) -> Result<Vec<(TensorId, TensorQuantisation)>, GraphError> {
        let mut found = Vec::new();
        let output = match plain {
            "Conv" | "MatMul" | "Add" | "Mul" => 6,
            "Gemm" => 7,
            "Concat" => 0,
            _ => 3,
        };
        let columns = match plain {
            "Conv" => 0,
            "Gemm" if node.int("transB", 0) != 0 => 0,
            _ => -1,
        };
        let data = quantised_places(plain, node.inputs.len());
        for place in data.iter().filter(|place| **place != bias_place(plain)) {
            let Some(tensor) = node.input(*place) else { continue };
            found.push((tensor, self.parameters(node, tensor, place + 1, place + 2, columns)));
        }
        if let Some(tensor) = node.output().filter(|_| node.input(output).is_some()) {
            found.push((tensor, self.parameters(node, tensor, output, output + 1, 1)));
        }
        if let Some(bias) = node.input(bias_place(plain))
            && let [(_, Some(x)), (_, Some(w)), ..] = found.as_slice()
            && let Some(x) = x.per_tensor()
        {
            let scales: Vec<_> = w.scales.iter().map(|scale| x.scale * scale).collect();
            let axis = (scales.len() > 1).then(|| self.raw.tensors[bias].shape.len() - 1);
            let zero_points = vec![0; scales.len()];
            found.push((bias, Some(TensorQuantisation { scales, zero_points, axis })));
        }
        let found = found.into_iter().map(|(tensor, found)| Some((tensor, found?)));
        found.collect::<Option<_>>().ok_or_else(|| {
            GraphError::Unsupported(format!(
                "node `{}` ({}): scales and zero points must be constants above 0 that fit their tensors",
                node.name, node.op
            ))
        })
    }

    /// How the node at `place` becomes quantised by what stands around it; `None` if it does not.
    fn fold_at(&self, place: usize) -> Option<Fold> {
        let node = &self.raw.nodes[place];
        if matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear") {
            return None;
        }
        let mut any = false;
        for input in node.inputs.iter().flatten() {
            let tensor = &self.raw.tensors[*input];
            if self.dequantised.contains_key(input) {
                any = true;
            } else if tensor.element == Some(ElementType::F32) && !tensor.is_constant() {
                return None;
            }
        }
        if !any {
            return None;
        }
        let mut fold = Fold { outputs: Vec::new(), activation: None, swallowed: Vec::new() };
        for output in &node.outputs {
            let Some(output) = output else {
                fold.outputs.push(None);
                continue;
            };
            let mut reader = self.only_reader(*output)?;
            if node.outputs.len() == 1
                && let Some((activation, result)) = self.activation(reader)
            {
                fold.activation = Some(activation);
                fold.swallowed.push(reader);
                reader = self.only_reader(result)?;
            }
            let quantise = &self.raw.nodes[reader];
            let quantised = quantise.output().filter(|_| quantise.op == "QuantizeLinear")?;
            self.raw.tensors[quantised].quantisation.as_ref()?.per_tensor()?;
            fold.swallowed.push(reader);
            fold.outputs.push(Some(quantised));
        }
        Some(fold)
    }

    fn only_reader(&self, tensor: TensorId) -> Option<usize> {
        let [reader] = self.readers[tensor].as_slice() else { return None };
        (!self.raw.outputs.contains(&tensor)).then_some(*reader)
    }

    fn activation(&self, place: usize) -> Option<(Activation, TensorId)> {
        let node = &self.raw.nodes[place];
        let bound = |input: usize, attribute: &str, default: f32| match node.input(input) {
            None => Some(node.attribute(attribute).map_or(default, |found| found.f())),
            Some(tensor) => match self.raw.tensors[tensor].constant() {
                Some(TensorBuffer::F32(values)) => values.first().copied(),
                _ => None,
            },
        };
        let activation = match node.op.as_str() {
            "Relu" => Activation { min: 0.0, max: f32::INFINITY },
            "Clip" => Activation {
                min: bound(1, "min", f32::NEG_INFINITY)?,
                max: bound(2, "max", f32::INFINITY)?,
            },
            _ => return None,
        };
        Some((activation, node.output()?))
    }

    fn finish(mut self, folds: Vec<Option<Fold>>, limits: &Limits) -> Result<Graph, GraphError> {
        let mut dropped = vec![false; folds.len()];
        for swallowed in folds.iter().flatten().flat_map(|fold| &fold.swallowed) {
            dropped[*swallowed] = true;
        }
        for (place, node) in self.raw.nodes.iter().enumerate() {
            if node.op == "DequantizeLinear"
                && let Some(output) = node.output().filter(|o| self.dequantised.contains_key(o))
            {
                let inside = self.readers[output].iter().all(|reader| folds[*reader].is_some());
                dropped[place] = inside && !self.raw.outputs.contains(&output);
            }
        }
        let mut nodes = Vec::new();
        let raw = std::mem::take(&mut self.raw.nodes);
        for (place, (node, fold)) in raw.into_iter().zip(folds).enumerate() {
            if !dropped[place] {
                nodes.push(self.node(node, fold));
            }
        }
        let mut tensors = self.raw.tensors;
        let macs: u64 = nodes.iter().map(|node: &Node| node.macs).fold(0, u64::saturating_add);
        if macs > limits.macs {
            let what = "multiply-accumulates of one run".into();
            let (found, limit) = (u128::from(macs), u128::from(limits.macs));
            return Err(GraphError::TooLarge { what, found, limit });
        }
        link(&nodes, &mut tensors);
        let RawGraph { name, opset, inputs, outputs, .. } = self.raw;
        Ok(Graph { name, nodes, tensors, inputs, outputs, opset })
    }

    fn node(&self, raw: RawNode, fold: Option<Fold>) -> Node {
        let plain = tables::plain_of(&raw.op);
        let quantised = fold.is_some() || plain.is_some() || self.moves_quantised(&raw);
        let (inputs, outputs, activation) = match (fold, plain) {
            (Some(fold), _) => {
                let input = |input: Option<TensorId>| {
                    input.map(|input| self.dequantised.get(&input).copied().unwrap_or(input))
                };
                let inputs = raw.inputs.iter().map(|tensor| input(*tensor)).collect();
                (inputs, fold.outputs, fold.activation)
            }
            (None, Some(plain)) => {
                let places = quantised_places(plain, raw.inputs.len());
                (places.iter().map(|place| raw.input(*place)).collect(), raw.outputs, None)
            }
            (None, None) => (raw.inputs, raw.outputs, None),
        };
        let op = plain.map_or(raw.op, str::to_owned);
        let arithmetic = if quantised { Arithmetic::Quantised } else { Arithmetic::Plain };
        let macs = macs(&op, &inputs, &outputs, &self.raw.tensors);
        Node {
            name: raw.name,
            op,
            inputs,
            outputs,
            arithmetic,
            activation,
            macs,
            attributes: raw.attributes,
        }
    }

    /// A move of quantised bytes means the same on the reals behind them.
    fn moves_quantised(&self, node: &RawNode) -> bool {
        let quantised = |tensor: Option<TensorId>| {
            tensor.is_some_and(|tensor| {
                let tensor = &self.raw.tensors[tensor];
                tensor.is_small_int()
                    && tensor.quantisation.as_ref().is_some_and(|found| found.axis.is_none())
            })
        };
        tables::MOVES_VALUES.contains(&node.op.as_str())
            && quantised(node.input(0))
            && node.outputs.iter().all(|output| output.is_none() || quantised(*output))
    }
}

/// Places of the data inputs of a QOperator node, in the order of the plain operator's inputs.
fn quantised_places(plain: &str, inputs: usize) -> Vec<usize> {
    match plain {
        "Conv" => vec![0, 3, 8],
        "Gemm" => vec![0, 3, 6],
        "MatMul" | "Add" | "Mul" => vec![0, 3],
        "Concat" => (2..inputs).step_by(3).collect(),
        _ => vec![0],
    }
}

fn bias_place(plain: &str) -> usize {
    match plain {
        "Conv" => 8,
        "Gemm" => 6,
        _ => usize::MAX,
    }
}

/// Multiply-accumulates of a run, from shapes.
fn macs(
    op: &str,
    inputs: &[Option<TensorId>],
    outputs: &[Option<TensorId>],
    tensors: &[TensorInfo],
) -> u64 {
    let at = |list: &[Option<TensorId>], place: usize| {
        list.get(place).copied().flatten().map(|tensor| &tensors[tensor])
    };
    let (Some(x), Some(w), Some(y)) = (at(inputs, 0), at(inputs, 1), at(outputs, 0)) else {
        return 0;
    };
    let (elements, each) = match op {
        // Weights are [channels out, channels in, sides of the kernel …].
        "Conv" => (y.len(), w.shape[1..].iter().product::<usize>()),
        "ConvTranspose" => (x.len(), w.shape[1..].iter().product::<usize>()),
        "Gemm" => (y.len(), x.len() / y.shape[0].max(1)),
        "MatMul" => (y.len(), x.shape.last().copied().unwrap_or(0)),
        _ => return 0,
    };
    (elements as u64).saturating_mul(each as u64)
}

fn link(nodes: &[Node], tensors: &mut [TensorInfo]) {
    for (id, node) in nodes.iter().enumerate() {
        for output in node.outputs.iter().flatten() {
            tensors[*output].producer = Some(id);
        }
        for input in node.inputs.iter().flatten() {
            if tensors[*input].consumers.last() != Some(&id) {
                tensors[*input].consumers.push(id);
            }
        }
    }
}
