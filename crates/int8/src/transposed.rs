//! A transposed convolution as plain ones: one for each residue of the output's rows and columns modulo the strides.
//!
//! Output row `y` takes input row `i` by kernel row `k` where `y + pad = i · stride + k` (no dilation). For one residue of `y`
//! only every `stride`-th kernel row meets, and the rows that meet are adjacent input rows.

use crate::operator::{Conv, ConvTranspose, Pair, Window};

/// What one residue takes along one axis.
struct Phase {
    /// Kernel coordinates, in the order of the input coordinates that they meet; none is a tap of zeros.
    taps: Vec<Option<usize>>,
    /// Padding before and after, so that as many outputs come as the residue has.
    pads: Pair,
}

fn phase(conv: &ConvTranspose, axis: usize, residue: usize, extent: usize) -> Option<Phase> {
    let Window { kernel, strides, pads, .. } = conv.window;
    let (kernel, stride, pad) = (kernel[axis], strides[axis], pads[axis]);
    let outputs = (conv.size[axis] - residue).div_ceil(stride);
    let first = (residue + pad) % stride;
    // The first output of the residue meets input `ahead` by tap `first`, and the inputs before it by later taps.
    let ahead = (residue + pad) / stride;
    let count = (kernel.saturating_sub(first).div_ceil(stride)).max(ahead + 1);
    let taps: Vec<_> =
        (0..count).rev().map(|tap| Some(first + tap * stride).filter(|at| *at < kernel)).collect();
    let before = count - 1 - ahead;
    let after = (outputs - 1 + count).checked_sub(extent + before);
    after.map(|after| Phase { taps, pads: [before, after] })
}

/// The convolutions, row residues outermost; `None` where the output ends before the picture does by more than a
/// window.
pub(crate) fn phases(conv: &ConvTranspose, depth: usize, input: Pair) -> Option<Vec<Conv>> {
    let mut convs = Vec::new();
    for row in 0..conv.window.strides[0] {
        for column in 0..conv.window.strides[1] {
            let rows = phase(conv, 0, row, input[0])?;
            let columns = phase(conv, 1, column, input[1])?;
            convs.push(plain(conv, depth, &rows, &columns));
        }
    }
    Some(convs)
}

fn plain(conv: &ConvTranspose, depth: usize, rows: &Phase, columns: &Phase) -> Conv {
    let [kernel_h, kernel_w] = conv.window.kernel;
    let mut weights =
        Vec::with_capacity(conv.channels * rows.taps.len() * columns.taps.len() * depth);
    for channel in conv.weights.chunks_exact(kernel_h * kernel_w * depth) {
        for row in &rows.taps {
            for column in &columns.taps {
                match row.zip(*column) {
                    Some((row, column)) => {
                        weights.extend(&channel[(row * kernel_w + column) * depth..][..depth]);
                    }
                    None => weights.resize(weights.len() + depth, 0),
                }
            }
        }
    }
    Conv {
        channels: conv.channels,
        window: Window {
            kernel: [rows.taps.len(), columns.taps.len()],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1]],
        },
        groups: conv.groups,
        weights,
        weight_scales: conv.weight_scales.clone(),
        bias: conv.bias.clone(),
    }
}
