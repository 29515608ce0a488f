//! How a tensor passes between the model and a device: as it is, or in the device's own type, scale and order, where the
//! package's manifest has named them. Quantising happens here, in code of ours, not in the vendor's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ocelli_delegate::wire;
use zerocopy::IntoBytes;

use super::payload::{dtype, width};
use crate::tensor::{ElementType, TensorSpec, TensorView, TensorViewMut, Values, ValuesMut};

/// Largest relative difference of two scales that are the same.
const SAME_SCALE: f32 = 1e-5;

/// A tensor of a compiled model as its package says that the device wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct BlobTensor {
    /// In the model.
    pub tensor: String,
    /// In the compiled model.
    pub name: String,
    /// F32, U8 or I8.
    pub element: ElementType,
    /// Scale and zero point of U8 and I8.
    pub scale: f32,
    /// The same.
    pub zero_point: i32,
    /// Rows, columns, channels instead of the model's channels, rows, columns.
    pub channels_last: bool,
}

/// One tensor's way.
pub(super) struct Passage {
    at: u64,
    other: Option<Other>,
}

/// The device's form of a tensor.
struct Other {
    element: ElementType,
    scale: f32,
    zero_point: i32,
    /// Of the model's tensor.
    model: (f32, i32),
    /// Channels, and values of each, when they come last on the device.
    channels: Option<(usize, usize)>,
    staging: Vec<u8>,
}

impl Passage {
    /// Compares what the plug-in describes with the model's tensor, or with what the package says of it.
    pub(super) fn check(
        found: &wire::Tensor,
        agreed: &TensorSpec,
        listed: Option<&BlobTensor>,
    ) -> Result<Self, String> {
        let name = &agreed.name;
        let by = if listed.is_some() { "the manifest's" } else { "the model's" };
        let wrong = |what: &str, found: String, wanted: String| {
            Err(format!("tensor `{name}`: its {what} is {found}, {by} {wanted}"))
        };
        let wanted_name = listed.map_or(name, |listed| &listed.name);
        if found.name != *wanted_name {
            return wrong("name", format!("`{}`", found.name), format!("`{wanted_name}`"));
        }
        let element = listed.map_or(agreed.element, |listed| listed.element);
        if found.dtype != dtype(element) {
            let wanted = format!("{} ({element})", dtype(element));
            return wrong("ONNX type number", found.dtype.to_string(), wanted);
        }
        let shape: Vec<_> = agreed.shape.iter().map(|length| *length as i64).collect();
        if found.dims != shape {
            return wrong("shape", format!("{:?}", found.dims), format!("{shape:?}"));
        }
        let channels_last = listed.is_some_and(|listed| listed.channels_last);
        if found.layout != u32::from(channels_last) {
            let words = |last: bool| if last { "channels last" } else { "rows" }.to_owned();
            return wrong("layout", words(found.layout == 1), words(channels_last));
        }
        let bytes = (agreed.len() * width(element)) as u64;
        if found.n_bytes != bytes {
            return wrong("size", format!("{} bytes", found.n_bytes), bytes.to_string());
        }
        let model = agreed.quantisation.map(|model| (model.scale, model.zero_point));
        let quantised = element != ElementType::F32;
        let wanted = match listed {
            Some(listed) if quantised => Some((listed.scale, listed.zero_point)),
            Some(_) => None,
            None => model,
        };
        if let ([scale], [zero_point], Some(wanted)) =
            (&found.scale[..], &found.zero_point[..], wanted)
            && ((scale - wanted.0).abs() > SAME_SCALE * wanted.0.abs() || *zero_point != wanted.1)
        {
            let wanted = format!("{} around {}", wanted.0, wanted.1);
            return wrong("quantisation", format!("{scale} around {zero_point}"), wanted);
        }
        let same = element == agreed.element && (!quantised || wanted == model);
        if listed.is_none() || (same && !channels_last) {
            return Ok(Self { at: 0, other: None });
        }
        if !matches!(agreed.element, ElementType::F32 | ElementType::U8 | ElementType::I8) {
            return wrong("type", element.to_string(), format!("{}, which stays", agreed.element));
        }
        let channels = match (channels_last, &agreed.shape[..]) {
            (false, _) => None,
            (true, [1, channels, rows, columns]) => Some((*channels, rows * columns)),
            (true, shape) => {
                return wrong("layout", "channels last".to_owned(), format!("{shape:?}"));
            }
        };
        let (scale, zero_point) = wanted.unwrap_or((1.0, 0));
        let staging = vec![0; agreed.len() * width(element)];
        let model = model.unwrap_or((1.0, 0));
        Ok(Self {
            at: 0,
            other: Some(Other { element, scale, zero_point, model, channels, staging }),
        })
    }

    pub(super) fn place(&mut self, at: u64) {
        self.at = at;
    }

    /// Brings a tensor of the model to the device's memory.
    pub(super) fn write(&mut self, view: &TensorView<'_>, memory: &File) -> io::Result<()> {
        let Some(other) = &mut self.other else {
            return memory.write_all_at(bytes(view.values), self.at);
        };
        let (scale, zero_point) = other.model;
        let real = |value: i32| (value - zero_point) as f32 * scale;
        match view.values {
            Values::F32(values) => other.take(values.iter().copied()),
            Values::U8(values) => other.take(values.iter().map(|value| real((*value).into()))),
            Values::I8(values) => other.take(values.iter().map(|value| real((*value).into()))),
            Values::I32(_) | Values::I64(_) => {}
        }
        memory.write_all_at(&other.staging, self.at)
    }

    /// Brings a tensor of the device to the model's.
    pub(super) fn read(&mut self, view: &mut TensorViewMut<'_>, memory: &File) -> io::Result<()> {
        let Some(other) = &mut self.other else {
            return memory.read_exact_at(bytes_mut(&mut view.values), self.at);
        };
        memory.read_exact_at(&mut other.staging, self.at)?;
        let (scale, zero_point) = other.model;
        let stored = |real: f32| (real / scale).round_ties_even() + zero_point as f32;
        match &mut view.values {
            ValuesMut::F32(values) => other.give(|at, real| values[at] = real),
            // A cast of a float saturates.
            ValuesMut::U8(values) => other.give(|at, real| values[at] = stored(real) as u8),
            ValuesMut::I8(values) => other.give(|at, real| values[at] = stored(real) as i8),
            ValuesMut::I32(_) | ValuesMut::I64(_) => {}
        }
        Ok(())
    }
}

impl Other {
    /// Where a value of the model's order lies in the device's.
    fn index(&self, at: usize) -> usize {
        match self.channels {
            None => at,
            Some((channels, each)) => at % each * channels + at / each,
        }
    }

    fn take(&mut self, reals: impl Iterator<Item = f32>) {
        for (at, real) in reals.enumerate() {
            let at = self.index(at);
            let stored = (real / self.scale).round_ties_even() + self.zero_point as f32;
            match self.element {
                // A cast of a float saturates.
                ElementType::U8 => self.staging[at] = stored as u8,
                ElementType::I8 => self.staging[at] = (stored as i8).cast_unsigned(),
                _ => self.staging[4 * at..4 * at + 4].copy_from_slice(&real.to_ne_bytes()),
            }
        }
    }

    fn give(&self, mut take: impl FnMut(usize, f32)) {
        for at in 0..self.staging.len() / width(self.element) {
            let from = self.index(at);
            let real = |value: i32| (value - self.zero_point) as f32 * self.scale;
            take(
                at,
                match self.element {
                    ElementType::U8 => real(self.staging[from].into()),
                    ElementType::I8 => real(self.staging[from].cast_signed().into()),
                    _ => {
                        let bytes = self.staging[4 * from..4 * from + 4].try_into();
                        f32::from_ne_bytes(bytes.expect("four bytes"))
                    }
                },
            );
        }
    }
}

/// The memory of values.
pub(super) fn bytes(values: Values<'_>) -> &[u8] {
    match values {
        Values::F32(values) => values.as_bytes(),
        Values::U8(values) => values,
        Values::I8(values) => values.as_bytes(),
        Values::I32(values) => values.as_bytes(),
        Values::I64(values) => values.as_bytes(),
    }
}

fn bytes_mut<'a>(values: &'a mut ValuesMut<'_>) -> &'a mut [u8] {
    match values {
        ValuesMut::F32(values) => values.as_mut_bytes(),
        ValuesMut::U8(values) => values,
        ValuesMut::I8(values) => values.as_mut_bytes(),
        ValuesMut::I32(values) => values.as_mut_bytes(),
        ValuesMut::I64(values) => values.as_mut_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, TensorBuffer};

    fn spec() -> TensorSpec {
        let element = ElementType::F32;
        TensorSpec { name: "x".to_owned(), element, shape: vec![1, 2, 1, 3], quantisation: None }
    }

    fn listed() -> BlobTensor {
        BlobTensor {
            tensor: "x".to_owned(),
            name: "x".to_owned(),
            element: ElementType::I8,
            scale: 0.5,
            zero_point: -10,
            channels_last: true,
        }
    }

    fn found() -> wire::Tensor {
        wire::Tensor {
            name: "x".to_owned(),
            dtype: 3,
            layout: 1,
            dims: vec![1, 2, 1, 3],
            scale: vec![0.5],
            zero_point: vec![-10],
            n_bytes: 6,
            ..wire::Tensor::default()
        }
    }

    #[test]
    fn floats_pass_to_integers_with_channels_last_and_back() {
        let mut passage = Passage::check(&found(), &spec(), Some(&listed())).unwrap();
        let memory = ocelli_delegate::link::memory(4096).unwrap();
        let values = TensorBuffer::F32(vec![0.0, 1.0, 2.0, -3.0, 100.0, -100.0]);
        let view = TensorView { shape: &[1, 2, 1, 3], values: values.as_values() };
        passage.write(&view, &memory).unwrap();
        let mut stored = [0; 6];
        memory.read_exact_at(&mut stored, 0).unwrap();
        assert_eq!(stored.map(u8::cast_signed), [-10, -16, -8, 127, -6, -128]);
        let mut back = Tensor::zeros(spec());
        passage.read(&mut back.view_mut(), &memory).unwrap();
        let back = back.view().values.as_f32().unwrap().to_vec();
        assert_eq!(back, [0.0, 1.0, 2.0, -3.0, 68.5, -59.0]);
    }

    #[test]
    fn what_the_manifest_does_not_say_is_refused_and_named() {
        type Change = fn(&mut wire::Tensor);
        let cases: [(&str, Change); 5] = [
            ("name", |tensor| tensor.name = "y".to_owned()),
            ("type", |tensor| tensor.dtype = 2),
            ("shape", |tensor| tensor.dims = vec![1, 1, 2, 3]),
            ("layout", |tensor| tensor.layout = 0),
            ("quantisation", |tensor| tensor.zero_point = vec![0]),
        ];
        for (what, change) in cases {
            let mut tensor = found();
            change(&mut tensor);
            let error = Passage::check(&tensor, &spec(), Some(&listed())).map(|_| ()).unwrap_err();
            assert!(error.contains(what) && error.contains("manifest"), "{what}: {error}");
        }
        // Without a word in the manifest nothing is converted.
        let error = Passage::check(&found(), &spec(), None).map(|_| ()).unwrap_err();
        assert!(error.contains("the model's"), "{error}");
    }
}
