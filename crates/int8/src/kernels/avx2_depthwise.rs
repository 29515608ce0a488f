//! Depthwise convolution with AVX2: two output rows at a time, 8 channels along them, then 32 channels to bytes.
//!
//! Two kernel rows are interleaved byte by byte and widened, so that one `vpmaddwd` does two taps of 8 channels.

use std::arch::x86_64::*;

use crate::kernels::avx2_epilogue::store;
use crate::kernels::avx2_leave::opaque;
use crate::kernels::depthwise::{DEPTHWISE_BLOCK, Depthwise};
use crate::kernels::portable;
use crate::operator::Window;
use crate::tensor::ElementType;

/// Blocks of channels whose sums are taken before they become bytes: 32 bytes, a store.
const BLOCKS: usize = 4;
/// Input columns of a part of a row, but for the window's overhang: with a cache line for each pixel, their sums and their
/// outputs they stay in the first-level cache for one block of channels after the other.
const PART: usize = 28;

/// Sums of one pixel.
type Sums = [__m256i; BLOCKS];

/// All windows; 3×3, 5×5 and 7×7 with stride 1 or 2 are fast.
pub(crate) fn takes(_: &Window) -> bool {
    true
}

/// One image.
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
            ([3, 3], [1, 1], [1, 1], false) => rows::<3, 1, false>(call, n),
            ([3, 3], [1, 1], [1, 1], true) => rows::<3, 1, true>(call, n),
            ([3, 3], [2, 2], [1, 1], false) => rows::<3, 2, false>(call, n),
            ([3, 3], [2, 2], [1, 1], true) => rows::<3, 2, true>(call, n),
            ([5, 5], [1, 1], [1, 1], false) => rows::<5, 1, false>(call, n),
            ([5, 5], [1, 1], [1, 1], true) => rows::<5, 1, true>(call, n),
            ([5, 5], [2, 2], [1, 1], false) => rows::<5, 2, false>(call, n),
            ([5, 5], [2, 2], [1, 1], true) => rows::<5, 2, true>(call, n),
            ([7, 7], [1, 1], [1, 1], false) => rows::<7, 1, false>(call, n),
            ([7, 7], [1, 1], [1, 1], true) => rows::<7, 1, true>(call, n),
            ([7, 7], [2, 2], [1, 1], false) => rows::<7, 2, false>(call, n),
            ([7, 7], [2, 2], [1, 1], true) => rows::<7, 2, true>(call, n),
            _ => any(call, n),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn rows<const SIDE: usize, const STEP: usize, const SIGNED: bool>(call: &Depthwise<'_>, n: usize) {
    let mut sums = [[_mm256_setzero_si256(); BLOCKS]; 2 * PART];
    let mut y = call.rows.start;
    while y < call.rows.end {
        let first = call.check(n, y);
        if y + 1 < call.rows.end {
            call.check(n, y + 1);
            // SAFETY: both rows were checked, and `first` is the upper one's.
            unsafe { sweep::<SIDE, STEP, SIGNED, 2>(call, n, y, first, &mut sums) };
            y += 2;
        } else {
            // SAFETY: the row was checked.
            unsafe { sweep::<SIDE, STEP, SIGNED, 1>(call, n, y, first, &mut sums) };
            y += 1;
        }
    }
}

/// `ROWS` output rows under a window of `SIDE` columns that moves by `STEP`, part by part: first all sums, then all bytes.
/// Pixel by pixel, the long way from sums to bytes would fill the processor's queues with what has to wait.
///
/// # Safety
/// `first` comes from [`Depthwise::check`] of row `y`; with two rows the next one is checked too.
#[target_feature(enable = "avx2,fma")]
unsafe fn sweep<const SIDE: usize, const STEP: usize, const SIGNED: bool, const ROWS: usize>(
    call: &Depthwise<'_>,
    n: usize,
    y: usize,
    first: usize,
    sums: &mut [Sums; 2 * PART],
) {
    let shape = call.output.shape;
    for x in (0..shape.w).step_by(PART / STEP) {
        let width = (shape.w - x).min(PART / STEP);
        for group in (0..shape.c).step_by(BLOCKS * DEPTHWISE_BLOCK) {
            let end = shape.c.min(group + BLOCKS * DEPTHWISE_BLOCK);
            for channel in (group..end).step_by(DEPTHWISE_BLOCK) {
                let from = first + x * STEP * call.input.pixel + channel;
                let to = sums.as_mut_ptr().cast::<__m256i>();
                // SAFETY: pixels and channels exist; there is room for the sums of both rows.
                unsafe {
                    let to = to.add((channel - group) / DEPTHWISE_BLOCK);
                    add_up::<SIDE, STEP, SIGNED, ROWS>(call, channel, from, to, width);
                }
            }
            for row in 0..ROWS {
                let to = call.output.at(n, y + row, x) + group;
                let sums = &sums[row * PART..][..width];
                // SAFETY: pixels and channels exist, and check() has seen their rows.
                unsafe { leave(call, sums, group, to, end - group) };
            }
        }
    }
}

/// The sums of 8 channels of `width` pixels, [`BLOCKS`] from one to the next, [`PART`] pixels from one row to the next.
/// Each column of inputs is read once and enters the sums of all windows that it is in, so what moves along the row are
/// the sums of windows that are not complete: no instruction is spent on that. Of two rows, the lower one takes the
/// same pairs of input rows with weights shifted down by one (stride 1), or those from the second pair on.
///
/// # Safety
/// `from` is the offset of the first tap in rows that [`Depthwise::check`] has seen, and `width` pixels are left in
/// them; at `to` there is room for as many sums in `ROWS` rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn add_up<const SIDE: usize, const STEP: usize, const SIGNED: bool, const ROWS: usize>(
    call: &Depthwise<'_>,
    channel: usize,
    from: usize,
    mut to: *mut __m256i,
    width: usize,
) {
    let (row, pixel) = (call.input.row, call.input.pixel);
    // SAFETY: check() covers every tap of the rows for whole blocks of channels; weights and bias are padded to such.
    unsafe {
        let block = channel * SIDE * SIDE.div_ceil(2) * 2;
        let packed = [&call.weights.pairs, &call.weights.shifted];
        let packed = packed.map(|packed| packed.words().as_ptr().add(block));
        let mut from = call.arena.as_ptr().cast::<u8>().add(from);
        let bias = _mm256_loadu_si256(call.epilogue.bias.as_ptr().add(channel).cast());
        // Of windows that are not complete, the leftmost one first.
        let mut sums = [[bias; SIDE]; ROWS];
        // A column of inputs, which is the given one of the leftmost of so many windows.
        macro_rules! take {
            ($column:expr, $windows:expr) => {{
                let (column, windows): (usize, usize) = ($column, $windows);
                // Otherwise there would be a pointer for each row, and weights put aside on the stack.
                let (start, weights) = (opaque(from), packed.map(opaque));
                from = start.wrapping_add(pixel);
                for pair in 0..(SIDE + (ROWS - 1) * STEP).div_ceil(2) {
                    let is_last = 2 * pair + 1 == SIDE + (ROWS - 1) * STEP;
                    let inputs = load::<SIGNED>(start.add(2 * pair * row), row, is_last);
                    for window in 0..windows {
                        for nth in 0..ROWS {
                            let (weights, down) =
                                if STEP == 2 { (weights[0], nth) } else { (weights[nth], 0) };
                            let is_in = down..down + SIDE.div_ceil(2);
                            if window * STEP <= column && is_in.contains(&pair) {
                                let at =
                                    (column - window * STEP) * SIDE.div_ceil(2) + pair - down;
                                let weights = _mm256_load_si256(weights.add(at * 16).cast());
                                let products = _mm256_madd_epi16(inputs, weights);
                                sums[nth][window] = _mm256_add_epi32(sums[nth][window], products);
                            }
                        }
                    }
                }
            }};
        }
        // The leftmost window's last columns; the next one takes its place.
        macro_rules! complete {
            ($windows:expr) => {{
                for column in SIDE - STEP..SIDE {
                    take!(column, $windows);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    _mm256_store_si256(to.add(row * PART * BLOCKS), sums[0]);
                    for window in 1..SIDE {
                        sums[window - 1] = sums[window];
                    }
                    sums[SIDE - 1] = bias;
                }
                to = to.wrapping_add(BLOCKS);
            }};
        }
        for column in 0..SIDE - STEP {
            take!(column, SIDE);
        }
        // The last pixels go without the windows behind them; with 3×3 that would cost what it saves.
        let last = if SIDE == 3 { 0 } else { (SIDE - 1) / STEP };
        for _ in last..width {
            complete!(SIDE);
        }
        for left in (1..SIDE).rev() {
            if left <= last && left <= width {
                complete!(left);
            }
        }
    }
}

/// From the sums of a row's pixels to the bytes of `channels` channels, [`BLOCKS`] blocks or less. One copy for all windows:
/// it holds a loop for each kind of limits.
///
/// # Safety
/// `to` is the offset of the first pixel in a row that [`Depthwise::check`] has seen; the channels exist.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn leave(call: &Depthwise<'_>, sums: &[Sums], channel: usize, to: usize, channels: usize) {
    let epilogue = call.epilogue;
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    // s8 bytes are u8 ones with the sign bit flipped.
    let sign = if epilogue.low < 0 { 128 } else { 0 };
    let zero_point = _mm256_set1_epi16((epilogue.zero_point + sign) as i16);
    let low = _mm256_set1_epi8((epilogue.low + sign) as i8);
    let high = _mm256_set1_epi8((epilogue.high + sign) as i8);
    let sign = _mm256_set1_epi8(sign as i8);
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let is_plain = epilogue.is_plain();
    let is_full = (epilogue.low, epilogue.high) == (0, 255);
    // SAFETY: multipliers are padded to whole blocks of channels; the pixels have `channels` channels.
    unsafe {
        let multipliers: [__m256; BLOCKS] = std::array::from_fn(|block| {
            let at = (channel + block * DEPTHWISE_BLOCK).min(epilogue.multipliers.len() - 8);
            _mm256_loadu_ps(epilogue.multipliers.as_ptr().add(at))
        });
        let mut to = arena.add(to);
        for sums in sums {
            let mut scaled: [__m256; BLOCKS] = std::array::from_fn(|block| {
                _mm256_mul_ps(_mm256_cvtepi32_ps(sums[block]), multipliers[block])
            });
            if !is_plain {
                // What is cut here saturates below, but might not fit i32.
                scaled = scaled.map(|value| _mm256_min_ps(value, _mm256_set1_ps(65_536.0)));
            }
            let [a, b, c, d] = scaled.map(|value| _mm256_cvtps_epi32(value));
            let first = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero_point);
            let second = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero_point);
            let mut bytes = _mm256_packus_epi16(first, second);
            if !is_full {
                bytes = _mm256_min_epu8(_mm256_max_epu8(bytes, low), high);
                bytes = _mm256_xor_si256(bytes, sign);
            }
            let bytes = _mm256_permutevar8x32_epi32(bytes, order);
            if channels == BLOCKS * DEPTHWISE_BLOCK {
                _mm256_storeu_si256(to.cast(), bytes);
            } else {
                let (lower, upper) =
                    (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
                store(to, lower, channels.min(16));
                if channels > 16 {
                    store(to.add(16), upper, channels - 16);
                }
            }
            to = to.wrapping_add(call.output.pixel);
        }
    }
}

/// Two rows of inputs in pairs, 8 channels; or a last one, whose partner's weight is zero.
///
/// # Safety
/// 8 bytes are readable at each of the rows from `from`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<const SIGNED: bool>(from: *const u8, row: usize, is_last: bool) -> __m256i {
    // SAFETY: by contract.
    unsafe {
        let upper = _mm_loadl_epi64(from.cast());
        if is_last {
            // The weight of the other half is zero, so its sign bits do not matter.
            return if SIGNED { _mm256_cvtepi8_epi32(upper) } else { _mm256_cvtepu8_epi32(upper) };
        }
        let lower = _mm_loadl_epi64(from.add(row).cast());
        let both = _mm_unpacklo_epi8(upper, lower);
        if SIGNED { _mm256_cvtepi8_epi16(both) } else { _mm256_cvtepu8_epi16(both) }
    }
}
