//! Loops that compilers vectorise well, in safe code. Each instruction set instantiates them with its own features.

use crate::kernels::Run;
use crate::kernels::depthwise::Depthwise;
use crate::kernels::lookup::Lookup;
use crate::kernels::runs::{Blend, Runs, Windows};
use crate::numerics::{self, AddRule, Mean, MulRule, Quantiser};
use crate::resize::Corners;
use crate::tensor::{ElementType, Quantisation};

pub(crate) fn add(rule: &AddRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
    each(x, y, runs, |a, b| rule.apply(rule.element_a.widen(a), rule.element_b.widen(b)) as u8);
}

pub(crate) fn mul(rule: &MulRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
    each(x, y, runs, |a, b| rule.apply(a, b));
}

/// A function of the bytes of two runs.
#[inline(always)]
fn each(x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>, function: impl Fn(u8, u8) -> u8) {
    let Runs { length, count, steps } = *runs;
    for run in 0..count {
        let [a, b] = [&x[0][run * steps[0]..][..length], &x[1][run * steps[1]..][..length]];
        for ((a, b), y) in a.iter().zip(b).zip(&y[run * steps[2]..][..length]) {
            y.set(function(a.get(), b.get()));
        }
    }
}

pub(crate) fn accumulate(
    element: ElementType,
    x: Run<'_>,
    [count, step]: [usize; 2],
    sums: &mut [i32],
) {
    for run in 0..count {
        let x = &x[run * step..][..sums.len()];
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += element.widen(x.get());
        }
    }
}

/// Values of a block that windows are taken of at once.
const BLOCK: usize = 16;

/// For each block of each run: what the taps are counted from, and where the result goes.
#[inline(always)]
fn each_block(windows: &Windows<'_>, mut visit: impl FnMut(Run<'_>, Run<'_>)) {
    let Runs { length, count, steps } = windows.runs;
    for run in 0..count {
        for at in (0..length).step_by(BLOCK) {
            let x = &windows.x[run * steps[0] + at..];
            visit(x, &windows.y[run * steps[1] + at..][..BLOCK.min(length - at)]);
        }
    }
}

pub(crate) fn maximum(element: ElementType, windows: &Windows<'_>) {
    windows.check();
    // Flipping the sign bit orders s8 as u8.
    let flip = if element == ElementType::S8 { 0x80 } else { 0 };
    each_block(windows, |x, y| {
        let mut greatest = [0; BLOCK];
        for tap in windows.taps {
            for (greatest, x) in greatest.iter_mut().zip(&x[*tap..][..y.len()]) {
                *greatest = (x.get() ^ flip).max(*greatest);
            }
        }
        y.iter().zip(greatest).for_each(|(y, byte)| y.set(byte ^ flip));
    });
}

pub(crate) fn quantise(to: &Quantiser, values: &[f32], bytes: &mut [u8]) {
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = numerics::quantise(*value, to.to());
    }
}

pub(crate) fn dequantise(from: &Quantisation, x: Run<'_>, reals: &mut [f32]) {
    for (real, x) in reals.iter_mut().zip(x) {
        *real = numerics::dequantise(x.get(), from);
    }
}

pub(crate) fn interleave(planes: [&[u8]; 3], y: Run<'_>) {
    let [first, second, third] = planes;
    let pixels = first.iter().zip(second).zip(third);
    for (y, ((first, second), third)) in y.chunks_exact(3).zip(pixels) {
        y[0].set(*first);
        y[1].set(*second);
        y[2].set(*third);
    }
}

pub(crate) fn copy(x: Run<'_>, y: Run<'_>, runs: &Runs) {
    for run in 0..runs.count {
        let (x, y) = (&x[run * runs.steps[0]..], &y[run * runs.steps[1]..]);
        x[..runs.length].iter().zip(&y[..runs.length]).for_each(|(x, y)| y.set(x.get()));
    }
}

pub(crate) fn translate(table: &Lookup, x: Run<'_>, y: Run<'_>, runs: &Runs) {
    runs.check([x, y]);
    for run in 0..runs.count {
        let (x, y) = (&x[run * runs.steps[0]..], &y[run * runs.steps[1]..]);
        for (x, y) in x[..runs.length].iter().zip(&y[..runs.length]) {
            y.set(table.bytes[usize::from(x.get())]);
        }
    }
}

pub(crate) fn average(mean: &Mean, windows: &Windows<'_>) {
    windows.check();
    each_block(windows, |x, y| {
        let mut sums = [0.0; BLOCK];
        for tap in windows.taps {
            for (sum, x) in sums.iter_mut().zip(&x[*tap..][..y.len()]) {
                *sum += numerics::dequantise(x.get(), &mean.from);
            }
        }
        y.iter().zip(sums).for_each(|(y, sum)| {
            y.set(numerics::average(sum, mean.count, &mean.to));
        });
    });
}

pub(crate) fn blend(blend: &Blend<'_>, _: ElementType, y: Run<'_>) {
    each_pixel(blend, y, |corners, four| corners.stored(four) as u8);
}

pub(crate) fn blend_reals(blend: &Blend<'_>, to: &Quantiser, y: Run<'_>) {
    each_pixel(blend, y, |corners, four| numerics::quantise(corners.real(four), to.to()));
}

/// A function of each value of four neighbours.
#[inline(always)]
fn each_pixel(blend: &Blend<'_>, y: Run<'_>, function: impl Fn(&Corners, [f32; 4]) -> u8) {
    blend.check(y);
    let channels = blend.channels;
    for (nth, column) in blend.columns.iter().enumerate() {
        let corners = Corners { rows: blend.weights, columns: column.weights };
        let [near, far] = column.at.map(|at| at * channels..(at + 1) * channels);
        let [up, down] = blend.rows;
        let (a, b, c, d) = (&up[near.clone()], &up[far.clone()], &down[near], &down[far]);
        for (at, y) in y[nth * blend.step..][..channels].iter().enumerate() {
            y.set(function(&corners, [a[at], b[at], c[at], d[at]]));
        }
    }
}

/// Some rows of one image, any window.
#[inline(always)]
pub(crate) fn depthwise(call: &Depthwise<'_>, n: usize) {
    for y in call.rows.clone() {
        depthwise_row(call, n, y);
    }
}

#[inline(always)]
fn depthwise_row(call: &Depthwise<'_>, n: usize, y: usize) {
    let first = call.check(n, y);
    let [kernel_h, kernel_w] = call.window.kernel;
    let channels = call.output.shape.c;
    for x in 0..call.output.shape.w {
        let from = first + x * call.window.strides[1] * call.input.pixel;
        let to = call.output.at(n, y, x);
        for block in (0..channels).step_by(16) {
            let mut sums = [0i32; 16];
            for tap in 0..kernel_h * kernel_w {
                let row = tap / kernel_w * call.window.dilations[0] * call.input.row;
                let column = tap % kernel_w * call.window.dilations[1] * call.input.pixel;
                let values = &call.arena[from + row + column + block..][..16];
                let weights = &call.weights.taps[tap * call.weights.padded + block..][..16];
                for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                    *sum += (call.element.widen(value.get()) - call.centre) * i32::from(*weight);
                }
            }
            for (lane, &sum) in sums.iter().enumerate().take(channels - block) {
                let byte = call.epilogue.apply(sum, block + lane, || 0);
                call.arena[to + block + lane].set(byte);
            }
        }
    }
}
