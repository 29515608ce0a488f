//! x86 with AVX-VNNI (Intel since Alder Lake without AVX512, AMD since Zen 5): `vpdpbusd` on 256 bits. What does not
//! multiply bytes is AVX2's.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2::{self, strips};
use crate::kernels::avx2_epilogue::store;
use crate::kernels::avx2_leave::{
    ANY, Constants, Leave, SIGNED, SUM, UNSIGNED, by_height, leave, opaque,
};
use crate::kernels::depthwise::{Depthwise, DepthwiseForm, Quads};
use crate::kernels::gather::Gather;
use crate::kernels::vnni::{self, PACKING};
use crate::kernels::vnni_depthwise::{bands, by_window, slice};
use crate::kernels::vnni_registers::registers;
use crate::kernels::walk::{Span, Way};
use crate::kernels::{BLOCK, Kernels, Multiply, portable};

/// Rows of a tile: 6 · 2 accumulators, 2 weights and 1 input fill 15 of 16 registers.
const ROWS: usize = 6;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "avxvnni",
    packing: PACKING,
    crosses: |_, _| false,
    walks: true,
    tile_rows: ROWS,
    gather,
    multiply,
    winograd: None,
    depthwise_form: DepthwiseForm::Quads { channels: Quads::NARROW },
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
    let all = [Span { first: 0, rows: call.outputs.len() }];
    let way = Way::new(call.walk.as_ref(), &all, call.weights.depth);
    assert!(way.run > 0 && way.run.is_multiple_of(4));
    let constants = Constants::new(call.epilogue);
    for channel in call.channels.clone().step_by(BLOCK) {
        let leave = Leave::new(call, channel);
        let (mut row, mut before) = (0, 0);
        for span in way.spans {
            for strip in &strips(span.rows, ROWS) {
                let part = Part {
                    way: &way,
                    channel,
                    first: span.first + strip.first * call.panel_stride,
                    row: row + strip.first,
                    tiles: strip.tiles,
                    before,
                };
                before += strip.tiles;
                // SAFETY: the strip's rows exist; the block starts at a channel that exists.
                unsafe {
                    let constants = &constants;
                    if way.flips {
                        by_height!(
                            leave,
                            strip,
                            [6, 5, 4, 3, 2, 1],
                            flipped(call, constants, &part)
                        );
                    } else {
                        by_height!(
                            leave,
                            strip,
                            [6, 5, 4, 3, 2, 1],
                            stored(call, constants, &part)
                        );
                    }
                }
            }
            row += span.rows;
        }
    }
}

/// A block of channels of some tiles of one height, one below the other.
struct Part<'a> {
    way: &'a Way<'a>,
    channel: usize,
    /// The first row: in the panel, and in the outputs.
    first: usize,
    row: usize,
    tiles: usize,
    /// Tiles of these channels that have been done.
    before: usize,
}

/// Tiles of inputs as they are stored.
///
/// # Safety
/// As for [`tiles`].
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn stored<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    part: &Part<'_>,
) {
    // SAFETY: by contract.
    unsafe { tiles::<ROWS, HALVES, LEAVE, false>(call, constants, part) };
}

/// Tiles of inputs whose sign bits are flipped.
///
/// # Safety
/// As for [`tiles`].
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn flipped<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    part: &Part<'_>,
) {
    // SAFETY: by contract.
    unsafe { tiles::<ROWS, HALVES, LEAVE, true>(call, constants, part) };
}

/// Tiles of `ROWS` panel rows times `HALVES` · 8 channels. Inputs that `FLIP` are s8.
///
/// # Safety
/// As for [`avx2`]'s; the part's tiles are `ROWS` high and exist.
#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn tiles<const ROWS: usize, const HALVES: usize, const LEAVE: u8, const FLIP: bool>(
    call: &Multiply<'_>,
    constants: &Constants,
    part: &Part<'_>,
) {
    let (depth, stride) = (call.weights.depth, call.panel_stride);
    let channel = part.channel;
    // SAFETY: check() gave every row its runs, whole blocks of weights and bias.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m256i; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_si256(bias.add(8 * half).cast()));
        let block = call.weights.values.bytes().as_ptr().add(channel * depth);
        for tile in 0..part.tiles {
            let row = part.row + tile * ROWS;
            let panel = call.panel.as_ptr().cast::<u8>();
            let panel = panel.wrapping_add(part.first + tile * ROWS * stride);
            let (mut sums, mut weights) = ([bias; ROWS], block);
            // The first tile asks for the weights that come next.
            let ahead = if part.before + tile == 0 { BLOCK * depth } else { 0 };
            for start in part.way.starts {
                let starts: [*const u8; ROWS] =
                    std::array::from_fn(|row| opaque(panel.wrapping_add(start + row * stride)));
                for at in (0..part.way.run).step_by(4) {
                    _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(ahead).cast());
                    let block: [__m256i; HALVES] = std::array::from_fn(|half| {
                        _mm256_load_si256(weights.add(32 * half).cast())
                    });
                    for row in 0..ROWS {
                        let inputs = starts[row].add(at).cast::<i32>().read_unaligned();
                        let mut inputs = _mm256_set1_epi32(inputs);
                        if FLIP {
                            inputs = _mm256_xor_si256(inputs, _mm256_set1_epi8(i8::MIN));
                        }
                        for half in 0..HALVES {
                            sums[row][half] =
                                _mm256_dpbusd_avx_epi32(sums[row][half], inputs, block[half]);
                        }
                    }
                    weights = weights.add(4 * BLOCK);
                }
            }
            leave::<ROWS, HALVES, LEAVE>(call, constants, &sums, row, channel);
        }
    }
}

fn depthwise(call: &Depthwise<'_>, n: usize) {
    #[target_feature(enable = "avx2,fma")]
    fn any(call: &Depthwise<'_>, n: usize) {
        portable::depthwise(call, n);
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { by_window!(call, n, slices, any) }
}

/// # Safety
/// The machine has the instruction set.
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn slices<const SIDE: usize, const STEP: usize>(call: &Depthwise<'_>, n: usize) {
    for rows in bands(call) {
        for channel in (0..call.output.shape.c).step_by(Quads::NARROW) {
            // SAFETY: by contract; of 32 channels at least one is there, so that none is read from beyond the last 16
            // and the 16 behind them.
            unsafe { slice::<Few, SIDE, STEP>(call, n, channel, rows.clone()) };
        }
    }
}

registers!(Few: __m256i, 32, false, store_part,
    _mm256_loadu_si256 _mm256_storeu_si256 _mm256_xor_si256 _mm256_dpbusd_avx_epi32
    _mm256_unpacklo_epi8 _mm256_unpackhi_epi8 _mm256_unpacklo_epi16 _mm256_unpackhi_epi16
    _mm256_castsi256_ps _mm256_castps_si256 _mm256_cvtepi32_ps _mm256_mul_ps _mm256_min_ps _mm256_set1_ps _mm256_cvtps_epi32
    _mm256_packs_epi32 _mm256_adds_epi16 _mm256_packus_epi16 _mm256_max_epu8 _mm256_min_epu8
    _mm256_set1_epi8 _mm256_set1_epi16);

/// # Safety
/// `length` bytes are writable at `to`, fewer than 32.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_part(to: *mut u8, bytes: __m256i, length: usize) {
    let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    // SAFETY: by contract.
    unsafe {
        store(to, low, length.min(16));
        if length > 16 {
            store(to.add(16), high, length - 16);
        }
    }
}
