//! Weights and biases as the engine wants them: s8 without zero point, output channel first and input channel last.

use crate::inference::graph::{Node, TensorInfo};
use crate::tensor::TensorBuffer;

/// Where the axes of a weight tensor stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Conv: output channels, input channels of the group, rows, columns.
    Conv,
    /// ConvTranspose: input channels, output channels of the group, rows, columns.
    Transposed {
        /// Groups.
        groups: usize,
    },
    /// Gemm with transB: outputs, inputs.
    Rows,
    /// MatMul, Gemm: inputs, outputs.
    Columns,
}

impl Layout {
    pub(super) fn of(node: &Node) -> Option<Self> {
        let number = |name: &str, default| node.int(name).unwrap_or(default);
        Some(match node.op.as_str() {
            "Conv" => Self::Conv,
            "ConvTranspose" => {
                Self::Transposed { groups: usize::try_from(number("group", 1)).ok()? }
            }
            "Gemm" if number("transB", 0) != 0 => Self::Rows,
            "Gemm" | "MatMul" => Self::Columns,
            _ => return None,
        })
    }

    /// The axis of the output channels, as far as scales may be given along it.
    fn channel_axis(self) -> Option<usize> {
        match self {
            Self::Conv | Self::Rows => Some(0),
            Self::Transposed { groups: 1 } | Self::Columns => Some(1),
            Self::Transposed { .. } => None,
        }
    }

    /// Output channels, rows and columns of the kernel, input channels of a group.
    pub(super) fn extents(self, shape: &[usize]) -> Option<[usize; 4]> {
        Some(match (self, shape) {
            (Self::Conv, &[o, i, h, w]) => [o, h, w, i],
            (Self::Transposed { groups }, &[i, o, h, w]) if groups > 0 => {
                [o * groups, h, w, i / groups]
            }
            (Self::Rows, &[o, i]) | (Self::Columns, &[i, o]) => [o, 1, 1, i],
            _ => return None,
        })
    }
}

/// Scales along the output channels, or one.
pub(super) fn scales(tensor: &TensorInfo, layout: Layout) -> Result<&[f32], String> {
    let found = tensor.quantisation.as_ref().ok_or("weights are not quantised")?;
    if found.axis.is_some() && found.axis != layout.channel_axis() {
        return Err("scales run along another axis than the output channels".into());
    }
    Ok(&found.scales)
}

/// Whether every weight less its zero point is an s8 value.
pub(super) fn check(tensor: &TensorInfo, layout: Layout) -> Result<(), String> {
    scales(tensor, layout)?;
    layout.extents(&tensor.shape).ok_or("weights of this rank")?;
    let zero_points = tensor.quantisation.as_ref().map_or(&[][..], |found| &found.zero_points);
    match tensor.constant() {
        None => Err("weights are computed while the model runs".into()),
        Some(TensorBuffer::I8(_)) if zero_points.iter().all(|zero| *zero == 0) => Ok(()),
        Some(TensorBuffer::I8(values)) => fits(values, zero_points),
        Some(TensorBuffer::U8(values)) => fits(values, zero_points),
        Some(_) => Err("weights are not bytes".into()),
    }
}

fn fits<T: Copy + Into<i32>>(values: &[T], zero_points: &[i32]) -> Result<(), String> {
    let &[zero] = zero_points else {
        return Err("weights with a zero point for each channel".into());
    };
    let least = values.iter().map(|value| (*value).into() - zero).min().unwrap_or(0);
    let greatest = values.iter().map(|value| (*value).into() - zero).max().unwrap_or(0);
    if least >= -128 && greatest <= 127 {
        return Ok(());
    }
    Err(format!("weights less their zero point reach {least} and {greatest}"))
}

/// The weights in the engine's order; [`check`] has passed.
pub(super) fn ordered(tensor: &TensorInfo, layout: Layout) -> Option<Vec<i8>> {
    let zero = tensor.quantisation.as_ref()?.zero_points.first().copied().unwrap_or(0);
    match tensor.constant()? {
        TensorBuffer::I8(values) => order(values, &tensor.shape, layout, zero),
        TensorBuffer::U8(values) => order(values, &tensor.shape, layout, zero),
        _ => None,
    }
}

fn order<T: Copy + Into<i32>>(
    values: &[T],
    shape: &[usize],
    layout: Layout,
    zero: i32,
) -> Option<Vec<i8>> {
    #[expect(clippy::cast_possible_truncation, reason = "`check` has seen that it fits")]
    let value = |at: usize| (values[at].into() - zero) as i8;
    let [outputs, height, width, depth] = layout.extents(shape)?;
    let taps = height * width;
    let mut ordered = Vec::with_capacity(values.len());
    for output in 0..outputs {
        for tap in 0..taps {
            match layout {
                Layout::Conv | Layout::Rows => {
                    ordered.extend((0..depth).map(|i| value((output * depth + i) * taps + tap)));
                }
                Layout::Columns => ordered.extend((0..depth).map(|i| value(i * outputs + output))),
                Layout::Transposed { groups } => {
                    let per_group = outputs / groups;
                    let (group, output) = (output / per_group, output % per_group);
                    let at = |i: usize| ((group * depth + i) * per_group + output) * taps + tap;
                    ordered.extend((0..depth).map(|i| value(at(i))));
                }
            }
        }
    }
    Some(ordered)
}

/// A bias in units of `x_scale · w_scale`; `products` holds one for each channel, or one for all.
#[expect(
    clippy::cast_possible_truncation,
    reason = "what leaves i32 saturates; biases beyond 2^24 lose less than a product's rounding"
)]
pub(super) fn bias(tensor: &TensorInfo, products: &[f32]) -> Option<Vec<i32>> {
    let product = |place: usize| f64::from(products[place % products.len()]);
    match (tensor.constant()?, &tensor.quantisation) {
        (TensorBuffer::I32(values), Some(found))
            if found.zero_points.iter().all(|zero| *zero == 0) =>
        {
            let scale = |place: usize| f64::from(found.scales[place % found.scales.len()]);
            let step = |(place, value): (usize, &i32)| {
                let (own, needed) = (scale(place), product(place));
                let same = (own - needed).abs() <= 1e-6 * needed;
                if same {
                    *value
                } else {
                    (f64::from(*value) * own / needed).round_ties_even() as i32
                }
            };
            Some(values.iter().enumerate().map(step).collect())
        }
        (TensorBuffer::F32(values), None) => {
            let step = |(place, value): (usize, &f32)| {
                (f64::from(*value) / product(place)).round_ties_even() as i32
            };
            Some(values.iter().enumerate().map(step).collect())
        }
        _ => None,
    }
}
