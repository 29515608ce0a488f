//! Depthwise convolutions: what a kernel is called with, and the weights in the forms that kernels want.

use std::cell::Cell;
use std::ops::Range;

use crate::kernels::aligned::Aligned;
use crate::kernels::{BLOCK, Epilogue, SLACK};
use crate::operator::Window;
use crate::tensor::ElementType;
use crate::view::View;

/// Channels of one block of weights in pairs.
pub(crate) const DEPTHWISE_BLOCK: usize = 8;

/// A depthwise convolution whose input stands within a border, so that no tap is outside.
pub(crate) struct Depthwise<'a> {
    pub(crate) arena: &'a [Cell<u8>],
    pub(crate) element: ElementType,
    /// What the epilogue's bias expects to have been subtracted from stored inputs.
    pub(crate) centre: i32,
    pub(crate) input: View,
    pub(crate) output: View,
    pub(crate) window: Window,
    pub(crate) weights: &'a DepthwiseWeights,
    pub(crate) epilogue: &'a Epilogue,
    /// Which rows of the output.
    pub(crate) rows: Range<usize>,
}

impl Depthwise<'_> {
    /// First tap of an output row. Panics unless every tap of the row, and the row itself, lie in the arena.
    pub(crate) fn check(&self, n: usize, y: usize) -> usize {
        let Window { kernel, strides, dilations, pads } = self.window;
        let centre = self.input.at(n, 0, 0) + y * strides[0] * self.input.row;
        let first = centre.checked_sub(pads[0] * self.input.row + pads[1] * self.input.pixel);
        let first = first.expect("the border holds the pads");
        let last = first
            + (kernel[0] - 1) * dilations[0] * self.input.row
            + ((self.output.shape.w - 1) * strides[1] + (kernel[1] - 1) * dilations[1])
                * self.input.pixel;
        let padded = self.output.shape.c.next_multiple_of(BLOCK);
        assert!(last + padded + BLOCK <= self.arena.len());
        let row_end = self.output.at(n, y, self.output.shape.w - 1) + self.output.shape.c;
        assert!(row_end <= self.arena.len());
        assert!(self.epilogue.bias.len() >= padded && self.epilogue.multipliers.len() >= padded);
        first
    }
}

/// In what form a table takes its weights for windows that it has fast loops for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(dead_code, reason = "each architecture has its own")]
pub(crate) enum DepthwiseForm {
    /// `[tap][channel]`, i16; every table has them for its other windows.
    Taps,
    /// The same as bytes.
    Bytes,
    /// i16, the pairs of two kernel rows side by side.
    Pairs,
    /// Bytes, fours side by side as [`Quads`] says, in slices of so many channels.
    Quads { channels: usize },
}

/// Weights of a depthwise convolution.
#[derive(Debug, Clone)]
#[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "extremes are for ARM"))]
pub(crate) struct DepthwiseWeights {
    /// `[tap][channel]`, channels padded to [`SLACK`]; none when there are fast loops that take quads.
    pub(crate) taps: Vec<i16>,
    /// The same as bytes.
    pub(crate) bytes: Vec<i8>,
    /// Whether an even tap and the next one both have the weight −128: two such products can exceed i16.
    pub(crate) extreme: bool,
    pub(crate) padded: usize,
    /// Blocks of [`DEPTHWISE_BLOCK`] channels: per kernel column, per pair of kernel rows, the pair of each channel;
    /// the row below an odd kernel is zero.
    pub(crate) pairs: Aligned,
    /// The same for the output row below, which starts one input row later: the row above the kernel is zero.
    /// Used for kernels of odd height only.
    pub(crate) shifted: Aligned,
    /// As [`Quads`] says; empty when there is no fast loop for the window.
    pub(crate) quads: Aligned,
}

impl DepthwiseWeights {
    /// From `[channel][row][column]`.
    pub(crate) fn new(
        weights: &[i8],
        channels: usize,
        window: &Window,
        form: DepthwiseForm,
        epilogue: &Epilogue,
    ) -> Self {
        let padded = channels.next_multiple_of(SLACK);
        let count = window.taps();
        let extreme = weights.chunks_exact(count).any(|window| {
            window.chunks_exact(2).any(|pair| pair[0] == i8::MIN && pair[1] == i8::MIN)
        });
        let none = || Aligned::new(0);
        let mut packed = Self {
            taps: Vec::new(),
            bytes: Vec::new(),
            extreme,
            padded,
            pairs: none(),
            shifted: none(),
            quads: none(),
        };
        if let DepthwiseForm::Quads { channels: slice } = form
            && let Some(quads) = Quads::of(window)
        {
            packed.quads = quads.pack(weights, channels, slice, epilogue);
            return packed;
        }
        packed.taps = vec![0; count * padded];
        for (channel, window) in weights.chunks_exact(count).enumerate() {
            for (tap, &weight) in window.iter().enumerate() {
                packed.taps[tap * padded + channel] = i16::from(weight);
            }
        }
        match form {
            DepthwiseForm::Bytes => {
                packed.bytes = packed.taps.iter().map(|&weight| weight as i8).collect();
            }
            DepthwiseForm::Pairs => {
                packed.pairs = pairs(weights, padded, window.kernel, 0);
                packed.shifted = pairs(weights, padded, window.kernel, 1);
            }
            _ => {}
        }
        packed
    }
}

/// Pairs of kernel rows, so many rows further down.
fn pairs(weights: &[i8], padded: usize, [rows, columns]: [usize; 2], down: usize) -> Aligned {
    let per_column = (rows + down).div_ceil(2);
    let block_words = columns * per_column * DEPTHWISE_BLOCK * 2;
    let mut pairs = Aligned::new(padded / DEPTHWISE_BLOCK * block_words * 2);
    let words = pairs.words_mut();
    for (channel, window) in weights.chunks_exact(rows * columns).enumerate() {
        let (block, lane) = (channel / DEPTHWISE_BLOCK, channel % DEPTHWISE_BLOCK);
        for (tap, &weight) in window.iter().enumerate() {
            let (row, column) = (tap / columns + down, tap % columns);
            let pair = (column * per_column + row / 2) * DEPTHWISE_BLOCK + lane;
            words[block * block_words + pair * 2 + row % 2] = i16::from(weight);
        }
    }
    pairs
}

/// Fours of taps for windows of 3², 5² and 7² that move by 1 or 2.
///
/// Packed for a slice of channels: for each of the four vectors that hold an output's sums, its bias, its multipliers,
/// and for each four of taps, for each of the output rows that share inputs, a vector of weights. The fours are those of
/// rows, column by column, and in 5² those of columns in the row that is left. Vector n of an output has the channels
/// 4 · n to 4 · n + 3 of each block of 16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quads {
    pub(crate) side: usize,
    pub(crate) step: usize,
}

impl Quads {
    /// Channels of the last slice, if so many are enough.
    pub(crate) const NARROW: usize = 32;

    pub(crate) fn of(window: &Window) -> Option<Self> {
        let Window { kernel: [side, columns], strides: [step, across], dilations, .. } = *window;
        let fits = [3, 5, 7].contains(&side) && [1, 2].contains(&step);
        (fits && columns == side && across == step && dilations == [1, 1])
            .then_some(Self { side, step })
    }

    /// Fours of rows in a column.
    pub(crate) const fn groups(self) -> usize {
        self.side.div_ceil(4) - (self.side == 5) as usize
    }

    /// Fours of taps.
    pub(crate) const fn terms(self) -> usize {
        self.groups() * self.side + if self.side == 5 { 2 } else { 0 }
    }

    /// The `nth` column of a kernel, where columns that neighbouring outputs share follow each other.
    pub(crate) const fn column(self, nth: usize) -> usize {
        let even = self.side.div_ceil(2);
        match self.step {
            1 => nth,
            _ if nth < even => 2 * nth,
            _ => 2 * (nth - even) + 1,
        }
    }

    /// Output rows that share inputs.
    pub(crate) const fn rows(self) -> usize {
        if self.step == 1 { 2 } else { 1 }
    }

    /// Vectors of bias, multipliers and weights for each vector of sums.
    pub(crate) const fn vectors(self) -> usize {
        2 + self.terms() * self.rows()
    }

    pub(crate) const fn bytes_per_channel(self) -> usize {
        self.vectors() * 4
    }

    /// First channels and widths of slices.
    pub(crate) fn slices(channels: usize, slice: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..channels).step_by(slice).map(move |first| {
            (first, if channels - first > Self::NARROW { slice } else { Self::NARROW })
        })
    }

    /// The weight of one of four taps, by output row, if it is in the window.
    fn tap(self, term: usize, nth: usize, down: usize) -> Option<usize> {
        let Self { side, .. } = self;
        let (row, column) = match term.checked_sub(self.groups() * side) {
            Some(four) => (down * (side - 1), four * 4 + nth),
            None => {
                let row = term / side * 4 + nth + usize::from(side == 5);
                (row.checked_sub(down)?, self.column(term % side))
            }
        };
        (row < side && column < side).then_some(row * side + column)
    }

    fn pack(self, weights: &[i8], channels: usize, slice: usize, epilogue: &Epilogue) -> Aligned {
        let per_channel = self.bytes_per_channel();
        let mut packed = Aligned::new(channels.next_multiple_of(Self::NARROW) * per_channel);
        let bytes = packed.bytes_mut();
        for (first, width) in Self::slices(channels, slice) {
            let windows = weights.chunks_exact(self.side * self.side).enumerate();
            for (channel, window) in windows.skip(first).take(width) {
                let (lane, vector) = ((channel - first) / BLOCK, channel % BLOCK / 4);
                let mut put = |nth: usize, four: [u8; 4]| {
                    let at = first * per_channel + (vector * self.vectors() + nth) * width;
                    let at = at + lane * BLOCK + channel % 4 * 4;
                    bytes[at..at + 4].copy_from_slice(&four);
                };
                put(0, epilogue.bias[channel].to_ne_bytes());
                put(1, epilogue.multipliers[channel].to_ne_bytes());
                for term in 0..self.terms() {
                    for down in 0..self.rows() {
                        let tap =
                            |nth| self.tap(term, nth, down).map_or(0, |tap| window[tap] as u8);
                        put(2 + term * self.rows() + down, std::array::from_fn(tap));
                    }
                }
            }
        }
        packed
    }
}
