//! The multiplication of ARMv8.0: bytes to i16 products, two of them added in i16, pairs of these to i32.
//!
//! Two products of signed bytes exceed i16 only when all four are −128. Where the weights could do that (two of −128
//! at depths that are added), [`Single`] adds each product for itself; else [`Paired`] does 16 products in three
//! instructions (`smull`, `smlal2`, `sadalp`). A sum of four channels stays in four registers until the end.

use std::arch::aarch64::*;

use crate::kernels::arm64::Tile;
use crate::kernels::{BLOCK, Multiply};

pub(crate) struct Paired;
pub(crate) struct Single;

impl Tile for Paired {
    #[inline(always)]
    unsafe fn sums<const ROWS: usize, const QUADS: usize>(
        call: &Multiply<'_>,
        row: usize,
        channel: usize,
    ) -> [[int32x4_t; QUADS]; ROWS] {
        // SAFETY: by contract.
        unsafe {
            sums(call, row, channel, |sum, x, w| {
                let products = vmull_s8(vget_low_s8(x), vget_low_s8(w));
                vpadalq_s16(sum, vmlal_high_s8(products, x, w))
            })
        }
    }
}

impl Tile for Single {
    #[inline(always)]
    unsafe fn sums<const ROWS: usize, const QUADS: usize>(
        call: &Multiply<'_>,
        row: usize,
        channel: usize,
    ) -> [[int32x4_t; QUADS]; ROWS] {
        // SAFETY: by contract.
        unsafe {
            sums(call, row, channel, |sum, x, w| {
                let sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(w)));
                vpadalq_s16(sum, vmull_high_s8(x, w))
            })
        }
    }
}

/// `step` adds the products of 16 depths to the sum of one row and channel.
///
/// # Safety
/// As for [`Tile::sums`].
#[inline(always)]
unsafe fn sums<const ROWS: usize, const QUADS: usize>(
    call: &Multiply<'_>,
    row: usize,
    channel: usize,
    step: impl Fn(int32x4_t, int8x16_t, int8x16_t) -> int32x4_t + Copy,
) -> [[int32x4_t; QUADS]; ROWS] {
    let depth = call.weights.depth;
    // SAFETY: check() gave panel rows · stride >= row · stride + depth values and whole blocks of weights.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); QUADS]; ROWS];
        let weights = call.weights.values.bytes().as_ptr().add(channel * depth).cast::<i8>();
        let panel = call.panel.as_ptr().cast::<i8>().add(row * call.panel_stride);
        let rows = std::array::from_fn(|row| panel.add(row * call.panel_stride));
        for quad in 0..QUADS {
            let four = four_channels::<ROWS>(rows, weights, quad, depth, step);
            for (sums, four) in sums.iter_mut().zip(four) {
                let [a, b, c, d] = four;
                sums[quad] = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            }
        }
        sums
    }
}

/// # Safety
/// `depth` values are readable at each row, and a block of as many depths at `weights`.
#[inline(always)]
unsafe fn four_channels<const ROWS: usize>(
    rows: [*const i8; ROWS],
    weights: *const i8,
    quad: usize,
    depth: usize,
    step: impl Fn(int32x4_t, int8x16_t, int8x16_t) -> int32x4_t,
) -> [[int32x4_t; 4]; ROWS] {
    let whole = depth / 16 * 16;
    // SAFETY: by contract; runs of 16 depths lie before `whole`, a tail of 8 behind it.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 4]; ROWS];
        let mut from = weights.add(quad * 4 * 16);
        for at in (0..whole).step_by(16) {
            let x: [int8x16_t; ROWS] = std::array::from_fn(|row| vld1q_s8(rows[row].add(at)));
            for channel in 0..4 {
                let w = vld1q_s8(from.add(channel * 16));
                for row in 0..ROWS {
                    sums[row][channel] = step(sums[row][channel], x[row], w);
                }
            }
            from = from.add(BLOCK * 16);
        }
        if whole < depth {
            let from = weights.add(whole * BLOCK + quad * 4 * 8);
            let x: [int8x8_t; ROWS] = std::array::from_fn(|row| vld1_s8(rows[row].add(whole)));
            for channel in 0..4 {
                let w = vld1_s8(from.add(channel * 8));
                for row in 0..ROWS {
                    sums[row][channel] = vpadalq_s16(sums[row][channel], vmull_s8(x[row], w));
                }
            }
        }
        sums
    }
}
