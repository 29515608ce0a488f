//! Every operator that Ocelli runs, against onnxruntime's answers; and what an operator says that cannot be wired.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::clock::{Clock as _, SystemClock};
use crate::inference::graph::{Encoder, Graph, Limits};
use crate::inference::testing::{bytes, model};
use crate::tensor::TensorBuffer;

fn compile(onnx: &[u8]) -> Result<TractSegment, CompileError> {
    let graph = Graph::parse(onnx, &Limits::default()).expect("the graph is in order");
    let view = graph.view();
    let spec = |ids: &[usize]| ids.iter().filter_map(|id| view.tensor(*id).spec()).collect();
    let io = SegmentIo { inputs: spec(view.inputs()), outputs: spec(view.outputs()) };
    TractSegment::compile(&view, &(0..view.nodes().len()).collect(), &io)
}

/// Operators whose outputs differ from the recorded ones, with the largest difference.
fn wrong(name: &str) -> BTreeMap<String, f32> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/operators"));
    let onnx = std::fs::read(folder.join(name).with_extension("onnx")).expect("a fixture");
    let recorded = std::fs::read(folder.join(name).with_extension("f32")).expect("a fixture");
    let recorded: Vec<_> =
        recorded.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let graph = Graph::parse(&onnx, &Limits::default()).expect("the graph is in order");
    let mut segment = compile(&onnx).expect("every operator can be wired");
    let io = segment.io().clone();
    let (input, mut expected) = recorded.split_at(io.inputs[0].shape.iter().product());
    let mut buffers: Vec<Vec<f32>> =
        io.outputs.iter().map(|output| vec![0.0; output.shape.iter().product()]).collect();
    let mut outputs: Vec<_> = buffers
        .iter_mut()
        .zip(&io.outputs)
        .map(|(buffer, spec)| TensorViewMut { shape: &spec.shape, values: ValuesMut::F32(buffer) })
        .collect();
    let inputs = [TensorView { shape: &io.inputs[0].shape, values: Values::F32(input) }];
    let deadline = SystemClock.now();
    segment.run(&inputs, &mut outputs, deadline).expect("the plan runs");
    let mut wrong = BTreeMap::new();
    for (buffer, output) in buffers.iter().zip(graph.view().outputs()) {
        let (these, rest) = expected.split_at(buffer.len());
        expected = rest;
        let apart =
            |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() / b.abs().max(1.0) };
        let largest = buffer.iter().zip(these).map(apart).fold(0.0, f32::max);
        let tensor = graph.view().tensor(*output);
        let writer = tensor.producer.map_or("", |node| &graph.view().node(node).op);
        // onnxruntime drops casts to half precision and multiplies floats; here they are rounded to 11 bits, twice.
        let allowed = if writer == "Cast" { 1e-3 } else { 2e-5 };
        if largest.is_nan() || largest > allowed {
            wrong.insert(format!("{} {writer}", tensor.name), largest);
        }
    }
    assert!(expected.is_empty(), "{} values more than the outputs have", expected.len());
    wrong
}

#[test]
fn computes_each_operator_as_onnxruntime() {
    for name in ["operators-20", "operators-10"] {
        assert_eq!(wrong(name), BTreeMap::new(), "{name}");
    }
}

#[test]
fn names_the_node_that_cannot_be_wired() {
    let unfit = model(&[1, 2, 4, 4], &[1, 2, 8, 8], |encoder: &mut Encoder| {
        let mut mode = crate::inference::graph::int_attribute("mode", 0);
        (mode.r#type, mode.s) = (3, b"sharp".to_vec());
        encoder.constant("scales", &[4], &TensorBuffer::F32(vec![1.0, 1.0, 2.0, 2.0]));
        encoder.node("Resize", &["input", "", "scales"], &["output"], vec![mode]);
    });
    let error = compile(&bytes(&unfit)).err().expect("there is no such mode").to_string();
    assert!(
        error.contains("Resize") && error.contains("output/") && error.contains("sharp"),
        "{error}"
    );
}
