//! Our wiring of tract's operators against tract-onnx's own loader, on models of the zoo.
//!
//! Sums of floats are taken in another order, so a value may round to the neighbouring quantised one; such steps carry
//! on through the net. On average, outputs must agree to less than such a step, 1/255 of their range.
//! CenterFace is held to onnxruntime instead (`tests/parity.rs`): its distances have few steps, and drift on a scene
//! without faces.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::{Session, SessionOptions};
use ocelli::tensor::{TensorView, Values};
use tract_onnx::prelude::*;

/// Values from 0 to 255 that change slowly along rows and columns, as pictures do.
fn scene(shape: &[usize]) -> Vec<f32> {
    let (height, width) = (shape[2], shape[3]);
    let pixel = |at: usize| {
        let (channel, y, x) = (at / (height * width), at / width % height, at % width);
        let wave = (x as f32 * 0.11 + channel as f32).sin() * (y as f32 * 0.07).cos();
        let edge = if (x / 37 + y / 29) % 2 == 0 { 60.0 } else { 0.0 };
        (97.0 + 90.0 * wave + edge).clamp(0.0, 255.0)
    };
    (0..shape.iter().product()).map(pixel).collect()
}

fn theirs(onnx: &[u8], shape: &[usize], input: &[f32]) -> TractResult<Vec<Vec<f32>>> {
    let model = tract_onnx::onnx()
        .model_for_read(&mut &*onnx)?
        .with_input_fact(0, f32::fact(shape).into())?
        .into_optimized()?
        .into_runnable()?;
    let input = Tensor::from_shape(shape, input)?;
    let outputs = model.run(tvec!(input.into()))?;
    outputs
        .iter()
        .map(|output| Ok(output.to_plain_array_view::<f32>()?.iter().copied().collect()))
        .collect()
}

#[test]
fn the_zoo_gives_the_outputs_of_tract_onnx() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    for name in ["efficientnet-lite0", "nanodet-g-coco"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        let onnx = fs::read(folder.join("model.onnx")).unwrap();
        let mut session =
            Session::load(&onnx, &[], SessionOptions::default(), clock.clone()).unwrap();
        let shape = session.inputs()[0].shape.clone();
        let input = scene(&shape);
        let expected = theirs(&onnx, &shape, &input).unwrap();
        let view = TensorView { shape: &shape, values: Values::F32(&input) };
        session.run(&[view], clock.now() + Duration::from_secs(600)).unwrap();
        assert_eq!(session.outputs().len(), expected.len(), "{name}");
        for (place, expected) in expected.iter().enumerate() {
            let ours = session.output(place).values.as_f32().unwrap();
            assert_eq!(ours.len(), expected.len(), "{name}, output {place}");
            let (low, high) = expected
                .iter()
                .fold((f32::MAX, f32::MIN), |(low, high), &x| (low.min(x), high.max(x)));
            let apart = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum::<f32>();
            let mean = apart / ours.len() as f32 / (high - low);
            println!("{name}, output {place}: {low} to {high}, mean difference {mean} of it");
            assert!(
                high > low && mean < 1.0 / 255.0,
                "{name}, output {place}: {mean} of {low} to {high}"
            );
        }
    }
}
