//! x86 with AVX-VNNI (Intel since Alder Lake without AVX512, AMD since Zen 5): `vpdpbusd` on 256 bits. What does not
//! multiply bytes is AVX2's.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2::{self, Strip, strips};
use crate::kernels::avx2_epilogue::{Requantise, scale, store};
use crate::kernels::avx2_leave::{
    ANY, Constants, Leave, SIGNED, SUM, UNSIGNED, by_height, leave, opaque,
};
use crate::kernels::gather::Gather;
use crate::kernels::vnni::{self, PACKING, Slice};
use crate::kernels::{BLOCK, Depthwise, Kernels, Multiply, portable};

/// Rows of a tile: 6 · 2 accumulators, 2 weights and 1 input fill 15 of 16 registers.
const ROWS: usize = 6;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "avxvnni",
    packing: PACKING,
    crosses: |_, _| false,
    tile_rows: ROWS,
    gather,
    multiply,
    winograd: None,
    depthwise,
    ..avx2::TABLE
};

pub(crate) fn is_available() -> bool {
    avx2::is_available() && std::arch::is_x86_feature_detected!("avxvnni")
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    #[target_feature(enable = "avx2,fma")]
    fn inner(call: &Gather<'_>, panel: &mut Aligned) {
        vnni::gather(call, panel);
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, panel) }
}

fn multiply(call: &Multiply<'_>) {
    call.check::<u8>();
    // SAFETY: the table is handed out only after `is_available`; the call's reach was checked.
    unsafe { blocks(call) }
}

/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn blocks(call: &Multiply<'_>) {
    let strips = strips(call.outputs.len(), ROWS);
    let constants = Constants::new(call.epilogue);
    for channel in call.channels.clone().step_by(BLOCK) {
        let leave = Leave::new(call, channel);
        for strip in &strips {
            // SAFETY: the strip's rows exist; the block starts at a channel that exists.
            unsafe {
                by_height!(
                    leave,
                    strip,
                    [6, 5, 4, 3, 2, 1],
                    tiles(call, &constants, strip, channel)
                );
            }
        }
    }
}

/// Tiles of `ROWS` panel rows times `HALVES` · 8 channels.
///
/// # Safety
/// As for [`avx2`]'s.
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn tiles<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    strip: &Strip,
    channel: usize,
) {
    for row in (strip.first..).step_by(ROWS).take(strip.tiles) {
        // SAFETY: by contract.
        unsafe { tile::<ROWS, HALVES, LEAVE>(call, constants, row, channel) };
    }
}

/// `ROWS` panel rows times `HALVES` · 8 channels.
///
/// # Safety
/// As for [`tiles`]; the rows exist.
#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn tile<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    row: usize,
    channel: usize,
) {
    let depth = call.weights.depth;
    // SAFETY: check() gave every row `depth` values from row · stride on, whole blocks of weights and bias.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m256i; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_si256(bias.add(8 * half).cast()));
        let mut sums = [bias; ROWS];
        let mut weights = call.weights.values.bytes().as_ptr().add(channel * depth);
        let panel = call.panel.as_ptr().cast::<u8>().add(row * call.panel_stride);
        let starts: [*const u8; ROWS] =
            std::array::from_fn(|row| opaque(panel.add(row * call.panel_stride)));
        for at in (0..depth).step_by(4) {
            let block: [__m256i; HALVES] =
                std::array::from_fn(|half| _mm256_load_si256(weights.add(32 * half).cast()));
            for row in 0..ROWS {
                let inputs = starts[row].add(at).cast::<i32>().read_unaligned();
                let inputs = _mm256_set1_epi32(inputs);
                for half in 0..HALVES {
                    sums[row][half] = _mm256_dpbusd_avx_epi32(sums[row][half], inputs, block[half]);
                }
            }
            weights = weights.add(4 * BLOCK);
        }
        leave::<ROWS, HALVES, LEAVE>(call, constants, &sums, row, channel);
    }
}

fn depthwise(call: &Depthwise<'_>, n: usize) {
    #[target_feature(enable = "avx2,fma,avxvnni")]
    fn inner(call: &Depthwise<'_>, n: usize) {
        // SAFETY: compiled for, and run on, machines with AVX-VNNI.
        if !unsafe { vnni::depthwise::<Eight>(call, n) } {
            portable::depthwise(call, n);
        }
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, n) }
}

/// 8 channels in a register.
struct Eight;

impl Slice for Eight {
    type Vector = __m256i;
    type Finish = (Requantise, __m256);
    const CHANNELS: usize = 8;

    #[inline(always)]
    unsafe fn interleave(rows: [*const u8; 4]) -> __m256i {
        let [a, b, c, d] = rows;
        // SAFETY: by contract, 8 bytes are readable at each row.
        unsafe {
            let [a, b] = [_mm_loadl_epi64(a.cast()), _mm_loadl_epi64(b.cast())];
            let [c, d] = [_mm_loadl_epi64(c.cast()), _mm_loadl_epi64(d.cast())];
            let (upper, lower) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
            let (low, high) = (_mm_unpacklo_epi16(upper, lower), _mm_unpackhi_epi16(upper, lower));
            _mm256_set_m128i(high, low)
        }
    }

    #[inline(always)]
    unsafe fn flip(vector: __m256i, byte: u8) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_xor_si256(vector, _mm256_set1_epi8(byte as i8)) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, inputs: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_dpbusd_avx_epi32(sums, inputs, weights) }
    }

    #[inline(always)]
    unsafe fn load(values: *const i32) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_loadu_si256(values.cast()) }
    }

    #[inline(always)]
    unsafe fn finish(call: &Depthwise<'_>, channel: usize) -> Self::Finish {
        // SAFETY: by contract.
        unsafe {
            let multipliers = _mm256_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel));
            (Requantise::new(call.epilogue), multipliers)
        }
    }

    #[inline(always)]
    unsafe fn store<const ROWS: usize>(
        (requantise, multipliers): &Self::Finish,
        sums: [__m256i; ROWS],
        to: [*mut u8; ROWS],
        length: usize,
    ) {
        // SAFETY: by contract.
        unsafe {
            let [first, last] = [scale(sums[0], *multipliers), scale(sums[ROWS - 1], *multipliers)];
            let bytes = requantise.bytes(requantise.words(first, last));
            store(to[0], bytes, length);
            if ROWS == 2 {
                store(to[ROWS - 1], _mm_unpackhi_epi64(bytes, bytes), length);
            }
        }
    }
}
