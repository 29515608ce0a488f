//! Pictures of a new size, blended between rows whose real values are computed once.

use super::Arena;
use crate::kernels::aligned::Aligned;
use crate::kernels::runs::Blend;
use crate::kernels::{Kernels, Run};
use crate::resize::Sampling;
use crate::tensor::{Quantisation, Shape};
use crate::view::View;

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
