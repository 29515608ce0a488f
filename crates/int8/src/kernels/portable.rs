//! Loops that compilers vectorise well, in safe code. Each instruction set instantiates them with its own features.

use crate::kernels::depthwise::Depthwise;
use crate::kernels::lookup::Lookup;
use crate::kernels::{Run, Runs};
use crate::numerics::{self, AddRule, MulRule};
use crate::resize::Corners;
use crate::tensor::{ElementType, Quantisation};

#[inline(always)]
pub(crate) fn add(rule: &AddRule, a: Run<'_>, b: Run<'_>, y: Run<'_>, length: usize) {
    let (a, b, y) = (&a[..length], &b[..length], &y[..length]);
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        let (a, b) = (rule.element_a.widen(a.get()), rule.element_b.widen(b.get()));
        y.set(rule.apply(a, b) as u8);
    }
}

#[inline(always)]
pub(crate) fn mul(rule: &MulRule, a: Run<'_>, b: Run<'_>, y: Run<'_>, length: usize) {
    let (a, b, y) = (&a[..length], &b[..length], &y[..length]);
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        y.set(rule.apply(a.get(), b.get()));
    }
}

#[inline(always)]
pub(crate) fn accumulate(element: ElementType, x: Run<'_>, sums: &mut [i32]) {
    let x = &x[..sums.len()];
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum += element.widen(x.get());
    }
}

#[inline(always)]
pub(crate) fn maximum(element: ElementType, y: Run<'_>, x: Run<'_>, length: usize) {
    let (y, x) = (&y[..length], &x[..length]);
    // Flipping the sign bit orders s8 as u8.
    let flip = if element == ElementType::S8 { 0x80 } else { 0 };
    for (y, x) in y.iter().zip(x) {
        y.set((y.get() ^ flip).max(x.get() ^ flip) ^ flip);
    }
}

#[inline(always)]
pub(crate) fn quantise(to: &Quantisation, values: &[f32], bytes: &mut [u8]) {
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = numerics::quantise(*value, to);
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

pub(crate) fn translate(table: &Lookup, x: Run<'_>, y: Run<'_>, runs: &Runs) {
    runs.check(x, y);
    for run in 0..runs.count {
        let (x, y) = (&x[run * runs.steps[0]..], &y[run * runs.steps[1]..]);
        for (x, y) in x[..runs.length].iter().zip(&y[..runs.length]) {
            y.set(table.bytes[usize::from(x.get())]);
        }
    }
}

#[inline(always)]
pub(crate) fn accumulate_reals(from: &Quantisation, x: Run<'_>, sums: &mut [f32]) {
    let x = &x[..sums.len()];
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum += numerics::dequantise(x.get(), from);
    }
}

#[inline(always)]
pub(crate) fn average(to: &Quantisation, sums: &[f32], count: usize, y: Run<'_>) {
    let y = &y[..sums.len()];
    for (y, sum) in y.iter().zip(sums) {
        y.set(numerics::average(*sum, count, to));
    }
}

#[inline(always)]
pub(crate) fn blend(
    element: ElementType,
    by: &Corners,
    x: [Run<'_>; 4],
    y: Run<'_>,
    length: usize,
) {
    let widen = widening(element);
    blocks(x, y, length, |four| by.stored(four.map(|byte| widen(byte) as f32)) as u8);
}

#[inline(always)]
pub(crate) fn blend_reals(
    [from, to]: [&Quantisation; 2],
    by: &Corners,
    x: [Run<'_>; 4],
    y: Run<'_>,
    length: usize,
) {
    let (widen, zero, scale) = (widening(from.element()), from.zero_point(), from.scale());
    blocks(x, y, length, |four| {
        numerics::quantise(by.real(four.map(|byte| (widen(byte) - zero) as f32 * scale)), to)
    });
}

/// [`ElementType::widen`] without a decision for each byte.
#[inline(always)]
fn widening(element: ElementType) -> impl Fn(u8) -> i32 {
    let (flip, offset) = if element == ElementType::S8 { (0x80, 128) } else { (0, 0) };
    move |byte| i32::from(byte ^ flip) - offset
}

/// A function of four runs, through local blocks: cells may be anywhere, and would be taken one by one.
#[inline(always)]
fn blocks(x: [Run<'_>; 4], y: Run<'_>, length: usize, function: impl Fn([u8; 4]) -> u8) {
    const BLOCK: usize = 64;
    let (x, y) = (x.map(|x| &x[..length]), &y[..length]);
    let (mut given, mut found) = ([[0; BLOCK]; 4], [0; BLOCK]);
    for first in (0..length).step_by(BLOCK) {
        let count = BLOCK.min(length - first);
        for (given, x) in given.iter_mut().zip(x) {
            given.iter_mut().zip(&x[first..first + count]).for_each(|(to, x)| *to = x.get());
        }
        let [a, b, c, d] = given.each_ref().map(|given| &given[..count]);
        for (at, found) in found[..count].iter_mut().enumerate() {
            *found = function([a[at], b[at], c[at], d[at]]);
        }
        y[first..first + count].iter().zip(found).for_each(|(y, byte)| y.set(byte));
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
