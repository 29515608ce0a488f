//! Counts the protobuf fields of an ONNX file without keeping any: two bytes of input may cost hundreds once decoded.

use super::GraphError;
use super::parse::at_most;

/// Fields of one file that we are willing to decode. A network of 1000 operators has some 20 000.
const MAX_FIELDS: usize = 500_000;
/// Messages inside messages, as deep as prost goes.
const MAX_DEPTH: usize = 16;

/// Message types whose fields may be messages, by the field numbers of `onnx.proto`.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Leaf,
}

impl Message {
    fn field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) => Some(Self::Graph),
            (Self::Model, 8 | 14 | 20 | 25) => Some(Self::Leaf),
            (Self::Graph, 1) => Some(Self::Node),
            (Self::Graph, 5 | 11..=15) => Some(Self::Leaf),
            (Self::Node, 5) => Some(Self::Attribute),
            (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Attribute, 5 | 10 | 15 | 22 | 23) => Some(Self::Leaf),
            _ => None,
        }
    }
}

/// Refuses a file with too many fields.
pub(super) fn check(onnx: &[u8]) -> Result<(), GraphError> {
    let mut fields = 0;
    walk(onnx, Message::Model, 0, &mut fields)
}

fn walk(
    mut bytes: &[u8],
    message: Message,
    depth: usize,
    fields: &mut usize,
) -> Result<(), GraphError> {
    at_most("depth of nesting in the model file", depth, MAX_DEPTH)?;
    while !bytes.is_empty() {
        *fields += 1;
        at_most("number of fields in the model file", *fields, MAX_FIELDS)?;
        let tag = varint(&mut bytes)?;
        let number = tag >> 3;
        let skipped = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes)?,
            5 => 4,
            _ => return Err(GraphError::Malformed(format!("field {number} of unknown kind"))),
        };
        let length = usize::try_from(skipped).unwrap_or(usize::MAX);
        let Some((content, rest)) = bytes.split_at_checked(length) else {
            return Err(GraphError::Malformed("it ends in the middle of a field".into()));
        };
        bytes = rest;
        if tag & 7 == 2
            && let Some(inner) = message.field(number)
        {
            walk(content, inner, depth + 1, fields)?;
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, GraphError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else {
            return Err(GraphError::Malformed("it ends in the middle of a number".into()));
        };
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(GraphError::Malformed("a number is longer than 64 bits".into()))
}
