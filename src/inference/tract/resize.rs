//! Bilinear Resize of a quantised tensor for tract, in steps (see `steps`).
//!
//! Doubling a map weighs four neighbours by sixteenths, so that one value in sixteen lies on a tie. Which way onnxruntime
//! rounds those depends on the order of its float operations; this follows that order.

use tract_core::internal::*;

use super::steps::round;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resize {
    /// Of the input and of the output.
    pub(super) scales: [f32; 2],
    /// By which rows and columns grow.
    pub(super) factors: [f32; 2],
    /// Rows and columns of the output.
    pub(super) lengths: [usize; 2],
    /// Steps that the output can hold.
    pub(super) range: [f32; 2],
}

impl Eq for Resize {}

/// Two neighbours along an axis and their weights.
struct Pair {
    at: [usize; 2],
    weights: [f32; 2],
}

fn pairs(from: usize, to: usize, factor: f32) -> Vec<Pair> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "lengths of maps; a negative centre is clamped first"
    )]
    let pair = |place: usize| {
        let last = from - 1;
        let centre = ((place as f32 + 0.5) / factor - 0.5).clamp(0.0, last as f32);
        let first = (centre as usize).min(last);
        let second = (first + 1).min(last);
        let weights = if first == second {
            [0.5, 0.5]
        } else {
            [second as f32 - centre, centre - first as f32]
        };
        Pair { at: [first, second], weights }
    };
    (0..to).map(pair).collect()
}

impl Resize {
    fn map(&self, from: &[f32], width: usize, rows: &[Pair], columns: &[Pair], to: &mut [f32]) {
        let [scale, to_scale] = self.scales;
        let [low, high] = self.range;
        for (row, to) in rows.iter().zip(to.chunks_exact_mut(columns.len())) {
            let [above, below] = row.at.map(|row| &from[row * width..][..width]);
            let [up, down] = row.weights;
            for (column, to) in columns.iter().zip(to) {
                let ([left, right], [near, far]) = (column.at, column.weights);
                let real = near * up * (above[left] * scale)
                    + far * up * (above[right] * scale)
                    + near * down * (below[left] * scale)
                    + far * down * (below[right] * scale);
                *to = round(real / to_scale, low, high);
            }
        }
    }
}

impl Op for Resize {
    fn name(&self) -> StaticName {
        "OcelliResize".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Resize {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let &[n, c, height, width] = inputs[0].shape() else { bail!("four dimensions") };
        let [to_height, to_width] = self.lengths;
        let rows = pairs(height, to_height, self.factors[0]);
        let columns = pairs(width, to_width, self.factors[1]);
        let mut result = Tensor::zero::<f32>(&[n, c, to_height, to_width])?;
        let mut plain = result.try_as_plain_ram_mut()?;
        let to = plain.as_slice_mut::<f32>()?.chunks_exact_mut(to_height * to_width);
        let from = inputs[0].try_as_plain_ram()?;
        for (from, to) in from.as_slice::<f32>()?.chunks_exact(height * width).zip(to) {
            self.map(from, width, &rows, &columns, to);
        }
        Ok(tvec!(result.into_tvalue()))
    }
}

impl TypedOp for Resize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.clone();
        shape.set(2, self.lengths[0].to_dim());
        shape.set(3, self.lengths[1].to_dim());
        Ok(tvec!(f32::datum_type().fact(shape)))
    }

    as_op!();
}
