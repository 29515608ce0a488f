//! Output tensors as real numbers, whether they are floats or quantised bytes, checked against their specification.

use std::ops::Range;

use crate::tensor::{ElementType, Quantisation, TensorSpec, TensorView, Values};

use super::{HeadError, describe};

/// The outputs that a head was built for.
pub(super) struct Outputs {
    head: &'static str,
    specs: Vec<TensorSpec>,
}

impl Outputs {
    /// Accepts floats, and bytes with a scale.
    pub(super) fn new(head: &'static str, specs: &[TensorSpec]) -> Result<Self, HeadError> {
        let readable = |spec: &TensorSpec| match spec.element {
            ElementType::F32 => true,
            ElementType::U8 | ElementType::I8 => spec.quantisation.is_some(),
            ElementType::I32 | ElementType::I64 => false,
        };
        if let Some(spec) = specs.iter().find(|spec| !readable(spec)) {
            let expected =
                format!("{} to be f32, or u8 or i8 with scale and zero point", spec.name);
            return Err(HeadError::Outputs { head, expected, actual: describe(specs) });
        }
        Ok(Self { head, specs: specs.to_vec() })
    }

    /// Output `index` of a run, after checking count, shape and type.
    pub(super) fn reals<'a>(
        &self,
        outputs: &[TensorView<'a>],
        index: usize,
    ) -> Result<Reals<'a>, HeadError> {
        let spec = &self.specs[index];
        let fits = outputs.len() == self.specs.len()
            && outputs[index].shape == spec.shape
            && outputs[index].values.len() == spec.len();
        let values = fits.then(|| outputs[index].values);
        match (values, spec.element, spec.quantisation) {
            (Some(Values::F32(values)), ElementType::F32, _) => Ok(Reals::F32(values)),
            (Some(Values::U8(values)), ElementType::U8, Some(steps)) => {
                Ok(Reals::U8(values, steps))
            }
            (Some(Values::I8(values)), ElementType::I8, Some(steps)) => {
                Ok(Reals::I8(values, steps))
            }
            _ => Err(self.unlike(outputs)),
        }
    }

    #[cold]
    fn unlike(&self, outputs: &[TensorView<'_>]) -> HeadError {
        let one = |view: &TensorView<'_>| {
            format!("{} {:?} of {} values", view.values.element(), view.shape, view.values.len())
        };
        let actual = outputs.iter().map(one).collect::<Vec<_>>().join(", ");
        HeadError::Outputs { head: self.head, expected: describe(&self.specs), actual }
    }
}

/// Values of one output.
#[derive(Clone, Copy)]
pub(super) enum Reals<'a> {
    F32(&'a [f32]),
    U8(&'a [u8], Quantisation),
    I8(&'a [i8], Quantisation),
}

impl Reals<'_> {
    /// One value. May be infinite or not a number: models give what they like.
    pub(super) fn at(&self, index: usize) -> f32 {
        match *self {
            Self::F32(values) => values[index],
            Self::U8(values, steps) => real(steps, f32::from(values[index])),
            Self::I8(values, steps) => real(steps, f32::from(values[index])),
        }
    }

    /// Calls `hit` with the position in `range` and the value of each finite value at or above `threshold`.
    ///
    /// This is where heads spend their time: nearly all values are below, and are passed over many at once.
    pub(super) fn at_least(
        &self,
        range: Range<usize>,
        threshold: f32,
        hit: impl FnMut(usize, f32),
    ) {
        match *self {
            Self::F32(values) => scan(&values[range], threshold, |value| value, hit),
            Self::U8(values, steps) => {
                scan(&values[range], threshold, |value| real(steps, f32::from(value)), hit);
            }
            Self::I8(values, steps) => {
                scan(&values[range], threshold, |value| real(steps, f32::from(value)), hit);
            }
        }
    }
}

/// In floats throughout: a zero point far outside the bytes' range cannot overflow.
fn real(steps: Quantisation, value: f32) -> f32 {
    steps.scale * (value - steps.zero_point as f32)
}

fn scan<T: Copy>(
    values: &[T],
    threshold: f32,
    real: impl Fn(T) -> f32,
    mut hit: impl FnMut(usize, f32),
) {
    const CHUNK: usize = 32;
    let (chunks, rest) = values.as_chunks::<CHUNK>();
    let mut look_closer = |start: usize, chunk: &[T]| {
        for (offset, value) in chunk.iter().enumerate() {
            let value = real(*value);
            if value >= threshold && value.is_finite() {
                hit(start + offset, value);
            }
        }
    };
    for (number, chunk) in chunks.iter().enumerate() {
        // No short circuit within the chunk: this becomes a few vector compares.
        if chunk.iter().fold(false, |any, &value| any | (real(value) >= threshold)) {
            look_closer(number * CHUNK, chunk);
        }
    }
    look_closer(chunks.len() * CHUNK, rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_finite_value_at_or_above_the_threshold() {
        let mut values = vec![-5.0_f32; 100];
        for (at, value) in
            [(0, 1.0), (31, 2.0), (32, 0.5), (70, f32::INFINITY), (71, f32::NAN), (99, 3.0)]
        {
            values[at] = value;
        }
        let mut found = Vec::new();
        Reals::F32(&values).at_least(0..100, 0.5, |at, value| found.push((at, value)));
        assert_eq!(found, [(0, 1.0), (31, 2.0), (32, 0.5), (99, 3.0)]);
        found.clear();
        Reals::F32(&values).at_least(30..33, 0.6, |at, value| found.push((at, value)));
        assert_eq!(found, [(1, 2.0)]);
    }

    #[test]
    fn bytes_stand_for_reals() {
        let steps = Quantisation { scale: 0.5, zero_point: 10 };
        let bytes = Reals::U8(&[0, 10, 255], steps);
        assert_eq!([bytes.at(0), bytes.at(1), bytes.at(2)], [-5.0, 0.0, 122.5]);
        let steps = Quantisation { scale: 0.25, zero_point: -128 };
        let bytes = Reals::I8(&[-128, 127], steps);
        assert_eq!([bytes.at(0), bytes.at(1)], [0.0, 63.75]);
        let absurd = Quantisation { scale: 1.0, zero_point: i32::MIN };
        assert!(Reals::I8(&[127], absurd).at(0) > 2e9);
    }
}
