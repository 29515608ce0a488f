//! Recorded answers of onnxruntime's QOperator kernels, byte for byte; recipe in `fixtures/record.py`.

#[expect(dead_code, reason = "shared with the differential tests")]
mod common;

use ocelli_int8::*;

/// The integers of one recorded case.
struct Case(std::vec::IntoIter<i64>);

impl Case {
    fn next(&mut self) -> i64 {
        self.0.next().expect("the case is complete")
    }

    fn size(&mut self) -> usize {
        self.next() as usize
    }

    fn sizes<const N: usize>(&mut self) -> [usize; N] {
        std::array::from_fn(|_| self.size())
    }

    fn real(&mut self) -> f32 {
        f32::from_bits(self.next() as u32)
    }

    fn tensor(&mut self) -> (Shape, Quantisation, Vec<u8>) {
        let [n, h, w, c] = self.sizes();
        let element = [ElementType::U8, ElementType::S8][self.size()];
        let (scale, zero) = (self.real(), self.next() as i32);
        let shape = Shape::new(n, h, w, c).expect("as recorded");
        let bytes = (0..shape.elements()).map(|_| self.next() as u8).collect();
        (shape, Quantisation::new(element, scale, zero).expect("as recorded"), bytes)
    }
}

/// A graph under construction with the bytes of its inputs.
#[derive(Default)]
struct Recorded {
    builder: GraphBuilder,
    inputs: Vec<Vec<u8>>,
}

impl Recorded {
    fn input(&mut self, case: &mut Case) -> TensorId {
        let (shape, quantisation, bytes) = case.tensor();
        self.inputs.push(bytes);
        self.builder.input(shape, quantisation, InputForm::QuantisedNhwc).expect("as recorded")
    }

    fn differing(mut self, y: TensorId, expected: &[u8], isa: &str) -> usize {
        self.builder.output(y, OutputForm::QuantisedNhwc).expect("as recorded");
        let graph = self.builder.build().expect("as recorded");
        let Some(mut engine) = Engine::with_isa(&graph, isa).expect("as recorded") else {
            return 0;
        };
        let signed: Vec<Vec<i8>> = self
            .inputs
            .iter()
            .map(|bytes| bytes.iter().map(|&byte| byte as i8).collect())
            .collect();
        let inputs: Vec<Input<'_>> = graph
            .inputs()
            .zip(self.inputs.iter().zip(&signed))
            .map(|((tensor, _), (bytes, signed))| match tensor.quantisation.element() {
                ElementType::U8 => Input::U8(bytes),
                ElementType::S8 => Input::S8(signed),
            })
            .collect();
        let (mut bytes, mut signed) = (vec![0; expected.len()], vec![0; expected.len()]);
        match graph.outputs().next().expect("as recorded").0.quantisation.element() {
            ElementType::U8 => {
                engine.run(&inputs, &mut [Output::U8(&mut bytes)]).expect("as recorded")
            }
            ElementType::S8 => {
                engine.run(&inputs, &mut [Output::S8(&mut signed)]).expect("as recorded");
                bytes = signed.into_iter().map(|value| value as u8).collect();
            }
        }
        bytes.iter().zip(expected).filter(|(found, expected)| found != expected).count()
    }
}

#[test]
fn every_recorded_answer_is_reproduced() {
    let text = include_str!("fixtures/onnxruntime.txt");
    let mut wrong = Vec::new();
    for isa in common::instruction_sets() {
        for (line, case) in text.lines().enumerate() {
            let (operator, numbers) = case.split_once(' ').expect("as recorded");
            let numbers: Vec<i64> =
                numbers.split(' ').map(|n| n.parse().expect("as recorded")).collect();
            let differing = replay(operator, Case(numbers.into_iter()), isa);
            if differing > 0 {
                wrong.push(format!("line {}: {operator} with {isa}: {differing} bytes", line + 1));
            }
        }
    }
    assert!(text.lines().count() > 80, "the fixture is there");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn replay(operator: &str, mut case: Case, isa: &str) -> usize {
    let mut graph = Recorded::default();
    let x = graph.input(&mut case);
    let case = &mut case;
    match operator {
        "conv" => {
            let [channels, groups] = case.sizes();
            let window = Window {
                kernel: case.sizes(),
                strides: case.sizes(),
                dilations: case.sizes(),
                pads: case.sizes(),
            };
            let depth = window.kernel[0]
                * window.kernel[1]
                * (graph.builder.tensor(x).expect("as recorded").shape.c / groups);
            let conv = Conv {
                channels,
                window,
                groups,
                weights: (0..channels * depth).map(|_| case.next() as i8).collect(),
                weight_scales: (0..channels).map(|_| case.real()).collect(),
                bias: (0..channels).map(|_| case.next() as i32).collect(),
            };
            let (_, to, expected) = case.tensor();
            let y = graph.builder.conv(x, conv, to).expect("as recorded");
            graph.differing(y, &expected, isa)
        }
        "add" | "mul" | "concat" => {
            let b = graph.input(case);
            let (_, to, expected) = case.tensor();
            let y = match operator {
                "add" => graph.builder.add(x, b, to),
                "mul" => graph.builder.mul(x, b, to),
                _ => graph.builder.concat(&[x, b], to),
            };
            graph.differing(y.expect("as recorded"), &expected, isa)
        }
        "global" => {
            let (_, to, expected) = case.tensor();
            let y = graph.builder.global_average_pool(x, to).expect("as recorded");
            graph.differing(y, &expected, isa)
        }
        "average" => {
            let window = Window::square(3, case.size(), 1);
            let padding = [CountPadding::Exclude, CountPadding::Include][case.size()];
            let (_, to, expected) = case.tensor();
            let y = graph.builder.average_pool(x, window, padding, to).expect("as recorded");
            graph.differing(y, &expected, isa)
        }
        "resize" => {
            let mode = [
                Interpolation::Nearest(NearestRounding::PreferFloor),
                Interpolation::Nearest(NearestRounding::PreferCeil),
                Interpolation::Nearest(NearestRounding::Floor),
                Interpolation::Nearest(NearestRounding::Ceil),
                Interpolation::Bilinear,
            ][case.size()];
            let coordinates =
                [Coordinates::HalfPixel, Coordinates::Asymmetric, Coordinates::AlignCorners]
                    [case.size()];
            let (shape, _, expected) = case.tensor();
            let from = graph.builder.tensor(x).expect("as recorded").shape;
            let size = [shape.h, shape.w];
            let scales = [size[0] as f32 / from.h as f32, size[1] as f32 / from.w as f32];
            let y = graph
                .builder
                .resize(x, Resize { size, scales, mode, coordinates })
                .expect("as recorded");
            graph.differing(y, &expected, isa)
        }
        other => panic!("unknown case {other}"),
    }
}
