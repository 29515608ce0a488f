//! Times the operators that do not multiply matrices, each alone, at shapes of well-known nets.
//!
//! `cargo bench -p ocelli-int8 --profile kernels --bench elementwise -- [NAME…] [--runs N]`; pin it to a core.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench takes the time and prints it"
)]

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod common;

use std::time::Instant;

use common::Random;
use ocelli_int8::*;

/// Adds the operator under test behind an input.
type Build = fn(&mut GraphBuilder, TensorId) -> Result<TensorId, GraphError>;

/// Name, rows, columns, channels, operator.
const CASES: &[(&str, [usize; 3], Build)] = &[
    ("resize_real", [26, 26, 128], |builder, x| enlarge(builder, x, true)),
    ("resize_real", [13, 13, 128], |builder, x| enlarge(builder, x, true)),
    ("resize_stored", [26, 26, 128], |builder, x| enlarge(builder, x, false)),
    ("max_pool 3/2", [208, 208, 32], |builder, x| builder.max_pool(x, Window::square(3, 2, 1))),
    ("max_pool 3/2", [112, 112, 64], |builder, x| builder.max_pool(x, Window::square(3, 2, 1))),
    ("max_pool 5/1", [10, 10, 128], |builder, x| builder.max_pool(x, Window::square(5, 1, 2))),
    ("mul vector", [56, 56, 16], scale),
    ("mul vector", [14, 14, 240], scale),
    ("mul vector", [14, 14, 120], scale),
    ("mul vector", [7, 7, 576], scale),
    ("global_average", [56, 56, 16], average),
    ("global_average", [14, 14, 240], average),
    ("global_average", [7, 7, 576], average),
    ("add", [26, 26, 128], |builder, x| {
        let same = builder.max_pool(x, Window::square(1, 1, 0))?;
        builder.add(x, same, quantisation())
    }),
    ("add of slices", [80, 80, 32], |builder, x| {
        let (a, b) = (builder.slice(x, 0, 16)?, builder.slice(x, 16, 16)?);
        builder.add(a, b, quantisation())
    }),
    ("average_pool 2/2", [52, 52, 128], |builder, x| {
        let window = Window::square(2, 2, 0);
        builder.average_pool(x, window, CountPadding::Exclude, quantisation())
    }),
    ("average_pool 3/2", [52, 52, 128], |builder, x| {
        let window = Window::square(3, 2, 1);
        builder.average_pool(x, window, CountPadding::Exclude, quantisation())
    }),
    ("table", [104, 104, 32], |builder, x| builder.unary(x, f32::sin, quantisation())),
    ("table of a slice", [80, 80, 32], |builder, x| {
        let part = builder.slice(x, 0, 16)?;
        builder.unary(part, f32::sin, quantisation())
    }),
    ("nearest", [20, 20, 128], |builder, x| {
        let resize = Resize {
            size: [40; 2],
            scales: [2.0; 2],
            mode: Interpolation::Nearest(NearestRounding::Floor),
            coordinates: Coordinates::Asymmetric,
        };
        builder.resize(x, resize)
    }),
    ("conv_transpose 2/2", [40, 40, 24], |builder, x| {
        let conv = ConvTranspose {
            channels: 24,
            size: [80; 2],
            window: Window::square(2, 2, 0),
            groups: 1,
            weights: vec![1; 4 * 24 * 24],
            weight_scales: vec![0.01],
            bias: Vec::new(),
        };
        builder.conv_transpose(x, &conv, quantisation())
    }),
    ("concat", [40, 40, 64], |builder, x| {
        let half = builder.slice(x, 0, 32)?;
        builder.concat(&[half, x], quantisation())
    }),
];

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let at = arguments.iter().position(|argument| argument == "--runs");
    let runs = at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(300);
    let named = |name: &str| arguments.iter().any(|argument| name.starts_with(argument.as_str()));
    let all = !CASES.iter().any(|(name, ..)| named(name)) && !named("input");
    for (name, [h, w, c], build) in CASES.iter().filter(|(name, ..)| all || named(name)) {
        let mut builder = GraphBuilder::new();
        let shape = Shape::new(1, *h, *w, *c).expect("in range");
        let x = builder.input(shape, quantisation(), InputForm::QuantisedNhwc).expect("in range");
        let y = build(&mut builder, x).expect("it fits");
        let output = builder.tensor(y).expect("it is ours").shape;
        builder.output(y, OutputForm::QuantisedNhwc).expect("it is ours");
        let bytes = Random(1).bytes(shape.elements());
        let (mut engine, mut found) = engine(builder, output.elements());
        let best = least(&mut engine, &Input::U8(&bytes), &mut Output::U8(&mut found), runs);
        println!("{name:<20} {:<12} {:>8.2} us", format!("{h}x{w}x{c}"), best[best.len() - 1]);
    }
    for size in [416, 320, 224].into_iter().filter(|_| all || named("input")) {
        let mut builder = GraphBuilder::new();
        let shape = Shape::new(1, size, size, 3).expect("in range");
        let x = builder.input(shape, quantisation(), InputForm::F32Nchw).expect("in range");
        builder.output(x, OutputForm::QuantisedNhwc).expect("it is ours");
        let mut random = Random(1);
        let reals: Vec<f32> =
            (0..shape.elements()).map(|_| random.within(-200, 200) as f32 / 100.0).collect();
        let (mut engine, mut found) = engine(builder, shape.elements());
        let best = least(&mut engine, &Input::F32(&reals), &mut Output::U8(&mut found), runs);
        println!("{:<20} {:<12} {:>8.2} us", "input", format!("{size}x{size}x3"), best[0]);
    }
}

fn engine(builder: GraphBuilder, outputs: usize) -> (Engine, Vec<u8>) {
    (Engine::new(&builder.build().expect("complete")).expect("it fits"), vec![0; outputs])
}

/// The least time of each layer, in microseconds.
fn least(engine: &mut Engine, input: &Input<'_>, output: &mut Output<'_>, runs: usize) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; engine.layers().len()];
    // As in a net, what a run reads first has left the nearer caches meanwhile.
    let mut others = vec![0u8; 4 << 20];
    for run in 0..runs {
        others.fill(run as u8);
        std::hint::black_box(&mut others);
        let mut before = Instant::now();
        let mut observe = |layer: usize| {
            let now = Instant::now();
            best[layer] = f64::min(best[layer], now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        };
        let (inputs, outputs) = (std::slice::from_ref(input), std::slice::from_mut(output));
        engine.run_observed(inputs, outputs, &mut observe).expect("it fits");
    }
    best
}

fn quantisation() -> Quantisation {
    Quantisation::new(ElementType::U8, 0.0235, 117).expect("in range")
}

fn enlarge(builder: &mut GraphBuilder, x: TensorId, real: bool) -> Result<TensorId, GraphError> {
    let Shape { h, w, .. } = builder.tensor(x)?.shape;
    let resize = Resize {
        size: [2 * h, 2 * w],
        scales: [2.0; 2],
        mode: Interpolation::Bilinear,
        coordinates: Coordinates::HalfPixel,
    };
    match real {
        true => builder.resize_real(x, resize, quantisation()),
        false => builder.resize(x, resize),
    }
}

/// Squeeze, and scale by what comes out.
fn scale(builder: &mut GraphBuilder, x: TensorId) -> Result<TensorId, GraphError> {
    let gate = average(builder, x)?;
    builder.mul(x, gate, quantisation())
}

fn average(builder: &mut GraphBuilder, x: TensorId) -> Result<TensorId, GraphError> {
    builder.global_average_pool(x, quantisation())
}
