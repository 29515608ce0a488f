//! 3×3 convolutions with stride 1 by Winograd's F(2×2, 3×3) and F(4×4, 3×3), in integers: 16 products for 4 outputs, or
//! 36 for 16, instead of 9 for each.
//!
//! The transforms are scaled so that no fraction is left, and sums may wrap on the way: what comes out is a known
//! multiple of the plain sum, modulo 2³². For 2×2 that is 4; for 4×4 it is 9 · 2ⁿ with n up to 6, and 9 has an inverse
//! modulo 2³². So a shift gives the very bits of a direct convolution as long as 2ⁿ times the plain sum is below 2³¹:
//! for 2×2 with up to [`MOST_CHANNELS`] input channels, for 4×4 when the weights say so ([`Form::choose`]). Transformed
//! inputs (at most 4 · 255 and 68 · 255), weights (at most 9 · 128 and 49 · 128) and the sum of both fit i16. (Lavin and Gray, Fast
//! Algorithms for Convolutional Neural Networks, 2015.)

use std::cell::Cell;
use std::ops::Range;

use crate::kernels::aligned::Aligned;
use crate::kernels::gather::OVERRUN;
use crate::kernels::{BLOCK, Epilogue, PAIRS_STEP};
use crate::operator::Window;
use crate::tensor::{ElementType, Shape};
use crate::view::View;

/// 4 · 9 · 255 · 128 times this is below 2³¹.
const MOST_CHANNELS: usize = 1800;
/// Fewer channels than this do not pay for the transforms.
const FEWEST_CHANNELS: usize = 16;
/// With more bytes of transformed weights for each tile of 4 × 4, reading them takes longer than multiplying.
const MOST_BYTES: usize = 48 << 10;
/// Tiles that are transformed and multiplied at once, at most: more transformed inputs would not stay in a second-level cache.
pub(crate) const TILES: usize = 28;
/// Tiles at once are best a multiple of this, the rows of a product.
pub(crate) const TILES_STEP: usize = 4;
/// Places of a tile at most.
pub(crate) const PLACES: usize = 36;
/// Of a place's weights the first ones, as many as so many depths have, are the i32 with which the sums of a block's channels
/// start: what Winograd's inner product subtracts for the weights.
pub(crate) const START: usize = 2;

/// The outputs of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Two,
    Four,
}

impl Form {
    /// Outputs of a tile along an axis.
    pub(crate) const fn outputs(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Inputs of a tile along an axis.
    pub(crate) const fn inputs(self) -> usize {
        self.outputs() + 2
    }

    /// Places of a transformed tile.
    pub(crate) const fn places(self) -> usize {
        self.inputs() * self.inputs()
    }

    /// Tiles down and across a picture.
    pub(crate) fn tiles(self, shape: Shape) -> [usize; 2] {
        [shape.h.div_ceil(self.outputs()), shape.w.div_ceil(self.outputs())]
    }

    /// The form with the fewest products for a convolution whose groups have so many inputs and outputs, if it can be
    /// computed so and gains by it. `weights` are `[channel][depth]`.
    pub(crate) fn choose(
        window: &Window,
        [inputs, outputs]: [usize; 2],
        shape: Shape,
        element: ElementType,
        weights: &[i8],
    ) -> Option<Self> {
        let Window { kernel, strides, dilations, .. } = *window;
        let takes = (kernel, strides, dilations) == ([3, 3], [1, 1], [1, 1])
            && (FEWEST_CHANNELS..=MOST_CHANNELS).contains(&inputs)
            && outputs >= FEWEST_CHANNELS;
        if !takes {
            return None;
        }
        let tiles = |form: Self| form.tiles(shape).iter().product::<usize>();
        let products = |form: Self| form.places() * tiles(form);
        let fewer = 10 * products(Self::Four) < 9 * products(Self::Two);
        let bytes = 2 * Self::Four.places() * inputs * outputs;
        let pays = fewer && bytes <= MOST_BYTES * tiles(Self::Four);
        Some(match pays && is_small(element, weights, 9 * inputs) {
            true => Self::Four,
            false => Self::Two,
        })
    }

    /// Bytes of scratch for [`Winograd`] with so many input channels.
    pub(crate) fn scratch_bytes(self, inputs: usize) -> usize {
        self.places() * TILES * (inputs.next_multiple_of(16) * 2 + BLOCK * 4)
            + inputs.next_multiple_of(64)
            + 64
    }

    /// Transformed weights of one group, `[channel][row][column][input]`: blocks of [`BLOCK`] channels; per place, the
    /// [`START`] and the pairs of depths as in `Packing::Pairs`.
    pub(crate) fn pack(self, weights: &[i8], channels: usize) -> (Aligned, usize) {
        match self {
            Self::Two => pack(weights, channels, |[a, b, c]| [2 * a, a + b + c, a - b + c, 2 * c]),
            Self::Four => pack(weights, channels, |[a, b, c]| {
                let (even, odd) = (a + 4 * c, 2 * b);
                [a, -(a + b + c), b - a - c, even + odd, even - odd, c]
            }),
        }
    }
}

/// Whether no sum, whatever the inputs, reaches 2²⁵.
fn is_small(element: ElementType, weights: &[i8], depth: usize) -> bool {
    weights.chunks_exact(depth).all(|weights| {
        let (mut above, mut below) = (0i64, 0i64);
        for &weight in weights {
            let weight = i64::from(weight);
            above += weight.max(0);
            below -= weight.min(0);
        }
        let most = match element {
            ElementType::U8 => 255 * above.max(below),
            ElementType::S8 => 128 * (above + below),
        };
        most < 1 << 25
    })
}

/// See [`Form::pack`]; `transform` is G · g, scaled, and applied along both axes.
#[inline(always)]
fn pack<const SIDE: usize>(
    weights: &[i8],
    channels: usize,
    transform: impl Fn([i16; 3]) -> [i16; SIDE],
) -> (Aligned, usize) {
    /// A pair of depths for each channel of a block: transformed at once, in vectors.
    const LANES: usize = 2 * BLOCK;
    let places = SIDE * SIDE;
    let inputs = weights.len() / channels / 9;
    let depth = inputs.next_multiple_of(PAIRS_STEP);
    let size = (START + depth) * BLOCK;
    let mut values = Aligned::new(channels.div_ceil(BLOCK) * places * size * 2);
    let blocks = values.words_mut().chunks_exact_mut(places * size);
    for (packed, windows) in blocks.zip(weights.chunks(BLOCK * 9 * inputs)) {
        for pair in 0..inputs.div_ceil(2) {
            let mut taps = [[0; LANES]; 9];
            for (channel, window) in windows.chunks_exact(9 * inputs).enumerate() {
                for input in 2 * pair..inputs.min(2 * pair + 2) {
                    for (tap, taps) in taps.iter_mut().enumerate() {
                        taps[2 * channel + input % 2] = i16::from(window[tap * inputs + input]);
                    }
                }
            }
            let mut half = [[[0; LANES]; 3]; SIDE];
            for column in 0..3 {
                for lane in 0..LANES {
                    let values = transform([0, 1, 2].map(|row| taps[3 * row + column][lane]));
                    for (half, value) in half.iter_mut().zip(values) {
                        half[column][lane] = value;
                    }
                }
            }
            for (row, half) in half.iter().enumerate() {
                let mut whole = [[0; LANES]; SIDE];
                for lane in 0..LANES {
                    let values = transform([0, 1, 2].map(|column| half[column][lane]));
                    for (whole, value) in whole.iter_mut().zip(values) {
                        whole[lane] = value;
                    }
                }
                for (column, whole) in whole.iter().enumerate() {
                    let place = SIDE * row + column;
                    let at = place * size + START * BLOCK + pair * LANES;
                    packed[at..][..LANES].copy_from_slice(whole);
                }
            }
        }
        packed.chunks_exact_mut(size).for_each(start::<LANES>);
    }
    (values, depth)
}

/// Fills in the [`START`] of a place's weights: −Σ (w₀w₂ + w₁w₃) over each four depths of a channel.
#[inline(always)]
fn start<const LANES: usize>(place: &mut [i16]) {
    let (start, weights) = place.split_at_mut(START * BLOCK);
    let mut sums = [0i32; BLOCK];
    for step in weights.chunks_exact(2 * LANES) {
        let (near, far) = step.split_at(LANES);
        for (lane, sum) in sums.iter_mut().enumerate() {
            let product = |at: usize| i32::from(near[at]) * i32::from(far[at]);
            *sum = sum.wrapping_sub(product(2 * lane) + product(2 * lane + 1));
        }
    }
    for (words, sum) in start.chunks_exact_mut(2).zip(sums) {
        let bytes = sum.to_ne_bytes();
        words[0] = i16::from_ne_bytes([bytes[0], bytes[1]]);
        words[1] = i16::from_ne_bytes([bytes[2], bytes[3]]);
    }
}

/// Some tiles of one image of such a convolution.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels are for x86"))]
pub(crate) struct Winograd<'a> {
    pub(crate) form: Form,
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
    /// Which tiles, counted row by row: at most [`TILES`].
    pub(crate) tiles: Range<usize>,
    /// Which output channels; starts at a block.
    pub(crate) channels: Range<usize>,
    /// From [`Form::pack`].
    pub(crate) weights: &'a Aligned,
    /// Inputs, rounded up as [`Form::pack`] says.
    pub(crate) depth: usize,
    pub(crate) epilogue: &'a Epilogue,
}

#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels are for x86"))]
impl Winograd<'_> {
    /// Panics unless everything lies where the kernels will touch.
    pub(crate) fn check(&self, scratch: &Aligned) {
        let (inputs, outputs) = (self.input.shape.c, self.output.shape.c);
        let padded = outputs.next_multiple_of(BLOCK);
        let [down, across] = self.form.tiles(self.output.shape);
        assert!(self.tiles.end <= down * across && self.tiles.len() <= TILES);
        assert!(self.channels.start.is_multiple_of(BLOCK) && self.channels.end <= outputs);
        assert!(self.depth >= inputs && self.depth <= inputs.next_multiple_of(16));
        assert!(self.depth.is_multiple_of(PAIRS_STEP));
        assert!(self.input.end() + OVERRUN <= self.arena.len());
        assert!(self.output.end() <= self.arena.len());
        assert!(self.weights.len() >= padded * self.form.places() * (START + self.depth) * 2);
        assert!(self.epilogue.bias.len() >= padded && self.epilogue.multipliers.len() >= padded);
        assert!(scratch.len() >= self.form.scratch_bytes(inputs));
        assert!(self.image < self.input.shape.n && self.image < self.output.shape.n);
        assert!(self.other.is_some() == self.epilogue.sum.is_some());
        if let Some(other) = &self.other {
            assert!(other.shape == self.output.shape && other.end() + BLOCK <= self.arena.len());
        }
    }

    /// Offset of the input pixel under a place (row, column) of a tile, if it lies in the picture.
    #[inline(always)]
    pub(crate) fn pixel(&self, tile: [usize; 2], place: [usize; 2]) -> Option<usize> {
        let outputs = self.form.outputs();
        let y = (outputs * tile[0] + place[0]).checked_sub(self.pads[0])?;
        let x = (outputs * tile[1] + place[1]).checked_sub(self.pads[1])?;
        let inside = y < self.input.shape.h && x < self.input.shape.w;
        inside.then(|| self.input.at(self.image, y, x))
    }
}
