//! Operators that bring values to a common scale: norms, softmax, quantising.

use tract_core::internal::*;
use tract_core::ops::cast::cast;
use tract_core::ops::cnn::{PaddingSpec, PoolSpec, SumPool};
use tract_core::ops::math;
use tract_core::ops::nn::{DataFormat, Reduce, Reducer, Softmax, SoftmaxKind};

use super::{OnnxCall, Site};

pub(super) fn wire(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<Option<OutletId>> {
    Ok(Some(match call.node.op.as_str() {
        "BatchNormalization" => batch(site, call)?,
        "InstanceNormalization" => {
            let rank = site.rank(site.input(0)?)?;
            let x = standardise(site, (2..rank).collect(), epsilon(call))?;
            let [scale, bias] = [1, 2].map(|place| along(site, place, 1, rank));
            scale_and_shift(site, x, scale?, Some(bias?))?
        }
        "LayerNormalization" => {
            let rank = site.rank(site.input(0)?)?;
            let first = call.axis("axis", -1, rank)?;
            let x = standardise(site, (first..rank).collect(), epsilon(call))?;
            scale_and_shift(site, x, site.input(1)?, site.optional(2))?
        }
        "LpNormalization" => lp(site, call)?,
        "LRN" => local_response(site, call)?,
        "Softmax" => softmax(site, call, SoftmaxKind::Softmax)?,
        "LogSoftmax" => softmax(site, call, SoftmaxKind::LogSoftmax)?,
        "QuantizeLinear" => quantise(site, call)?,
        "DequantizeLinear" => dequantise(site, call)?,
        _ => return Ok(None),
    }))
}

fn epsilon(call: &OnnxCall<'_>) -> f32 {
    call.node.float("epsilon").unwrap_or(1e-5)
}

/// A list of values as a tensor that lies along one axis of others.
fn along(site: &mut Site<'_>, place: usize, axis: usize, rank: usize) -> TractResult<OutletId> {
    let list = site.input(place)?;
    let mut shape = vec![1; rank];
    let length = site.shape(list)?.iter().product();
    if length > 1 {
        shape[axis] = length;
    }
    site.reshape(list, &shape)
}

fn scale_and_shift(
    site: &mut Site<'_>,
    x: OutletId,
    scale: OutletId,
    shift: Option<OutletId>,
) -> TractResult<OutletId> {
    let x = site.broadcast(math::mul(), &[x, scale])?;
    match shift {
        Some(shift) => site.broadcast(math::add(), &[x, shift]),
        None => Ok(x),
    }
}

/// Folded into one factor and one summand for each channel.
fn batch(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let rank = site.rank(x)?;
    let constants = (1..5).map(|place| {
        let value = site.value(place)?.with_context(|| format!("no input {place}"))?;
        let value = value.cast_to::<f32>()?;
        TractResult::Ok(value.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    });
    let constants = constants.collect::<TractResult<Vec<_>>>()?;
    let [scale, bias, mean, variance] = constants.as_slice() else { bail!("four parameters") };
    let epsilon = epsilon(call);
    let deviation: Vec<_> = variance.iter().map(|value| (value + epsilon).sqrt()).collect();
    let slope: Vec<_> = scale.iter().zip(&deviation).map(|(scale, by)| scale / by).collect();
    let shift = bias.iter().zip(mean).zip(scale).zip(&deviation);
    let shift: Vec<_> = shift.map(|(((bias, mean), scale), by)| bias - mean * scale / by).collect();
    let mut shape = vec![1; rank];
    shape[1] = slope.len();
    let [slope, shift] = [slope, shift].map(|values| {
        let values = Tensor::from_shape(&shape, &values)?;
        site.constant(values.cast_to_dt(site.datum_type(x)?)?.into_owned())
    });
    scale_and_shift(site, x, slope?, Some(shift?))
}

fn mean(site: &mut Site<'_>, x: OutletId, axes: &TVec<usize>) -> TractResult<OutletId> {
    let shape = site.shape(x)?;
    let count: usize = axes.iter().map(|axis| shape[*axis]).product();
    let sum = site.wire(Reduce::new(axes.clone(), Reducer::Sum), &[x])?;
    #[expect(clippy::cast_precision_loss, reason = "the count is exact up to 2^24")]
    site.with(math::div(), sum, count as f32)
}

/// `(x - mean) / sqrt(variance + epsilon)` over axes.
fn standardise(site: &mut Site<'_>, axes: TVec<usize>, epsilon: f32) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let centre = mean(site, x, &axes)?;
    let x = site.wire(math::sub(), &[x, centre])?;
    let square = site.wire(math::square(), &[x])?;
    let variance = mean(site, square, &axes)?;
    let variance = site.with(math::add(), variance, epsilon)?;
    let factor = site.wire(math::rsqrt(), &[variance])?;
    site.wire(math::mul(), &[x, factor])
}

/// Where a norm is 0, so are the values: they stay.
fn lp(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let axis = call.axis("axis", -1, site.rank(x)?)?;
    let one = call.node.int("p") == Some(1);
    let op = if one { math::abs() } else { math::square() };
    let sizes = site.wire(op, &[x])?;
    let mut norm = site.wire(Reduce::new(tvec!(axis), Reducer::Sum), &[sizes])?;
    if !one {
        norm = site.wire(math::sqrt(), &[norm])?;
    }
    let norm = site.with(math::max(), norm, f32::MIN_POSITIVE)?;
    site.wire(math::div(), &[x, norm])
}

/// `x / (bias + alpha / size * sum of squares of neighbouring channels) ^ beta`
fn local_response(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let parameter = |name: &str, default: f32| call.node.float(name).unwrap_or(default);
    let size = usize::try_from(call.node.int("size").context("no size")?)?;
    ensure!(size > 0, "size is 0");
    let shape = site.shape(x)?;
    let (batch, channels) = (shape[0], shape[1]);
    let pixels = shape[2..].iter().product();
    let squares = site.wire(math::square(), &[x])?;
    // Channels become rows of a picture, over which a window of one column slides.
    let squares = site.reshape(squares, &[batch, 1, channels, pixels])?;
    let pool_spec = PoolSpec {
        data_format: DataFormat::NCHW,
        kernel_shape: tvec!(size, 1),
        padding: PaddingSpec::Explicit(tvec!((size - 1) / 2, 0), tvec!(size / 2, 0)),
        dilations: None,
        strides: None,
        input_channels: 1,
        output_channels: 1,
    };
    let pool = SumPool { pool_spec, count_include_pad: false, normalize: false };
    let sums = site.wire(pool, &[squares])?;
    let sums = site.reshape(sums, &shape)?;
    #[expect(clippy::cast_precision_loss, reason = "a few channels")]
    let factor = parameter("alpha", 0.0001) / size as f32;
    let norm = site.with(math::mul(), sums, factor)?;
    let norm = site.with(math::add(), norm, parameter("bias", 1.0))?;
    let norm = site.with(math::pow(), norm, parameter("beta", 0.75))?;
    site.wire(math::div(), &[x, norm])
}

/// Over one axis; before operator set 13 over all axes from it on.
fn softmax(site: &mut Site<'_>, call: &OnnxCall<'_>, kind: SoftmaxKind) -> TractResult<OutletId> {
    let x = site.input(0)?;
    let rank = site.rank(x)?;
    let axes = if call.opset < 13 {
        (call.axis("axis", 1, rank)?..rank).collect()
    } else {
        tvec!(call.axis("axis", -1, rank)?)
    };
    site.wire(Softmax { axes, quant_output_dt: None, kind }, &[x])
}

/// Scale and zero point as floats that lie along the axis of the slices, or stand for all.
fn parameters(
    site: &mut Site<'_>,
    call: &OnnxCall<'_>,
) -> TractResult<(OutletId, Option<OutletId>)> {
    let rank = site.rank(site.input(0)?)?;
    ensure!(!call.flag("block_size"), "blocks are not supported");
    let axis = if rank > 1 { call.axis("axis", 1, rank)? } else { 0 };
    let scale = along(site, 1, axis, rank)?;
    if site.optional(2).is_none() {
        return Ok((scale, None));
    }
    let zero_point = along(site, 2, axis, rank)?;
    Ok((scale, Some(site.wire(cast(DatumType::F32), &[zero_point])?)))
}

fn quantise(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let to = call.outputs.first().copied().flatten().and_then(|output| output.element);
    let to = super::super::wire::datum_type(to.context("an output of bytes")?);
    let (low, high) = match to {
        DatumType::U8 => (0.0, 255.0),
        DatumType::I8 => (-128.0, 127.0),
        other => bail!("quantising to {other:?}"),
    };
    let (scale, zero_point) = parameters(site, call)?;
    let x = site.wire(cast(DatumType::F32), &[site.input(0)?])?;
    let x = site.wire(math::div(), &[x, scale])?;
    let mut x = site.wire(math::round_half_to_even(), &[x])?;
    if let Some(zero_point) = zero_point {
        x = site.wire(math::add(), &[x, zero_point])?;
    }
    let x = site.with(math::max(), x, low)?;
    let x = site.with(math::min(), x, high)?;
    site.wire(cast(to), &[x])
}

fn dequantise(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let (scale, zero_point) = parameters(site, call)?;
    let mut x = site.wire(cast(DatumType::F32), &[site.input(0)?])?;
    if let Some(zero_point) = zero_point {
        x = site.wire(math::sub(), &[x, zero_point])?;
    }
    site.wire(math::mul(), &[x, scale])
}
