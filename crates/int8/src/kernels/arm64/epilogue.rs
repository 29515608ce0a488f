//! From sums to stored bytes: bias, requantisation, limits, residual sum, in registers.

use std::arch::aarch64::*;

use crate::kernels::{Epilogue, Multiply, Role, Sum};
use crate::tensor::ElementType;

/// The constants of an epilogue in registers.
#[derive(Clone, Copy)]
pub(crate) struct Requantise {
    low: int16x8_t,
    high: int16x8_t,
    zero_point: int16x8_t,
}

impl Requantise {
    #[inline(always)]
    pub(crate) fn new(epilogue: &Epilogue) -> Self {
        // SAFETY: NEON belongs to the base instruction set.
        unsafe {
            Self {
                low: vdupq_n_s16(epilogue.low as i16),
                high: vdupq_n_s16(epilogue.high as i16),
                zero_point: vdupq_n_s16(epilogue.zero_point as i16),
            }
        }
    }

    /// 4 + 4 scaled values with the zero point, within the limits. Each narrowing saturates, which only meets values
    /// that the limits cut anyway.
    #[inline(always)]
    pub(crate) fn words(&self, first: int32x4_t, second: int32x4_t) -> int16x8_t {
        // SAFETY: as above.
        unsafe {
            let words = vqaddq_s16(narrow(first, second), self.zero_point);
            vminq_s16(vmaxq_s16(words, self.low), self.high)
        }
    }
}

/// Sums with their bias times multipliers, rounded to nearest, ties to even; saturates.
#[inline(always)]
pub(crate) fn scale(sum: int32x4_t, multiplier: float32x4_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe { vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sum), multiplier)) }
}

#[inline(always)]
fn narrow(first: int32x4_t, second: int32x4_t) -> int16x8_t {
    // SAFETY: as above.
    unsafe { vqmovn_high_s32(vqmovn_s32(first), second) }
}

/// Stores a tile through the epilogue.
///
/// # Safety
/// The call has passed [`Multiply::check`]; the rows exist and `channel` starts a block.
#[inline(always)]
pub(crate) unsafe fn finish<const ROWS: usize, const QUADS: usize>(
    call: &Multiply<'_>,
    sums: &[[int32x4_t; QUADS]; ROWS],
    row: usize,
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = (call.channels.end - channel).min(4 * QUADS);
    // SAFETY: bias and multipliers are padded to whole blocks; outputs hold `channels` more bytes, the other operands
    // a whole block.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        for half in 0..QUADS / 2 {
            let Some(length) = channels.checked_sub(8 * half).filter(|&length| length > 0) else {
                return;
            };
            let bias = [vld1q_s32(bias.add(8 * half)), vld1q_s32(bias.add(8 * half + 4))];
            let multipliers =
                [vld1q_f32(multipliers.add(8 * half)), vld1q_f32(multipliers.add(8 * half + 4))];
            for (index, sums) in sums.iter().enumerate() {
                let scaled = |nth: usize| {
                    scale(vaddq_s32(sums[2 * half + nth], bias[nth]), multipliers[nth])
                };
                let mut words = requantise.words(scaled(0), scaled(1));
                if let Some(sum) = &call.epilogue.sum {
                    words =
                        plus(sum, words, arena.add(call.others[row + index] + channel + 8 * half));
                }
                let bytes = vmovn_u16(vreinterpretq_u16_s16(words));
                store(arena.add(call.outputs[row + index] + channel + 8 * half), bytes, length);
            }
        }
    }
}

/// The residual sum of requantised values with stored ones.
///
/// # Safety
/// 8 bytes are readable at `other`.
#[inline(always)]
unsafe fn plus(sum: &Sum, words: int16x8_t, other: *const u8) -> int16x8_t {
    let Sum { rule, role } = sum;
    let element = if *role == Role::First { rule.element_b } else { rule.element_a };
    // SAFETY: by contract.
    unsafe {
        let bytes = vld1_u8(other);
        let other = match element {
            ElementType::U8 => vreinterpretq_s16_u16(vmovl_u8(bytes)),
            ElementType::S8 => vmovl_s8(vreinterpret_s8_u8(bytes)),
        };
        let (a, b) = if *role == Role::First { (words, other) } else { (other, words) };
        let apply = |a: int32x4_t, b: int32x4_t| {
            let fixed = vdupq_n_f32(rule.fixed);
            let inner = vfmaq_n_f32(fixed, vcvtq_f32_s32(b), rule.ratio_b);
            let value = vfmaq_n_f32(inner, vcvtq_f32_s32(a), rule.ratio_a);
            let value = vmaxq_f32(value, vdupq_n_f32(rule.low as f32));
            vcvtnq_s32_f32(vminq_f32(value, vdupq_n_f32(rule.high as f32)))
        };
        narrow(
            apply(vmovl_s16(vget_low_s16(a)), vmovl_s16(vget_low_s16(b))),
            apply(vmovl_high_s16(a), vmovl_high_s16(b)),
        )
    }
}

/// Stores the first `length` of 8 bytes.
///
/// # Safety
/// `length` bytes are writable at `to`.
#[inline(always)]
unsafe fn store(to: *mut u8, bytes: uint8x8_t, length: usize) {
    // SAFETY: no more than `length` bytes are written.
    unsafe {
        if length >= 8 {
            vst1_u8(to, bytes);
        } else {
            let mut kept = [0u8; 8];
            vst1_u8(kept.as_mut_ptr(), bytes);
            std::ptr::copy_nonoverlapping(kept.as_ptr(), to, length);
        }
    }
}
