//! Operators on quantised tensors for tract.
//!
//! tract runs quantised graphs in floats and rounds `x * (1 / scale)`, where ONNX says `x / scale`. Here a quantised
//! tensor inside a tract plan is a float tensor of whole numbers, its *steps* (`value - zero_point`). Sums of
//! products of steps are exact in f32 up to 2^24, so that convolutions give the integers that onnxruntime's kernels
//! give, at the speed of tract's float kernels, and one pass over the result in place rounds it to steps again.

use tract_core::internal::*;

/// Adding and subtracting this rounds floats below 2^22 to whole numbers, ties to even, and vectorises everywhere.
const ROUND: f32 = 12_582_912.0;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kernel {
    /// Bytes to steps.
    Load { zero_point: i32 },
    /// Steps to bytes.
    Store { zero_point: i32, signed: bool },
    /// Reals to steps: `clamp(round(x / scale + inside)) - inside`. ONNX adds the zero point after rounding (`inside` is
    /// 0); onnxruntime's average pooling before, which turns ties over where it is odd.
    Quantise { scale: f32, low: f32, high: f32, inside: f32 },
    /// Sums of products to steps: `clamp(round(x * factor))`, one factor or one per slice along an axis.
    Requantise { factors: Box<[f32]>, axis: usize, low: f32, high: f32 },
    /// The sum of two tensors of steps, in steps. With the fused multiply-adds of onnxruntime's QLinearAdd on AVX2, in
    /// its order: the zero points are inside the sum that is rounded, `b` comes before `a`.
    Add { factors: [f32; 2], zero_points: [f32; 3], low: f32, high: f32 },
    /// Any function of one tensor of steps.
    Lookup { first: f32, table: Box<[f32]> },
}

impl Eq for Kernel {}

#[inline]
pub(super) fn round(x: f32, low: f32, high: f32) -> f32 {
    // Clamping first keeps |x| far below 2^22; NaN becomes `low`.
    (x.max(low).min(high) + ROUND) - ROUND
}

/// `x * factor + rest`, rounded once, for a byte `x`. The product is exact in f64; processors without fused
/// multiply-add, or builds that may not assume it, give the same.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "this is the one rounding")]
fn fused(x: f32, factor: f32, rest: f32) -> f32 {
    (f64::from(x) * f64::from(factor) + f64::from(rest)) as f32
}

impl Kernel {
    fn output_type(&self) -> DatumType {
        match self {
            Self::Store { signed: true, .. } => DatumType::I8,
            Self::Store { .. } => DatumType::U8,
            _ => f32::datum_type(),
        }
    }

    fn arity(&self) -> usize {
        if matches!(self, Self::Add { .. }) { 2 } else { 1 }
    }

    /// Rewrites floats where they lie.
    fn in_place(&self, shape: &[usize], values: &mut [f32]) {
        match self {
            Self::Quantise { scale, low, high, inside } => {
                let (low, high) = (low + inside, high + inside);
                let quantise = |x: f32| round(x / scale + inside, low, high) - inside;
                values.iter_mut().for_each(|x| *x = quantise(*x));
            }
            Self::Requantise { factors, axis, low, high } => {
                let inner = shape.get(axis + 1..).map_or(1, |rest| rest.iter().product());
                scale_slices(values, factors, inner, *low, *high);
            }
            Self::Lookup { first, table } => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "steps lie in 0..256 after the shift; `as` saturates, and the index is capped"
                )]
                let look = |x: f32| table[((x - first) as usize).min(255)];
                values.iter_mut().for_each(|x| *x = look(*x));
            }
            _ => {}
        }
    }
}

fn scale_slices(values: &mut [f32], factors: &[f32], inner: usize, low: f32, high: f32) {
    if let [factor] = factors {
        values.iter_mut().for_each(|x| *x = round(*x * factor, low, high));
    } else if inner == 1 {
        for row in values.chunks_exact_mut(factors.len()) {
            row.iter_mut().zip(factors).for_each(|(x, factor)| *x = round(*x * factor, low, high));
        }
    } else {
        for (slice, factor) in values.chunks_exact_mut(inner.max(1)).zip(factors.iter().cycle()) {
            slice.iter_mut().for_each(|x| *x = round(*x * factor, low, high));
        }
    }
}

fn load<T: Copy + Into<i32>>(from: &[T], zero_point: i32, to: &mut [f32]) {
    #[expect(clippy::cast_precision_loss, reason = "a difference of bytes")]
    from.iter().zip(to).for_each(|(x, y)| *y = ((*x).into() - zero_point) as f32);
}

impl Op for Kernel {
    fn name(&self) -> StaticName {
        match self {
            Self::Load { .. } => "OcelliLoad",
            Self::Store { .. } => "OcelliStore",
            Self::Quantise { .. } => "OcelliQuantise",
            Self::Requantise { .. } => "OcelliRequantise",
            Self::Add { .. } => "OcelliAdd",
            Self::Lookup { .. } => "OcelliLookup",
        }
        .into()
    }

    op_as_typed_op!();
}

impl EvalOp for Kernel {
    op_out_of_plan!();

    fn eval(
        &self,
        _context: &EvalContext<'_>,
        mut inputs: TVec<TValue>,
    ) -> TractResult<TVec<TValue>> {
        ensure!(inputs.len() == self.arity(), "{} of {} inputs", Op::name(self), inputs.len());
        let result = match self {
            Self::Load { zero_point } => {
                let mut result = Tensor::zero::<f32>(inputs[0].shape())?;
                let mut plain = result.try_as_plain_ram_mut()?;
                let (from, to) = (inputs[0].try_as_plain_ram()?, plain.as_slice_mut::<f32>()?);
                match inputs[0].datum_type() {
                    DatumType::U8 => load(from.as_slice::<u8>()?, *zero_point, to),
                    DatumType::I8 => load(from.as_slice::<i8>()?, *zero_point, to),
                    other => bail!("loading steps from {other:?}"),
                }
                result
            }
            Self::Store { zero_point, .. } => store(&inputs[0], *zero_point, self.output_type())?,
            Self::Add { factors: [ka, kb], zero_points: [za, zb, zc], low, high } => {
                let fixed = zc - fused(*ka, *za, kb * zb);
                let (low, high) = (low + zc, high + zc);
                let b = inputs.remove(1);
                let mut result = inputs.remove(0).into_tensor();
                let mut plain = result.try_as_plain_ram_mut()?;
                let a = plain.as_slice_mut::<f32>()?;
                let b = b.try_as_plain_ram()?;
                let b = b.as_slice::<f32>()?;
                let sum = |a: f32, b: f32| fused(a + za, *ka, fused(b + zb, *kb, fixed));
                a.iter_mut().zip(b).for_each(|(a, b)| *a = round(sum(*a, *b), low, high) - zc);
                result
            }
            _ => {
                let mut result = inputs.remove(0).into_tensor();
                let shape: TVec<usize> = result.shape().into();
                self.in_place(&shape, result.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
                result
            }
        };
        Ok(tvec!(result.into_tvalue()))
    }
}

fn store(input: &Tensor, zero_point: i32, to: DatumType) -> TractResult<Tensor> {
    let mut result = Tensor::zero_dt(to, input.shape())?;
    let mut plain = result.try_as_plain_ram_mut()?;
    let input = input.try_as_plain_ram()?;
    let input = input.as_slice::<f32>()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "steps plus zero point fit a byte; `as` saturates"
    )]
    match to {
        DatumType::U8 => {
            let output = plain.as_slice_mut::<u8>()?;
            input.iter().zip(output).for_each(|(x, y)| *y = (x + zero_point as f32) as u8);
        }
        DatumType::I8 => {
            let output = plain.as_slice_mut::<i8>()?;
            input.iter().zip(output).for_each(|(x, y)| *y = (x + zero_point as f32) as i8);
        }
        other => bail!("storing steps as {other:?}"),
    }
    Ok(result)
}

impl TypedOp for Kernel {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.output_type().fact(inputs[0].shape.clone())))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: u8, b: u8, [scale_a, scale_b, scale_c]: [f32; 3], zero_points: [f32; 3]) -> f32 {
        let [za, zb, zc] = zero_points;
        let add = Kernel::Add {
            factors: [scale_a / scale_c, scale_b / scale_c],
            zero_points,
            low: -zc,
            high: 255.0 - zc,
        };
        let steps = |value: u8, zero: f32| tensor1(&[f32::from(value) - zero]).into_tvalue();
        let result = add.eval(&EvalContext::out_of_plan(), tvec!(steps(a, za), steps(b, zb)));
        result.unwrap()[0].try_as_plain_ram().unwrap().as_slice::<f32>().unwrap()[0] + zc
    }

    /// Sums next to a tie, where rounding each product and each sum on its own gives the other neighbour. Answers of
    /// onnxruntime 1.31.1 on a processor with AVX2, which differ by one from such arithmetic on all four.
    #[test]
    fn adds_near_ties_as_onnxruntime() {
        let cases = [
            (46, 92, [0.098170035, 0.096357435, 0.07385504], [124.0, 75.0, 138.0], 56.0),
            (244, 148, [0.08197606, 0.037470497, 0.056648582], [161.0, 223.0, 50.0], 120.0),
            (90, 45, [0.07538972, 0.06681388, 0.06261827], [25.0, 116.0, 8.0], 11.0),
            (180, 131, [0.09805309, 0.023752455, 0.0503311], [207.0, 188.0, 98.0], 19.0),
        ];
        let mut wrong = Vec::new();
        for (a, b, scales, zero_points, expected) in cases {
            let found = sum(a, b, scales, zero_points);
            if found != expected {
                wrong.push(format!("{a} + {b}: {found} instead of {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
