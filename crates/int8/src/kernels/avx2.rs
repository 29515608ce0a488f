//! x86 with AVX2 and FMA. Exact: `vpmaddubsw` saturates when 255 · 127 · 2 exceeds i16, so both operands are widened
//! to i16 beforehand (weights when packed, inputs when gathered) and `vpmaddwd` sums pairs into i32 without loss.
//!
//! One `vpmaddwd` is 16 multiplications, and for deep sums 32 (`avx2_inner.rs`), as many as the inexact pair `vpmaddubsw` +
//! `vpmaddwd`: exactness costs nothing at the peak.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2_leave::{ANY, Constants, Leave, SIGNED, SUM, UNSIGNED, by_height, leave};
use crate::kernels::depthwise::DepthwiseForm;
use crate::kernels::gather::{Fetch, Gather};
use crate::kernels::{
    BLOCK, Kernels, Multiply, PAIRS_STEP, Packing, avx2_bytes, avx2_depthwise, avx2_inner,
    avx2_lanes, avx2_pool, avx2_winograd,
};
use crate::tensor::ElementType;

/// Rows of a tile: 6 · 2 accumulators, 2 weights, 1 input and 1 product fill 16 registers.
const ROWS: usize = 6;

pub(crate) static KERNELS: Kernels = TABLE;

/// The table, for others to take parts from.
pub(crate) const TABLE: Kernels = Kernels {
    name: "avx2",
    packing: Packing::Pairs,
    crosses: avx2_inner::pays,
    walks: false,
    tile_rows: ROWS,
    gather,
    multiply,
    winograd: Some(avx2_winograd::convolve),
    takes_depthwise: avx2_depthwise::takes,
    depthwise_form: DepthwiseForm::Pairs,
    depthwise: avx2_depthwise::image,
    add: avx2_lanes::add,
    mul: avx2_lanes::mul,
    accumulate: avx2_pool::accumulate,
    maximum: avx2_pool::maximum,
    quantise: avx2_lanes::quantise,
    dequantise: avx2_lanes::dequantise,
    interleave: avx2_bytes::interleave,
    copy: avx2_bytes::copy,
    translate: avx2_bytes::translate,
    average: avx2_lanes::average,
    blend: avx2_lanes::blend,
    blend_reals: avx2_lanes::blend_reals,
};

pub(crate) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

struct Unsigned;
struct Signed;

impl Fetch for Unsigned {
    type Value = i16;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> i16 {
        zero_point
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut i16, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: at < length, so at + 16 < length + OVERRUN, within the contract of the trait.
            unsafe {
                let bytes = _mm_loadu_si128(from.add(at).cast());
                _mm256_storeu_si256(to.add(at).cast(), _mm256_cvtepu8_epi16(bytes));
            }
        }
    }
}

impl Fetch for Signed {
    type Value = i16;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> i16 {
        zero_point
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut i16, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadu_si128(from.add(at).cast());
                _mm256_storeu_si256(to.add(at).cast(), _mm256_cvtepi8_epi16(bytes));
            }
        }
    }
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    #[target_feature(enable = "avx2,fma")]
    fn inner(call: &Gather<'_>, panel: &mut Aligned) {
        match call.element {
            ElementType::U8 => call.run::<Unsigned>(panel),
            ElementType::S8 => call.run::<Signed>(panel),
        }
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, panel) }
}

fn multiply(call: &Multiply<'_>) {
    call.check::<i16>();
    let depth = call.weights.depth;
    assert!(depth > 0 && depth.is_multiple_of(PAIRS_STEP));
    // SAFETY: the table is handed out only after `is_available`; the call's reach was checked.
    unsafe {
        match call.weights.crossed {
            true => avx2_inner::blocks(call),
            false => blocks(call),
        }
    }
}

/// Tiles of one height, one below the other.
pub(crate) struct Strip {
    pub(crate) height: usize,
    /// Its first row.
    pub(crate) first: usize,
    /// Tiles above it.
    pub(crate) before: usize,
    pub(crate) tiles: usize,
}

/// Rows in tiles of nearly equal height: a last tile of one row would wait for its own sums.
pub(crate) fn strips(rows: usize, highest: usize) -> [Strip; 2] {
    let tiles = rows.div_ceil(highest).max(1);
    let (height, higher) = (rows / tiles, rows % tiles);
    [
        Strip { height: height + 1, first: 0, before: 0, tiles: higher },
        Strip { height, first: higher * (height + 1), before: higher, tiles: tiles - higher },
    ]
}

/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx2,fma")]
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
/// The call has passed [`Multiply::check`]; the strip's rows exist, it is `ROWS` high, `channel` starts a block, and `HALVES` and
/// `LEAVE` are as its [`Leave`] says.
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    strip: &Strip,
    channel: usize,
) {
    let (depth, stride) = (call.weights.depth, call.panel_stride);
    // SAFETY: check() gave panel rows · stride >= row · stride + depth values, whole blocks of weights and bias.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m256i; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_si256(bias.add(8 * half).cast()));
        let weights = call.weights.values.words().as_ptr().add(channel * depth);
        let panel = call.panel.as_ptr().cast::<i16>();
        for row in (strip.first..).step_by(ROWS).take(strip.tiles) {
            let rows = panel.add(row * stride);
            let mut sums = [bias; ROWS];
            match sums.as_flattened_mut().try_into() {
                Ok(sums) => whole(rows, stride, weights, depth, sums),
                Err(_) => part(rows, stride, weights, depth, &mut sums),
            }
            leave::<ROWS, HALVES, LEAVE>(call, constants, &sums, row, channel);
        }
    }
}

/// Adds the products of a whole tile, 4 depths at a time. In assembly, because the compiler moves loads forward until it has to
/// put sums aside for want of registers.
///
/// # Safety
/// As for [`tiles`]; `rows` is the first one; `depth` is a multiple of [`PAIRS_STEP`] and not zero.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn whole(
    rows: *const i16,
    stride: usize,
    weights: *const i16,
    depth: usize,
    sums: &mut [__m256i; 2 * ROWS],
) {
    /// A row at 2 depths, times 16 channels.
    macro_rules! row {
        ($row:literal, $first:literal, $second:literal, $at:literal) => {
            concat!(
                "vpbroadcastd {x}, [",
                $row,
                " + ",
                $at,
                "]\n",
                "vpmaddwd {y}, {x}, {w0}\n",
                "vpaddd {",
                $first,
                "}, {",
                $first,
                "}, {y}\n",
                "vpmaddwd {x}, {x}, {w1}\n",
                "vpaddd {",
                $second,
                "}, {",
                $second,
                "}, {x}\n",
            )
        };
    }
    /// Two depths.
    macro_rules! pair {
        ($at:literal, $weights:literal) => {
            concat!(
                "vmovdqa {w0}, [{weights} + ",
                $weights,
                "]\n",
                "vmovdqa {w1}, [{weights} + ",
                $weights,
                " + 32]\n",
                row!("{upper}", "a0", "b0", $at),
                row!("{upper} + {stride}", "a1", "b1", $at),
                row!("{upper} + 2*{stride}", "a2", "b2", $at),
                row!("{lower}", "a3", "b3", $at),
                row!("{lower} + {stride}", "a4", "b4", $at),
                row!("{lower} + 2*{stride}", "a5", "b5", $at),
            )
        };
    }
    // SAFETY: by contract: at each row the depths are read, at the weights as many for a block.
    unsafe {
        std::arch::asm!(
            "2:",
            pair!("0", "0"),
            pair!("4", "64"),
            "add {weights}, 128",
            "add {upper}, 8",
            "add {lower}, 8",
            "cmp {weights}, {end}",
            "jb 2b",
            upper = inout(reg) rows => _, lower = inout(reg) rows.add(3 * stride) => _, stride = in(reg) 2 * stride,
            weights = inout(reg) weights => _, end = in(reg) weights.add(depth * BLOCK),
            a0 = inout(ymm_reg) sums[0], b0 = inout(ymm_reg) sums[1],
            a1 = inout(ymm_reg) sums[2], b1 = inout(ymm_reg) sums[3],
            a2 = inout(ymm_reg) sums[4], b2 = inout(ymm_reg) sums[5],
            a3 = inout(ymm_reg) sums[6], b3 = inout(ymm_reg) sums[7],
            a4 = inout(ymm_reg) sums[8], b4 = inout(ymm_reg) sums[9],
            a5 = inout(ymm_reg) sums[10], b5 = inout(ymm_reg) sums[11],
            w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, x = out(ymm_reg) _, y = out(ymm_reg) _,
            options(readonly, nostack),
        );
    }
}

/// Adds the products of a tile of any height.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
unsafe fn part<const ROWS: usize, const HALVES: usize>(
    rows: *const i16,
    stride: usize,
    mut weights: *const i16,
    depth: usize,
    sums: &mut [[__m256i; HALVES]; ROWS],
) {
    for at in (0..depth).step_by(2) {
        // SAFETY: by contract.
        unsafe {
            let block: [__m256i; HALVES] =
                std::array::from_fn(|half| _mm256_load_si256(weights.add(16 * half).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let inputs = rows.add(row * stride + at).cast::<i32>();
                let inputs = _mm256_set1_epi32(inputs.read_unaligned());
                for half in 0..HALVES {
                    let products = _mm256_madd_epi16(inputs, block[half]);
                    sums[half] = _mm256_add_epi32(sums[half], products);
                }
            }
            weights = weights.add(2 * BLOCK);
        }
    }
}
