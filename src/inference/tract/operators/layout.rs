//! Operators that move, repeat, join and drop values.

use tract_core::internal::*;
use tract_core::ops::array::{Gather, MultiBroadcastTo, Pad, PadMode, Slice, Tile, TypedConcat};
use tract_core::ops::cast::cast;
use tract_core::ops::downsample::Downsample;

use super::{OnnxCall, Site, axis, proto_tensor, resample};

pub(super) fn wire(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<Option<OutletId>> {
    Ok(Some(match call.node.op.as_str() {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            site.reshape(site.input(0)?, call.shape(0)?)?
        }
        "Transpose" => transpose(site, call)?,
        "Concat" => concat(site, call)?,
        "Slice" => slice(site, call)?,
        "Gather" => gather(site, call)?,
        "Expand" => {
            let (x, shape) = (site.input(0)?, call.shape(0)?);
            let from = site.shape(x)?;
            let ones = vec![1; shape.len().saturating_sub(from.len())];
            let x = site.reshape(x, &[&ones, &*from].concat())?;
            site.wire(MultiBroadcastTo { shape: ShapeFact::from_dims(shape) }, &[x])?
        }
        "Tile" => {
            let repeats = site.integers(1)?.context("no repeats")?;
            let multipliers = repeats.iter().map(ToDim::to_dim).collect();
            site.wire(Tile { multipliers }, &[site.input(0)?])?
        }
        "Pad" => pad(site, call)?,
        "Resize" => resample::resize(site, call)?,
        "DepthToSpace" => depth_to_space(site, call)?,
        "SpaceToDepth" => space_to_depth(site, call)?,
        "ConstantOfShape" => constant_of_shape(site, call)?,
        "Shape" => {
            let shape = site.shape(site.input(0)?)?;
            let shape = shape.iter().map(|length| Ok(i64::try_from(*length)?));
            site.constant(tensor1(&shape.collect::<TractResult<Vec<_>>>()?))?
        }
        "Size" => {
            let size: usize = site.shape(site.input(0)?)?.iter().product();
            site.constant(tensor0(i64::try_from(size)?))?
        }
        _ => return Ok(None),
    }))
}

fn permute(site: &mut Site<'_>, mut x: OutletId, order: &[usize]) -> TractResult<OutletId> {
    for op in perm_to_ops(order) {
        x = site.wire(op, &[x])?;
    }
    Ok(x)
}

fn transpose(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let reversed = (0..site.rank(x)?).rev().collect();
    permute(site, x, &call.lengths("perm")?.unwrap_or(reversed))
}

fn concat(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let axis = call.axis("axis", 0, call.shape(0)?.len())?;
    let parts = (0..site.inputs.len()).map(|place| site.input(place));
    let parts = parts.collect::<TractResult<Vec<_>>>()?;
    site.wire(TypedConcat { axis }, &parts)
}

/// Parts have the lengths of the outputs.
pub(super) fn split(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<TVec<OutletId>> {
    let x = site.input(0)?;
    let axis = call.axis("axis", 0, site.rank(x)?)?;
    let mut start = 0;
    let mut parts = tvec!();
    for place in 0..call.outputs.len() {
        let end = start + call.shape(place)?[axis];
        parts.push(site.wire(Slice::new(axis, start, end), &[x])?);
        start = end;
    }
    Ok(parts)
}

fn slice(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let mut x = site.input(0)?;
    let starts = site.list(1, call, "starts")?.context("no starts")?;
    let ends = site.list(2, call, "ends")?.context("no ends")?;
    let axes = site.list(3, call, "axes")?;
    let steps = site.integers(4)?;
    for (place, (start, end)) in starts.iter().zip(&ends).enumerate() {
        let named = axes.as_ref().and_then(|axes| axes.get(place)).copied();
        let axis = axis(named.map_or_else(|| i64::try_from(place), Ok)?, site.rank(x)?)?;
        let step = steps.as_ref().and_then(|steps| steps.get(place)).copied().unwrap_or(1);
        x = slice_axis(site, x, axis, [*start, *end, step])?;
    }
    Ok(x)
}

fn slice_axis(
    site: &mut Site<'_>,
    x: OutletId,
    axis: usize,
    [start, end, step]: [i64; 3],
) -> TractResult<OutletId> {
    let length = i64::try_from(site.shape(x)?[axis])?;
    let wrap = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    if step < 0 {
        let (start, end) = (wrap(start).clamp(-1, length - 1), wrap(end).clamp(-1, length - 1));
        let stride = usize::try_from(step.unsigned_abs())?;
        let picked: Vec<_> = (end + 1..=start).rev().step_by(stride).collect();
        let picked = site.constant(tensor1(&picked))?;
        return site.wire(Gather::new(axis), &[x, picked]);
    }
    let (start, end) = (wrap(start).clamp(0, length), wrap(end).clamp(0, length));
    let x = match (start, end) {
        (0, end) if end == length => x,
        (start, end) => site.wire(Slice::new(axis, start, end.max(start)), &[x])?,
    };
    match step {
        1 => Ok(x),
        _ => site.wire(Downsample { axis, stride: isize::try_from(step)?, modulo: 0 }, &[x]),
    }
}

fn gather(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let (x, picked) = (site.input(0)?, site.input(1)?);
    let axis = call.axis("axis", 0, site.rank(x)?)?;
    let picked = site.wire(cast(DatumType::I64), &[picked])?;
    site.wire(Gather::new(axis), &[x, picked])
}

fn pad(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let list = site.list(1, call, "pads")?.context("no pads")?;
    let list = list.iter().map(|pad| usize::try_from(*pad).context("a negative pad"));
    let list = list.collect::<TractResult<Vec<_>>>()?;
    let (before, after) = list.split_at(list.len() / 2);
    let mode = match call.node.text("mode") {
        None | Some("constant") => {
            let value = match site.value(2)? {
                Some(value) => value.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?[0],
                None => call.node.float("value").unwrap_or(0.0),
            };
            PadMode::Constant(Arc::new(value.into()))
        }
        Some("reflect") => PadMode::Reflect,
        Some("edge") => PadMode::Edge,
        Some(other) => bail!("mode {other} is not supported"),
    };
    let pads = before.iter().copied().zip(after.iter().copied()).collect();
    site.wire(Pad { pads, mode }, &[x])
}

fn image(site: &Site<'_>, call: &OnnxCall<'_>) -> TractResult<([usize; 4], usize)> {
    let shape = site.shape(site.input(0)?)?;
    let &[n, c, h, w] = shape.as_slice() else { bail!("four dimensions") };
    Ok(([n, c, h, w], usize::try_from(call.node.int("blocksize").unwrap_or(1))?))
}

fn depth_to_space(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let ([n, c, h, w], block) = image(site, call)?;
    let depth = c / (block * block);
    let by_columns = call.node.text("mode") == Some("CRD");
    let (split, order) = if by_columns {
        ([n, depth, block, block, h, w], [0, 1, 4, 2, 5, 3])
    } else {
        ([n, block, block, depth, h, w], [0, 3, 4, 1, 5, 2])
    };
    let x = site.reshape(site.input(0)?, &split)?;
    let x = permute(site, x, &order)?;
    site.reshape(x, call.shape(0)?)
}

fn space_to_depth(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let ([n, c, h, w], block) = image(site, call)?;
    let x = site.reshape(site.input(0)?, &[n, c, h / block, block, w / block, block])?;
    let x = permute(site, x, &[0, 3, 5, 1, 2, 4])?;
    site.reshape(x, call.shape(0)?)
}

fn constant_of_shape(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let value = call.node.attributes().iter().find(|attribute| attribute.name == "value");
    let value = match value.and_then(|value| value.t.as_ref()) {
        Some(proto) => proto_tensor(proto, &[1])?.into_shape(&[])?,
        None => tensor0(0_f32),
    };
    site.constant(value.broadcast_scalar_to_shape(call.shape(0)?)?)
}
