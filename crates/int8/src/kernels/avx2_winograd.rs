//! Winograd's convolution with AVX2: inputs are transformed 16 channels at a time, multiplied as 16 panels, and the
//! products of 16 output channels transformed back straight into the epilogue.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2::{Requantise, opaque, plus, prefetch, scale, store};
use crate::kernels::winograd::{PLACES, TILES, Winograd};
use crate::kernels::{BLOCK, PAIRS_STEP};
use crate::tensor::ElementType;

/// Rows of a product: 6 · 2 sums, 2 weights and 1 input fill 15 of 16 registers.
const ROWS: usize = 6;

pub(crate) fn convolve(call: &Winograd<'_>, scratch: &mut Aligned) {
    call.check(scratch);
    // SAFETY: the table is handed out only on machines with AVX2 and FMA; the reach was checked.
    unsafe { panels(call, scratch) }
}

/// Where the parts of the scratch memory are.
#[derive(Clone, Copy)]
struct Scratch {
    /// `[place][tile][channel]`, `stride` channels each.
    inputs: *mut i16,
    /// `[tile][place][channel]`, one block of channels.
    products: *mut i32,
    /// A pixel of padding.
    padding: *mut u8,
    stride: usize,
}

/// # Safety
/// The call has passed [`Winograd::check`] with this scratch.
#[target_feature(enable = "avx2,fma")]
unsafe fn panels(call: &Winograd<'_>, scratch: &mut Aligned) {
    let stride = call.input.shape.c.next_multiple_of(16);
    let start = scratch.bytes_mut().as_mut_ptr();
    // SAFETY: the three parts add up to what check() wants; each begins at a multiple of 64 bytes.
    let scratch = unsafe {
        let products = start.add(TILES * PLACES * stride * 2);
        Scratch {
            inputs: start.cast(),
            products: products.cast(),
            padding: products.add(TILES * PLACES * BLOCK * 4),
            stride,
        }
    };
    // SAFETY: the part has room for `inputs` rounded up to 64.
    unsafe { scratch.padding.write_bytes(call.zero, stride) };
    let [down, across] = call.tiles();
    for start in (0..down * across).step_by(TILES) {
        let count = TILES.min(down * across - start);
        let place = |tile: usize| [(start + tile) / across, (start + tile) % across];
        for tile in 0..count {
            // SAFETY: tile < TILES, and it exists.
            unsafe {
                match call.element {
                    ElementType::U8 => transform::<false>(call, &scratch, tile, place(tile)),
                    ElementType::S8 => transform::<true>(call, &scratch, tile, place(tile)),
                }
            }
        }
        for channel in (0..call.output.shape.c).step_by(BLOCK) {
            // SAFETY: `count` tiles were transformed; the block exists.
            unsafe {
                for nth in 0..PLACES {
                    products(call, &scratch, nth, count, channel);
                }
                for tile in 0..count {
                    finish(call, &scratch, tile, place(tile), channel);
                }
            }
        }
    }
}

/// Bᵀ · d · B of one tile, for all channels.
///
/// # Safety
/// As for [`panels`]; `nth` < [`TILES`].
#[target_feature(enable = "avx2,fma")]
unsafe fn transform<const SIGNED: bool>(
    call: &Winograd<'_>,
    scratch: &Scratch,
    nth: usize,
    tile: [usize; 2],
) {
    let arena = call.arena.as_ptr().cast::<u8>();
    // SAFETY: a pixel's offset lies in the input view, OVERRUN before the end of the arena; padding has `stride` bytes.
    unsafe {
        let pixels: [*const u8; PLACES] = std::array::from_fn(|place| {
            call.pixel(tile, place).map_or(scratch.padding.cast_const(), |at| arena.add(at))
        });
        for channel in (0..scratch.stride).step_by(16) {
            let load = |place: usize| {
                let bytes = _mm_loadu_si128(pixels[place].add(channel).cast());
                if SIGNED { _mm256_cvtepi8_epi16(bytes) } else { _mm256_cvtepu8_epi16(bytes) }
            };
            let columns: [[__m256i; 4]; 4] = std::array::from_fn(|column| {
                differences(std::array::from_fn(|row| load(4 * row + column)))
            });
            for row in 0..4 {
                let values = differences(std::array::from_fn(|column| columns[column][row]));
                for (column, value) in values.into_iter().enumerate() {
                    let at = ((4 * row + column) * TILES + nth) * scratch.stride + channel;
                    _mm256_store_si256(scratch.inputs.add(at).cast(), value);
                }
            }
        }
    }
}

/// Bᵀ · d.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn differences([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    [_mm256_sub_epi16(a, c), _mm256_add_epi16(b, c), _mm256_sub_epi16(c, b), _mm256_sub_epi16(b, d)]
}

/// The products of one place: `count` tiles times a block of channels.
///
/// # Safety
/// As for [`panels`]; `count` tiles are transformed, `channel` starts a block.
#[target_feature(enable = "avx2,fma")]
unsafe fn products(
    call: &Winograd<'_>,
    scratch: &Scratch,
    place: usize,
    count: usize,
    channel: usize,
) {
    let tiles = count.div_ceil(ROWS);
    let mut row = 0;
    for nth in 1..=tiles {
        let rows = nth * count / tiles - row;
        // SAFETY: rows row..row + rows are transformed tiles; the block of weights exists, as checked.
        unsafe {
            let inputs = scratch.inputs.add((place * TILES + row) * scratch.stride).cast_const();
            let weights = call.weights.words().as_ptr();
            let weights = weights.add((channel * PLACES + place * BLOCK) * call.depth);
            let to = scratch.products.add((row * PLACES + place) * BLOCK);
            let stride = scratch.stride;
            let more = place + 1 < PLACES || channel + BLOCK < call.output.shape.c;
            match (rows, nth == 1 && more) {
                (6, true) => product::<6, true>(inputs, stride, weights, call.depth, to),
                (6, false) => product::<6, false>(inputs, stride, weights, call.depth, to),
                (5, true) => product::<5, true>(inputs, stride, weights, call.depth, to),
                (5, false) => product::<5, false>(inputs, stride, weights, call.depth, to),
                (4, true) => product::<4, true>(inputs, stride, weights, call.depth, to),
                (4, false) => product::<4, false>(inputs, stride, weights, call.depth, to),
                (3, true) => product::<3, true>(inputs, stride, weights, call.depth, to),
                (3, false) => product::<3, false>(inputs, stride, weights, call.depth, to),
                (2, true) => product::<2, true>(inputs, stride, weights, call.depth, to),
                (2, false) => product::<2, false>(inputs, stride, weights, call.depth, to),
                _ => product::<1, false>(inputs, stride, weights, call.depth, to),
            }
        }
        row += rows;
    }
}

/// # Safety
/// `ROWS` rows of `depth` inputs, a block of weights and `ROWS` blocks of products are there.
#[target_feature(enable = "avx2,fma")]
unsafe fn product<const ROWS: usize, const FIRST: bool>(
    inputs: *const i16,
    stride: usize,
    mut weights: *const i16,
    depth: usize,
    to: *mut i32,
) {
    // SAFETY: by contract; `depth` is a multiple of PAIRS_STEP.
    unsafe {
        let rows: [*const i16; ROWS] = std::array::from_fn(|row| opaque(inputs.add(row * stride)));
        let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
        for at in (0..depth).step_by(PAIRS_STEP) {
            if FIRST {
                prefetch(weights);
            }
            for pair in 0..PAIRS_STEP / 2 {
                let block: [__m256i; 2] = std::array::from_fn(|half| {
                    _mm256_load_si256(weights.add(pair * 2 * BLOCK + 16 * half).cast())
                });
                for row in 0..ROWS {
                    let inputs = rows[row].add(at + 2 * pair).cast::<i32>();
                    let inputs = _mm256_set1_epi32(inputs.read_unaligned());
                    for half in 0..2 {
                        let products = _mm256_madd_epi16(inputs, block[half]);
                        sums[row][half] = _mm256_add_epi32(sums[row][half], products);
                    }
                }
            }
            weights = weights.add(PAIRS_STEP * BLOCK);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, &sum) in sums.iter().enumerate() {
                _mm256_store_si256(to.add(row * PLACES * BLOCK + 8 * half).cast(), sum);
            }
        }
    }
}

/// Aᵀ · m · A of one tile, and its four outputs through the epilogue.
///
/// # Safety
/// As for [`products`]; all places of the tile are multiplied.
#[target_feature(enable = "avx2,fma")]
unsafe fn finish(
    call: &Winograd<'_>,
    scratch: &Scratch,
    nth: usize,
    tile: [usize; 2],
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let length = (call.output.shape.c - channel).min(BLOCK);
    // SAFETY: bias and multipliers are padded to whole blocks; outputs and other operands of a pixel that exists were
    // checked.
    unsafe {
        let mut values = [[_mm256_setzero_si256(); 2]; 4];
        for half in 0..2 {
            let products = scratch.products.add(nth * PLACES * BLOCK + 8 * half).cast_const();
            let columns: [[__m256i; 2]; 4] = std::array::from_fn(|column| {
                sums(std::array::from_fn(|row| {
                    _mm256_load_si256(products.add((4 * row + column) * BLOCK).cast())
                }))
            });
            let bias = call.epilogue.bias.as_ptr().add(channel + 8 * half);
            let bias = _mm256_loadu_si256(bias.cast());
            let multiplier =
                _mm256_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel + 8 * half));
            for row in 0..2 {
                let outputs = sums(std::array::from_fn(|column| columns[column][row]));
                for (column, output) in outputs.into_iter().enumerate() {
                    // Four times the sum, exactly.
                    let sum = _mm256_add_epi32(_mm256_srai_epi32::<2>(output), bias);
                    values[2 * row + column][half] = scale(sum, multiplier);
                }
            }
        }
        for (output, values) in values.into_iter().enumerate() {
            let (y, x) = (2 * tile[0] + output / 2, 2 * tile[1] + output % 2);
            if y >= call.output.shape.h || x >= call.output.shape.w {
                continue;
            }
            let mut words = requantise.words(values[0], values[1]);
            if let (Some(sum), Some(other)) = (&call.epilogue.sum, &call.other) {
                words = plus::<2>(sum, words, arena.add(other.at(call.image, y, x) + channel));
            }
            let to = arena.add(call.output.at(call.image, y, x) + channel);
            store(to, requantise.bytes(words), length);
        }
    }
}

/// Aᵀ · m.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums([a, b, c, d]: [__m256i; 4]) -> [__m256i; 2] {
    [_mm256_add_epi32(_mm256_add_epi32(a, b), c), _mm256_sub_epi32(_mm256_sub_epi32(b, c), d)]
}
