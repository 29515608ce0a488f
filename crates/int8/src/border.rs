//! Buffers that go in and out of a run, and their check against the graph. Nothing is copied here.

use crate::RunError;
use crate::operator::{InputForm, OutputForm};
use crate::tensor::{ElementType, Tensor};

/// One input of a run.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Real values, for [`InputForm::F32Nchw`].
    F32(&'a [f32]),
    /// Stored u8 values.
    U8(&'a [u8]),
    /// Stored s8 values.
    S8(&'a [i8]),
}

/// One output of a run.
#[derive(Debug)]
pub enum Output<'a> {
    /// Real values, for [`OutputForm::F32Nchw`], [`OutputForm::SoftmaxNchw`] and [`OutputForm::FunctionNchw`].
    F32(&'a mut [f32]),
    /// Stored u8 values.
    U8(&'a mut [u8]),
    /// Stored s8 values.
    S8(&'a mut [i8]),
}

impl Input<'_> {
    fn kind(&self) -> (&'static str, usize) {
        match self {
            Self::F32(values) => ("f32", values.len()),
            Self::U8(values) => ("u8", values.len()),
            Self::S8(values) => ("i8", values.len()),
        }
    }
}

impl Output<'_> {
    fn kind(&self) -> (&'static str, usize) {
        match self {
            Self::F32(values) => ("f32", values.len()),
            Self::U8(values) => ("u8", values.len()),
            Self::S8(values) => ("i8", values.len()),
        }
    }
}

/// What goes in and out of a run.
#[derive(Debug, Clone)]
pub(crate) struct Io {
    pub(crate) inputs: Vec<(Tensor, InputForm)>,
    pub(crate) outputs: Vec<(Tensor, OutputForm)>,
}

impl Io {
    /// Checks number, types and lengths of the buffers of a run.
    pub(crate) fn check(
        &self,
        inputs: &[Input<'_>],
        outputs: &[Output<'_>],
    ) -> Result<(), RunError> {
        count("inputs", inputs.len(), self.inputs.len())?;
        count("outputs", outputs.len(), self.outputs.len())?;
        for (index, ((tensor, form), input)) in self.inputs.iter().zip(inputs).enumerate() {
            let real = *form == InputForm::F32Nchw;
            fits("input", index, tensor, real, input.kind())?;
        }
        for (index, ((tensor, form), output)) in self.outputs.iter().zip(outputs).enumerate() {
            let real = form.is_real();
            fits("output", index, tensor, real, output.kind())?;
        }
        Ok(())
    }
}

fn count(what: &'static str, given: usize, expected: usize) -> Result<(), RunError> {
    if given == expected { Ok(()) } else { Err(RunError::Count { what, given, expected }) }
}

fn fits(
    what: &'static str,
    index: usize,
    tensor: &Tensor,
    real: bool,
    (kind, length): (&'static str, usize),
) -> Result<(), RunError> {
    let element = match (real, tensor.quantisation.element()) {
        (true, _) => "f32",
        (false, ElementType::U8) => "u8",
        (false, ElementType::S8) => "i8",
    };
    let expected = tensor.shape.elements();
    if kind == element && length == expected {
        return Ok(());
    }
    Err(RunError::Buffer { what, index, expected, element, given: format!("{length} of {kind}") })
}

/// Softmax along the channels of one pixel: `channels` values from `first`, `step` apart, in place. The maximum is
/// subtracted first.
pub(crate) fn softmax(values: &mut [f32], first: usize, step: usize, channels: usize) {
    let places = (0..channels).map(|channel| first + channel * step);
    let greatest = places.clone().fold(f32::NEG_INFINITY, |max, at| max.max(values[at]));
    let mut sum = 0.0;
    for at in places.clone() {
        values[at] = (values[at] - greatest).exp();
        sum += values[at];
    }
    for at in places {
        values[at] /= sum;
    }
}
