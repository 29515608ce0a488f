//! Every instruction set, and every plan, gives the bytes of the scalar reference: random shapes, random graphs.

mod common;

use common::Random;
use ocelli_int8::{reference, *};
use proptest::prelude::*;

fn window(random: &mut Random, kernels: &[usize]) -> Window {
    let kernel = [random.one_of(kernels), random.one_of(kernels)];
    let pad = |random: &mut Random, side: usize| random.size(0, kernel[side % 2]);
    Window {
        kernel,
        strides: [random.size(1, 3), random.size(1, 3)],
        dilations: [random.one_of(&[1, 1, 1, 2, 3]), random.one_of(&[1, 1, 1, 2, 3])],
        pads: [pad(random, 0), pad(random, 1), pad(random, 2), pad(random, 3)],
    }
}

fn input(random: &mut Random, channels: usize) -> (GraphBuilder, TensorId) {
    let mut builder = GraphBuilder::new();
    let shape = Shape::new(random.size(1, 2), random.size(1, 17), random.size(1, 17), channels);
    let quantisation = random.quantisation();
    let x = builder
        .input(shape.expect("in range"), quantisation, InputForm::QuantisedNhwc)
        .expect("in range");
    (builder, x)
}

fn finish(mut builder: GraphBuilder, y: TensorId, random: &mut Random) {
    builder.output(y, OutputForm::QuantisedNhwc).expect("in range");
    assert_same(&builder.build().expect("in range"), random);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: common::cases(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn convolutions_of_any_window_and_groups(seed: u64) {
        let random = &mut Random(seed);
        let groups = random.one_of(&[1, 1, 1, 1, 2, 3, 5]);
        let channels = groups * random.size(1, 20);
        let outputs = groups * random.size(1, 37);
        let window = window(random, &[1, 1, 2, 3, 5]);
        let conv = random.conv(channels, outputs, groups, window);
        let (mut builder, x) = input(random, channels);
        let to = random.quantisation();
        match builder.conv(x, conv, to) {
            Ok(y) => finish(builder, y, random),
            Err(error) => prop_assert!(matches!(error, GraphError::Shape(_)), "{error}"),
        }
    }

    #[test]
    fn convolutions_of_transformed_tiles(seed: u64) {
        let random = &mut Random(seed);
        let groups = random.one_of(&[1, 1, 1, 2]);
        let (channels, outputs) = (groups * random.size(16, 50), groups * random.size(16, 40));
        let pads = std::array::from_fn(|_| random.size(0, 2));
        let window = Window { pads, ..Window::square(3, 1, 1) };
        let conv = random.conv(channels, outputs, groups, window);
        let (mut builder, x) = input(random, channels);
        let (to, sum) = (random.quantisation(), random.quantisation());
        match builder.conv(x, conv, to) {
            Ok(y) if channels == outputs && builder.tensor(y).unwrap().shape == builder.tensor(x).unwrap().shape => {
                let y = builder.add(y, x, sum).expect("same shapes");
                finish(builder, y, random);
            }
            Ok(y) => finish(builder, y, random),
            Err(error) => prop_assert!(matches!(error, GraphError::Shape(_)), "{error}"),
        }
    }

    #[test]
    fn matrix_products_of_any_depth_and_width(seed: u64) {
        let random = &mut Random(seed);
        let deepest = random.one_of(&[40, 300, 1600]);
        let (depth, outputs) = (random.size(1, deepest), random.size(1, 70));
        let conv = random.conv(depth, outputs, 1, Window::square(1, 1, 0));
        let (mut builder, x) = input(random, depth);
        let to = random.quantisation();
        let y = builder.conv(x, conv, to).expect("in range");
        finish(builder, y, random);
    }

    #[test]
    fn depthwise_convolutions_of_any_window(seed: u64) {
        let random = &mut Random(seed);
        let channels = random.size(1, 67);
        let mut window = window(random, &[1, 3, 5, 7]);
        if random.within(0, 3) > 0 {
            window = Window { kernel: [window.kernel[0]; 2], dilations: [1; 2], ..window };
            window.pads = window.pads.map(|pad| pad.min(window.kernel[0] / 2));
        }
        let conv = random.conv(channels, channels, channels, window);
        let (mut builder, x) = input(random, channels);
        let to = random.quantisation();
        match builder.conv(x, conv, to) {
            Ok(y) => finish(builder, y, random),
            Err(error) => prop_assert!(matches!(error, GraphError::Shape(_)), "{error}"),
        }
    }

    #[test]
    fn depthwise_convolutions_of_long_rows(seed: u64) {
        let random = &mut Random(seed);
        let channels = random.one_of(&[1, 8, 9, 15, 16, 24, 31, 32, 33, 40, 64, 71]);
        let kernel = random.one_of(&[3, 5, 7]);
        let window = Window::square(kernel, random.size(1, 2), kernel / 2);
        let conv = random.conv(channels, channels, channels, window);
        let mut builder = GraphBuilder::new();
        let shape = Shape::new(1, random.size(1, 6), random.size(1, 130), channels);
        let from = random.quantisation();
        let x = builder
            .input(shape.expect("in range"), from, InputForm::QuantisedNhwc)
            .expect("in range");
        let to = random.quantisation();
        let y = builder.conv(x, conv, to).expect("in range");
        finish(builder, y, random);
    }

    #[test]
    fn element_wise_operators_of_any_number_of_channels(seed: u64) {
        let random = &mut Random(seed);
        let most = random.one_of(&[20, 70, 200]);
        let channels = random.size(1, most);
        // Pixels with and without a gap between them, in the input and in the output.
        let (before, after) = (random.one_of(&[0, 0, 1, 16]), random.one_of(&[0, 0, 3]));
        let (mut builder, x) = input(random, before + channels + after);
        let x = builder.slice(x, before, channels).expect("in range");
        let to = random.quantisation();
        let y = element_wise(&mut builder, x, to, random);
        let y = match random.within(0, 2) {
            0 => {
                let again = builder.max_pool(y, Window::square(1, 1, 0)).expect("in range");
                let to = builder.tensor(y).expect("it is ours").quantisation;
                builder.concat(&[again, y], to).expect("same shapes")
            }
            _ => y,
        };
        finish(builder, y, random);
    }
}

proptest! {
    // Graphs grow, and the reference is slow.
    #![proptest_config(ProptestConfig {
        cases: 120,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_graphs_with_fusion_joins_and_slices(seed: u64) {
        let random = &mut Random(seed);
        let channels = random.size(1, 24);
        let (mut builder, x) = input(random, channels);
        let mut tensors = vec![x];
        for _ in 0..random.size(1, 14) {
            let recent = random.size(0, tensors.len().min(3) - 1);
            let x = tensors[tensors.len() - 1 - recent];
            if let Ok(y) = any_operator(&mut builder, &tensors, x, random) {
                tensors.push(y);
            }
        }
        for at in 0..tensors.len() {
            if at + 1 == tensors.len() || random.within(0, 5) == 0 {
                builder.output(tensors[at], OutputForm::QuantisedNhwc).expect("in range");
            }
        }
        assert_same(&builder.build().expect("in range"), random);
    }
}

/// Slices, blocks and tiles of depthwise convolutions end anywhere: every number of channels up to two slices of 64, rows
/// longer and shorter than tiles, odd numbers of rows, multipliers of 1 and more, limits within the range.
#[test]
fn depthwise_convolutions_of_all_numbers_of_channels() {
    for (nth, channels) in (1..=130).enumerate().take(common::cases(130) as usize) {
        for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)] {
            let random = &mut Random((nth * 100 + kernel * 10 + stride) as u64);
            let mut builder = GraphBuilder::new();
            let longest = random.one_of(&[9, 20, 70]);
            let shape = Shape::new(1, random.size(1, 9), random.size(1, longest), channels);
            let (from, to) = (random.quantisation(), random.quantisation());
            let x = builder
                .input(shape.expect("in range"), from, InputForm::QuantisedNhwc)
                .expect("in range");
            let pads = std::array::from_fn(|_| random.size(kernel / 2, kernel - 1));
            let window = Window { pads, ..Window::square(kernel, stride, 0) };
            let mut conv = random.conv(channels, channels, channels, window);
            if random.within(0, 2) == 0 {
                // Products that i32 does not hold, and what is left of them.
                conv.weight_scales.iter_mut().for_each(|scale| *scale *= 1e6);
            }
            let mut y = builder.conv(x, conv, to).expect("in range");
            if random.within(0, 1) == 0 {
                let (low, high) = to.element().range();
                let middle = random.within(low.into(), high.into()) as i32;
                y = builder.clamp(y, middle, high).expect("in range");
            }
            finish(builder, y, random);
        }
    }
}

/// Windows whose pads, laid around all that lies in a buffer, would need gigabytes.
#[test]
fn convolutions_that_reach_far_beyond_the_picture() {
    let random = &mut Random(5);
    let input = |builder: &mut GraphBuilder, random: &mut Random, side: usize, channels: usize| {
        let shape = Shape::new(1, side, side, channels).expect("in range");
        builder.input(shape, random.quantisation(), InputForm::QuantisedNhwc).expect("in range")
    };
    for _ in 0..4 {
        let mut builder = GraphBuilder::new();
        let x = input(&mut builder, random, 8, 2048);
        let few = builder.slice(x, 0, 4).expect("in range");
        let far = Window { kernel: [3; 2], strides: [9; 2], dilations: [500; 2], pads: [500; 4] };
        let (conv, to) = (random.conv(4, 5, 1, far), random.quantisation());
        let y = builder.conv(few, conv, to).expect("in range");
        finish(builder, y, random);

        // Each pads another side.
        let mut builder = GraphBuilder::new();
        let x = input(&mut builder, random, 1, 32);
        for pads in [[4096, 0, 4096, 0], [0, 4096, 0, 4096]] {
            let window = Window { pads, ..Window::square(1, 1, 0) };
            let (conv, to) = (random.conv(32, 3, 1, window), random.quantisation());
            let y = builder.conv(x, conv, to).expect("in range");
            builder.output(y, OutputForm::QuantisedNhwc).expect("it is ours");
        }
        assert_same(&builder.build().expect("complete"), random);
    }
}

/// The greatest sums that transformed tiles of either size may meet, and greater ones.
#[test]
fn transformed_tiles_of_the_greatest_sums() {
    for (channels, byte, weight) in
        [(16, 255, 127), (102, 255, -128), (103, 255, -128), (300, 255, 127)]
    {
        let random = &mut Random(1);
        for element in [ElementType::U8, ElementType::S8] {
            let mut builder = GraphBuilder::new();
            let shape = Shape::new(1, 13, 14, channels).expect("in range");
            let from = Quantisation::new(element, 1.0, 0).expect("in range");
            let x = builder.input(shape, from, InputForm::QuantisedNhwc).expect("in range");
            let mut conv = random.conv(channels, 17, 1, Window::square(3, 1, 1));
            // One channel that just fits or just does not, one with every sign against it.
            conv.weights[..9 * channels].fill(weight);
            conv.weights[9 * channels..18 * channels].fill(-127);
            let to = Quantisation::new(ElementType::S8, 1000.0, 0).expect("in range");
            let y = builder.conv(x, conv, to).expect("in range");
            builder.output(y, OutputForm::QuantisedNhwc).expect("it is ours");
            let graph = builder.build().expect("complete");
            assert_same_for(&graph, &[vec![byte; shape.elements()]]);
            assert_same_for(&graph, &[vec![128; shape.elements()]]);
        }
    }
}

/// Real pictures of three channels, plane by plane, and of other numbers.
#[test]
fn real_pictures_of_any_width() {
    for seed in 0..40 {
        let random = &mut Random(seed);
        let mut builder = GraphBuilder::new();
        let channels = random.one_of(&[1, 3, 3, 3, 4]);
        let shape = Shape::new(random.size(1, 2), random.size(1, 5), random.size(1, 70), channels);
        let shape = shape.expect("in range");
        let q = random.quantisation();
        let x = builder.input(shape, q, InputForm::F32Nchw).expect("in range");
        // With and without a border around what is stored.
        let conv = random.conv(channels, channels, channels, Window::square(3, 1, 1));
        let y = if random.within(0, 1) == 0 { x } else { builder.conv(x, conv, q).expect("fits") };
        builder.output(y, OutputForm::F32Nchw).expect("it is ours");
        let graph = builder.build().expect("complete");
        let real = |random: &mut Random| match random.within(0, 20) {
            0 => random.one_of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, -0.0]),
            1 => f32::from_bits(random.next() as u32),
            _ => random.within(-9000, 9000) as f32 / 700.0,
        };
        let reals: Vec<f32> = (0..shape.elements()).map(|_| real(random)).collect();
        let mut expected = vec![0.0; shape.elements()];
        reference::run(&graph, &[Input::F32(&reals)], &mut [Output::F32(&mut expected)])
            .expect("the graph was built for this");
        for isa in common::instruction_sets() {
            let mut engine = Engine::with_isa(&graph, isa).expect("fits").expect("it is listed");
            let mut found = vec![0.0; shape.elements()];
            engine.run(&[Input::F32(&reals)], &mut [Output::F32(&mut found)]).expect("fits");
            assert_eq!(found, expected, "{isa}, seed {seed}");
        }
    }
}

/// All 65 536 pairs of stored values meet in sums, alone and fused behind a convolution in either role. Scales of few
/// bits make ties, where a fused and an unfused multiply-add part.
#[test]
fn sums_of_all_pairs_of_values() {
    for seed in 0..u64::from((24 * common::cases(400)).div_ceil(400)) {
        let random = &mut Random(seed);
        let mut builder = GraphBuilder::new();
        // Less than half a block of channels, a half, a whole one.
        let channels = random.one_of(&[2, 8, 16]);
        let shape = Shape::new(1, 256, 256, channels).expect("in range");
        let (from, to) = (random.quantisation(), random.quantisation());
        let rows = builder.input(shape, from, InputForm::QuantisedNhwc).expect("in range");
        let q = random.quantisation();
        let columns = builder.input(shape, q, InputForm::QuantisedNhwc).expect("in range");
        // Weight 1 and multiplier 1: the convolution changes nothing, but for its place.
        let conv = Conv {
            channels,
            window: Window::square(1, 1, 0),
            groups: 1,
            weights: (0..channels * channels)
                .map(|at| i8::from(at % (channels + 1) == 0))
                .collect(),
            weight_scales: vec![1.0],
            bias: Vec::new(),
        };
        let same = builder.conv(rows, conv.clone(), from).expect("in range");
        let again = builder.conv(rows, conv, from).expect("in range");
        for (a, b) in [(rows, columns), (same, columns), (columns, again)] {
            let sum = builder.add(a, b, to).expect("in range");
            builder.output(sum, OutputForm::QuantisedNhwc).expect("it is ours");
        }
        let all = |row: bool| {
            let place =
                move |at: usize| if row { at / channels / 256 } else { at / channels % 256 };
            (0..shape.elements()).map(|at| place(at) as u8).collect()
        };
        assert_same_for(&builder.build().expect("complete"), &[all(true), all(false)]);
    }
}

/// One operator that multiplies no matrices.
fn element_wise(
    builder: &mut GraphBuilder,
    x: TensorId,
    to: Quantisation,
    random: &mut Random,
) -> TensorId {
    let Tensor { shape, quantisation } = builder.tensor(x).expect("it is ours");
    // Other tensors of the same shape, which no planner takes for functions of one.
    let one = Window::square(1, 1, 0);
    let same = builder.max_pool(x, one).expect("in range");
    let scale = random.quantisation();
    let other = builder.average_pool(x, one, CountPadding::Include, scale).expect("in range");
    let kernel = [random.size(1, shape.h.min(5)), random.size(1, shape.w.min(5))];
    let window = Window {
        kernel,
        strides: [random.size(1, 3), random.size(1, 3)],
        dilations: [1; 2],
        pads: std::array::from_fn(|side| random.size(0, kernel[side % 2] - 1)),
    };
    let found = match random.within(0, 9) {
        0 => builder.add(same, other, to),
        1 => builder.mul(same, other, to),
        2 => builder.global_average_pool(x, to),
        3 => {
            let vector = builder.global_average_pool(x, quantisation).expect("in range");
            builder.mul(x, vector, to)
        }
        4 => builder.max_pool(x, window),
        5 => builder.average_pool(x, window, CountPadding::Include, to),
        6 => builder.average_pool(x, window, CountPadding::Exclude, to),
        7 => {
            // Of which the parts are interleaved.
            let (channels, steps) = (random.size(1, 40), [random.size(1, 3), random.size(1, 3)]);
            let taps = steps[0] * steps[1];
            let conv = ConvTranspose {
                channels,
                size: [shape.h * steps[0], shape.w * steps[1]],
                window: Window { kernel: steps, strides: steps, ..Window::square(1, 1, 0) },
                groups: 1,
                weights: random.weights(channels * taps * shape.c),
                weight_scales: vec![random.scale() / 64.0],
                bias: Vec::new(),
            };
            builder.conv_transpose(x, &conv, to)
        }
        _ => any_resize(builder, x, shape, random),
    };
    found.expect("in range")
}

/// One operator on `x`, and on other tensors of its shape where it takes two.
fn any_operator(
    builder: &mut GraphBuilder,
    tensors: &[TensorId],
    x: TensorId,
    random: &mut Random,
) -> Result<TensorId, GraphError> {
    let Tensor { shape, quantisation } = builder.tensor(x)?;
    let to = if random.within(0, 1) == 0 { quantisation } else { random.quantisation() };
    let other = tensors[random.size(0, tensors.len() - 1)];
    match random.within(0, 18) {
        0..=2 => {
            // Shapes stay, so that sums and joins find partners.
            let kernel = random.one_of(&[1, 3]);
            let another = random.size(1, 24);
            let channels = random.one_of(&[shape.c, shape.c, another]);
            let window = Window::square(kernel, 1, kernel / 2);
            let conv = random.conv(shape.c, channels, 1, window);
            builder.conv(x, conv, to)
        }
        3..=5 => {
            let kernel = random.one_of(&[3, 5, 7]);
            let window = Window::square(kernel, random.size(1, 2), kernel / 2);
            let conv = random.conv(shape.c, shape.c, shape.c, window);
            builder.conv(x, conv, to)
        }
        6 | 7 => builder.add(x, other, to),
        8 => builder.add(other, x, to),
        9 => builder.mul(x, other, to),
        10 => builder.concat(&[x, other], to),
        11 => builder.concat(&[other, x, x], quantisation),
        12 => {
            let first = random.size(0, shape.c - 1);
            builder.slice(x, first, random.size(1, shape.c - first))
        }
        13 => {
            let (low, high) = quantisation.element().range();
            let low = random.within(low.into(), high.into()) as i32;
            builder.clamp(x, low, random.within(low.into(), high.into()) as i32)
        }
        14 => builder.unary(x, |value| value / (1.0 + (-value).exp()), to),
        15 => builder.global_average_pool(x, to),
        16 => builder.reshape(x, Shape::vector(shape.n, shape.elements() / shape.n)?),
        17 => builder.pad(x, [1, 0, 2, 3], quantisation.zero_point()),
        _ => {
            let window = Window::square(random.size(2, 3), random.size(1, 2), random.size(0, 1));
            match random.within(0, 3) {
                0 => builder.max_pool(x, window),
                1 => builder.average_pool(x, window, CountPadding::Include, to),
                2 => builder.average_pool(x, window, CountPadding::Exclude, to),
                _ => any_resize(builder, x, shape, random),
            }
        }
    }
}

fn any_resize(
    builder: &mut GraphBuilder,
    x: TensorId,
    shape: Shape,
    random: &mut Random,
) -> Result<TensorId, GraphError> {
    let size = match random.within(0, 2) {
        0 => [shape.h * random.size(1, 3), shape.w * random.size(1, 3)],
        _ => [random.size(1, 2 * shape.h + 1), random.size(1, 2 * shape.w + 1)],
    };
    let mode = random.one_of(&[
        Interpolation::Nearest(NearestRounding::PreferFloor),
        Interpolation::Nearest(NearestRounding::PreferCeil),
        Interpolation::Nearest(NearestRounding::Floor),
        Interpolation::Nearest(NearestRounding::Ceil),
        Interpolation::Bilinear,
        Interpolation::Bilinear,
    ]);
    let coordinates = random.one_of(&[
        Coordinates::HalfPixel,
        Coordinates::Asymmetric,
        Coordinates::AlignCorners,
    ]);
    let scales = [size[0] as f32 / shape.h as f32, size[1] as f32 / shape.w as f32];
    let resize = Resize { size, scales, mode, coordinates };
    match random.within(0, 1) {
        0 => builder.resize(x, resize),
        _ => builder.resize_real(x, resize, random.quantisation()),
    }
}

/// As [`assert_same_for`], with random bytes for the one input.
fn assert_same(graph: &Graph, random: &mut Random) {
    let (input, _) = graph.inputs().next().expect("one input");
    assert_same_for(graph, &[random.bytes(input.shape.elements())]);
}

/// Runs a graph of stored NHWC inputs through the reference and every instruction set of this machine, and compares
/// all outputs byte for byte.
fn assert_same_for(graph: &Graph, bytes: &[Vec<u8>]) {
    let signed: Vec<Vec<i8>> =
        bytes.iter().map(|bytes| bytes.iter().map(|&byte| byte as i8).collect()).collect();
    let given: Vec<Input<'_>> = graph
        .inputs()
        .zip(bytes.iter().zip(&signed))
        .map(|((input, _), (bytes, signed))| match input.quantisation.element() {
            ElementType::U8 => Input::U8(bytes),
            ElementType::S8 => Input::S8(signed),
        })
        .collect();
    let expected = outputs(graph, |outputs| {
        reference::run(graph, &given, outputs).expect("the graph was built for this");
    });
    for isa in common::instruction_sets() {
        let Some(mut engine) = Engine::with_isa(graph, isa).expect("the graph was built for this")
        else {
            continue;
        };
        // Twice: the second run meets what the first left in the arena.
        for run in 0..2 {
            let found = outputs(graph, |outputs| {
                engine.run(&given, outputs).expect("the graph was built for this")
            });
            for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
                let wrong = expected.iter().zip(found).position(|(a, b)| a != b);
                if let Some(at) = wrong {
                    panic!(
                        "{isa}, run {run}, output {index}: {} instead of {} at {at}\n{:#?}",
                        found[at],
                        expected[at],
                        engine.layers()
                    );
                }
            }
        }
    }
}

fn outputs(graph: &Graph, run: impl FnOnce(&mut [Output<'_>])) -> Vec<Vec<u8>> {
    let mut unsigned: Vec<Vec<u8>> =
        graph.outputs().map(|(tensor, _)| vec![0; tensor.shape.elements()]).collect();
    let mut signed: Vec<Vec<i8>> = unsigned.iter().map(|bytes| vec![0; bytes.len()]).collect();
    let mut views: Vec<Output<'_>> = graph
        .outputs()
        .zip(unsigned.iter_mut().zip(&mut signed))
        .map(|((tensor, _), (unsigned, signed))| match tensor.quantisation.element() {
            ElementType::U8 => Output::U8(unsigned),
            ElementType::S8 => Output::S8(signed),
        })
        .collect();
    run(&mut views);
    drop(views);
    for ((tensor, _), (unsigned, signed)) in graph.outputs().zip(unsigned.iter_mut().zip(signed)) {
        if tensor.quantisation.element() == ElementType::S8 {
            *unsigned = signed.into_iter().map(|value| value as u8).collect();
        }
    }
    unsigned
}
