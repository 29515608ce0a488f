//! Shapes of operators that rearrange, reduce or multiply whole axes.

use crate::inference::graph::proto::tensor_proto::DataType;

use super::{Fact, Scope, broadcast};
use crate::inference::graph::GraphError;

fn lengths(scope: &Scope<'_>, list: &[i64]) -> Result<Vec<usize>, GraphError> {
    let lengths = list.iter().map(|length| usize::try_from(*length)).collect::<Result<Vec<_>, _>>();
    lengths.map_err(|_| scope.invalid(&format!("a negative length in {list:?}")))
}

fn product(scope: &Scope<'_>, lengths: &[usize]) -> Result<usize, GraphError> {
    let product = lengths.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
    product.ok_or_else(|| scope.invalid(&format!("the lengths {lengths:?} overflow")))
}

pub(super) fn matmul(
    scope: &Scope<'_>,
    a: &[usize],
    b: &[usize],
) -> Result<Vec<usize>, GraphError> {
    let misfit = || scope.invalid(&format!("shapes {a:?} and {b:?} cannot be multiplied"));
    let (rows, left, depth) = match a {
        [] => return Err(misfit()),
        [k] => (None, &[][..], *k),
        [batch @ .., m, k] => (Some(*m), batch, *k),
    };
    let (columns, right, other_depth) = match b {
        [] => return Err(misfit()),
        [k] => (None, &[][..], *k),
        [batch @ .., k, n] => (Some(*n), batch, *k),
    };
    if depth != other_depth {
        return Err(misfit());
    }
    let mut shape = broadcast(scope, &[left, right])?;
    shape.extend(rows);
    shape.extend(columns);
    Ok(shape)
}

pub(super) fn gemm(scope: &Scope<'_>, a: &[usize], b: &[usize]) -> Result<Vec<usize>, GraphError> {
    let (&[a0, a1], &[b0, b1]) = (a, b) else {
        return Err(scope.invalid(&format!("shapes {a:?} and {b:?} are not matrices")));
    };
    let (m, k) = if scope.node.int("transA", 0) != 0 { (a1, a0) } else { (a0, a1) };
    let (l, n) = if scope.node.int("transB", 0) != 0 { (b1, b0) } else { (b0, b1) };
    if k != l {
        return Err(scope.invalid(&format!("shapes {a:?} and {b:?} cannot be multiplied")));
    }
    Ok(vec![m, n])
}

pub(super) fn concat(scope: &Scope<'_>, shapes: &[&[usize]]) -> Result<Vec<usize>, GraphError> {
    let Some((first, rest)) = shapes.split_first() else {
        return Err(scope.invalid("no input"));
    };
    let axis = scope.axis(scope.node.int("axis", 0), first.len())?;
    let mut shape = first.to_vec();
    for other in rest {
        let fits = other.len() == shape.len()
            && (0..shape.len()).all(|place| place == axis || other[place] == shape[place]);
        if !fits {
            return Err(scope.invalid(&format!("shapes {shapes:?} along axis {axis}")));
        }
        shape[axis] = shape[axis].saturating_add(other[axis]);
    }
    Ok(shape)
}

pub(super) fn reshape(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let target = scope.list_or_attribute(1, "shape")?;
    let target = target.ok_or_else(|| scope.invalid("no target shape"))?;
    let elements = product(scope, input)?;
    let misfit = || scope.invalid(&format!("{input:?} cannot become {target:?}"));
    let mut shape = Vec::new();
    for (place, length) in target.iter().enumerate() {
        shape.push(match length {
            0 if scope.node.int("allowzero", 0) == 0 => *input.get(place).ok_or_else(misfit)?,
            -1 => 1,
            length => usize::try_from(*length).map_err(|_| misfit())?,
        });
    }
    if let Some(open) = target.iter().position(|length| *length == -1) {
        let known = product(scope, &shape)?;
        shape[open] = elements.checked_div(known).ok_or_else(misfit)?;
    }
    let single = target.iter().filter(|length| **length == -1).count() <= 1;
    if single && product(scope, &shape)? == elements { Ok(shape) } else { Err(misfit()) }
}

pub(super) fn flatten(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let axis = scope.node.int("axis", 1);
    let all = usize::try_from(axis) == Ok(input.len());
    let axis = if all { input.len() } else { scope.axis(axis, input.len())? };
    Ok(vec![product(scope, &input[..axis])?, product(scope, &input[axis..])?])
}

pub(super) fn transpose(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let Some(order) = scope.node.ints("perm") else {
        return Ok(input.iter().rev().copied().collect());
    };
    if order.len() != input.len() || scope.axes(order, input.len())?.len() != input.len() {
        return Err(scope.invalid(&format!("order {order:?} of {input:?}")));
    }
    order.iter().map(|axis| Ok(input[scope.axis(*axis, input.len())?])).collect()
}

pub(super) fn squeeze(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let axes = match scope.list_or_attribute(1, "axes")? {
        Some(axes) => scope.axes(&axes, input.len())?,
        None => (0..input.len()).filter(|axis| input[*axis] == 1).collect(),
    };
    if axes.iter().any(|axis| input[*axis] != 1) {
        return Err(scope.invalid(&format!("axes {axes:?} of {input:?} are not all 1")));
    }
    Ok((0..input.len()).filter(|axis| !axes.contains(axis)).map(|axis| input[axis]).collect())
}

pub(super) fn unsqueeze(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let axes = scope.list_or_attribute(1, "axes")?.ok_or_else(|| scope.invalid("no axes"))?;
    let input = scope.shape(0)?;
    let rank = input.len() + axes.len();
    let axes = scope.axes(&axes, rank)?;
    if axes.len() + input.len() != rank {
        return Err(scope.invalid("an axis is named twice"));
    }
    let mut rest = input.iter();
    let place = |axis| if axes.contains(&axis) { Some(1) } else { rest.next().copied() };
    Ok((0..rank).filter_map(place).collect())
}

pub(super) fn expand(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let target = scope.list(1)?.ok_or_else(|| scope.invalid("no target shape"))?;
    broadcast(scope, &[scope.shape(0)?, &lengths(scope, &target)?])
}

pub(super) fn tile(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let repeats = scope.list(1)?.ok_or_else(|| scope.invalid("no repeats"))?;
    let repeats = lengths(scope, &repeats)?;
    if repeats.len() != input.len() {
        return Err(scope.invalid(&format!("repeats {repeats:?} of {input:?}")));
    }
    Ok(input.iter().zip(repeats).map(|(length, times)| length.saturating_mul(times)).collect())
}

pub(super) fn slice(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let starts = scope.list_or_attribute(1, "starts")?;
    let ends = scope.list_or_attribute(2, "ends")?;
    let (Some(starts), Some(ends)) = (starts, ends) else {
        return Err(scope.invalid("no starts or ends"));
    };
    let all = || (0..starts.len()).filter_map(|axis| i64::try_from(axis).ok()).collect();
    let axes: Vec<i64> = scope.list_or_attribute(3, "axes")?.unwrap_or_else(all);
    let steps = scope.list(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(scope.invalid("starts, ends, axes and steps differ in number"));
    }
    let mut shape = input.to_vec();
    for (place, axis) in axes.iter().enumerate() {
        let axis = scope.axis(*axis, input.len())?;
        let length = i64::try_from(input[axis]).map_err(|_| scope.invalid("a huge axis"))?;
        let wrap = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
        let (start, end, step) = (wrap(starts[place]), wrap(ends[place]), steps[place]);
        let way = match step {
            0 => return Err(scope.invalid("a step of 0")),
            1.. => end.clamp(0, length) - start.clamp(0, length),
            _ => start.clamp(-1, length - 1) - end.clamp(-1, length - 1),
        };
        let count = way.max(0).unsigned_abs().div_ceil(step.unsigned_abs());
        shape[axis] = usize::try_from(count).map_err(|_| scope.invalid("a huge axis"))?;
    }
    Ok(shape)
}

pub(super) fn gather(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let (input, indices) = (scope.shape(0)?, scope.shape(1)?);
    let axis = scope.axis(scope.node.int("axis", 0), input.len())?;
    Ok([&input[..axis], indices, &input[axis + 1..]].concat())
}

pub(super) fn pad(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    if scope.node.input(3).is_some() {
        return Err(scope.unsupported("axes"));
    }
    let pads = scope.list_or_attribute(1, "pads")?.ok_or_else(|| scope.invalid("no pads"))?;
    if pads.len() != 2 * input.len() {
        return Err(scope.invalid(&format!("{} pads of {input:?}", pads.len())));
    }
    let padded = |axis: usize| {
        let extra = pads[axis].checked_add(pads[axis + input.len()])?;
        input[axis].checked_add_signed(isize::try_from(extra).ok()?)
    };
    let padded: Option<_> = (0..input.len()).map(padded).collect();
    padded.ok_or_else(|| scope.invalid(&format!("pads {pads:?} of {input:?}")))
}

pub(super) fn reduce(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    // At place 1 onnxruntime's QLinearReduceMean has a scale; its axes are an attribute.
    let axes = match scope.node.ints("axes") {
        Some(axes) => Some(axes.to_vec()),
        None if scope.node.op.starts_with("QLinear") => None,
        None => scope.list(1)?,
    };
    let axes = match axes.filter(|axes| !axes.is_empty()) {
        Some(axes) => scope.axes(&axes, input.len())?,
        None if scope.node.int("noop_with_empty_axes", 0) != 0 => vec![],
        None => (0..input.len()).collect(),
    };
    Ok(reduced(input, &axes, scope.node.int("keepdims", 1) != 0))
}

pub(super) fn arg_reduce(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let axis = scope.axis(scope.node.int("axis", 0), input.len())?;
    Ok(reduced(input, &[axis], scope.node.int("keepdims", 1) != 0))
}

fn reduced(input: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let length = |axis: usize| match axes.contains(&axis) {
        true if keep => Some(1),
        true => None,
        false => Some(input[axis]),
    };
    (0..input.len()).filter_map(length).collect()
}

pub(super) fn top_k(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let axis = scope.axis(scope.node.int("axis", -1), input.len())?;
    let k = scope.list(1)?.and_then(|list| usize::try_from(*list.first()?).ok());
    let Some(k) = k.filter(|k| *k <= input[axis]) else {
        return Err(scope.invalid(&format!("k does not fit {input:?}")));
    };
    let mut shape = input.to_vec();
    shape[axis] = k;
    Ok(shape)
}

pub(super) fn split(scope: &Scope<'_>) -> Result<Vec<Vec<usize>>, GraphError> {
    let input = scope.shape(0)?;
    let axis = scope.axis(scope.node.int("axis", 0), input.len())?;
    let parts = scope.node.outputs.len();
    let pieces = match scope.list_or_attribute(1, "split")? {
        Some(pieces) => lengths(scope, &pieces)?,
        None if parts == 0 => return Err(scope.invalid("no output")),
        None => {
            let step = input[axis].div_ceil(parts);
            (0..parts).map(|part| step.min(input[axis].saturating_sub(part * step))).collect()
        }
    };
    let total = pieces.iter().try_fold(0_usize, |sum, piece| sum.checked_add(*piece));
    if total != Some(input[axis]) || pieces.len() != parts {
        let what = format!("pieces {pieces:?} of {} into {parts} outputs", input[axis]);
        return Err(scope.invalid(&what));
    }
    let piece = |length| {
        let mut shape = input.to_vec();
        shape[axis] = length;
        shape
    };
    Ok(pieces.into_iter().map(piece).collect())
}

pub(super) fn shape_of(scope: &Scope<'_>) -> Result<Vec<Fact>, GraphError> {
    let rank = scope.shape(0)?.len();
    if scope.node.attribute("start").is_some() || scope.node.attribute("end").is_some() {
        return Err(scope.unsupported("start and end"));
    }
    let shape = if scope.node.op == "Shape" { vec![rank] } else { vec![] };
    Ok(vec![(shape, DataType::Int64 as i32)])
}

pub(super) fn constant_of_shape(scope: &Scope<'_>) -> Result<Vec<Fact>, GraphError> {
    let target = scope.list(0)?.ok_or_else(|| scope.invalid("no target shape"))?;
    let value = scope.node.attribute("value").and_then(|value| value.t.as_ref());
    let data_type = value.map_or(DataType::Float as i32, |value| value.data_type);
    Ok(vec![(lengths(scope, &target)?, data_type)])
}
