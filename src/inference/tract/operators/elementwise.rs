//! Operators on each element, or on elements at the same place of tensors that are broadcast together.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cast::cast;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::identity::Identity;
use tract_core::ops::{logic, math, nn};

use super::{OnnxCall, Site, datum_type};

pub(super) fn wire(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<Option<OutletId>> {
    if let Some(op) = unary(call) {
        return site.wire(op, &[site.input(0)?]).map(Some);
    }
    if let Some(op) = binary(&call.node.op) {
        return chain(site, &op).map(Some);
    }
    Ok(Some(match call.node.op.as_str() {
        "Mean" => {
            let sum = chain(site, &math::add())?;
            #[expect(clippy::cast_precision_loss, reason = "a count of inputs")]
            let count = site.inputs.len() as f32;
            site.with(math::div(), sum, count)?
        }
        "Identity" | "Dropout" => site.wire(Identity, &[site.input(0)?])?,
        "Pow" => {
            let (x, exponent) = (site.input(0)?, site.input(1)?);
            let exponent = site.wire(cast(site.datum_type(x)?), &[exponent])?;
            site.broadcast(math::pow(), &[x, exponent])?
        }
        "Mod" => modulo(site, call)?,
        "Where" => site.broadcast(logic::Iff, &[site.input(0)?, site.input(1)?, site.input(2)?])?,
        "Cast" => {
            let to = i32::try_from(call.node.int("to").unwrap_or(0))?;
            site.wire(cast(datum_type(to)?), &[site.input(0)?])?
        }
        "Clip" => clip(site, call)?,
        _ => return activation(site, call),
    }))
}

fn unary(call: &OnnxCall<'_>) -> Option<ElementWiseOp> {
    Some(match call.node.op.as_str() {
        "Abs" => math::abs(),
        "Ceil" => math::ceil(),
        "Cos" => math::cos(),
        "Erf" => math::erf(),
        "Exp" => math::exp(),
        "Floor" => math::floor(),
        "Gelu" if call.node.text("approximate") == Some("tanh") => {
            nn::gelu_approximate::gelu_approximate(false)
        }
        "Gelu" => nn::gelu_exact::gelu_exact(),
        "HardSwish" => nn::hard_swish(),
        "LeakyRelu" => nn::leaky_relu(call.node.float("alpha").unwrap_or(0.01)),
        "Log" => math::ln(),
        "Neg" => math::neg(),
        "Not" => logic::not(),
        "Reciprocal" => math::recip(),
        "Round" => math::round_half_to_even(),
        "Sigmoid" => nn::sigmoid(),
        "Sign" => math::sign(),
        "Sin" => math::sin(),
        "Sqrt" => math::sqrt(),
        "Tanh" => math::tanh(),
        _ => return None,
    })
}

fn binary(op: &str) -> Option<TypedBinOp> {
    Some(match op {
        "Add" | "Sum" => math::add(),
        "Sub" => math::sub(),
        "Mul" => math::mul(),
        "Div" => math::div(),
        "Max" => math::max(),
        "Min" => math::min(),
        "And" => logic::and(),
        "Or" => logic::or(),
        "Equal" => TypedBinOp(logic::comp_eq(), None),
        "Greater" => TypedBinOp(logic::comp_gt(), None),
        "GreaterOrEqual" => TypedBinOp(logic::comp_gte(), None),
        "Less" => TypedBinOp(logic::comp_lt(), None),
        "LessOrEqual" => TypedBinOp(logic::comp_lte(), None),
        _ => return None,
    })
}

/// An operator of two over all inputs, from the left.
fn chain(site: &mut Site<'_>, op: &TypedBinOp) -> TractResult<OutletId> {
    let mut result = site.input(0)?;
    for place in 1..site.inputs.len() {
        result = site.broadcast(op.clone(), &[result, site.input(place)?])?;
    }
    Ok(result)
}

/// The remainder has the sign of the dividend with `fmod`, of the divisor without.
fn modulo(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let (a, b) = (site.input(0)?, site.input(1)?);
    let mut rest = site.broadcast(math::rem(), &[a, b])?;
    if !call.flag("fmod") {
        rest = site.broadcast(math::add(), &[rest, b])?;
        rest = site.broadcast(math::rem(), &[rest, b])?;
    }
    Ok(rest)
}

/// Bounds are attributes before operator set 11, inputs since.
fn clip(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let mut x = site.input(0)?;
    for (place, name, op) in [(1, "min", math::max()), (2, "max", math::min())] {
        if let Some(bound) = site.optional(place) {
            x = site.broadcast(op, &[x, bound])?;
        } else if let Some(bound) = call.node.float(name) {
            x = site.with(op, x, bound)?;
        }
    }
    Ok(x)
}

fn activation(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<Option<OutletId>> {
    let parameter = |name: &str, default: f32| call.node.float(name).unwrap_or(default);
    let alpha = |default: f32| parameter("alpha", default);
    let x = site.input(0)?;
    Ok(Some(match call.node.op.as_str() {
        "Relu" => site.with(math::max(), x, 0.0)?,
        "PRelu" => {
            let below = site.broadcast(math::mul(), &[x, site.input(1)?])?;
            negative(site, x, below)?
        }
        "Elu" => exponential(site, [1.0, alpha(1.0), 1.0])?,
        "Selu" => exponential(site, [1.0, alpha(1.673_263_2), parameter("gamma", 1.050_701)])?,
        "Celu" => exponential(site, [alpha(1.0), alpha(1.0), 1.0])?,
        "HardSigmoid" => {
            let x = site.with(math::mul(), x, alpha(0.2))?;
            let x = site.with(math::add(), x, parameter("beta", 0.5))?;
            let x = site.with(math::min(), x, 1.0)?;
            site.with(math::max(), x, 0.0)?
        }
        "Softplus" => softplus(site)?,
        "Mish" => {
            let soft = softplus(site)?;
            let soft = site.wire(math::tanh(), &[soft])?;
            site.wire(math::mul(), &[x, soft])?
        }
        "Softsign" => {
            let size = site.wire(math::abs(), &[x])?;
            let size = site.with(math::add(), size, 1.0)?;
            site.wire(math::div(), &[x, size])?
        }
        _ => return Ok(None),
    }))
}

/// `x` where it is not negative, else `below`.
fn negative(site: &mut Site<'_>, x: OutletId, below: OutletId) -> TractResult<OutletId> {
    let zero = site.scalar(0.0, x)?;
    let test = site.wire(TypedBinOp(logic::comp_lt(), None), &[x, zero])?;
    site.wire(logic::Iff, &[test, below, x])
}

/// `gamma * x` where x is not negative, else `gamma * alpha * (exp(x / divisor) - 1)`.
fn exponential(site: &mut Site<'_>, [divisor, alpha, gamma]: [f32; 3]) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let below = site.with(math::div(), x, divisor)?;
    let below = site.wire(math::exp(), &[below])?;
    let below = site.with(math::sub(), below, 1.0)?;
    let below = site.with(math::mul(), below, alpha)?;
    let result = negative(site, x, below)?;
    site.with(math::mul(), result, gamma)
}

/// `max(x, 0) + ln(1 + exp(-|x|))`: ln(1 + exp(x)) without overflow.
fn softplus(site: &mut Site<'_>) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let tail = site.wire(math::abs(), &[x])?;
    let tail = site.wire(math::neg(), &[tail])?;
    let tail = site.wire(math::exp(), &[tail])?;
    let tail = site.with(math::add(), tail, 1.0)?;
    let tail = site.wire(math::ln(), &[tail])?;
    let head = site.with(math::max(), x, 0.0)?;
    site.wire(math::add(), &[head, tail])
}
