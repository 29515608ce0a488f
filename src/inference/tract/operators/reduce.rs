//! Operators that fold axes into one value.

use tract_core::internal::*;
use tract_core::ops::array::Topk;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer};

use super::{OnnxCall, Site, axis};

pub(super) fn wire(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<Option<OutletId>> {
    let x = site.input(0)?;
    let op = call.node.op.as_str();
    let last = call.flag("select_last_index");
    let (axes, reducer) = match op {
        "ArgMax" => (tvec!(call.axis("axis", 0, site.rank(x)?)?), Reducer::ArgMax(last)),
        "ArgMin" => (tvec!(call.axis("axis", 0, site.rank(x)?)?), Reducer::ArgMin(last)),
        "GlobalMaxPool" => ((2..site.rank(x)?).collect(), Reducer::Max),
        "GlobalAveragePool" => ((2..site.rank(x)?).collect(), Reducer::Sum),
        _ if !op.starts_with("Reduce") => return Ok(None),
        "ReduceMax" => (axes(site, call)?, Reducer::Max),
        "ReduceMin" => (axes(site, call)?, Reducer::Min),
        "ReduceProd" => (axes(site, call)?, Reducer::Prod),
        _ => (axes(site, call)?, Reducer::Sum),
    };
    // A large negative or positive value must not overflow in exp.
    let shift = match op {
        "ReduceLogSumExp" => Some(site.wire(Reduce::new(axes.clone(), Reducer::Max), &[x])?),
        _ => None,
    };
    let prepared = match op {
        "ReduceL1" => site.wire(math::abs(), &[x])?,
        "ReduceL2" | "ReduceSumSquare" => site.wire(math::mul(), &[x, x])?,
        "ReduceLogSumExp" => {
            let shift = shift.context("set above")?;
            let shifted = site.wire(math::sub(), &[x, shift])?;
            site.wire(math::exp(), &[shifted])?
        }
        _ => x,
    };
    let result = match axes.is_empty() {
        true => prepared,
        false => site.wire(Reduce::new(axes.clone(), reducer), &[prepared])?,
    };
    let result = match op {
        "ReduceMean" | "GlobalAveragePool" => mean(site, result, x, &axes)?,
        "ReduceL2" => site.wire(math::sqrt(), &[result])?,
        "ReduceLogSum" => site.wire(math::ln(), &[result])?,
        "ReduceLogSumExp" => {
            let result = site.wire(math::ln(), &[result])?;
            site.wire(math::add(), &[result, shift.context("set above")?])?
        }
        _ => result,
    };
    site.reshape(result, call.shape(0)?).map(Some)
}

/// Sums over how many values they are of.
fn mean(site: &mut Site<'_>, sum: OutletId, x: OutletId, axes: &[usize]) -> TractResult<OutletId> {
    let shape = site.shape(x)?;
    let count: usize = axes.iter().map(|axis| shape[*axis]).product();
    #[expect(clippy::cast_precision_loss, reason = "the count is exact up to 2^24")]
    site.with(math::div(), sum, count as f32)
}

/// Axes are an attribute in old operator sets, an input in new ones; none are all.
fn axes(site: &Site<'_>, call: &OnnxCall<'_>) -> TractResult<TVec<usize>> {
    let rank = site.rank(site.input(0)?)?;
    match site.list(1, call, "axes")?.filter(|axes| !axes.is_empty()) {
        Some(list) => {
            let mut axes =
                list.iter().map(|at| axis(*at, rank)).collect::<TractResult<TVec<_>>>()?;
            axes.sort_unstable();
            axes.dedup();
            Ok(axes)
        }
        None if call.flag("noop_with_empty_axes") => Ok(tvec!()),
        None => Ok((0..rank).collect()),
    }
}

pub(super) fn top_k(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<TVec<OutletId>> {
    let x = site.input(0)?;
    let axis = call.axis("axis", -1, site.rank(x)?)?;
    let k = site.integers(1)?.context("no k")?;
    let largest = call.node.int("largest").unwrap_or(1) != 0;
    let fallback_k = k.first().copied().unwrap_or(0).to_dim();
    let k = site.constant(tensor1(&k))?;
    site.wire_all(Topk { axis, largest, fallback_k }, &[x, k])
}
