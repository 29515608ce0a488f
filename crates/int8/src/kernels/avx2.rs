//! x86 with AVX2 and FMA. Exact: `vpmaddubsw` saturates when 255 · 127 · 2 exceeds i16, so both operands are widened
//! to i16 beforehand (weights when packed, inputs when gathered) and `vpmaddwd` sums pairs into i32 without loss.
//!
//! One `vpmaddwd` is 16 multiplications; the inexact `vpmaddubsw` + `vpmaddwd` pair is 32 for two instructions of the
//! same ports, so exactness costs nothing at the peak.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::gather::{Gather, Widen};
use crate::kernels::{
    BLOCK, Epilogue, Kernels, Multiply, Role, Run, Sum, avx2_depthwise, portable,
};
use crate::numerics::{AddRule, MulRule};
use crate::tensor::{ElementType, Quantisation};

/// Rows of a tile: 6 · 2 accumulators, 2 weights and 1 input fill 15 of 16 registers.
const ROWS: usize = 6;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "avx2",
    tile_rows: ROWS,
    gather,
    multiply,
    takes_depthwise: avx2_depthwise::takes,
    depthwise: avx2_depthwise::row,
    add,
    mul,
    accumulate,
    maximum,
    quantise,
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
with_features!(quantise(to: &Quantisation, values: &[f32], y: Run<'_>, step: usize));

struct Unsigned;
struct Signed;

impl Widen for Unsigned {
    #[inline(always)]
    unsafe fn widen(from: *const u8, to: *mut i16, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: at < length, so at + 16 < length + OVERRUN, within the contract of the trait.
            unsafe {
                let bytes = _mm_loadu_si128(from.add(at).cast());
                _mm256_storeu_si256(to.add(at).cast(), _mm256_cvtepu8_epi16(bytes));
            }
        }
    }
}

impl Widen for Signed {
    #[inline(always)]
    unsafe fn widen(from: *const u8, to: *mut i16, length: usize) {
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
    call.check();
    // SAFETY: the table is handed out only after `is_available`; the call's reach was checked.
    unsafe { blocks(call) }
}

/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx2,fma")]
unsafe fn blocks(call: &Multiply<'_>) {
    let channels = call.weights.channels;
    for channel in (0..channels).step_by(BLOCK) {
        let wide = channels - channel > BLOCK / 2;
        let mut row = 0;
        while row < call.outputs.len() {
            let rows = (call.outputs.len() - row).min(ROWS);
            // SAFETY: rows row..row + rows exist; the block starts at a channel that exists.
            unsafe {
                match (rows, wide) {
                    (6, true) => tile::<6, 2>(call, row, channel),
                    (5, true) => tile::<5, 2>(call, row, channel),
                    (4, true) => tile::<4, 2>(call, row, channel),
                    (3, true) => tile::<3, 2>(call, row, channel),
                    (2, true) => tile::<2, 2>(call, row, channel),
                    (_, true) => tile::<1, 2>(call, row, channel),
                    (6, false) => tile::<6, 1>(call, row, channel),
                    (5, false) => tile::<5, 1>(call, row, channel),
                    (4, false) => tile::<4, 1>(call, row, channel),
                    (3, false) => tile::<3, 1>(call, row, channel),
                    (2, false) => tile::<2, 1>(call, row, channel),
                    (_, false) => tile::<1, 1>(call, row, channel),
                }
            }
            row += rows;
        }
    }
}

/// `ROWS` panel rows times `HALVES` · 8 channels.
///
/// # Safety
/// The call has passed [`Multiply::check`]; the rows exist and `channel` starts a block.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    row: usize,
    channel: usize,
) {
    let depth = call.weights.depth;
    let mut sums = [[_mm256_setzero_si256(); HALVES]; ROWS];
    // SAFETY: check() gave panel rows · stride >= row · stride + depth values, and whole blocks of weights.
    unsafe {
        let mut weights = call.weights.words.words().as_ptr().add(channel * depth);
        let panel = call.panel.words().as_ptr().add(row * call.panel_stride);
        let starts: [*const i16; ROWS] =
            std::array::from_fn(|row| panel.add(row * call.panel_stride));
        for at in (0..depth).step_by(2) {
            let block: [__m256i; HALVES] =
                std::array::from_fn(|half| _mm256_load_si256(weights.add(16 * half).cast()));
            for row in 0..ROWS {
                let pair = _mm256_set1_epi32(starts[row].add(at).cast::<i32>().read_unaligned());
                for half in 0..HALVES {
                    let products = _mm256_madd_epi16(pair, block[half]);
                    sums[row][half] = _mm256_add_epi32(sums[row][half], products);
                }
            }
            weights = weights.add(2 * BLOCK);
        }
    }
    // SAFETY: outputs and other operands were checked for whole blocks of channels.
    unsafe { finish::<ROWS, HALVES>(call, &sums, row, channel) }
}

/// # Safety
/// As for [`tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = (call.weights.channels - channel).min(8 * HALVES);
    // SAFETY: bias and multipliers are padded to whole blocks; outputs hold `channels` more bytes, the other operands
    // a whole block.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        for index in 0..ROWS {
            let values: [__m256i; HALVES] = std::array::from_fn(|half| {
                let bias = _mm256_loadu_si256(bias.add(8 * half).cast());
                let multiplier = _mm256_loadu_ps(multipliers.add(8 * half));
                requantise.apply(_mm256_add_epi32(sums[index][half], bias), multiplier)
            });
            let values = match &call.epilogue.sum {
                None => values,
                Some(sum) => {
                    let other = arena.add(call.others[row + index] + channel);
                    std::array::from_fn(|half| plus(sum, values[half], other.add(8 * half)))
                }
            };
            let bytes = pack(values[0], values[HALVES - 1]);
            let to = arena.add(call.outputs[row + index] + channel);
            store(to, bytes, channels);
        }
    }
}

/// The constants of an epilogue in registers.
pub(crate) struct Requantise {
    low: __m256,
    high: __m256,
    zero_point: __m256i,
}

impl Requantise {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(epilogue: &Epilogue) -> Self {
        Self {
            low: _mm256_set1_ps((epilogue.low - epilogue.zero_point) as f32),
            high: _mm256_set1_ps((epilogue.high - epilogue.zero_point) as f32),
            zero_point: _mm256_set1_epi32(epilogue.zero_point),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn apply(&self, acc: __m256i, multiplier: __m256) -> __m256i {
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier);
        let clamped = _mm256_min_ps(_mm256_max_ps(scaled, self.low), self.high);
        _mm256_add_epi32(_mm256_cvtps_epi32(clamped), self.zero_point)
    }
}

/// The residual sum of 8 requantised values with 8 stored ones.
///
/// # Safety
/// 8 bytes are readable at `other`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn plus(sum: &Sum, own: __m256i, other: *const u8) -> __m256i {
    let Sum { rule, role } = sum;
    let element = if *role == Role::First { rule.element_b } else { rule.element_a };
    // SAFETY: by contract.
    let bytes = unsafe { _mm_loadl_epi64(other.cast()) };
    let other = match element {
        ElementType::U8 => _mm256_cvtepu8_epi32(bytes),
        ElementType::S8 => _mm256_cvtepi8_epi32(bytes),
    };
    let (a, b) = if *role == Role::First { (own, other) } else { (other, own) };
    let (a, b) = (_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b));
    let inner = _mm256_fmadd_ps(b, _mm256_set1_ps(rule.ratio_b), _mm256_set1_ps(rule.fixed));
    let value = _mm256_fmadd_ps(a, _mm256_set1_ps(rule.ratio_a), inner);
    let low = _mm256_set1_ps(rule.low as f32);
    let high = _mm256_set1_ps(rule.high as f32);
    _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, low), high))
}

/// Low bytes of 8 + 8 values that fit a byte, signed or not, in order.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn pack(first: __m256i, second: __m256i) -> __m128i {
    let words = _mm256_packs_epi32(first, second);
    let words = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
    let bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    _mm_shuffle_epi32::<0b11_01_10_00>(bytes)
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
