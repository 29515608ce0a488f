//! Resize, axis by axis, with the weights of each place computed before the model runs.

use tract_core::internal::*;
use tract_core::ops::nn::resize::{
    AxisPlan, CoordTransformer, Interpolator, cubic_weights, linear_weights, plan_axis,
    resample_axis, window_size,
};

use super::{OnnxCall, Site};

/// How a Resize picks and weighs neighbours.
struct Rule<'a> {
    transformer: CoordTransformer,
    interpolator: Interpolator,
    nearest: &'a str,
    cubic: f32,
    antialias: bool,
    exclude_outside: bool,
}

pub(super) fn resize(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<OutletId> {
    let node = call.node;
    let stretch = node.text("keep_aspect_ratio_policy").is_none_or(|policy| policy == "stretch");
    ensure!(stretch, "keep_aspect_ratio_policy is not supported");
    // Operator set 10 has neither the attribute nor another way.
    let default = if call.opset < 11 { "asymmetric" } else { "half_pixel" };
    let mode = node.text("coordinate_transformation_mode").unwrap_or(default);
    let nearest = if call.opset < 11 { "floor" } else { "round_prefer_floor" };
    let rule = Rule {
        transformer: CoordTransformer::parse(mode)?,
        interpolator: Interpolator::parse(node.text("mode").unwrap_or("nearest"))?,
        nearest: node.text("nearest_mode").unwrap_or(nearest),
        cubic: node.float("cubic_coeff_a").unwrap_or(-0.75),
        antialias: call.flag("antialias"),
        exclude_outside: call.flag("exclude_outside"),
    };
    let mut x = site.input(0)?;
    let (from, to) = (site.shape(x)?, call.shape(0)?);
    let scales = scales(site, call, from.len())?;
    for (axis, (from, to)) in from.iter().zip(to).enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "lengths of maps")]
        let scale = scales.as_ref().map_or(*to as f32 / *from as f32, |scales| scales[axis]);
        if from != to || scale.to_bits() != 1_f32.to_bits() {
            x = site.wire(rule.axis(axis, scale, *from, *to)?, &[x])?;
        }
    }
    Ok(x)
}

/// Factors by which axes grow, where they and not the lengths are given.
fn scales(site: &Site<'_>, call: &OnnxCall<'_>, rank: usize) -> TractResult<Option<Vec<f32>>> {
    let place = if call.opset < 11 { 1 } else { 2 };
    let Some(scales) = site.value(place)?.filter(|scales| scales.len() == rank) else {
        return Ok(None);
    };
    let scales = scales.cast_to::<f32>()?;
    Ok(Some(scales.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()))
}

impl Rule<'_> {
    fn axis(&self, axis: usize, scale: f32, from: usize, to: usize) -> TractResult<Resample> {
        let right: fn(f32) -> bool = match self.nearest {
            "floor" => |_| false,
            "ceil" => |_| true,
            "round_prefer_floor" => |ratio| ratio > 0.5,
            "round_prefer_ceil" => |ratio| ratio >= 0.5,
            other => bail!("nearest_mode {other} is not supported"),
        };
        let weights = |ratio: f32, weights: &mut [f32]| match self.interpolator {
            Interpolator::Linear => linear_weights(ratio, scale, self.antialias, weights),
            Interpolator::Cubic => {
                cubic_weights(ratio, scale, self.cubic, self.antialias, weights);
            }
            Interpolator::Nearest => {
                let right = ratio >= 1.0 || right(ratio);
                weights.copy_from_slice(if right { &[0.0, 1.0] } else { &[1.0, 0.0] });
            }
        };
        let window = window_size(&self.interpolator, self.antialias, scale);
        let place = |at| Some(self.transformer.transform(at, scale, from, to));
        let plan = plan_axis(from, to, window, self.exclude_outside, place, weights);
        Ok(Resample { axis, window, indices: plan.indices, weights: plan.weights })
    }
}

/// Weighs neighbours along one axis.
#[derive(Debug, Clone, PartialEq)]
struct Resample {
    axis: usize,
    /// Neighbours of each place.
    window: usize,
    /// `window` for each place of the output.
    indices: Vec<usize>,
    /// As many as indices.
    weights: Vec<f32>,
}

impl Eq for Resample {}

impl Resample {
    fn length(&self) -> usize {
        self.indices.len() / self.window
    }
}

impl Op for Resample {
    fn name(&self) -> StaticName {
        "OcelliResample".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Resample {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let from = inputs[0].cast_to::<f32>()?;
        let mut shape: TVec<usize> = from.shape().into();
        shape[self.axis] = self.length();
        let mut result = Tensor::zero::<f32>(&shape)?;
        let plan = AxisPlan {
            window: self.window,
            indices: self.indices.clone(),
            weights: self.weights.clone(),
            extrapolated: vec![false; self.length()],
        };
        resample_axis(
            from.try_as_plain_ram()?.as_slice::<f32>()?,
            from.shape(),
            self.axis,
            &plan,
            0.0,
            result.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?,
        );
        let result = result.cast_to_dt(inputs[0].datum_type())?.into_owned();
        Ok(tvec!(result.into_tvalue()))
    }
}

impl TypedOp for Resample {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut fact = inputs[0].without_value();
        fact.shape.set(self.axis, self.length().to_dim());
        Ok(tvec!(fact))
    }

    as_op!();
}
