//! 3×3 convolutions with stride 1 by Winograd's F(2×2, 3×3), in integers: 16 products for 4 outputs instead of 36.
//!
//! The transform of the weights is scaled by 4 so that no fraction is left; sums may wrap on the way, and what comes
//! out is four times the plain sum, modulo 2³². That is below 2³¹ for up to [`MOST_CHANNELS`] input channels, so a
//! shift by two gives the very bits of a direct convolution. Transformed inputs (at most 4 · 255) and weights (at most
//! 9 · 128) fit i16. (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015.)

use std::cell::Cell;

use crate::kernels::aligned::Aligned;
use crate::kernels::gather::OVERRUN;
use crate::kernels::{BLOCK, Epilogue, PAIRS_STEP};
use crate::operator::Window;
use crate::tensor::ElementType;
use crate::view::View;

/// 4 · 9 · 255 · 128 times this is below 2³¹.
const MOST_CHANNELS: usize = 1800;
/// Fewer channels than this do not pay for the transforms.
const FEWEST_CHANNELS: usize = 16;
/// Places of a transformed tile of 4 × 4.
pub(crate) const PLACES: usize = 16;
/// Tiles of 2 × 2 outputs that are multiplied at once: their products stay in the first-level cache.
pub(crate) const TILES: usize = 24;

/// Whether a convolution of one group can be computed so, and gains by it.
pub(crate) fn takes(window: &Window, inputs: usize, outputs: usize) -> bool {
    let Window { kernel, strides, dilations, .. } = *window;
    (kernel, strides, dilations) == ([3, 3], [1, 1], [1, 1])
        && (FEWEST_CHANNELS..=MOST_CHANNELS).contains(&inputs)
        && outputs >= FEWEST_CHANNELS
}

/// Bytes of scratch for [`Winograd`] with so many input channels.
pub(crate) fn scratch_bytes(inputs: usize) -> usize {
    TILES * (PLACES * inputs.next_multiple_of(16) * 2 + PLACES * BLOCK * 4)
        + inputs.next_multiple_of(64)
        + 64
}

/// Transformed weights of one group, `[channel][row][column][input]`: blocks of [`BLOCK`] channels; per place, the
/// pairs of depths as in `Packing::Pairs`.
pub(crate) fn pack(weights: &[i8], channels: usize) -> (Aligned, usize) {
    let inputs = weights.len() / channels / 9;
    let depth = inputs.next_multiple_of(PAIRS_STEP);
    let mut values = Aligned::new(channels.next_multiple_of(BLOCK) * PLACES * depth * 2);
    let packed = values.words_mut();
    for (channel, window) in weights.chunks_exact(9 * inputs).enumerate() {
        let block = channel / BLOCK * BLOCK * PLACES * depth;
        for input in 0..inputs {
            let tap =
                |row: usize, column: usize| i16::from(window[(row * 3 + column) * inputs + input]);
            let [first, second, third] =
                [0, 1, 2].map(|column| doubled([tap(0, column), tap(1, column), tap(2, column)]));
            for (row, ((a, b), c)) in first.into_iter().zip(second).zip(third).enumerate() {
                for (column, value) in doubled([a, b, c]).into_iter().enumerate() {
                    let place = 4 * row + column;
                    let pair = (place * depth / 2 + input / 2) * BLOCK + channel % BLOCK;
                    packed[block + pair * 2 + input % 2] = value;
                }
            }
        }
    }
    (values, depth)
}

/// Twice G · g; applied along both axes, four times.
#[inline(always)]
fn doubled([a, b, c]: [i16; 3]) -> [i16; 4] {
    [2 * a, a + b + c, a - b + c, 2 * c]
}

/// One image of such a convolution.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels are for x86"))]
pub(crate) struct Winograd<'a> {
    pub(crate) arena: &'a [Cell<u8>],
    pub(crate) element: ElementType,
    /// The byte that pads.
    pub(crate) zero: u8,
    /// The channels of one group.
    pub(crate) input: View,
    pub(crate) output: View,
    /// Of the residual sum, when the epilogue has one.
    pub(crate) other: Option<View>,
    /// Top, left.
    pub(crate) pads: [usize; 2],
    pub(crate) image: usize,
    /// From [`pack`].
    pub(crate) weights: &'a Aligned,
    /// Inputs, rounded up as [`pack`] says.
    pub(crate) depth: usize,
    pub(crate) epilogue: &'a Epilogue,
}

#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels are for x86"))]
impl Winograd<'_> {
    /// Panics unless everything lies where the kernels will touch.
    pub(crate) fn check(&self, scratch: &Aligned) {
        let (inputs, outputs) = (self.input.shape.c, self.output.shape.c);
        let padded = outputs.next_multiple_of(BLOCK);
        assert!(self.depth >= inputs && self.depth <= inputs.next_multiple_of(16));
        assert!(self.input.end() + OVERRUN <= self.arena.len());
        assert!(self.output.end() <= self.arena.len());
        assert!(self.weights.len() >= padded * PLACES * self.depth * 2);
        assert!(self.epilogue.bias.len() >= padded && self.epilogue.multipliers.len() >= padded);
        assert!(scratch.len() >= scratch_bytes(inputs));
        assert!(self.image < self.input.shape.n && self.image < self.output.shape.n);
        assert!(self.other.is_some() == self.epilogue.sum.is_some());
        if let Some(other) = &self.other {
            assert!(other.shape == self.output.shape && other.end() + BLOCK <= self.arena.len());
        }
    }

    /// Tiles down and across.
    pub(crate) fn tiles(&self) -> [usize; 2] {
        [self.output.shape.h.div_ceil(2), self.output.shape.w.div_ceil(2)]
    }

    /// Offset of the input pixel under a place of a tile, if it lies in the picture.
    #[inline(always)]
    pub(crate) fn pixel(&self, tile: [usize; 2], place: usize) -> Option<usize> {
        let y = (2 * tile[0] + place / 4).checked_sub(self.pads[0])?;
        let x = (2 * tile[1] + place % 4).checked_sub(self.pads[1])?;
        let inside = y < self.input.shape.h && x < self.input.shape.w;
        inside.then(|| self.input.at(self.image, y, x))
    }
}
