//! Pictures of a new size: copied pixels, or pixels blended between rows whose real values are computed once.

use super::Arena;
use crate::kernels::aligned::Aligned;
use crate::kernels::runs::{Blend, Runs};
use crate::kernels::{Kernels, Run};
use crate::resize::{Sampling, Source};
use crate::tensor::{Quantisation, Shape};
use crate::view::View;

/// Each pixel is a copy of one pixel of the input, and a row often of the row above.
pub(super) fn nearest(
    kernels: &Kernels,
    arena: Arena<'_>,
    sampling: &Sampling,
    x: &View,
    y: &View,
) {
    let Shape { n: images, h: height, w: width, c: length } = y.shape;
    let row = match y.has_dense_rows() {
        true => Runs { length: width * length, count: 1, steps: [0; 2] },
        false => Runs { length, count: width, steps: [y.pixel; 2] },
    };
    // A picture several times as wide is as many rows of pixels that stand apart.
    let times = width / x.shape.w;
    let place = |(w, from): (usize, &Source)| w.checked_div(times) == Some(from.at[0]);
    let is_multiple = width == times * x.shape.w && sampling.columns.iter().enumerate().all(place);
    let apart = Runs { length, count: x.shape.w, steps: [x.pixel, times * y.pixel] };
    let pixel = Runs { length, count: 1, steps: [0; 2] };
    for (n, h) in (0..images).flat_map(|n| (0..height).map(move |h| (n, h))) {
        let from = sampling.rows[h].at[0];
        if h > 0 && sampling.rows[h - 1].at[0] == from {
            (kernels.copy)(&arena[y.at(n, h - 1, 0)..], &arena[y.at(n, h, 0)..], &row);
            continue;
        }
        if is_multiple {
            for first in 0..times {
                let to = &arena[y.at(n, h, first)..];
                (kernels.copy)(&arena[x.at(n, from, 0)..], to, &apart);
            }
            continue;
        }
        for (w, column) in sampling.columns.iter().enumerate() {
            let from = &arena[x.at(n, from, column.at[0])..];
            (kernels.copy)(from, &arena[y.at(n, h, w)..], &pixel);
        }
    }
}

/// Visits each row of the output; each of `reals` holds a row of the input.
#[expect(clippy::too_many_arguments, reason = "an operator, its tensors and its scratch")]
pub(super) fn each_row(
    kernels: &Kernels,
    arena: Arena<'_>,
    sampling: &Sampling,
    from: &Quantisation,
    x: &View,
    y: &View,
    reals: &mut [Aligned; 2],
    mut visit: impl FnMut(&Blend<'_>, Run<'_>),
) {
    let Shape { n: images, w: width, c: channels, .. } = x.shape;
    let slots = reals.each_mut().map(|slot| &mut slot.reals_mut()[..width * channels]);
    // Bytes that follow each other go at once.
    let (runs, length) = match x.has_dense_rows() {
        true => (1, width * channels),
        false => (width, channels),
    };
    for n in 0..images {
        // Two rows are the same or neighbours, so that each has a slot.
        let mut held = [None; 2];
        for (h, source) in sampling.rows.iter().enumerate() {
            for row in source.at {
                if held[row % 2] == Some(row) {
                    continue;
                }
                held[row % 2] = Some(row);
                for (run, reals) in slots[row % 2].chunks_exact_mut(length).enumerate().take(runs) {
                    (kernels.dequantise)(from, &arena[x.at(n, row, run)..], reals);
                }
            }
            let blend = Blend {
                rows: source.at.map(|row| &*slots[row % 2]),
                greatest: 255.0 * from.scale(),
                weights: source.weights,
                columns: &sampling.columns,
                channels,
                step: y.pixel,
            };
            visit(&blend, &arena[y.at(n, h, 0)..]);
        }
    }
}
