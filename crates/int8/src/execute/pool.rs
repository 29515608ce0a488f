//! Windows that slide over a picture: the greatest of their values.

use super::Arena;
use crate::kernels::Kernels;
use crate::operator::Window;
use crate::tensor::{ElementType, Shape};
use crate::view::View;

/// Columns first, then rows: `scratch` holds the greatest of each column of one row of windows.
pub(super) fn maximum(
    kernels: &Kernels,
    arena: Arena<'_>,
    window: &Window,
    element: ElementType,
    x: &View,
    y: &View,
    scratch: &mut [u8],
) {
    let Shape { w: width, c: channels, .. } = x.shape;
    let line = std::cell::Cell::from_mut(&mut scratch[..width * channels]).as_slice_of_cells();
    // Bytes that follow each other go at once.
    let (runs, length) = match x.has_dense_rows() {
        true => (1, width * channels),
        false => (width, channels),
    };
    for (n, h) in (0..y.shape.n).flat_map(|n| (0..y.shape.h).map(move |h| (n, h))) {
        let mut rows = taps(window, 0, h, x.shape.h);
        let Some(first) = rows.next() else { continue };
        for run in 0..runs {
            super::move_bytes(&arena[x.at(n, first, run)..], &line[run * length..], length);
        }
        for row in rows {
            for run in 0..runs {
                let from = &arena[x.at(n, row, run)..];
                (kernels.maximum)(element, &line[run * length..], from, length);
            }
        }
        for w in 0..y.shape.w {
            let to = &arena[y.at(n, h, w)..];
            let mut columns = taps(window, 1, w, width);
            let Some(first) = columns.next() else { continue };
            super::move_bytes(&line[first * channels..], to, channels);
            for column in columns {
                (kernels.maximum)(element, to, &line[column * channels..], channels);
            }
        }
    }
}

/// Coordinates along an axis under a window that lie in the picture.
fn taps(window: &Window, axis: usize, at: usize, extent: usize) -> impl Iterator<Item = usize> {
    (0..window.kernel[axis]).filter_map(move |tap| window.tap(axis, at, tap, extent))
}

/// Taps of a window that lie in the picture, row by row.
pub(super) fn each_tap(
    window: &Window,
    shape: Shape,
    h: usize,
    w: usize,
    mut visit: impl FnMut(usize, usize),
) {
    for i in taps(window, 0, h, shape.h) {
        taps(window, 1, w, shape.w).for_each(|j| visit(i, j));
    }
}
