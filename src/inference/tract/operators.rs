//! ONNX operators, each as the operators of tract that compute it.
//!
//! What stands here is what Ocelli runs of ONNX, beside what `graph::shape` has a rule for. Shapes were checked there.

mod elementwise;
mod layout;
mod normalise;
mod reduce;
mod resample;
mod window;

use tract_core::internal::*;

use super::wire::{OnnxCall, Site, axis};
use crate::inference::graph::proto::TensorProto;
use crate::inference::graph::proto::tensor_proto::DataType;

/// Wires one node; as many outlets as it has outputs that somebody reads, at least the first.
pub(super) fn wire(site: &mut Site<'_>, call: &OnnxCall<'_>) -> TractResult<TVec<OutletId>> {
    match call.node.op.as_str() {
        "Split" => return layout::split(site, call),
        "TopK" => return reduce::top_k(site, call),
        _ => call.one_output()?,
    }
    let groups = [elementwise::wire, window::wire, layout::wire, reduce::wire, normalise::wire];
    for group in groups {
        if let Some(outlet) = group(site, call)? {
            return Ok(tvec!(outlet));
        }
    }
    bail!("the operator is not among those that Ocelli runs")
}

/// tract's type for a number of ONNX's.
fn datum_type(data_type: i32) -> TractResult<DatumType> {
    Ok(match DataType::try_from(data_type) {
        Ok(DataType::Float) => DatumType::F32,
        Ok(DataType::Uint8) => DatumType::U8,
        Ok(DataType::Int8) => DatumType::I8,
        Ok(DataType::Uint16) => DatumType::U16,
        Ok(DataType::Int16) => DatumType::I16,
        Ok(DataType::Int32) => DatumType::I32,
        Ok(DataType::Int64) => DatumType::I64,
        Ok(DataType::Bool) => DatumType::Bool,
        Ok(DataType::Float16) => DatumType::F16,
        Ok(DataType::Double) => DatumType::F64,
        _ => bail!("element type {data_type} is not supported"),
    })
}

/// A constant as in the file.
pub(super) fn proto_tensor(proto: &TensorProto, shape: &[usize]) -> TractResult<Tensor> {
    let (raw, words) = (proto.raw_data.as_slice(), proto.int32_data.as_slice());
    match datum_type(proto.data_type)? {
        DatumType::Bool => {
            let values = raw.iter().map(|byte| i32::from(*byte)).chain(words.iter().copied());
            Tensor::from_shape(shape, &values.map(|value| value != 0).collect::<Vec<_>>())
        }
        DatumType::F16 => {
            let bits = words.iter().map(|word| f16::from_bits(u16::try_from(*word).unwrap_or(0)));
            let values = numbers(raw, f16::from_le_bytes).chain(bits);
            Tensor::from_shape(shape, &values.collect::<Vec<_>>())
        }
        DatumType::F32 => {
            let values = numbers(raw, f32::from_le_bytes).chain(proto.float_data.iter().copied());
            Tensor::from_shape(shape, &values.collect::<Vec<_>>())
        }
        DatumType::F64 => {
            let values = numbers(raw, f64::from_le_bytes).chain(proto.double_data.iter().copied());
            Tensor::from_shape(shape, &values.collect::<Vec<_>>())
        }
        DatumType::I64 => {
            let values = numbers(raw, i64::from_le_bytes).chain(proto.int64_data.iter().copied());
            Tensor::from_shape(shape, &values.collect::<Vec<_>>())
        }
        DatumType::I32 => {
            let values = numbers(raw, i32::from_le_bytes).chain(words.iter().copied());
            Tensor::from_shape(shape, &values.collect::<Vec<_>>())
        }
        DatumType::U8 => {
            let values = words.iter().map(|word| u8::try_from(*word).unwrap_or(0));
            Tensor::from_shape(shape, &raw.iter().copied().chain(values).collect::<Vec<_>>())
        }
        DatumType::I8 => {
            let values = words.iter().map(|word| i8::try_from(*word).unwrap_or(0));
            let values = numbers(raw, i8::from_le_bytes).chain(values);
            Tensor::from_shape(shape, &values.collect::<Vec<_>>())
        }
        other => bail!("a constant of type {other:?} is not supported"),
    }
}

fn numbers<const N: usize, T>(raw: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    raw.as_chunks().0.iter().map(move |bytes| read(*bytes))
}
