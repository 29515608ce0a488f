//! Walks the steps of a plan. Safe code: kernels check their reach, the rest goes through cells of the arena.

mod pool;
mod resize;

use std::cell::Cell;

use crate::border::{self, Input, Output};
use crate::kernels::Kernels;
use crate::kernels::aligned::Aligned;
use crate::kernels::layer::{self, Team};
use crate::kernels::lookup::Lookup;
use crate::kernels::runs::Runs;
use crate::numerics::{self, Quantiser};
use crate::operator::{InputForm, OutputForm};
use crate::plan::{Action, Border, Leaving, Plan, Step};
use crate::tensor::Shape;
use crate::view::View;

type Arena<'a> = &'a [Cell<u8>];

/// Pixels of a picture that are quantised at once: their bytes stay in the first-level cache, and the machine sees long
/// runs of real values coming.
const BLOCK_PIXELS: usize = 2048;

/// Memory of a run beside the arena.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) team: Team,
    sums: Vec<i32>,
    /// Rows of real values.
    reals: [Aligned; 2],
    /// Rows of pictures.
    rows: Vec<u8>,
    /// Where the taps of a window lie.
    taps: Vec<usize>,
}

impl Scratch {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            team: Team::new(plan.panel_bytes, plan.panel_rows),
            sums: vec![0; plan.most_channels],
            reals: std::array::from_fn(|_| Aligned::new(4 * plan.blended_values)),
            rows: vec![0; plan.row_bytes.max(3 * BLOCK_PIXELS)],
            taps: Vec::with_capacity(plan.most_taps),
        }
    }
}

/// One step.
pub(crate) fn step(
    step: &Step,
    kernels: &Kernels,
    arena: Arena<'_>,
    inputs: &[Input<'_>],
    scratch: &mut Scratch,
) {
    if let Some(border) = &step.border {
        fill(arena, border);
    }
    match &step.action {
        Action::Load { input, y, to, form } => {
            load(kernels, arena, &inputs[*input], y, to, *form, &mut scratch.rows);
        }
        Action::Conv(conv) => layer::convolve(conv, kernels, arena, &mut scratch.team),
        Action::Depthwise(conv) => layer::depthwise(conv, kernels, arena, &mut scratch.team),
        Action::Add { rule, a, b, y } => each_pair(a, b, y, |a, b, y, runs| {
            (kernels.add)(rule, [&arena[a..], &arena[b..]], &arena[y..], runs);
        }),
        Action::Mul { rule, a, b, y } => each_pair(a, b, y, |a, b, y, runs| {
            (kernels.mul)(rule, [&arena[a..], &arena[b..]], &arena[y..], runs);
        }),
        Action::Copy { x, y, table } => copy(kernels, arena, x, y, table.as_ref()),
        Action::MaxPool { window, element, x, y } => {
            let Scratch { rows, taps, .. } = scratch;
            pool::maximum(kernels, arena, window, *element, x, y, rows, taps);
        }
        Action::AveragePool { window, padding, from, to, x, y } => {
            let taps = &mut scratch.taps;
            pool::average(kernels, arena, window, *padding, [from, to], x, y, taps);
        }
        Action::GlobalAveragePool { multiplier, from, to, x, y } => {
            let sums = &mut scratch.sums[..x.shape.c];
            let (low, high) = to.range();
            // Rows without a gap between them are one.
            let (rows, width) = match x.row == x.shape.w * x.pixel {
                true => (1, x.shape.pixels()),
                false => (x.shape.h, x.shape.w),
            };
            for n in 0..x.shape.n {
                sums.fill(-from.zero_point() * x.shape.pixels() as i32);
                for h in 0..rows {
                    let row = &arena[x.at(n, h, 0)..];
                    (kernels.accumulate)(from.element(), row, [width, x.pixel], sums);
                }
                for (byte, sum) in arena[y.at(n, 0, 0)..].iter().zip(&*sums) {
                    let zero = to.zero_point();
                    byte.set(numerics::requantise(*sum, *multiplier, zero, low, high) as u8);
                }
            }
        }
        Action::Resize { sampling, from, x, y } if sampling.is_bilinear() => {
            resize::each_row(
                kernels,
                arena,
                sampling,
                from,
                x,
                y,
                &mut scratch.reals,
                |blend, y| {
                    (kernels.blend)(blend, from.element(), y);
                },
            );
        }
        Action::Resize { sampling, x, y, .. } => resize::nearest(kernels, arena, sampling, x, y),
        Action::ResizeReal { sampling, from, to, x, y } => {
            resize::each_row(
                kernels,
                arena,
                sampling,
                from,
                x,
                y,
                &mut scratch.reals,
                |blend, y| {
                    (kernels.blend_reals)(blend, to, y);
                },
            );
        }
        Action::Spread { first, steps, x, y } => {
            let Shape { n, h, w: count, c: length } = x.shape;
            let runs = Runs { length, count, steps: [x.pixel, steps[1] * y.pixel] };
            for (n, h) in (0..n).flat_map(|n| (0..h).map(move |h| (n, h))) {
                let to = y.at(n, first[0] + h * steps[0], first[1]);
                (kernels.copy)(&arena[x.at(n, h, 0)..], &arena[to..], &runs);
            }
        }
        Action::Pad { before: [top, left], byte, x, y } => each_pixel(y, |n, h, w, to| {
            let row = h.checked_sub(*top).filter(|&row| row < x.shape.h);
            let column = w.checked_sub(*left).filter(|&column| column < x.shape.w);
            match row.zip(column) {
                Some((row, column)) => {
                    move_bytes(&arena[x.at(n, row, column)..], &arena[to..], x.shape.c);
                }
                None => arena[to..to + y.shape.c].iter().for_each(|cell| cell.set(*byte)),
            }
        }),
        Action::Reshape { x, y } => each_pixel(y, |n, h, w, to| {
            let Shape { h: rows, w: columns, c: channels, .. } = x.shape;
            for c in 0..y.shape.c {
                let at = y.shape.index_nchw(n, h, w, c);
                let (pixel, plane) = (at % (rows * columns), at / (rows * columns));
                let from = x.at(plane / channels, pixel / columns, pixel % columns);
                arena[to + c].set(arena[from + plane % channels].get());
            }
        }),
    }
}

fn fill(arena: Arena<'_>, border: &Border) {
    let View { shape, pixel, row, .. } = border.view;
    let [top, left, bottom, right] = border.widths;
    let set = |from: usize, length: usize| {
        arena[from..from + length].iter().for_each(|cell| cell.set(border.byte));
    };
    for n in 0..shape.n {
        let inner = border.view.at(n, 0, 0);
        set(inner - top * row - left * pixel, top * row);
        for y in 0..shape.h {
            set(inner + y * row - left * pixel, left * pixel);
            set(inner + y * row + shape.w * pixel, right * pixel);
        }
        set(inner + shape.h * row - left * pixel, bottom * row);
    }
}

fn load(
    kernels: &Kernels,
    arena: Arena<'_>,
    input: &Input<'_>,
    y: &View,
    to: &Quantiser,
    form: InputForm,
    scratch: &mut [u8],
) {
    let shape = y.shape;
    if let Input::F32(values) = input {
        let plane = shape.pixels();
        // Rows without a gap between them are one.
        let (rows, width) = match y.row == shape.w * y.pixel {
            true => (1, plane),
            false => (shape.h, shape.w),
        };
        let most = BLOCK_PIXELS.min(scratch.len() / shape.c);
        for (row, first) in (0..shape.n * rows)
            .flat_map(|row| (0..width).step_by(most).map(move |first| (row, first)))
        {
            let (n, h) = (row / rows, row % rows);
            let count = most.min(width - first);
            let bytes = &mut scratch[..shape.c * count];
            for (c, bytes) in bytes.chunks_exact_mut(count).enumerate() {
                let from = (n * shape.c + c) * plane + h * width + first;
                (kernels.quantise)(to, &values[from..from + count], bytes);
            }
            let to = &arena[y.at(n, h, first)..];
            if shape.c == 3 && y.pixel == 3 {
                let (first, rest) = bytes.split_at(count);
                let (second, third) = rest.split_at(count);
                (kernels.interleave)([first, second, third], to);
                continue;
            }
            for (c, bytes) in bytes.chunks_exact(count).enumerate() {
                for (to, byte) in to[c..].iter().step_by(y.pixel).zip(bytes) {
                    to.set(*byte);
                }
            }
        }
        return;
    }
    each_pixel(y, |n, h, w, to| {
        for c in 0..shape.c {
            let at = match form {
                InputForm::QuantisedNhwc => shape.index(n, h, w, c),
                _ => shape.index_nchw(n, h, w, c),
            };
            let byte = match input {
                Input::U8(values) => values[at],
                Input::S8(values) => values[at] as u8,
                Input::F32(_) => continue,
            };
            arena[to + c].set(byte);
        }
    });
}

/// Gives a tensor out.
pub(crate) fn store(arena: Arena<'_>, leaving: &Leaving, output: &mut Output<'_>) {
    let Leaving { view: x, form, reals } = leaving;
    let shape = x.shape;
    let nhwc = *form == OutputForm::QuantisedNhwc;
    match output {
        Output::F32(values) => deliver(arena, x, nhwc, values, |byte| reals[usize::from(byte)]),
        Output::U8(values) => deliver(arena, x, nhwc, values, |byte| byte),
        Output::S8(values) => deliver(arena, x, nhwc, values, |byte| byte as i8),
    }
    if let (OutputForm::SoftmaxNchw, Output::F32(values)) = (form, output) {
        let pixels = shape.pixels();
        for n in 0..shape.n {
            for pixel in 0..pixels {
                border::softmax(values, n * shape.c * pixels + pixel, pixels, shape.c);
            }
        }
    }
}

/// Writes the values of a tensor, NHWC or NCHW, in the order of the output.
fn deliver<T>(arena: Arena<'_>, x: &View, nhwc: bool, output: &mut [T], value: impl Fn(u8) -> T) {
    let Shape { n, h, w, c } = x.shape;
    if nhwc || x.shape.pixels() == 1 {
        each_pixel(x, |n, h, w, at| {
            let to = &mut output[x.shape.index(n, h, w, 0)..][..c];
            for (to, from) in to.iter_mut().zip(&arena[at..at + c]) {
                *to = value(from.get());
            }
        });
        return;
    }
    // Row by row: what is read stays in the first-level cache while each channel's row is written.
    for row in 0..n * h {
        let (image, y) = (row / h, row % h);
        for channel in 0..c {
            let to = &mut output[x.shape.index_nchw(image, y, 0, channel)..][..w];
            let from = arena[x.at(image, y, 0) + channel..].iter().step_by(x.pixel);
            for (to, from) in to.iter_mut().zip(from) {
                *to = value(from.get());
            }
        }
    }
}

fn copy(kernels: &Kernels, arena: Arena<'_>, x: &View, y: &View, table: Option<&Lookup>) {
    let Shape { n, h, w, c } = y.shape;
    // Rows without a gap between them are one.
    let (rows, w) = match [x, y].iter().all(|view| view.row == w * view.pixel) {
        true => (1, h * w),
        false => (h, w),
    };
    let runs = match x.has_dense_rows() && y.has_dense_rows() {
        true => Runs { length: w * c, count: 1, steps: [0; 2] },
        false => Runs { length: c, count: w, steps: [x.pixel, y.pixel] },
    };
    for (n, h) in (0..n).flat_map(|n| (0..rows).map(move |h| (n, h))) {
        let (from, to) = (&arena[x.at(n, h, 0)..], &arena[y.at(n, h, 0)..]);
        match table {
            Some(table) => (kernels.translate)(table, from, to, &runs),
            None => (kernels.copy)(from, to, &runs),
        }
    }
}

fn move_bytes(from: &[Cell<u8>], to: &[Cell<u8>], length: usize) {
    for (from, to) in from[..length].iter().zip(&to[..length]) {
        to.set(from.get());
    }
}

fn each_pixel(view: &View, mut visit: impl FnMut(usize, usize, usize, usize)) {
    for n in 0..view.shape.n {
        for h in 0..view.shape.h {
            for w in 0..view.shape.w {
                visit(n, h, w, view.at(n, h, w));
            }
        }
    }
}

/// Runs of bytes of two operands and a result, as many at once as the views allow; a vector stands for every pixel.
fn each_pair(a: &View, b: &View, y: &View, mut visit: impl FnMut(usize, usize, usize, &Runs<3>)) {
    let Shape { n, h, w, c } = y.shape;
    let vector = b.shape != y.shape;
    // Rows without a gap between them are one.
    let dense = |view: &View| view.row == view.shape.w * view.pixel;
    let together = dense(a) && dense(y) && (vector || dense(b));
    let (height, width) = if together { (1, h * w) } else { (h, w) };
    let runs = match !vector && [a, b, y].iter().all(|view| view.has_dense_rows()) {
        true => Runs { length: width * c, count: 1, steps: [0; 3] },
        false => {
            let b = if vector { 0 } else { b.pixel };
            Runs { length: c, count: width, steps: [a.pixel, b, y.pixel] }
        }
    };
    for (n, h) in (0..n).flat_map(|n| (0..height).map(move |h| (n, h))) {
        let other = b.at(n.min(b.shape.n - 1), h.min(b.shape.h - 1), 0);
        visit(a.at(n, h, 0), other, y.at(n, h, 0), &runs);
    }
}
