//! Depthwise convolution with AVX2: 8 channels at a time along a row, the columns of the window kept in registers.
//!
//! Two kernel rows are interleaved byte by byte and widened, so that one `vpmaddwd` does two taps of 8 channels.

use std::arch::x86_64::*;

use crate::kernels::avx2::{Requantise, bytes, scale, store};
use crate::kernels::{DEPTHWISE_BLOCK, Depthwise, portable};
use crate::operator::Window;
use crate::tensor::ElementType;

/// All windows; 3×3, 5×5 and 7×7 with stride 1 or 2 are fast.
pub(crate) fn takes(_: &Window) -> bool {
    true
}

/// One output row.
pub(crate) fn row(call: &Depthwise<'_>, n: usize, y: usize) {
    #[target_feature(enable = "avx2,fma")]
    fn any(call: &Depthwise<'_>, n: usize, y: usize) {
        portable::depthwise(call, n, y);
    }
    let Window { kernel, strides, dilations, .. } = call.window;
    let first = call.check(n, y);
    // SAFETY: the table is handed out only after `is_available`; the row's reach was checked.
    unsafe {
        match (kernel, strides[1], dilations, call.element) {
            ([3, 3], 1, [1, 1], ElementType::U8) => sweep::<3, 2, 1, false>(call, n, y, first),
            ([3, 3], 1, [1, 1], ElementType::S8) => sweep::<3, 2, 1, true>(call, n, y, first),
            ([3, 3], 2, [1, 1], ElementType::U8) => sweep::<3, 2, 2, false>(call, n, y, first),
            ([3, 3], 2, [1, 1], ElementType::S8) => sweep::<3, 2, 2, true>(call, n, y, first),
            ([5, 5], 1, [1, 1], ElementType::U8) => sweep::<5, 3, 1, false>(call, n, y, first),
            ([5, 5], 1, [1, 1], ElementType::S8) => sweep::<5, 3, 1, true>(call, n, y, first),
            ([5, 5], 2, [1, 1], ElementType::U8) => sweep::<5, 3, 2, false>(call, n, y, first),
            ([5, 5], 2, [1, 1], ElementType::S8) => sweep::<5, 3, 2, true>(call, n, y, first),
            ([7, 7], 1, [1, 1], ElementType::U8) => sweep::<7, 4, 1, false>(call, n, y, first),
            ([7, 7], 1, [1, 1], ElementType::S8) => sweep::<7, 4, 1, true>(call, n, y, first),
            ([7, 7], 2, [1, 1], ElementType::U8) => sweep::<7, 4, 2, false>(call, n, y, first),
            ([7, 7], 2, [1, 1], ElementType::S8) => sweep::<7, 4, 2, true>(call, n, y, first),
            _ => any(call, n, y),
        }
    }
}

/// A window of `SIDE` columns, each of `PAIRS` pairs of rows, moved by `STEP`.
///
/// # Safety
/// `first` comes from [`Depthwise::check`] of this row.
#[target_feature(enable = "avx2,fma")]
unsafe fn sweep<const SIDE: usize, const PAIRS: usize, const STEP: usize, const SIGNED: bool>(
    call: &Depthwise<'_>,
    n: usize,
    y: usize,
    first: usize,
) {
    let shape = call.output.shape;
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let (row, pixel) = (call.input.row, call.input.pixel);
    for channel in (0..shape.c).step_by(DEPTHWISE_BLOCK) {
        let length = (shape.c - channel).min(DEPTHWISE_BLOCK);
        // SAFETY: check() covers every tap of the row for whole blocks of channels, and the output row; weights, bias
        // and multipliers are padded to whole blocks.
        unsafe {
            let words = call.weights.pairs.words().as_ptr().add(channel * SIDE * PAIRS * 2);
            let weights: [[__m256i; PAIRS]; SIDE] = std::array::from_fn(|column| {
                std::array::from_fn(|pair| {
                    _mm256_loadu_si256(words.add((column * PAIRS + pair) * 16).cast())
                })
            });
            let bias = _mm256_loadu_si256(call.epilogue.bias.as_ptr().add(channel).cast());
            let multiplier = _mm256_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel));
            let mut from = arena.add(first + channel).cast_const();
            let mut to = arena.add(call.output.at(n, y, 0) + channel);
            let mut columns = [[_mm256_setzero_si256(); PAIRS]; SIDE];
            for column in 0..SIDE - STEP {
                columns[column] = load::<SIDE, PAIRS, SIGNED>(from, row);
                from = from.add(pixel);
            }
            for _ in 0..shape.w {
                for column in 0..STEP {
                    let from = from.wrapping_add(column * pixel);
                    columns[SIDE - STEP + column] = load::<SIDE, PAIRS, SIGNED>(from, row);
                }
                from = from.wrapping_add(STEP * pixel);
                let mut sum = bias;
                for column in 0..SIDE {
                    for pair in 0..PAIRS {
                        let products =
                            _mm256_madd_epi16(columns[column][pair], weights[column][pair]);
                        sum = _mm256_add_epi32(sum, products);
                    }
                }
                let value = scale(sum, multiplier);
                store(to, bytes(requantise.words(value, value)), length);
                to = to.wrapping_add(call.output.pixel);
                for column in 0..SIDE - STEP {
                    columns[column] = columns[column + STEP];
                }
            }
        }
    }
}

/// One column of the window: its rows in pairs, 8 channels; the row below an odd one is zero.
///
/// # Safety
/// 8 bytes are readable at each of `SIDE` rows from `from`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<const SIDE: usize, const PAIRS: usize, const SIGNED: bool>(
    from: *const u8,
    row: usize,
) -> [__m256i; PAIRS] {
    std::array::from_fn(|pair| {
        // SAFETY: rows 2 · pair and, if there is one, 2 · pair + 1, by contract.
        unsafe {
            let upper = _mm_loadl_epi64(from.add(2 * pair * row).cast());
            if 2 * pair + 1 == SIDE {
                // The weight of the other half is zero, so its sign bits do not matter.
                return if SIGNED {
                    _mm256_cvtepi8_epi32(upper)
                } else {
                    _mm256_cvtepu8_epi32(upper)
                };
            }
            let lower = _mm_loadl_epi64(from.add((2 * pair + 1) * row).cast());
            let both = _mm_unpacklo_epi8(upper, lower);
            if SIGNED { _mm256_cvtepi8_epi16(both) } else { _mm256_cvtepu8_epi16(both) }
        }
    })
}
