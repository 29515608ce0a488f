//! x86 with AVX2 and FMA. Exact: `vpmaddubsw` saturates when 255 · 127 · 2 exceeds i16, so both operands are widened
//! to i16 beforehand (weights when packed, inputs when gathered) and `vpmaddwd` sums pairs into i32 without loss.
//!
//! One `vpmaddwd` is 16 multiplications, and for deep sums 32 (`avx2_inner.rs`), as many as the inexact pair `vpmaddubsw` +
//! `vpmaddwd`: exactness costs nothing at the peak.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::gather::{Fetch, Gather};
use crate::kernels::{
    BLOCK, Epilogue, Kernels, Multiply, PAIRS_STEP, Packing, Role, Run, Sum, avx2_bytes,
    avx2_depthwise, avx2_inner, avx2_winograd, portable,
};
use crate::numerics::{AddRule, MulRule};
use crate::resize::Corners;
use crate::tensor::{ElementType, Quantisation};

/// Rows of a tile: 6 · 2 accumulators, 2 weights and 1 input fill 15 of 16 registers.
const ROWS: usize = 6;

pub(crate) static KERNELS: Kernels = TABLE;

/// The table, for others to take parts from.
pub(crate) const TABLE: Kernels = Kernels {
    name: "avx2",
    packing: Packing::Pairs,
    crosses: avx2_inner::pays,
    tile_rows: ROWS,
    gather,
    multiply,
    winograd: Some(avx2_winograd::convolve),
    takes_depthwise: avx2_depthwise::takes,
    depthwise: avx2_depthwise::image,
    add,
    mul,
    accumulate,
    maximum,
    quantise,
    interleave: avx2_bytes::interleave,
    translate: avx2_bytes::translate,
    accumulate_reals,
    average,
    blend,
    blend_reals,
};

pub(crate) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// A safe function of the table that runs a portable loop compiled for AVX2 and FMA.
macro_rules! with_features {
    ($name:ident($($argument:ident: $type:ty),*)) => {
        fn $name($($argument: $type),*) {
            #[target_feature(enable = "avx2,fma")]
            fn inner($($argument: $type),*) {
                portable::$name($($argument),*);
            }
            // SAFETY: the table is handed out only after `is_available`.
            unsafe { inner($($argument),*) }
        }
    };
}

with_features!(add(rule: &AddRule, a: Run<'_>, b: Run<'_>, y: Run<'_>, length: usize));
with_features!(mul(rule: &MulRule, a: Run<'_>, b: Run<'_>, y: Run<'_>, length: usize));
with_features!(accumulate(element: ElementType, x: Run<'_>, sums: &mut [i32]));
with_features!(maximum(element: ElementType, y: Run<'_>, x: Run<'_>, length: usize));
with_features!(quantise(to: &Quantisation, values: &[f32], bytes: &mut [u8]));
with_features!(accumulate_reals(from: &Quantisation, x: Run<'_>, sums: &mut [f32]));
with_features!(average(to: &Quantisation, sums: &[f32], count: usize, y: Run<'_>));
with_features!(blend(element: ElementType, by: &Corners, x: [Run<'_>; 4], y: Run<'_>, length: usize));
with_features!(blend_reals(between: [&Quantisation; 2], by: &Corners, x: [Run<'_>; 4], y: Run<'_>, length: usize));

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

/// How a block of channels leaves.
#[derive(Clone, Copy)]
pub(crate) enum Leave {
    /// Whole, without a residual sum, as [`Epilogue::is_plain`] says: u8.
    Unsigned,
    /// The same, s8.
    Signed,
    /// Whole, with a residual sum.
    Sum,
    Wide,
    /// At most 8 channels.
    Narrow,
}

impl Leave {
    pub(crate) fn new(call: &Multiply<'_>, channel: usize) -> Self {
        match call.channels.end - channel {
            BLOCK.. if call.epilogue.is_plain() && call.epilogue.low < 0 => Self::Signed,
            BLOCK.. if call.epilogue.is_plain() => Self::Unsigned,
            BLOCK.. if call.epilogue.sum.is_some() => Self::Sum,
            count if count > BLOCK / 2 => Self::Wide,
            _ => Self::Narrow,
        }
    }
}

/// Calls a function of tiles with a strip's height, the halves of a block and how it leaves, as constants.
macro_rules! by_height {
    ($leave:expr, $strip:expr, [$($height:literal),*], $tiles:ident $arguments:tt) => {
        match ($leave, $strip.height) {
            $(
                (Leave::Unsigned, $height) => $tiles::<$height, 2, UNSIGNED> $arguments,
                (Leave::Signed, $height) => $tiles::<$height, 2, SIGNED> $arguments,
                (Leave::Sum, $height) => $tiles::<$height, 2, SUM> $arguments,
                (Leave::Wide, $height) => $tiles::<$height, 2, ANY> $arguments,
                (Leave::Narrow, $height) => $tiles::<$height, 1, ANY> $arguments,
            )*
            // A strip without tiles.
            _ => {}
        }
    };
}
pub(crate) use by_height;

/// [`Leave`] as a constant.
pub(crate) const UNSIGNED: u8 = 0;
pub(crate) const SIGNED: u8 = 1;
pub(crate) const SUM: u8 = 2;
pub(crate) const ANY: u8 = 3;

/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx2,fma")]
unsafe fn blocks(call: &Multiply<'_>) {
    let strips = strips(call.outputs.len(), ROWS);
    for channel in call.channels.clone().step_by(BLOCK) {
        let leave = Leave::new(call, channel);
        for strip in &strips {
            // SAFETY: the strip's rows exist; the block starts at a channel that exists.
            unsafe {
                by_height!(leave, strip, [6, 5, 4, 3, 2, 1], tiles(call, strip, channel));
            }
        }
    }
}

/// Tiles of `ROWS` panel rows times `HALVES` · 8 channels.
///
/// # Safety
/// The call has passed [`Multiply::check`]; the strip's rows exist, it is `ROWS` high, `channel` starts a block, and `HALVES` and
/// `PLAIN` are as its [`Leave`] says.
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    strip: &Strip,
    channel: usize,
) {
    let (depth, stride) = (call.weights.depth, call.panel_stride);
    let constants = Constants::new(call.epilogue, channel);
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
                Ok(sums) if ROWS == self::ROWS => whole(rows, stride, weights, depth, sums),
                _ => part(rows, stride, weights, depth, &mut sums),
            }
            leave::<ROWS, HALVES, LEAVE>(call, &constants, &sums, row, channel);
        }
    }
}

/// Adds the products of a whole tile, 4 depths at a time. In assembly, because the compiler moves loads forward until it has to
/// put sums aside for want of registers.
///
/// # Safety
/// As for [`tiles`]; `rows` is the first one; `depth` is not zero.
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

/// The epilogue of a tile.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
pub(crate) unsafe fn leave<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    // SAFETY: outputs and other operands were checked for whole blocks of channels.
    unsafe {
        match LEAVE {
            // A copy, so that the sums themselves stay in registers.
            ANY => finish::<ROWS, HALVES>(call, &{ *sums }, row, channel),
            SUM => finish_sum::<ROWS, HALVES>(call, constants, sums, row, channel),
            _ => finish_plain::<ROWS, HALVES, LEAVE>(call, constants, sums, row, channel),
        }
    }
}

/// The constants of an epilogue in memory, for registers are for sums.
#[repr(align(32))]
pub(crate) struct Constants {
    multipliers: [[f32; 8]; 2],
    zero_point: [i16; 16],
    low: [u8; 32],
    high: [u8; 32],
    /// Whether the limits are not those of the stored type.
    limits: bool,
    joint: Joint,
}

/// The constants of a residual sum.
#[repr(align(32))]
#[derive(Default)]
struct Joint {
    /// Zero point and limits of the convolution's own values.
    zero_point: [f32; 8],
    low: [f32; 8],
    high: [f32; 8],
    /// What own values and the others are multiplied by.
    own: [f32; 8],
    other: [f32; 8],
    fixed: [f32; 8],
    /// Limits of the sum.
    least: [f32; 8],
    most: [f32; 8],
    limits: bool,
    own_is_first: bool,
    other_is_signed: bool,
    is_signed: bool,
}

impl Constants {
    pub(crate) fn new(epilogue: &Epilogue, channel: usize) -> Self {
        let (multipliers, _) = epilogue.multipliers[channel..][..BLOCK].as_chunks();
        Self {
            multipliers: [multipliers[0], multipliers[1]],
            zero_point: [epilogue.zero_point as i16; 16],
            low: [epilogue.low as u8; 32],
            high: [epilogue.high as u8; 32],
            limits: !is_whole(epilogue.low, epilogue.high),
            joint: epilogue.sum.as_ref().map(|sum| Joint::new(epilogue, sum)).unwrap_or_default(),
        }
    }
}

impl Joint {
    fn new(epilogue: &Epilogue, Sum { rule, role }: &Sum) -> Self {
        let own_is_first = *role == Role::First;
        let (own, other) = (rule.ratio_a, rule.ratio_b);
        let (own, other) = if own_is_first { (own, other) } else { (other, own) };
        let element = if own_is_first { rule.element_b } else { rule.element_a };
        Self {
            zero_point: [epilogue.zero_point as f32; 8],
            low: [epilogue.low as f32; 8],
            high: [epilogue.high as f32; 8],
            own: [own; 8],
            other: [other; 8],
            fixed: [rule.fixed; 8],
            least: [rule.low as f32; 8],
            most: [rule.high as f32; 8],
            limits: !keeps_limits(rule),
            own_is_first,
            other_is_signed: element == ElementType::S8,
            is_signed: rule.low < 0,
        }
    }
}

/// Whether limits are those of a stored type, which narrowing to bytes keeps anyway.
fn is_whole(low: i32, high: i32) -> bool {
    [(0, 255), (-128, 127)].contains(&(low, high))
}

/// Whether narrowing to bytes keeps the limits of a sum.
fn keeps_limits(rule: &AddRule) -> bool {
    // Sums below this convert to i32, and saturate on the way to bytes.
    let most = 256.0 * (rule.ratio_a.abs() + rule.ratio_b.abs()) + rule.fixed.abs();
    is_whole(rule.low, rule.high) && most < 1e9
}

/// The same pointer, of unknown origin: the compiler would otherwise compute each row's address from the one before,
/// in a chain of additions as long as the multiplications take.
#[inline(always)]
pub(crate) fn opaque<T>(pointer: *const T) -> *const T {
    let mut address = pointer.addr();
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) address,
            options(pure, nomem, nostack, preserves_flags));
    }
    pointer.with_addr(address)
}

/// The epilogue of whole blocks without a residual sum. Compiled as a part of the tile, so that sums stay in registers.
///
/// # Safety
/// As for [`tiles`]; the epilogue is plain, `HALVES` is 2 and there are 16 channels.
#[inline(always)]
unsafe fn finish_plain<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    // SAFETY: outputs hold 16 more bytes. The machine has the instructions.
    unsafe {
        let constants = &*opaque(constants);
        let [low, high] =
            [&constants.low, &constants.high].map(|limit| _mm256_load_si256(limit.as_ptr().cast()));
        let zero_point = _mm256_load_si256(constants.zero_point.as_ptr().cast());
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let outputs = call.outputs.as_ptr().add(row);
        // Of 8 channels: scaled and rounded. Every product fits, and what follows saturates.
        macro_rules! scaled {
            ($row:expr, $half:literal) => {{
                let value = _mm256_cvtepi32_ps(sums[$row][$half % HALVES]);
                let multipliers = _mm256_load_ps(constants.multipliers[$half].as_ptr());
                _mm256_cvtps_epi32(_mm256_mul_ps(value, multipliers))
            }};
        }
        macro_rules! words {
            ($row:expr) => {
                _mm256_adds_epi16(
                    _mm256_packs_epi32(scaled!($row, 0), scaled!($row, 1)),
                    zero_point,
                )
            };
        }
        // Two rows at once; a last odd one is its own partner.
        macro_rules! pairs {
            ($($first:literal),*) => { $(if $first < ROWS {
                let (upper, lower) = ($first % ROWS, ($first + 1).min(ROWS - 1));
                let words = [words!(upper), words!(lower)];
                let mut bytes = if LEAVE == SIGNED {
                    _mm256_packs_epi16(words[0], words[1])
                } else {
                    _mm256_packus_epi16(words[0], words[1])
                };
                if constants.limits {
                    bytes = if LEAVE == SIGNED {
                        _mm256_min_epi8(_mm256_max_epi8(bytes, low), high)
                    } else {
                        _mm256_min_epu8(_mm256_max_epu8(bytes, low), high)
                    };
                }
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                let to = arena.add(*outputs.add(upper) + channel);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
                if upper != lower {
                    let to = arena.add(*outputs.add(lower) + channel);
                    _mm_storeu_si128(to.cast(), _mm256_extracti128_si256::<1>(bytes));
                }
            })* };
        }
        pairs!(0, 2, 4);
    }
}

/// The epilogue of whole blocks with a residual sum, whose own values stay f32: they are whole numbers, so nothing is lost.
///
/// # Safety
/// As for [`tiles`]; there is a sum, `HALVES` is 2 and there are 16 channels.
#[inline(always)]
unsafe fn finish_sum<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    // SAFETY: outputs and other operands hold 16 more bytes. The machine has the instructions.
    unsafe {
        let constants = &*opaque(constants);
        let joint = &constants.joint;
        let load = |values: &[f32; 8]| _mm256_load_ps(values.as_ptr());
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let (outputs, others) = (call.outputs.as_ptr().add(row), call.others.as_ptr().add(row));
        macro_rules! joined {
            ($row:expr, $half:literal, $other:expr) => {{
                let value = _mm256_cvtepi32_ps(sums[$row][$half % HALVES]);
                let value = _mm256_mul_ps(value, load(&constants.multipliers[$half]));
                let value = _mm256_round_ps::<_MM_FROUND_CUR_DIRECTION>(value);
                let value = _mm256_add_ps(value, load(&joint.zero_point));
                let own = _mm256_min_ps(_mm256_max_ps(value, load(&joint.low)), load(&joint.high));
                let bytes = _mm_loadl_epi64($other.add(8 * $half).cast());
                let other = _mm256_cvtepi32_ps(match joint.other_is_signed {
                    false => _mm256_cvtepu8_epi32(bytes),
                    true => _mm256_cvtepi8_epi32(bytes),
                });
                let (own_ratio, other_ratio) = (load(&joint.own), load(&joint.other));
                let mut sum = load(&joint.fixed);
                if joint.own_is_first {
                    sum = _mm256_fmadd_ps(other, other_ratio, sum);
                    sum = _mm256_fmadd_ps(own, own_ratio, sum);
                } else {
                    sum = _mm256_fmadd_ps(own, own_ratio, sum);
                    sum = _mm256_fmadd_ps(other, other_ratio, sum);
                }
                if joint.limits {
                    sum = _mm256_max_ps(sum, load(&joint.least));
                    sum = _mm256_min_ps(sum, load(&joint.most));
                }
                _mm256_cvtps_epi32(sum)
            }};
        }
        macro_rules! words {
            ($row:expr) => {{
                let other = arena.add(*others.add($row) + channel).cast_const();
                _mm256_packs_epi32(joined!($row, 0, other), joined!($row, 1, other))
            }};
        }
        // Two rows at once; a last odd one is its own partner.
        macro_rules! pairs {
            ($($first:literal),*) => { $(if $first < ROWS {
                let (upper, lower) = ($first % ROWS, ($first + 1).min(ROWS - 1));
                let words = [words!(upper), words!(lower)];
                let bytes = match joint.is_signed {
                    true => _mm256_packs_epi16(words[0], words[1]),
                    false => _mm256_packus_epi16(words[0], words[1]),
                };
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                let to = arena.add(*outputs.add(upper) + channel);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
                if upper != lower {
                    let to = arena.add(*outputs.add(lower) + channel);
                    _mm_storeu_si128(to.cast(), _mm256_extracti128_si256::<1>(bytes));
                }
            })* };
        }
        pairs!(0, 2, 4);
    }
}

/// # Safety
/// As for [`tiles`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn finish<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = (call.channels.end - channel).min(8 * HALVES);
    // SAFETY: multipliers are padded to whole blocks; outputs hold `channels` more bytes, the other operands a whole
    // block.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        let multipliers: [__m256; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_ps(multipliers.add(8 * half)));
        let outputs = call.outputs.as_ptr().add(row);
        let to = |row: usize| arena.add(*outputs.add(row) + channel);
        let mut words: [__m256i; ROWS] = std::array::from_fn(|row| {
            let value = |half: usize| scale(sums[row][half], multipliers[half]);
            requantise.words(value(0), value(HALVES - 1))
        });
        // One place that adds, for all rows: what is called from many is compiled as a function, and called.
        if let Some(plus) = call.epilogue.sum.as_ref().map(|sum| Plus::new(sum)) {
            let others = call.others.as_ptr().add(row);
            for (row, words) in words.iter_mut().enumerate() {
                *words = plus.words::<HALVES>(*words, arena.add(*others.add(row) + channel));
            }
        }
        if channels < BLOCK {
            for (row, words) in words.into_iter().enumerate() {
                store(to(row), requantise.bytes(words), channels);
            }
            return;
        }
        for pair in (0..ROWS - 1).step_by(2) {
            let [first, second] = requantise.rows(words[pair], words[pair + 1]);
            _mm_storeu_si128(to(pair).cast(), first);
            _mm_storeu_si128(to(pair + 1).cast(), second);
        }
        if ROWS % 2 == 1 {
            _mm_storeu_si128(to(ROWS - 1).cast(), requantise.bytes(words[ROWS - 1]));
        }
    }
}

/// Accumulators times multipliers, rounded. Below the range of i32 the conversion gives its least value, which is
/// right; above it would give the same, so the product is limited from above.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn scale(acc: __m256i, multiplier: __m256) -> __m256i {
    let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier);
    _mm256_cvtps_epi32(_mm256_min_ps(scaled, _mm256_set1_ps(65_536.0)))
}

/// The constants of an epilogue in registers.
pub(crate) struct Requantise {
    /// Whether the limits are those of the stored type, which the narrowing to bytes keeps anyway.
    is_full: bool,
    /// Whether results are s8.
    is_signed: bool,
    low: __m256i,
    high: __m256i,
    zero_point: __m256i,
}

impl Requantise {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(epilogue: &Epilogue) -> Self {
        let low = epilogue.sum.as_ref().map_or(epilogue.low, |sum| sum.rule.low);
        Self {
            is_full: epilogue.sum.is_none() && is_whole(epilogue.low, epilogue.high),
            is_signed: low < 0,
            low: _mm256_set1_epi16(epilogue.low as i16),
            high: _mm256_set1_epi16(epilogue.high as i16),
            zero_point: _mm256_set1_epi16(epilogue.zero_point as i16),
        }
    }

    /// 8 + 8 scaled values with the zero point, within the limits (those that [`Requantise::bytes`] does not keep by
    /// itself), as i16: values 0–3, 8–11, 4–7, 12–15. Saturation on the way only meets values that the limits cut
    /// anyway.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn words(&self, first: __m256i, second: __m256i) -> __m256i {
        let words = _mm256_adds_epi16(_mm256_packs_epi32(first, second), self.zero_point);
        if self.is_full {
            return words;
        }
        _mm256_min_epi16(_mm256_max_epi16(words, self.low), self.high)
    }
}

impl Requantise {
    /// [`Requantise::words`] as bytes, in order.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn bytes(&self, words: __m256i) -> __m128i {
        let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let bytes =
            if self.is_signed { _mm_packs_epi16(low, high) } else { _mm_packus_epi16(low, high) };
        _mm_shuffle_epi32::<0b11_01_10_00>(bytes)
    }

    /// The same for two rows at once.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn rows(&self, first: __m256i, second: __m256i) -> [__m128i; 2] {
        let bytes = if self.is_signed {
            _mm256_packs_epi16(first, second)
        } else {
            _mm256_packus_epi16(first, second)
        };
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(bytes, order);
        [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)]
    }
}

/// The constants of a residual sum in registers.
pub(crate) struct Plus {
    /// Whether the convolution is the first operand.
    is_first: bool,
    /// Whether the other operand is s8.
    is_signed: bool,
    /// Whether narrowing to bytes keeps the limits.
    is_full: bool,
    ratio_a: __m256,
    ratio_b: __m256,
    fixed: __m256,
    low: __m256,
    high: __m256,
}

impl Plus {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(sum: &Sum) -> Self {
        let Sum { rule, role } = sum;
        let is_first = *role == Role::First;
        let element = if is_first { rule.element_b } else { rule.element_a };
        Self {
            is_first,
            is_signed: element == ElementType::S8,
            is_full: keeps_limits(rule),
            ratio_a: _mm256_set1_ps(rule.ratio_a),
            ratio_b: _mm256_set1_ps(rule.ratio_b),
            fixed: _mm256_set1_ps(rule.fixed),
            low: _mm256_set1_ps(rule.low as f32),
            high: _mm256_set1_ps(rule.high as f32),
        }
    }

    /// The sum of requantised values, in the order of [`Requantise::words`], with stored ones.
    ///
    /// # Safety
    /// `HALVES` · 8 bytes are readable at `other`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn words<const HALVES: usize>(
        &self,
        words: __m256i,
        other: *const u8,
    ) -> __m256i {
        // Sign-extended in place: the low halves of both lanes are values 0–7, the high ones 8–15.
        let own = [
            _mm256_srai_epi32::<16>(_mm256_unpacklo_epi16(words, words)),
            _mm256_srai_epi32::<16>(_mm256_unpackhi_epi16(words, words)),
        ];
        let sums: [__m256i; HALVES] = std::array::from_fn(|half| {
            // SAFETY: by contract.
            let bytes = unsafe { _mm_loadl_epi64(other.add(8 * half).cast()) };
            let other = match self.is_signed {
                false => _mm256_cvtepu8_epi32(bytes),
                true => _mm256_cvtepi8_epi32(bytes),
            };
            let (own, other) = (_mm256_cvtepi32_ps(own[half]), _mm256_cvtepi32_ps(other));
            let (a, b) = if self.is_first { (own, other) } else { (other, own) };
            let value =
                _mm256_fmadd_ps(a, self.ratio_a, _mm256_fmadd_ps(b, self.ratio_b, self.fixed));
            if self.is_full {
                return _mm256_cvtps_epi32(value);
            }
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, self.low), self.high))
        });
        _mm256_packs_epi32(sums[0], sums[HALVES - 1])
    }
}

/// Stores the first `length` of 16 bytes.
///
/// # Safety
/// `length` bytes are writable at `to`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn store(to: *mut u8, bytes: __m128i, length: usize) {
    // SAFETY: no more than `length` bytes are written.
    unsafe {
        match length {
            16.. => _mm_storeu_si128(to.cast(), bytes),
            8 => _mm_storel_epi64(to.cast(), bytes),
            _ => {
                let mut kept = [0u8; 16];
                _mm_storeu_si128(kept.as_mut_ptr().cast(), bytes);
                std::ptr::copy_nonoverlapping(kept.as_ptr(), to, length);
            }
        }
    }
}
