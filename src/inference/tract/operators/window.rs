//! Operators that slide a window, and products of matrices.

use tract_core::internal::*;
use tract_core::ops::cnn::{Conv, Deconv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math;
use tract_core::ops::nn::DataFormat;

use super::{OnnxCall, Site};

pub(super) fn wire(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<Option<OutletId>> {
    Ok(Some(match call.node.op.as_str() {
        "Conv" => conv(site, call)?,
        "ConvTranspose" => conv_transpose(site, call)?,
        "MaxPool" => {
            let pool_spec = pool(site, call)?;
            site.wire(MaxPool { pool_spec, with_index_outputs: None }, &[site.input(0)?])?
        }
        "AveragePool" => {
            let (pool_spec, count_include_pad) =
                (pool(site, call)?, call.flag("count_include_pad"));
            let pool = SumPool { pool_spec, count_include_pad, normalize: true };
            site.wire(pool, &[site.input(0)?])?
        }
        "MatMul" => matmul(site)?,
        "Gemm" => gemm(site, call)?,
        _ => return Ok(None),
    }))
}

fn explicit(call: &OnnxCall<'_>, rank: usize) -> TractResult<(TVec<usize>, TVec<usize>)> {
    let pads = call.lengths("pads")?.unwrap_or_else(|| tvec!(0; 2 * rank));
    ensure!(pads.len() == 2 * rank, "{} pads for {rank} axes", pads.len());
    Ok((pads[..rank].into(), pads[rank..].into()))
}

fn spec(
    call: &OnnxCall<'_>,
    kernel_shape: TVec<usize>,
    padding: impl FnOnce(TVec<usize>, TVec<usize>) -> PaddingSpec,
    channels: [usize; 2],
) -> TractResult<PoolSpec> {
    let padding = match call.node.text("auto_pad") {
        Some("SAME_UPPER") => PaddingSpec::SameUpper,
        Some("SAME_LOWER") => PaddingSpec::SameLower,
        Some("VALID") => PaddingSpec::Valid,
        _ => {
            let (before, after) = explicit(call, kernel_shape.len())?;
            padding(before, after)
        }
    };
    Ok(PoolSpec {
        data_format: DataFormat::NCHW,
        kernel_shape,
        padding,
        dilations: call.lengths("dilations")?,
        strides: call.lengths("strides")?,
        input_channels: channels[0],
        output_channels: channels[1],
    })
}

fn pool(site: &Site<'_>, call: &OnnxCall<'_>) -> TractResult<PoolSpec> {
    let channels = site.shape(site.input(0)?)?[1];
    let ceil = call.flag("ceil_mode");
    let kernel = call.lengths("kernel_shape")?.context("no kernel_shape")?;
    let padding = |before, after| PaddingSpec::ExplicitOnnxPool(before, after, ceil);
    spec(call, kernel, padding, [channels, channels])
}

/// One value, or one for each output channel.
fn bias(site: &mut Site<'_>, x: OutletId) -> TractResult<OutletId> {
    match site.optional(2) {
        Some(bias) if site.shape(bias)?.iter().product::<usize>() == 1 => site.reshape(bias, &[]),
        Some(bias) => Ok(bias),
        None => site.constant(Tensor::zero_scalar_dt(site.datum_type(x)?)?),
    }
}

fn conv(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let (x, w) = (site.input(0)?, site.input(1)?);
    let weights = site.shape(w)?;
    let group = call.group()?;
    let pool_spec =
        spec(call, weights[2..].into(), PaddingSpec::Explicit, [weights[1] * group, weights[0]])?;
    let bias = bias(site, x)?;
    let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group, q_params: None };
    site.wire(conv, &[x, w, bias])
}

fn conv_transpose(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let (x, w) = (site.input(0)?, site.input(1)?);
    let weights = site.shape(w)?;
    let group = call.group()?;
    let (inputs, outputs, kernel) = (weights[0], weights[1], &weights[2..]);
    // ONNX has [inputs, outputs of a group, …]; tract wants [outputs, inputs of a group, …].
    let mut w = site.reshape(w, &[&[group, inputs / group, outputs], kernel].concat())?;
    w = site.wire(AxisOp::Move(1, 2), &[w])?;
    w = site.reshape(w, &[&[group * outputs, inputs / group], kernel].concat())?;
    let pool_spec = spec(call, kernel.into(), PaddingSpec::Explicit, [inputs, group * outputs])?;
    let adjustments = call.lengths("output_padding")?.unwrap_or_else(|| tvec!(0; kernel.len()));
    let bias = bias(site, x)?;
    let deconv = Deconv { pool_spec, kernel_format: KernelFormat::OIHW, adjustments, group };
    site.wire(deconv, &[x, w, bias])
}

fn product(site: &mut Site<'_>, (a, b): (OutletId, OutletId), axes: &str) -> TractResult<OutletId> {
    let product = EinSum::new(axes.parse()?, site.datum_type(a)?);
    site.wire(product, &[a, b])
}

/// Of matrices, of stacks of them that are broadcast together, and of vectors.
fn matmul(site: &mut Site<'_>) -> TractResult<OutletId> {
    let (a, b) = (site.input(0)?, site.input(1)?);
    let (ranks, letters) = ([site.rank(a)?, site.rank(b)?], "abcdefgh");
    let stack = |rank: usize| rank.saturating_sub(2);
    let deepest = stack(ranks[0]).max(stack(ranks[1]));
    ensure!(deepest <= letters.len(), "{deepest} dimensions of matrices");
    let part = |rank: usize| &letters[deepest - stack(rank)..deepest];
    let (m, n) = (if ranks[0] > 1 { "m" } else { "" }, if ranks[1] > 1 { "n" } else { "" });
    let axes =
        format!("{}{m}k,{}k{n}->{}{m}{n}", part(ranks[0]), part(ranks[1]), &letters[..deepest]);
    product(site, (a, b), &axes)
}

fn gemm(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let a = if call.flag("transA") { "km" } else { "mk" };
    let b = if call.flag("transB") { "nk" } else { "kn" };
    let mut y = product(site, (site.input(0)?, site.input(1)?), &format!("{a},{b}->mn"))?;
    let factor =
        |name: &str| call.node.float(name).filter(|factor| factor.to_bits() != 1_f32.to_bits());
    if let Some(alpha) = factor("alpha") {
        y = site.with(math::mul(), y, alpha)?;
    }
    if let Some(mut c) = site.optional(2) {
        if let Some(beta) = factor("beta") {
            c = site.with(math::mul(), c, beta)?;
        }
        y = site.broadcast(math::add(), &[y, c])?;
    }
    Ok(y)
}
