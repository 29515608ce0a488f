//! Tiny models for tests.

use crate::inference::graph::proto::ModelProto;
use crate::inference::graph::proto::attribute_proto::AttributeType;
use prost::Message as _;

use super::delegate::SegmentIo;
use super::graph::{Encoder, int_attribute};
use crate::tensor::{ElementType, TensorBuffer, TensorSpec};

pub(super) fn spec(name: &str, element: ElementType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), element, shape: shape.to_vec(), quantisation: None }
}

/// A model of `build`'s nodes from `input` to `output`, both f32.
pub(super) fn model(
    input: &[usize],
    output: &[usize],
    build: impl FnOnce(&mut Encoder),
) -> ModelProto {
    let mut encoder = Encoder::default();
    build(&mut encoder);
    let io = SegmentIo {
        inputs: vec![spec("input", ElementType::F32, input)],
        outputs: vec![spec("output", ElementType::F32, output)],
    };
    encoder.finish("tiny", 13, &io)
}

pub(super) fn bytes(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

fn weights(count: usize) -> Vec<i8> {
    (0..count).map(|place| (place * 37 % 251) as i8 / 2).collect()
}

/// Float: Conv → Relu → Add(input) → Sigmoid, 2 channels of 5×6.
pub(super) fn float_model() -> ModelProto {
    model(&[1, 2, 5, 6], &[1, 2, 5, 6], |encoder| {
        let weights = weights(36).iter().map(|weight| f32::from(*weight) / 300.0).collect();
        encoder.constant("w", &[2, 2, 3, 3], &TensorBuffer::F32(weights));
        encoder.constant("b", &[2], &TensorBuffer::F32(vec![0.1, -0.2]));
        let mut pads = int_attribute("pads", 0);
        (pads.r#type, pads.ints) = (AttributeType::Ints as i32, vec![1; 4]);
        encoder.node("Conv", &["input", "w", "b"], &["conv"], vec![pads]);
        encoder.node("Relu", &["conv"], &["relu"], vec![]);
        encoder.node("Add", &["relu", "input"], &["sum"], vec![]);
        encoder.node("Sigmoid", &["sum"], &["output"], vec![]);
    })
}

/// The same in QDQ form, weights per channel, the Relu between Conv and its QuantizeLinear.
pub(super) fn qdq_model() -> ModelProto {
    model(&[1, 2, 5, 6], &[1, 2, 5, 6], |encoder| {
        for (name, scale, zero_point) in
            [("x", 0.02, 128), ("c", 0.03, 0), ("s", 0.041, 100), ("o", 1.0 / 256.0, 0)]
        {
            encoder.constant(&format!("{name}s"), &[], &TensorBuffer::F32(vec![scale]));
            encoder.constant(&format!("{name}z"), &[], &TensorBuffer::U8(vec![zero_point]));
        }
        encoder.constant("wq", &[2, 2, 3, 3], &TensorBuffer::I8(weights(36)));
        encoder.constant("ws", &[2], &TensorBuffer::F32(vec![0.003, 0.004]));
        encoder.constant("wz", &[2], &TensorBuffer::I8(vec![0, 0]));
        encoder.constant("bq", &[2], &TensorBuffer::I32(vec![900, -2000]));
        encoder.constant("bs", &[2], &TensorBuffer::F32(vec![0.02 * 0.003, 0.02 * 0.004]));
        encoder.constant("bz", &[2], &TensorBuffer::I32(vec![0, 0]));
        let mut pads = int_attribute("pads", 0);
        (pads.r#type, pads.ints) = (AttributeType::Ints as i32, vec![1; 4]);
        let axis = || vec![int_attribute("axis", 0)];
        encoder.node("QuantizeLinear", &["input", "xs", "xz"], &["xq"], vec![]);
        encoder.node("DequantizeLinear", &["xq", "xs", "xz"], &["x"], vec![]);
        encoder.node("DequantizeLinear", &["wq", "ws", "wz"], &["w"], axis());
        encoder.node("DequantizeLinear", &["bq", "bs", "bz"], &["b"], axis());
        encoder.node("Conv", &["x", "w", "b"], &["conv"], vec![pads]);
        encoder.node("Relu", &["conv"], &["relu"], vec![]);
        encoder.node("QuantizeLinear", &["relu", "cs", "cz"], &["cq"], vec![]);
        encoder.node("DequantizeLinear", &["cq", "cs", "cz"], &["c"], vec![]);
        encoder.node("Add", &["c", "x"], &["sum"], vec![]);
        encoder.node("QuantizeLinear", &["sum", "ss", "sz"], &["sq"], vec![]);
        encoder.node("DequantizeLinear", &["sq", "ss", "sz"], &["s"], vec![]);
        encoder.node("Sigmoid", &["s"], &["out"], vec![]);
        encoder.node("QuantizeLinear", &["out", "os", "oz"], &["oq"], vec![]);
        encoder.node("DequantizeLinear", &["oq", "os", "oz"], &["output"], vec![]);
    })
}
