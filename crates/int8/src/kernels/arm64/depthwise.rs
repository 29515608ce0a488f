//! Depthwise convolution with NEON: 16 channels at a time along a row, two neighbouring outputs sharing their loads.
//!
//! The products of two taps are added in i16 (exact unless both weights are −128, see `neon.rs`) and then to the i32
//! sums: 4 products an instruction, twice what widening the inputs would give on cores with one multiplier (A72).

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use std::arch::aarch64::*;

use crate::kernels::arm64::epilogue::{Requantise, scale};
use crate::kernels::depthwise::Depthwise;
use crate::kernels::{BLOCK, portable};
use crate::operator::Window;
use crate::tensor::ElementType;

/// One image. 3×3, 5×5 and 7×7 with horizontal stride 1 or 2 are fast, unless two weights of −128 meet.
pub(crate) fn image(call: &Depthwise<'_>, n: usize) {
    let Window { kernel, strides, dilations, .. } = call.window;
    if call.weights.extreme || dilations != [1, 1] {
        return portable::depthwise(call, n);
    }
    match (kernel, strides[1]) {
        ([3, 3], 1) => rows::<3, 1>(call, n),
        ([3, 3], 2) => rows::<3, 2>(call, n),
        ([5, 5], 1) => rows::<5, 1>(call, n),
        ([5, 5], 2) => rows::<5, 2>(call, n),
        ([7, 7], 1) => rows::<7, 1>(call, n),
        ([7, 7], 2) => rows::<7, 2>(call, n),
        _ => portable::depthwise(call, n),
    }
}

fn rows<const SIDE: usize, const STEP: usize>(call: &Depthwise<'_>, n: usize) {
    for y in call.rows.clone() {
        let first = call.check(n, y);
        for channel in (0..call.output.shape.c).step_by(BLOCK) {
            // SAFETY: the row was checked, for whole blocks of channels.
            unsafe { row::<SIDE, STEP>(call, first + channel, call.output.at(n, y, 0), channel) };
        }
    }
}

/// 16 channels of an output row.
///
/// # Safety
/// `from` is the row's first tap as [`Depthwise::check`] gave it, at `channel`; `to` is the row's first output.
unsafe fn row<const SIDE: usize, const STEP: usize>(
    call: &Depthwise<'_>,
    from: usize,
    to: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = (call.output.shape.c - channel).min(BLOCK);
    let flip = if call.element == ElementType::U8 { 0x80 } else { 0 };
    let weights = &call.weights.bytes[channel..];
    assert!(weights.len() >= (SIDE * SIDE - 1) * call.weights.padded + BLOCK);
    // SAFETY: check() covers every tap of the row and its outputs; weights were checked above, bias and multipliers
    // are padded to whole blocks.
    unsafe {
        let strip = Strip::<SIDE, STEP> {
            row: call.input.row,
            pixel: call.input.pixel,
            flip: vdupq_n_u8(flip),
            weights: std::array::from_fn(|row| {
                std::array::from_fn(|column| {
                    vld1q_s8(weights.as_ptr().add((row * SIDE + column) * call.weights.padded))
                })
            }),
            requantise: Requantise::new(call.epilogue),
            bias: call.epilogue.bias.as_ptr().add(channel),
            multipliers: call.epilogue.multipliers.as_ptr().add(channel),
            channels,
        };
        let width = call.output.shape.w;
        let (mut from, mut to) = (arena.add(from).cast_const(), arena.add(to + channel));
        for _ in 0..width / 2 {
            let [first, second] = strip.outputs::<2>(from);
            strip.store(to, first);
            strip.store(to.add(call.output.pixel), second);
            from = from.wrapping_add(2 * STEP * call.input.pixel);
            to = to.wrapping_add(2 * call.output.pixel);
        }
        if width % 2 == 1 {
            let [last] = strip.outputs::<1>(from);
            strip.store(to, last);
        }
    }
}

/// What the outputs of a row have in common.
struct Strip<const SIDE: usize, const STEP: usize> {
    row: usize,
    pixel: usize,
    flip: uint8x16_t,
    weights: [[int8x16_t; SIDE]; SIDE],
    requantise: Requantise,
    bias: *const i32,
    multipliers: *const f32,
    channels: usize,
}

impl<const SIDE: usize, const STEP: usize> Strip<SIDE, STEP> {
    /// `COUNT` neighbouring outputs.
    ///
    /// # Safety
    /// 16 bytes are readable at each tap from `from` on, and 16 values at bias and multipliers.
    #[inline(always)]
    unsafe fn outputs<const COUNT: usize>(&self, from: *const u8) -> [uint8x16_t; COUNT] {
        // SAFETY: by contract.
        unsafe {
            let bias = std::array::from_fn(|quad| vld1q_s32(self.bias.add(4 * quad)));
            let mut sums: [[int32x4_t; 4]; COUNT] = [bias; COUNT];
            // The product of a tap that waits for its partner: low and high channels.
            let mut waiting = [[vdupq_n_s16(0); 2]; COUNT];
            for row in 0..SIDE {
                let from = opaque(from.add(row * self.row));
                // Columns of the window of the first output, and those that the second one adds.
                let mut x = [[vdupq_n_s8(0); SIDE]; COUNT];
                for output in 0..COUNT {
                    for column in 0..SIDE {
                        x[output][column] = if output > 0 && column + STEP < SIDE {
                            x[output - 1][column + STEP]
                        } else {
                            self.load(from.add((output * STEP + column) * self.pixel))
                        };
                    }
                }
                for column in 0..SIDE {
                    let tap = row * SIDE + column;
                    let w = self.weights[row][column];
                    for output in 0..COUNT {
                        let (x, [low, high]) = (x[output][column], &mut waiting[output]);
                        if tap % 2 == 0 {
                            *low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
                            *high = vmull_high_s8(x, w);
                        } else {
                            *low = vmlal_s8(*low, vget_low_s8(x), vget_low_s8(w));
                            *high = vmlal_high_s8(*high, x, w);
                        }
                        if tap % 2 == 1 || tap + 1 == SIDE * SIDE {
                            let sums = &mut sums[output];
                            sums[0] = vaddw_s16(sums[0], vget_low_s16(*low));
                            sums[1] = vaddw_high_s16(sums[1], *low);
                            sums[2] = vaddw_s16(sums[2], vget_low_s16(*high));
                            sums[3] = vaddw_high_s16(sums[3], *high);
                        }
                    }
                }
            }
            let mut bytes = [vdupq_n_u8(0); COUNT];
            for output in 0..COUNT {
                bytes[output] = self.finish(&sums[output]);
            }
            bytes
        }
    }

    /// # Safety
    /// 16 bytes are readable.
    #[inline(always)]
    unsafe fn load(&self, from: *const u8) -> int8x16_t {
        // SAFETY: by contract.
        unsafe { vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), self.flip)) }
    }

    /// # Safety
    /// 16 multipliers are readable.
    #[inline(always)]
    unsafe fn finish(&self, sums: &[int32x4_t; 4]) -> uint8x16_t {
        // SAFETY: by contract.
        unsafe {
            let scaled = |quad: usize| scale(sums[quad], vld1q_f32(self.multipliers.add(4 * quad)));
            let low = self.requantise.words(scaled(0), scaled(1));
            let high = self.requantise.words(scaled(2), scaled(3));
            let low = vmovn_u16(vreinterpretq_u16_s16(low));
            vmovn_high_u16(low, vreinterpretq_u16_s16(high))
        }
    }

    /// # Safety
    /// `channels` bytes are writable.
    #[inline(always)]
    unsafe fn store(&self, to: *mut u8, bytes: uint8x16_t) {
        // SAFETY: no more than `channels` bytes are written.
        unsafe {
            if self.channels == BLOCK {
                vst1q_u8(to, bytes);
            } else {
                let mut kept = [0u8; BLOCK];
                vst1q_u8(kept.as_mut_ptr(), bytes);
                std::ptr::copy_nonoverlapping(kept.as_ptr(), to, self.channels);
            }
        }
    }
}

/// The same pointer, of unknown origin: the compiler would otherwise keep the offset of every tap, and find no
/// registers for them.
#[inline(always)]
fn opaque(pointer: *const u8) -> *const u8 {
    let mut address = pointer.addr();
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) address,
            options(pure, nomem, nostack, preserves_flags));
    }
    pointer.with_addr(address)
}
