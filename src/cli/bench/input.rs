//! What a benchmark reads and writes: models, inputs, outputs.

use std::fs;
use std::path::Path;

use super::BenchError;
use crate::cli::npy;
use crate::file::read_regular;
use crate::inference::Session;
use crate::model::Package;
use crate::tensor::{ElementType, TensorBuffer, TensorSpec, TensorView};

/// Largest model or input read, bytes.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// The ONNX file, or the one inside a model package (a folder).
pub(super) fn read_model(path: &Path) -> Result<Vec<u8>, BenchError> {
    if path.is_dir() {
        return Ok(Package::open(path)?.into_spec().take_onnx().to_vec());
    }
    read_file(path)
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, BenchError> {
    read_regular(path, MAX_FILE_BYTES)
        .map_err(|source| BenchError::File { path: path.to_owned(), source })
}

pub(super) type Input = (TensorSpec, TensorBuffer);

pub(super) fn inputs(session: &Session, file: Option<&Path>) -> Result<Vec<Input>, BenchError> {
    let Some(path) = file else {
        let random = |spec: &TensorSpec| (spec.clone(), random(spec));
        return Ok(session.inputs().iter().map(random).collect());
    };
    let wrong = |reason| BenchError::Input { path: path.to_owned(), reason };
    let [spec] = session.inputs() else {
        return Err(wrong("the model has several inputs; --input takes one".to_owned()));
    };
    let bytes = read_file(path)?;
    let (shape, values) = npy::read_f32(&bytes).map_err(wrong)?;
    if shape != spec.shape || spec.element != ElementType::F32 {
        let (element, expected) = (spec.element, &spec.shape);
        return Err(wrong(format!("f32 {shape:?}, the model reads {element} {expected:?}")));
    }
    Ok(vec![(spec.clone(), values)])
}

/// The same values each time, spread like pixels around 0.
pub(super) fn random(spec: &TensorSpec) -> TensorBuffer {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut byte = move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    let len = spec.len();
    match spec.element {
        ElementType::F32 => {
            TensorBuffer::F32((0..len).map(|_| (f32::from(byte()) - 127.5) / 64.0).collect())
        }
        ElementType::U8 => TensorBuffer::U8((0..len).map(|_| byte()).collect()),
        ElementType::I8 => {
            TensorBuffer::I8((0..len).map(|_| i8::from_le_bytes([byte()])).collect())
        }
        ElementType::I32 | ElementType::I64 => TensorBuffer::zeros(spec.element, len),
    }
}

pub(super) fn view<'a>(spec: &'a TensorSpec, values: &'a TensorBuffer) -> TensorView<'a> {
    TensorView { shape: &spec.shape, values: values.as_values() }
}

pub(super) fn dump(session: &Session, path: &Path) -> Result<(), BenchError> {
    let outputs = session.outputs().iter().enumerate();
    let arrays: Vec<_> =
        outputs.map(|(place, spec)| (spec.name.as_str(), session.output(place))).collect();
    let mut file = Vec::new();
    let written = npy::write_npz(&arrays, &mut file).and_then(|()| fs::write(path, file));
    written.map_err(|source| BenchError::File { path: path.to_owned(), source })
}
