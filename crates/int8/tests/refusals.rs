//! What the builder and a run refuse, and with which error.

use ocelli_int8::*;

fn quantisation() -> Quantisation {
    Quantisation::new(ElementType::U8, 0.1, 0).expect("in range")
}

/// A graph with one 8×8×4 input.
fn start() -> (GraphBuilder, TensorId) {
    let mut builder = GraphBuilder::new();
    let shape = Shape::new(1, 8, 8, 4).expect("in range");
    let x = builder.input(shape, quantisation(), InputForm::F32Nchw).expect("in range");
    (builder, x)
}

fn conv() -> Conv {
    Conv {
        channels: 2,
        window: Window::square(3, 1, 1),
        groups: 1,
        weights: vec![1; 2 * 9 * 4],
        weight_scales: vec![0.5, 0.25],
        bias: vec![1, 2],
    }
}

#[test]
fn refuses_convolutions_that_do_not_fit() {
    type Change = fn(&mut Conv);
    let cases: [(&str, Change, &str); 11] = [
        ("a weight missing", |conv| conv.weights.truncate(71), "attribute"),
        ("a bias missing", |conv| conv.bias.truncate(1), "attribute"),
        ("a scale too many", |conv| conv.weight_scales.push(1.0), "attribute"),
        ("a scale that is no number", |conv| conv.weight_scales[0] = f32::NAN, "quantisation"),
        ("a multiplier beyond f32", |conv| conv.weight_scales[1] = f32::MAX, "quantisation"),
        ("no groups", |conv| conv.groups = 0, "attribute"),
        ("groups that divide nothing", |conv| conv.groups = 3, "attribute"),
        ("no kernel", |conv| conv.window.kernel[1] = 0, "attribute"),
        ("no stride", |conv| conv.window.strides[0] = 0, "attribute"),
        ("a huge pad", |conv| conv.window.pads[3] = usize::MAX, "attribute"),
        ("a window larger than the picture", |conv| conv.window.dilations = [9, 9], "shape"),
    ];
    let mut wrong = Vec::new();
    for (name, change, expected) in cases {
        let (mut builder, x) = start();
        let mut conv = conv();
        change(&mut conv);
        let tiny = Quantisation::new(ElementType::U8, 1e-3, 0).expect("in range");
        let said = builder.conv(x, conv, tiny).map_err(|error| error.to_string());
        if !said.as_ref().is_err_and(|said| said.starts_with(expected)) {
            wrong.push((name, said));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn refuses_tensors_that_do_not_match() {
    let (mut builder, x) = start();
    let to = quantisation();
    let y = builder.conv(x, conv(), to).expect("it fits");
    let shape = Shape::vector(1, 5).expect("in range");
    let pool = Window { dilations: [2, 2], ..Window::square(2, 2, 0) };
    let refused = [
        builder.add(x, y, to),
        builder.mul(y, x, to),
        builder.concat(&[], to),
        builder.slice(x, 3, 2),
        builder.slice(x, usize::MAX, 2),
        builder.reshape(x, shape),
        builder.clamp(x, 9, 3),
        builder.pad(x, [0; 4], 300),
        builder.max_pool(x, pool),
        builder.max_pool(x, Window::square(2, 1, 2)),
    ];
    for (index, result) in refused.iter().enumerate() {
        let refused = matches!(result, Err(GraphError::Shape(_) | GraphError::Attribute(_)));
        assert!(refused, "{index}: {result:?}");
    }
}

#[test]
fn refuses_graphs_without_input_or_output_and_foreign_tensors() {
    assert_eq!(GraphBuilder::new().build(), Err(GraphError::Incomplete("no input")));
    let (builder, x) = start();
    assert_eq!(builder.build(), Err(GraphError::Incomplete("no output")));
    let mut other = GraphBuilder::new();
    assert_eq!(other.output(x, OutputForm::F32Nchw), Err(GraphError::UnknownTensor(0)));
}

#[test]
fn refuses_buffers_of_another_size_or_type() {
    let (mut builder, x) = start();
    builder.output(x, OutputForm::QuantisedNhwc).expect("it is ours");
    let mut engine = Engine::new(&builder.build().expect("complete")).expect("it is small");
    let (real, mut bytes) = ([0.0; 256], [0; 256]);
    let short = engine.run(&[Input::F32(&real[1..])], &mut [Output::U8(&mut bytes)]);
    assert!(matches!(short, Err(RunError::Buffer { what: "input", index: 0, expected: 256, .. })));
    let signed = engine.run(&[Input::F32(&real)], &mut [Output::S8(&mut [0; 256])]);
    assert!(matches!(signed, Err(RunError::Buffer { what: "output", element: "u8", .. })));
    let none = engine.run(&[], &mut [Output::U8(&mut bytes)]);
    assert!(matches!(none, Err(RunError::Count { what: "inputs", given: 0, expected: 1 })));
}
