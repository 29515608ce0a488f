//! Depthwise convolution with AVX2: 8 channels at a time along a row, the columns of the window kept in registers.
//!
//! Two kernel rows are interleaved byte by byte and widened, so that one `vpmaddwd` does two taps of 8 channels.

use std::arch::x86_64::*;

use crate::kernels::avx2::{Requantise, scale, store};
use crate::kernels::{DEPTHWISE_BLOCK, Depthwise, portable};
use crate::operator::Window;
use crate::tensor::ElementType;

/// All windows; 3×3, 5×5 and 7×7 with stride 1 or 2 are fast.
pub(crate) fn takes(_: &Window) -> bool {
    true
}

/// One image: two output rows at a time where the stride lets them share what is loaded.
pub(crate) fn image(call: &Depthwise<'_>, n: usize) {
    #[target_feature(enable = "avx2,fma")]
    fn any(call: &Depthwise<'_>, n: usize) {
        portable::depthwise(call, n);
    }
    let Window { kernel, strides, dilations, .. } = call.window;
    let signed = call.element == ElementType::S8;
    // SAFETY: the table is handed out only after `is_available`.
    unsafe {
        match (kernel, strides, dilations, signed) {
            ([3, 3], [1, 1], [1, 1], false) => rows::<3, 2, 1, false, 2>(call, n),
            ([3, 3], [1, 1], [1, 1], true) => rows::<3, 2, 1, true, 2>(call, n),
            ([3, 3], [2, 2], [1, 1], false) => rows::<3, 2, 2, false, 1>(call, n),
            ([3, 3], [2, 2], [1, 1], true) => rows::<3, 2, 2, true, 1>(call, n),
            ([5, 5], [1, 1], [1, 1], false) => rows::<5, 3, 1, false, 2>(call, n),
            ([5, 5], [1, 1], [1, 1], true) => rows::<5, 3, 1, true, 2>(call, n),
            ([5, 5], [2, 2], [1, 1], false) => rows::<5, 3, 2, false, 1>(call, n),
            ([5, 5], [2, 2], [1, 1], true) => rows::<5, 3, 2, true, 1>(call, n),
            ([7, 7], [1, 1], [1, 1], false) => rows::<7, 4, 1, false, 2>(call, n),
            ([7, 7], [1, 1], [1, 1], true) => rows::<7, 4, 1, true, 2>(call, n),
            ([7, 7], [2, 2], [1, 1], false) => rows::<7, 4, 2, false, 1>(call, n),
            ([7, 7], [2, 2], [1, 1], true) => rows::<7, 4, 2, true, 1>(call, n),
            _ => any(call, n),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn rows<
    const SIDE: usize,
    const PAIRS: usize,
    const STEP: usize,
    const SIGNED: bool,
    const ROWS: usize,
>(
    call: &Depthwise<'_>,
    n: usize,
) {
    let mut y = call.rows.start;
    while y < call.rows.end {
        let first = call.check(n, y);
        if ROWS == 2 && y + 1 < call.rows.end {
            call.check(n, y + 1);
            // SAFETY: both rows were checked, and `first` is the upper one's.
            unsafe { sweep::<SIDE, PAIRS, STEP, SIGNED, 2>(call, n, y, first) };
            y += 2;
        } else {
            // SAFETY: the row was checked.
            unsafe { sweep::<SIDE, PAIRS, STEP, SIGNED, 1>(call, n, y, first) };
            y += 1;
        }
    }
}

/// `ROWS` output rows under a window of `SIDE` columns, each of `PAIRS` pairs of rows, moved by `STEP`. A second row
/// takes the same pairs with weights shifted down by one.
///
/// # Safety
/// `first` comes from [`Depthwise::check`] of row `y`; with two rows the stride is 1 and the next row is checked too.
#[target_feature(enable = "avx2,fma")]
unsafe fn sweep<
    const SIDE: usize,
    const PAIRS: usize,
    const STEP: usize,
    const SIGNED: bool,
    const ROWS: usize,
>(
    call: &Depthwise<'_>,
    n: usize,
    y: usize,
    first: usize,
) {
    let shape = call.output.shape;
    let requantise = Requantise::new(call.epilogue);
    let is_plain = call.epilogue.is_plain();
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let (row, pixel) = (call.input.row, call.input.pixel);
    let packed = [call.weights.pairs.words().as_ptr(), call.weights.shifted.words().as_ptr()];
    for channel in (0..shape.c).step_by(DEPTHWISE_BLOCK) {
        let length = (shape.c - channel).min(DEPTHWISE_BLOCK);
        // SAFETY: check() covers every tap of the rows for whole blocks of channels, and the output rows; weights,
        // bias and multipliers are padded to whole blocks.
        unsafe {
            let weights: [[[__m256i; ROWS]; PAIRS]; SIDE] = std::array::from_fn(|column| {
                std::array::from_fn(|pair| {
                    std::array::from_fn(|row| {
                        let words = packed[row].add(channel * SIDE * PAIRS * 2);
                        _mm256_loadu_si256(words.add((column * PAIRS + pair) * 16).cast())
                    })
                })
            });
            let bias = _mm256_loadu_si256(call.epilogue.bias.as_ptr().add(channel).cast());
            let multiplier = _mm256_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel));
            let mut from = arena.add(first + channel).cast_const();
            let mut to = arena.add(call.output.at(n, y, 0) + channel);
            let mut columns = [[_mm256_setzero_si256(); PAIRS]; SIDE];
            for column in &mut columns[..SIDE - STEP] {
                *column = load::<SIDE, PAIRS, SIGNED, ROWS>(from, row);
                from = from.add(pixel);
            }
            for _ in 0..shape.w {
                for column in 0..STEP {
                    let from = from.wrapping_add(column * pixel);
                    columns[SIDE - STEP + column] = load::<SIDE, PAIRS, SIGNED, ROWS>(from, row);
                }
                from = from.wrapping_add(STEP * pixel);
                let mut sums = [bias; ROWS];
                for column in 0..SIDE {
                    for pair in 0..PAIRS {
                        for row in 0..ROWS {
                            let weights = weights[column][pair][row];
                            let products = _mm256_madd_epi16(columns[column][pair], weights);
                            sums[row] = _mm256_add_epi32(sums[row], products);
                        }
                    }
                }
                let bytes = if is_plain {
                    let [first, last] = [sums[0], sums[ROWS - 1]].map(|sums| {
                        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums), multiplier))
                    });
                    requantise.plain(first, last)
                } else {
                    let (first, last) =
                        (scale(sums[0], multiplier), scale(sums[ROWS - 1], multiplier));
                    requantise.bytes(requantise.words(first, last))
                };
                if length == DEPTHWISE_BLOCK {
                    _mm_storel_epi64(to.cast(), bytes);
                    if ROWS == 2 {
                        _mm_storeh_pd(to.add(call.output.row).cast(), _mm_castsi128_pd(bytes));
                    }
                } else {
                    store(to, bytes, length);
                    if ROWS == 2 {
                        store(to.add(call.output.row), _mm_unpackhi_epi64(bytes, bytes), length);
                    }
                }
                to = to.wrapping_add(call.output.pixel);
                for column in 0..SIDE - STEP {
                    columns[column] = columns[column + STEP];
                }
            }
        }
    }
}

/// One column of the window: its rows in pairs, 8 channels. A single row's last pair has no lower half.
///
/// # Safety
/// 8 bytes are readable at each of `SIDE + ROWS - 1` rows from `from`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<const SIDE: usize, const PAIRS: usize, const SIGNED: bool, const ROWS: usize>(
    from: *const u8,
    row: usize,
) -> [__m256i; PAIRS] {
    std::array::from_fn(|pair| {
        // SAFETY: rows 2 · pair and, if there is one, 2 · pair + 1, by contract.
        unsafe {
            let upper = _mm_loadl_epi64(from.add(2 * pair * row).cast());
            if 2 * pair + 1 == SIDE + ROWS - 1 {
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
