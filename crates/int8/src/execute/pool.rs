//! Windows that slide over a picture: the greatest and the mean of their values.

use std::cell::Cell;
use std::ops::Range;

use super::Arena;
use crate::kernels::Kernels;
use crate::kernels::runs::{Runs, Windows};
use crate::numerics::Mean;
use crate::operator::{CountPadding, Window};
use crate::tensor::{ElementType, Quantisation, Shape};
use crate::view::View;

/// Taps that are taken at once: more are taken columns first, then rows, as far fewer comparisons do then.
const MOST_AT_ONCE: usize = 9;

/// `line` holds the greatest of each column of one row of windows, where columns come first.
#[expect(clippy::too_many_arguments, reason = "an operator, its tensors and its scratch")]
pub(super) fn maximum(
    kernels: &Kernels,
    arena: Arena<'_>,
    window: &Window,
    element: ElementType,
    x: &View,
    y: &View,
    line: &mut [u8],
    taps: &mut Vec<usize>,
) {
    if window.taps() <= MOST_AT_ONCE {
        each_window(arena, window, x, y, taps, |windows| (kernels.maximum)(element, windows));
        return;
    }
    let Shape { w: width, c: channels, .. } = x.shape;
    let line = Cell::from_mut(&mut line[..width * channels]).as_slice_of_cells();
    // Bytes that follow each other go at once.
    let runs = match x.has_dense_rows() {
        true => Runs { length: width * channels, count: 1, steps: [0; 2] },
        false => Runs { length: channels, count: width, steps: [x.pixel, channels] },
    };
    for (n, h) in (0..y.shape.n).flat_map(|n| (0..y.shape.h).map(move |h| (n, h))) {
        taps.clear();
        taps.extend(along(window, 0, h, x.shape.h).map(|row| x.at(n, row, 0)));
        (kernels.maximum)(element, &Windows { x: arena, taps, y: line, runs });
        for columns in alike(window, 1, width, y.shape.w) {
            taps.clear();
            taps.extend(along(window, 1, columns.start, width).map(|column| column * channels));
            let steps = [window.strides[1] * channels, y.pixel];
            let runs = Runs { length: channels, count: columns.len(), steps };
            let y = &arena[y.at(n, h, columns.start)..];
            (kernels.maximum)(element, &Windows { x: line, taps, y, runs });
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "an operator, its tensors and its scratch")]
pub(super) fn average(
    kernels: &Kernels,
    arena: Arena<'_>,
    window: &Window,
    padding: CountPadding,
    [from, to]: [&Quantisation; 2],
    x: &View,
    y: &View,
    taps: &mut Vec<usize>,
) {
    each_window(arena, window, x, y, taps, |windows| {
        let count = match padding {
            CountPadding::Include => window.taps(),
            CountPadding::Exclude => windows.taps.len(),
        };
        (kernels.average)(&Mean { from: *from, to: *to, count }, windows);
    });
}

/// All windows, each with the pixels that it holds; those of a row that hold as many go together.
fn each_window(
    arena: Arena<'_>,
    window: &Window,
    x: &View,
    y: &View,
    taps: &mut Vec<usize>,
    mut visit: impl FnMut(&Windows<'_>),
) {
    for (n, h) in (0..y.shape.n).flat_map(|n| (0..y.shape.h).map(move |h| (n, h))) {
        for columns in alike(window, 1, x.shape.w, y.shape.w) {
            taps.clear();
            for row in along(window, 0, h, x.shape.h) {
                let columns = along(window, 1, columns.start, x.shape.w);
                taps.extend(columns.map(|column| x.at(n, row, column)));
            }
            let steps = [window.strides[1] * x.pixel, y.pixel];
            let runs = Runs { length: y.shape.c, count: columns.len(), steps };
            let y = &arena[y.at(n, h, columns.start)..];
            visit(&Windows { x: arena, taps, y, runs });
        }
    }
}

/// Coordinates along an axis under a window that lie in the picture.
fn along(window: &Window, axis: usize, at: usize, extent: usize) -> impl Iterator<Item = usize> {
    (0..window.kernel[axis]).filter_map(move |tap| window.tap(axis, at, tap, extent))
}

/// Places of a window along an axis: those where it lies in the picture as a whole together, the others one by one.
fn alike(
    window: &Window,
    axis: usize,
    extent: usize,
    outputs: usize,
) -> impl Iterator<Item = Range<usize>> {
    let (stride, pad) = (window.strides[axis], window.pads[axis]);
    let reach = (window.kernel[axis] - 1) * window.dilations[axis];
    let first = pad.div_ceil(stride).min(outputs);
    let end = match (extent + pad).checked_sub(reach + 1) {
        Some(last) => (last / stride + 1).clamp(first, outputs),
        None => first,
    };
    let single = |places: Range<usize>| places.map(|at| at..at + 1);
    let inside = Some(first..end).filter(|inside| !inside.is_empty());
    single(0..first).chain(inside).chain(single(end..outputs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_comes_once_and_alike_ones_have_the_same_taps() {
        for case in 0..4 * 4 * 3 * 3 * 12 {
            let (kernel, case) = (case % 4 + 1, case / 4);
            let (pad, case) = (case % 4, case / 4);
            let (stride, case) = (case % 3 + 1, case / 3);
            let (dilation, extent) = (case % 3 + 1, case / 3 + 1);
            let window = Window { dilations: [dilation; 2], ..Window::square(kernel, stride, pad) };
            let Some(outputs) = window.output(1, extent) else { continue };
            let mut next = 0;
            for places in alike(&window, 1, extent, outputs) {
                assert_eq!(places.start, next, "{window:?}, {extent}");
                next = places.end;
                let first: Vec<usize> = along(&window, 1, places.start, extent).collect();
                for place in places.clone() {
                    let offset = (place - places.start) * stride;
                    let taps = along(&window, 1, place, extent).map(|tap| tap - offset);
                    assert_eq!(taps.collect::<Vec<_>>(), first, "{window:?}, {extent}");
                }
            }
            assert_eq!(next, outputs, "{window:?}, {extent}");
        }
    }
}
