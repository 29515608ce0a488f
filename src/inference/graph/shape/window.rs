//! Shapes of operators that slide a window: convolutions, pools, resizing.

use super::Scope;
use crate::inference::graph::GraphError;
use crate::tensor::TensorBuffer;

/// Longest stride, dilation, pad or kernel side.
const LONGEST: i64 = 1 << 20;

/// Kernel, stride, dilation and pads along one axis.
struct Window {
    kernel: usize,
    stride: usize,
    dilation: usize,
    pads: (i64, i64),
}

impl Window {
    fn covered(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }
}

fn windows(scope: &Scope<'_>, kernel: &[usize]) -> Result<Vec<Window>, GraphError> {
    let rank = kernel.len();
    let positive = |name: &str| -> Result<Vec<usize>, GraphError> {
        let Some(list) = scope.node.ints(name) else { return Ok(vec![1; rank]) };
        let list: Vec<_> = list
            .iter()
            .filter(|value| (1..=LONGEST).contains(*value))
            .filter_map(|value| usize::try_from(*value).ok())
            .collect();
        if list.len() == rank {
            return Ok(list);
        }
        Err(scope.invalid(&format!("{name} are not {rank} positive numbers")))
    };
    let (strides, dilations) = (positive("strides")?, positive("dilations")?);
    let pads = scope.node.ints("pads").map_or_else(|| vec![0; 2 * rank], <[i64]>::to_vec);
    if pads.len() != 2 * rank || pads.iter().any(|pad| !(0..=LONGEST).contains(pad)) {
        return Err(scope.invalid(&format!("pads {pads:?}")));
    }
    if kernel.iter().any(|length| !(1..=1 << 20).contains(length)) {
        return Err(scope.invalid(&format!("kernel of {kernel:?}")));
    }
    let window = |axis| Window {
        kernel: kernel[axis],
        stride: strides[axis],
        dilation: dilations[axis],
        pads: (pads[axis], pads[axis + rank]),
    };
    Ok((0..rank).map(window).collect())
}

fn slide(scope: &Scope<'_>, input: &[usize], kernel: &[usize]) -> Result<Vec<usize>, GraphError> {
    if input.len() != kernel.len() {
        return Err(scope.invalid(&format!("kernel of {kernel:?} over {input:?}")));
    }
    let auto_pad = scope.node.text("auto_pad");
    let ceil = scope.node.int("ceil_mode", 0) != 0;
    let mut lengths = Vec::new();
    for (length, window) in input.iter().zip(windows(scope, kernel)?) {
        if auto_pad.starts_with("SAME") {
            lengths.push(length.div_ceil(window.stride));
            continue;
        }
        let pads = if auto_pad == "VALID" { (0, 0) } else { window.pads };
        let (before, after) = (pads.0.unsigned_abs() as usize, pads.1.unsigned_abs() as usize);
        let padded = length.saturating_add(before).saturating_add(after);
        let covered = window.covered();
        let Some(room) = padded.checked_sub(covered) else {
            return Err(scope.invalid(&format!("a window of {covered} over {padded} elements")));
        };
        let mut steps = if ceil { room.div_ceil(window.stride) } else { room / window.stride };
        // A last window that would start in the padding after the input is left out.
        if ceil && steps * window.stride >= length + before {
            steps -= 1;
        }
        lengths.push(steps + 1);
    }
    Ok(lengths)
}

type Image<'a> = (&'a [usize], &'a [usize]);

fn image<'a>(scope: &Scope<'_>, shape: &'a [usize]) -> Result<Image<'a>, GraphError> {
    if shape.len() < 3 {
        return Err(scope.invalid(&format!("input of shape {shape:?} is no batch of images")));
    }
    Ok(shape.split_at(2))
}

pub(super) fn conv(
    scope: &Scope<'_>,
    input: &[usize],
    weights: &[usize],
) -> Result<Vec<usize>, GraphError> {
    let (head, space) = image(scope, input)?;
    let group = usize::try_from(scope.node.int("group", 1)).unwrap_or(0);
    let fits = weights.len() == input.len()
        && group > 0
        && weights[1].checked_mul(group) == Some(head[1])
        && weights[0].is_multiple_of(group)
        && weights[0] > 0
        && scope.node.ints("kernel_shape").is_none_or(|shape| same(shape, &weights[2..]));
    if !fits {
        let what = format!("weights {weights:?} in {group} groups over {input:?}");
        return Err(scope.invalid(&what));
    }
    Ok([&[head[0], weights[0]], &*slide(scope, space, &weights[2..])?].concat())
}

fn same(shape: &[i64], weights: &[usize]) -> bool {
    shape.len() == weights.len()
        && shape.iter().zip(weights).all(|(named, found)| usize::try_from(*named) == Ok(*found))
}

pub(super) fn conv_transpose(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let (input, weights) = (scope.shape(0)?, scope.shape(1)?);
    let (head, space) = image(scope, input)?;
    let group = usize::try_from(scope.node.int("group", 1)).unwrap_or(0);
    let fits = weights.len() == input.len()
        && group > 0
        && weights[0] == head[1]
        && head[1].is_multiple_of(group);
    if !fits {
        return Err(scope.invalid(&format!("weights {weights:?} over {input:?}")));
    }
    if scope.node.ints("output_shape").is_some() {
        return Err(scope.unsupported("output_shape; export with pads"));
    }
    let mut shape = vec![head[0], weights[1].saturating_mul(group)];
    let extra = scope.node.ints("output_padding").map_or(vec![0; space.len()], <[i64]>::to_vec);
    let auto_pad = scope.node.text("auto_pad");
    for (axis, window) in windows(scope, &weights[2..])?.iter().enumerate() {
        let length = space[axis].saturating_mul(window.stride);
        if auto_pad.starts_with("SAME") {
            shape.push(length);
            continue;
        }
        let pads = if auto_pad == "VALID" { 0 } else { window.pads.0 + window.pads.1 };
        let change = extra.get(axis).copied().unwrap_or(0).clamp(0, LONGEST) - pads;
        let full = length.saturating_add(window.covered()).saturating_sub(window.stride);
        let length = full.checked_add_signed(isize::try_from(change).unwrap_or(isize::MIN));
        shape.push(length.ok_or_else(|| scope.invalid("pads larger than the output"))?);
    }
    Ok(shape)
}

pub(super) fn pool(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let (head, space) = image(scope, scope.shape(0)?)?;
    channels_first(scope)?;
    let kernel = scope.node.ints("kernel_shape").unwrap_or_default();
    let kernel: Vec<_> = kernel.iter().map(|side| usize::try_from(*side).unwrap_or(0)).collect();
    Ok([head, &slide(scope, space, &kernel)?].concat())
}

pub(super) fn global_pool(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let (head, space) = image(scope, scope.shape(0)?)?;
    channels_first(scope)?;
    Ok([head, &vec![1; space.len()]].concat())
}

fn channels_first(scope: &Scope<'_>) -> Result<(), GraphError> {
    match scope.node.int("channels_last", 0) {
        0 => Ok(()),
        _ => Err(scope.unsupported("channels_last")),
    }
}

pub(super) fn resize(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    if scope.node.ints("axes").is_some() {
        return Err(scope.unsupported("axes"));
    }
    let (scales, sizes) = if scope.opset < 11 { (1, usize::MAX) } else { (2, 3) };
    if let Some(sizes) = scope.list(sizes)?.filter(|sizes| !sizes.is_empty()) {
        let lengths = sizes.iter().map(|length| usize::try_from(*length));
        let lengths = lengths.collect::<Result<Vec<_>, _>>().ok();
        let fitting = lengths.filter(|lengths| lengths.len() == input.len());
        return fitting.ok_or_else(|| scope.invalid(&format!("sizes {sizes:?} for {input:?}")));
    }
    let factors = match scope.node.input(scales).map(|tensor| scope.tensors[tensor].constant()) {
        Some(Some(TensorBuffer::F32(factors))) if factors.len() == input.len() => factors,
        Some(None) => {
            return Err(GraphError::DynamicShape(format!(
                "the scales of node `{}` (Resize) are computed while the model runs",
                scope.node.name
            )));
        }
        _ => return Err(scope.invalid("neither sizes nor as many scales as dimensions")),
    };
    if let Some(factor) = factors.iter().find(|factor| !(**factor > 0.0 && **factor <= 1024.0)) {
        return Err(scope.invalid(&format!("a scale of {factor}")));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "lengths are capped, factors positive"
    )]
    let scaled = |(length, factor): (&usize, &f32)| (*length as f64 * f64::from(*factor)) as usize;
    Ok(input.iter().zip(factors).map(scaled).collect())
}

pub(super) fn depth_space(scope: &Scope<'_>) -> Result<Vec<usize>, GraphError> {
    let input = scope.shape(0)?;
    let block = usize::try_from(scope.node.int("blocksize", 0)).unwrap_or(0);
    let misfit = || scope.invalid(&format!("blocks of {block} over {input:?}"));
    let (&[n, c, h, w], 1..=1024) = (input, block) else { return Err(misfit()) };
    let area = block * block;
    if scope.node.op == "DepthToSpace" {
        let fits = c.is_multiple_of(area);
        return fits.then(|| vec![n, c / area, h * block, w * block]).ok_or_else(misfit);
    }
    let fits = h.is_multiple_of(block) && w.is_multiple_of(block);
    fits.then(|| vec![n, c.saturating_mul(area), h / block, w / block]).ok_or_else(misfit)
}
