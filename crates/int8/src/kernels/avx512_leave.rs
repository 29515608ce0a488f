//! How sums of a multiplication leave with AVX512-VNNI: requantised, and added to what a residual sum adds, from the registers they
//! are in.

use std::arch::x86_64::*;

use crate::kernels::avx2_epilogue::is_whole;
use crate::kernels::avx512_multiply::Part;
use crate::kernels::{BLOCK, Epilogue, Multiply, Role, Sum};
use crate::tensor::ElementType;

/// Sums without a residual one, whose products fit, to u8.
pub(super) const UNSIGNED: u8 = 0;
/// The same to s8.
pub(super) const SIGNED: u8 = 1;
/// With a residual sum.
pub(super) const SUM: u8 = 2;
/// Whose products may not fit i32.
pub(super) const ANY: u8 = 3;

/// The constants of an epilogue.
pub(super) struct Constants {
    pub(super) leave: u8,
    /// Whether the limits are not those of the stored type.
    limits: bool,
    joint: Joint,
}

/// The constants of a residual sum.
#[derive(Default)]
struct Joint {
    /// The convolution's own limits, less its zero point.
    low: f32,
    high: f32,
    /// [`ROUNDING`] less the zero point.
    rounded: f32,
    /// What own values and the others are multiplied by.
    own: f32,
    other: f32,
    own_is_first: bool,
    other_is_signed: bool,
}

/// Added to a number below 2²², rounds it to a whole one, half to even; to be subtracted again.
const ROUNDING: f32 = 12_582_912.0;

impl Constants {
    pub(super) fn new(epilogue: &Epilogue) -> Self {
        let leave = match epilogue {
            Epilogue { sum: Some(_), .. } => SUM,
            epilogue if !epilogue.is_plain() => ANY,
            Epilogue { low: ..0, .. } => SIGNED,
            _ => UNSIGNED,
        };
        match &epilogue.sum {
            None => {
                let limits = !is_whole(epilogue.low, epilogue.high);
                Self { leave, limits, joint: Joint::default() }
            }
            Some(sum) => {
                Self { leave, limits: !sum.rule.saturates(), joint: Joint::new(epilogue, sum) }
            }
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
            low: (epilogue.low - epilogue.zero_point) as f32,
            high: (epilogue.high - epilogue.zero_point) as f32,
            rounded: ROUNDING - epilogue.zero_point as f32,
            own,
            other,
            own_is_first,
            other_is_signed: element == ElementType::S8,
        }
    }
}

/// Row and block of one of the four registers that become 64 bytes together: a row of 3 or 4 blocks, two of 2, four of 1. What is
/// missing stands in for itself.
const fn place<const ROWS: usize, const BLOCKS: usize>(quad: usize, nth: usize) -> (usize, usize) {
    let (row, block) = match BLOCKS {
        1 => (4 * quad + nth, 0),
        2 => (2 * quad + nth / 2, nth % 2),
        _ => (quad, nth),
    };
    (if row < ROWS { row } else { ROWS - 1 }, if block < BLOCKS { block } else { BLOCKS - 1 })
}

/// Calls a macro with row and block of each four registers of a tile's sums, and stores the 64 bytes that it makes of them. Written
/// out, because sums that a loop indexes stay in memory.
macro_rules! quads {
    ($call:expr, $row:expr, $part:expr, $bytes:ident) => {
        let arena = $call.arena.as_ptr().cast::<u8>().cast_mut();
        let outputs = $call.outputs.as_ptr().add($row);
        // Narrowing works within lanes of 128 bits.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let quads = match BLOCKS {
            1 => ROWS.div_ceil(4),
            2 => ROWS.div_ceil(2),
            _ => ROWS,
        };
        let to = |row: usize| arena.add(*outputs.add(row) + $part.channel);
        macro_rules! quad {
            ($quad:literal) => {
                if $quad < quads {
                    let [a, b, c, d] = [
                        const { place::<ROWS, BLOCKS>($quad, 0) },
                        const { place::<ROWS, BLOCKS>($quad, 1) },
                        const { place::<ROWS, BLOCKS>($quad, 2) },
                        const { place::<ROWS, BLOCKS>($quad, 3) },
                    ];
                    let bytes = _mm512_permutexvar_epi32(order, $bytes!(a, b, c, d));
                    let (low, high) =
                        (_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes));
                    match BLOCKS {
                        1 => {
                            let keep = $part.keep as u16;
                            _mm_mask_storeu_epi8(to(a.0).cast(), keep, _mm256_castsi256_si128(low));
                            if b.0 > a.0 {
                                let bytes = _mm256_extracti128_si256::<1>(low);
                                _mm_mask_storeu_epi8(to(b.0).cast(), keep, bytes);
                            }
                            if c.0 > b.0 {
                                let bytes = _mm256_castsi256_si128(high);
                                _mm_mask_storeu_epi8(to(c.0).cast(), keep, bytes);
                            }
                            if d.0 > c.0 {
                                let bytes = _mm256_extracti128_si256::<1>(high);
                                _mm_mask_storeu_epi8(to(d.0).cast(), keep, bytes);
                            }
                        }
                        2 => {
                            _mm256_mask_storeu_epi8(to(a.0).cast(), $part.keep as u32, low);
                            if c.0 > a.0 {
                                _mm256_mask_storeu_epi8(to(c.0).cast(), $part.keep as u32, high);
                            }
                        }
                        _ => _mm512_mask_storeu_epi8(to(a.0).cast(), $part.keep, bytes),
                    }
                }
            };
        }
        quad!(0);
        quad!(1);
        quad!(2);
        quad!(3);
        quad!(4);
    };
}

/// The epilogue without a residual sum, where every product fits i32. Compiled as a part of the tile, so that sums stay in
/// registers.
///
/// # Safety
/// As for a tile of `avx512_multiply.rs`.
#[inline(always)]
pub(super) unsafe fn leave<const ROWS: usize, const BLOCKS: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m512i; BLOCKS]; ROWS],
    row: usize,
    part: &Part<'_>,
) {
    // SAFETY: multipliers are padded to whole blocks; outputs hold the part's channels. The machine has the instructions.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(part.channel);
        let multipliers: [__m512; BLOCKS] =
            std::array::from_fn(|block| _mm512_loadu_ps(multipliers.add(BLOCK * block)));
        let zero_point = _mm512_set1_epi16(call.epilogue.zero_point as i16);
        let low = _mm512_set1_epi8(call.epilogue.low as i8);
        let high = _mm512_set1_epi8(call.epilogue.high as i8);
        // Scaled and rounded. Every product fits, and what follows saturates.
        macro_rules! scaled {
            ($at:expr) => {{
                let value = _mm512_cvtepi32_ps(sums[$at.0][$at.1]);
                _mm512_cvtps_epi32(_mm512_mul_ps(value, multipliers[$at.1]))
            }};
        }
        macro_rules! bytes {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {{
                let first = _mm512_packs_epi32(scaled!($a), scaled!($b));
                let second = _mm512_packs_epi32(scaled!($c), scaled!($d));
                let first = _mm512_adds_epi16(first, zero_point);
                let second = _mm512_adds_epi16(second, zero_point);
                let bytes = match LEAVE == SIGNED {
                    true => _mm512_packs_epi16(first, second),
                    false => _mm512_packus_epi16(first, second),
                };
                match (constants.limits, LEAVE == SIGNED) {
                    (false, _) => bytes,
                    (true, true) => _mm512_min_epi8(_mm512_max_epi8(bytes, low), high),
                    (true, false) => _mm512_min_epu8(_mm512_max_epu8(bytes, low), high),
                }
            }};
        }
        quads!(call, row, part, bytes);
    }
}

/// The same with a residual sum. Own values stay f32: they are whole numbers, so nothing is lost.
///
/// # Safety
/// As for a tile of `avx512_multiply.rs`; there is a sum.
#[inline(always)]
pub(super) unsafe fn leave_sum<const ROWS: usize, const BLOCKS: usize>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m512i; BLOCKS]; ROWS],
    row: usize,
    part: &Part<'_>,
) {
    let (Some(sum), joint) = (&call.epilogue.sum, &constants.joint) else { return };
    // SAFETY: multipliers are padded to whole blocks; outputs hold the part's channels, other operands whole blocks. The machine
    // has the instructions.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(part.channel);
        let multipliers: [__m512; BLOCKS] =
            std::array::from_fn(|block| _mm512_loadu_ps(multipliers.add(BLOCK * block)));
        let [low, high] = [joint.low, joint.high].map(|value| _mm512_set1_ps(value));
        let [own_ratio, other_ratio] = [joint.own, joint.other].map(|value| _mm512_set1_ps(value));
        let (rounding, rounded) = (_mm512_set1_ps(ROUNDING), _mm512_set1_ps(joint.rounded));
        let fixed = _mm512_set1_ps(sum.rule.fixed);
        let [least, most] = [sum.rule.low, sum.rule.high].map(|value| _mm512_set1_ps(value as f32));
        let (from, others) = (call.arena.as_ptr().cast::<u8>(), call.others.as_ptr().add(row));
        macro_rules! joined {
            ($at:expr) => {{
                let value = _mm512_cvtepi32_ps(sums[$at.0][$at.1]);
                let value = _mm512_mul_ps(value, multipliers[$at.1]);
                // Limited before it is rounded, which is the same for limits that are whole.
                let value = _mm512_min_ps(_mm512_max_ps(value, low), high);
                let own = _mm512_sub_ps(_mm512_add_ps(value, rounding), rounded);
                let other = from.add(*others.add($at.0) + part.channel + BLOCK * $at.1);
                let other = _mm_loadu_si128(other.cast());
                let other = _mm512_cvtepi32_ps(match joint.other_is_signed {
                    false => _mm512_cvtepu8_epi32(other),
                    true => _mm512_cvtepi8_epi32(other),
                });
                let sum = match joint.own_is_first {
                    true => {
                        let inner = _mm512_fmadd_ps(other, other_ratio, fixed);
                        _mm512_fmadd_ps(own, own_ratio, inner)
                    }
                    false => {
                        let inner = _mm512_fmadd_ps(own, own_ratio, fixed);
                        _mm512_fmadd_ps(other, other_ratio, inner)
                    }
                };
                _mm512_cvtps_epi32(match constants.limits {
                    true => _mm512_min_ps(_mm512_max_ps(sum, least), most),
                    false => sum,
                })
            }};
        }
        macro_rules! bytes {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {{
                let first = _mm512_packs_epi32(joined!($a), joined!($b));
                let second = _mm512_packs_epi32(joined!($c), joined!($d));
                match sum.rule.low < 0 {
                    true => _mm512_packs_epi16(first, second),
                    false => _mm512_packus_epi16(first, second),
                }
            }};
        }
        quads!(call, row, part, bytes);
    }
}

/// A row's epilogue by the rule itself.
///
/// # Safety
/// As for a tile of `avx512_multiply.rs`; `row` exists.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn leave_any(call: &Multiply<'_>, sums: &[__m512i], row: usize, part: &Part<'_>) {
    let channels = (call.channels.end - part.channel).min(sums.len() * BLOCK);
    for nth in 0..channels {
        let (channel, sums) = (part.channel + nth, sums.as_ptr().cast::<i32>());
        // The sum has the bias already.
        // SAFETY: there is a sum for each channel of the part's blocks.
        let acc = unsafe { sums.add(nth).read() }.wrapping_sub(call.epilogue.bias[channel]);
        let other = || call.arena[call.others[row] + channel].get();
        call.arena[call.outputs[row] + channel].set(call.epilogue.apply(acc, channel, other));
    }
}
