//! Constants: decoding with caps, and arithmetic on the small integer ones that describe shapes.

use crate::inference::graph::proto::tensor_proto::{DataLocation, DataType};
use crate::inference::graph::proto::{NodeProto, TensorProto};

use super::parse::check_shape;
use super::{Constant, GraphError, Limits};
use crate::tensor::{ElementType, TensorBuffer};

type Decoded = (Vec<usize>, i32, Constant);

/// Our element type for one of ONNX.
pub(super) fn element_of(data_type: i32) -> Option<ElementType> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Float => ElementType::F32,
        DataType::Uint8 => ElementType::U8,
        DataType::Int8 => ElementType::I8,
        DataType::Int32 => ElementType::I32,
        DataType::Int64 => ElementType::I64,
        _ => return None,
    })
}

/// Reads an initializer; its name has been taken, its data are moved.
pub(super) fn decode(proto: TensorProto, limits: &Limits) -> Result<Decoded, GraphError> {
    let whose = format!("initializer `{}`", proto.name);
    if proto.data_location == Some(DataLocation::External as i32) || !proto.external_data.is_empty()
    {
        return Err(GraphError::Unsupported(format!("{whose} lies in another file; embed it")));
    }
    if proto.segment.is_some() {
        return Err(GraphError::Unsupported(format!("{whose} is stored in segments")));
    }
    let lengths = proto.dims.iter().map(|length| usize::try_from(*length));
    let Ok(shape) = lengths.collect::<Result<Vec<_>, _>>() else {
        return Err(GraphError::Invalid(format!("{whose} has a negative dimension")));
    };
    let len = check_shape(&shape, &whose, limits)?;
    let data_type = proto.data_type;
    let Some(element) = element_of(data_type) else {
        return other(proto, shape, len, &whose);
    };
    let found = stored(&proto, element);
    if found != Some(len) {
        return Err(GraphError::Invalid(format!(
            "{whose} holds {} values, its shape {shape:?} asks for {len}",
            found.map_or("incomplete".into(), |found| found.to_string())
        )));
    }
    let values = values(proto, element);
    Ok((shape, data_type, Constant::Values(values)))
}

/// bool, f16, f64, …: kept as they are for tract.
fn other(
    proto: TensorProto,
    shape: Vec<usize>,
    len: usize,
    whose: &str,
) -> Result<Decoded, GraphError> {
    let data_type = proto.data_type;
    let bytes = match DataType::try_from(data_type) {
        Ok(DataType::Bool) => 1,
        Ok(DataType::Float16) => 2,
        Ok(DataType::Double) => 8,
        _ => return Err(GraphError::Unsupported(format!("element type {data_type} of {whose}"))),
    };
    let found = if proto.raw_data.is_empty() {
        proto.int32_data.len() + proto.double_data.len()
    } else {
        proto.raw_data.len() / bytes
    };
    if found != len {
        let what = format!("{whose} holds {found} values, its shape {shape:?} asks for {len}");
        return Err(GraphError::Invalid(what));
    }
    Ok((shape, data_type, Constant::Other(Box::new(proto))))
}

fn stored(proto: &TensorProto, element: ElementType) -> Option<usize> {
    let width = match element {
        ElementType::U8 | ElementType::I8 => 1,
        ElementType::F32 | ElementType::I32 => 4,
        ElementType::I64 => 8,
    };
    if !proto.raw_data.is_empty() {
        return proto.raw_data.len().is_multiple_of(width).then(|| proto.raw_data.len() / width);
    }
    Some(match element {
        ElementType::F32 => proto.float_data.len(),
        ElementType::I64 => proto.int64_data.len(),
        _ => proto.int32_data.len(),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ONNX stores bytes in int32_data"
)]
fn values(proto: TensorProto, element: ElementType) -> TensorBuffer {
    let raw = proto.raw_data;
    let is_raw = !raw.is_empty();
    match element {
        ElementType::U8 if is_raw => TensorBuffer::U8(raw),
        ElementType::U8 => TensorBuffer::U8(proto.int32_data.iter().map(|v| *v as u8).collect()),
        ElementType::I8 if is_raw => {
            TensorBuffer::I8(raw.iter().map(|byte| i8::from_le_bytes([*byte])).collect())
        }
        ElementType::I8 => TensorBuffer::I8(proto.int32_data.iter().map(|v| *v as i8).collect()),
        ElementType::F32 if is_raw => TensorBuffer::F32(words(&raw, f32::from_le_bytes)),
        ElementType::F32 => TensorBuffer::F32(proto.float_data),
        ElementType::I32 if is_raw => TensorBuffer::I32(words(&raw, i32::from_le_bytes)),
        ElementType::I32 => TensorBuffer::I32(proto.int32_data),
        ElementType::I64 if is_raw => TensorBuffer::I64(words(&raw, i64::from_le_bytes)),
        ElementType::I64 => TensorBuffer::I64(proto.int64_data),
    }
}

fn words<const N: usize, T>(raw: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = raw.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

/// The value of a Constant node.
pub(super) fn of_node(mut proto: NodeProto, limits: &Limits) -> Result<Decoded, GraphError> {
    let name = proto.output[0].clone();
    let Some(attribute) = proto.attribute.pop() else {
        return Err(GraphError::Invalid(format!("Constant `{name}` has no value")));
    };
    let vector = |len: usize, buffer| (vec![len], buffer);
    let (shape, buffer) = match attribute.name.as_str() {
        "value" => {
            let Some(mut tensor) = attribute.t else {
                return Err(GraphError::Invalid(format!("Constant `{name}` has no value")));
            };
            tensor.name = name;
            return decode(tensor, limits);
        }
        "value_int" => (vec![], TensorBuffer::I64(vec![attribute.i()])),
        "value_float" => (vec![], TensorBuffer::F32(vec![attribute.f()])),
        "value_ints" => vector(attribute.ints.len(), TensorBuffer::I64(attribute.ints)),
        "value_floats" => vector(attribute.floats.len(), TensorBuffer::F32(attribute.floats)),
        other => {
            return Err(GraphError::Unsupported(format!("attribute {other} of Constant `{name}`")));
        }
    };
    check_shape(&shape, &format!("Constant `{name}`"), limits)?;
    Ok((shape, data_type_of(buffer.as_values().element()), Constant::Values(buffer)))
}

/// ONNX's number for an element type.
pub(in crate::inference) fn data_type_of(element: ElementType) -> i32 {
    (match element {
        ElementType::F32 => DataType::Float,
        ElementType::U8 => DataType::Uint8,
        ElementType::I8 => DataType::Int8,
        ElementType::I32 => DataType::Int32,
        ElementType::I64 => DataType::Int64,
    }) as i32
}

/// Integers of a constant, where it is a list of integers.
pub(super) fn integers(values: &TensorBuffer) -> Option<Vec<i64>> {
    match values {
        TensorBuffer::I64(values) => Some(values.clone()),
        TensorBuffer::I32(values) => Some(values.iter().map(|value| i64::from(*value)).collect()),
        _ => None,
    }
}
