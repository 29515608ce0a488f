//! Times nets of well-known shapes, with seeded random weights, against the peak of the multiply instruction.
//!
//! `cargo bench -p ocelli-int8 --profile kernels -- [NET…] [--runs N] [--threads N]
//! [--layers]`; pin it to as many cores as threads.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench takes the time and prints it"
)]

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod common;

use std::sync::Arc;
use std::time::Instant;

use common::Random;
use ocelli_int8::*;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let layers = arguments.iter().any(|argument| argument == "--layers");
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<usize>().ok()
    };
    let runs = number("--runs").unwrap_or(100);
    let threads = number("--threads").unwrap_or(1);
    let pool = Arc::new(Pool::new(threads, |_| {}).expect("the system has threads"));
    let peak = peak();
    println!("peak of the multiply instruction: {peak:.1} GMAC/s");
    let nets: [(&str, Build); 3] = [
        ("mobilenet_v2", mobilenet_v2),
        ("efficientnet_lite0", efficientnet_lite0),
        ("resnet18", resnet18),
    ];
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !nets.iter().any(|(name, _)| named(name));
    for (name, net) in nets {
        if all || named(name) {
            time(name, &net().finish(), runs, &pool, layers, peak);
        }
    }
}

/// GMAC/s, the best of several short runs.
fn peak() -> f64 {
    let rate = |_| {
        let start = Instant::now();
        multiply_at_peak(200_000) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..50).map(rate).fold(0.0, f64::max)
}

fn time(name: &str, graph: &Graph, runs: usize, pool: &Arc<Pool>, layers: bool, peak: f64) {
    let start = Instant::now();
    let mut engine = Engine::new(graph).expect("the net fits");
    let load = start.elapsed().as_secs_f64() * 1e3;
    if pool.threads() > 1 {
        engine.share(pool);
    }
    let (input, _) = graph.inputs().next().expect("one input");
    let (output, _) = graph.outputs().next().expect("one output");
    let mut random = Random(1);
    let picture: Vec<f32> =
        (0..input.shape.elements()).map(|_| random.within(-200, 200) as f32 / 100.0).collect();
    let mut scores = vec![0.0; output.shape.elements()];
    let mut best = vec![f64::INFINITY; engine.layers().len()];
    let mut total = Vec::with_capacity(runs);
    for run in 0..runs + 10 {
        let start = Instant::now();
        let mut before = start;
        let mut observe = |layer: usize| {
            let now = Instant::now();
            best[layer] = f64::min(best[layer], now.duration_since(before).as_secs_f64());
            before = now;
        };
        let outputs = &mut [Output::F32(&mut scores)];
        engine.run_observed(&[Input::F32(&picture)], outputs, &mut observe).expect("it fits");
        if run >= 10 {
            total.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    total.sort_by(f64::total_cmp);
    let (least, median) = (total[0], total[total.len() / 2]);
    let rate = graph.macs() as f64 / least / 1e6;
    println!(
        "{name} [{}, {} threads]: min {least:.2} ms, median {median:.2} ms, {:.1} MMAC, {rate:.1} GMAC/s = \
         {:.0} % of peak, load {load:.0} ms, arena {} KiB",
        engine.isa(),
        pool.threads(),
        graph.macs() as f64 / 1e6,
        rate / peak * 100.0,
        engine.arena_bytes() / 1024,
    );
    if layers {
        table(&engine, &best, peak);
    }
}

fn table(engine: &Engine, best: &[f64], peak: f64) {
    let mut groups: std::collections::BTreeMap<&str, (f64, u64)> = Default::default();
    for (layer, &seconds) in engine.layers().iter().zip(best) {
        let Shape { h, w, c, .. } = layer.shape;
        let rate = layer.macs as f64 / seconds / 1e9;
        println!(
            "  {:<24} {:<14} {:>8.1} us {:>7.1} GMAC/s {:>4.0} %",
            layer.name,
            format!("{h}x{w}x{c}"),
            seconds * 1e6,
            rate,
            rate / peak * 100.0
        );
        let group = groups.entry(&layer.name).or_default();
        group.0 += seconds;
        group.1 += layer.macs;
    }
    for (name, (seconds, macs)) in groups {
        let rate = macs as f64 / seconds / 1e9;
        println!("  = {name:<22} {:>23.1} us {rate:>7.1} GMAC/s", seconds * 1e6);
    }
}

type Build = fn() -> Net;

/// A net under construction: the last tensor, and weights from one seed.
struct Net {
    builder: GraphBuilder,
    random: Random,
    last: TensorId,
}

impl Net {
    fn new() -> Self {
        let mut builder = GraphBuilder::new();
        let to = Quantisation::new(ElementType::U8, 0.0157, 128).expect("in range");
        let shape = Shape::new(1, 224, 224, 3).expect("in range");
        let last = builder.input(shape, to, InputForm::F32Nchw).expect("in range");
        Self { builder, random: Random(7), last }
    }

    fn quantisation(zero: i32) -> Quantisation {
        Quantisation::new(ElementType::U8, 0.0235, zero).expect("in range")
    }

    fn conv(&mut self, channels: usize, kernel: usize, stride: usize, groups: usize, zero: i32) {
        let input = self.builder.tensor(self.last).expect("it is ours").shape.c;
        let window = Window::square(kernel, stride, kernel / 2);
        let conv = self.random.conv(input, channels, groups, window);
        let to = Self::quantisation(zero);
        self.last = self.builder.conv(self.last, conv, to).expect("it fits");
    }

    fn add(&mut self, other: TensorId, zero: i32) {
        let to = Self::quantisation(zero);
        self.last = self.builder.add(self.last, other, to).expect("it fits");
    }

    /// Expand, depthwise, project; with a residual sum where shapes allow.
    fn inverted_residual(&mut self, channels: usize, kernel: usize, stride: usize, expand: usize) {
        let start = self.last;
        let input = self.builder.tensor(start).expect("it is ours").shape.c;
        let wide = input * expand;
        if expand != 1 {
            self.conv(wide, 1, 1, 1, 0);
        }
        self.conv(wide, kernel, stride, wide, 0);
        self.conv(channels, 1, 1, 1, 128);
        if stride == 1 && input == channels {
            self.add(start, 128);
        }
    }

    fn classify(&mut self) {
        let to = Self::quantisation(0);
        self.last = self.builder.global_average_pool(self.last, to).expect("it fits");
        self.conv(1000, 1, 1, 1, 100);
    }

    fn finish(mut self) -> Graph {
        self.builder.output(self.last, OutputForm::F32Nchw).expect("it is ours");
        self.builder.build().expect("complete")
    }
}

/// Expansion, channels, blocks, stride of the first, kernel.
type Stage = (usize, usize, usize, usize, usize);

fn inverted(stages: &[Stage], last: usize) -> Net {
    let mut net = Net::new();
    net.conv(32, 3, 2, 1, 0);
    for &(expand, channels, blocks, stride, kernel) in stages {
        for block in 0..blocks {
            net.inverted_residual(channels, kernel, if block == 0 { stride } else { 1 }, expand);
        }
    }
    net.conv(last, 1, 1, 1, 0);
    net.classify();
    net
}

fn mobilenet_v2() -> Net {
    let stages = [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    ];
    inverted(&stages, 1280)
}

fn efficientnet_lite0() -> Net {
    let stages = [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ];
    inverted(&stages, 1280)
}

fn resnet18() -> Net {
    let mut net = Net::new();
    net.conv(64, 7, 2, 1, 0);
    net.last = net.builder.max_pool(net.last, Window::square(3, 2, 1)).expect("it fits");
    for (stage, channels) in [64, 128, 256, 512].into_iter().enumerate() {
        for block in 0..2 {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let start = net.last;
            net.conv(channels, 3, stride, 1, 0);
            net.conv(channels, 3, 1, 1, 128);
            let own = net.last;
            if stride == 2 {
                net.last = start;
                net.conv(channels, 1, 2, 1, 128);
            } else {
                net.last = start;
            }
            let shortcut = std::mem::replace(&mut net.last, own);
            net.add(shortcut, 0);
        }
    }
    net.classify();
    net
}
