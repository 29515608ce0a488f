//! Cores with `sdot` (dotprod: Cortex-A55, A76) and `smmla` (i8mm: Cortex-A510, A710, Neoverse V1): bytes to i32 in one
//! instruction, exact for all weights.
//!
//! Rust's intrinsics for both are not stable, so this file writes the two instructions itself.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernels::arm64::{Tile, multiply, table};
use crate::kernels::{BLOCK, Kernels, Multiply, Packing};
use crate::tensor::ElementType;

pub(crate) static DOTPROD: Kernels = table(
    "dotprod",
    Packing::Bytes { run: 4, tail: 4, panel: ElementType::S8 },
    multiply::<Dotprod>,
);
pub(crate) static I8MM: Kernels =
    table("i8mm", Packing::Bytes { run: 8, tail: 8, panel: ElementType::S8 }, multiply::<I8mm>);

pub(crate) fn has_dotprod() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

pub(crate) fn has_i8mm() -> bool {
    std::arch::is_aarch64_feature_detected!("i8mm")
}

/// Adds to each 32-bit sum the products of its four weights with the `LANE`th four inputs.
///
/// # Safety
/// The machine has dotprod.
#[inline(always)]
unsafe fn sdot<const LANE: i32>(
    mut sum: int32x4_t,
    weights: int8x16_t,
    inputs: int8x16_t,
) -> int32x4_t {
    // SAFETY: reads and writes only the registers named; the machine has the instruction, by contract.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {weights:v}.16b, {inputs:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            inputs = in(vreg) inputs,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds the product of a 2 × 8 matrix of inputs with an 8 × 2 matrix of weights.
///
/// # Safety
/// The machine has i8mm.
#[inline(always)]
unsafe fn smmla(mut sum: int32x4_t, inputs: int8x16_t, weights: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sum:v}.4s, {inputs:v}.16b, {weights:v}.16b",
            sum = inout(vreg) sum,
            inputs = in(vreg) inputs,
            weights = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

struct Dotprod;
struct I8mm;

impl Tile for Dotprod {
    #[inline(always)]
    unsafe fn sums<const ROWS: usize, const QUADS: usize>(
        call: &Multiply<'_>,
        row: usize,
        channel: usize,
    ) -> [[int32x4_t; QUADS]; ROWS] {
        let depth = call.weights.depth;
        // SAFETY: check() gave panel rows · stride >= row · stride + depth values and whole blocks of weights.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); QUADS]; ROWS];
            let mut from = call.weights.values.bytes().as_ptr().add(channel * depth).cast::<i8>();
            let panel = call.panel.as_ptr().cast::<i8>().add(row * call.panel_stride);
            let rows: [*const i8; ROWS] =
                std::array::from_fn(|row| panel.add(row * call.panel_stride));
            let whole = depth / 16 * 16;
            for at in (0..whole).step_by(16) {
                let x: [int8x16_t; ROWS] = std::array::from_fn(|row| vld1q_s8(rows[row].add(at)));
                step::<0, ROWS, QUADS>(&mut sums, from, &x);
                step::<1, ROWS, QUADS>(&mut sums, from.add(4 * BLOCK), &x);
                step::<2, ROWS, QUADS>(&mut sums, from.add(8 * BLOCK), &x);
                step::<3, ROWS, QUADS>(&mut sums, from.add(12 * BLOCK), &x);
                from = from.add(16 * BLOCK);
            }
            for at in (whole..depth).step_by(4) {
                let x = std::array::from_fn(|row| {
                    let four = rows[row].add(at).cast::<i32>().read_unaligned();
                    vreinterpretq_s8_s32(vdupq_n_s32(four))
                });
                step::<0, ROWS, QUADS>(&mut sums, from, &x);
                from = from.add(4 * BLOCK);
            }
            sums
        }
    }
}

/// Four depths, those of lane `LANE` of the inputs.
///
/// # Safety
/// The machine has dotprod; a block of 4 depths is readable at `weights`.
#[inline(always)]
unsafe fn step<const LANE: i32, const ROWS: usize, const QUADS: usize>(
    sums: &mut [[int32x4_t; QUADS]; ROWS],
    weights: *const i8,
    x: &[int8x16_t; ROWS],
) {
    for quad in 0..QUADS {
        // SAFETY: by contract.
        unsafe {
            let w = vld1q_s8(weights.add(quad * 16));
            for row in 0..ROWS {
                sums[row][quad] = sdot::<LANE>(sums[row][quad], w, x[row]);
            }
        }
    }
}

impl Tile for I8mm {
    #[inline(always)]
    unsafe fn sums<const ROWS: usize, const QUADS: usize>(
        call: &Multiply<'_>,
        row: usize,
        channel: usize,
    ) -> [[int32x4_t; QUADS]; ROWS] {
        let depth = call.weights.depth;
        // SAFETY: as for dotprod; a last odd row is its own partner.
        unsafe {
            // Per pair of rows and quad: two channels of both rows, and the other two.
            let mut pairs = [[[vdupq_n_s32(0); 2]; QUADS]; ROWS];
            let mut from = call.weights.values.bytes().as_ptr().add(channel * depth).cast::<i8>();
            let panel = call.panel.as_ptr().cast::<i8>().add(row * call.panel_stride);
            let rows: [*const i8; ROWS] =
                std::array::from_fn(|row| panel.add(row * call.panel_stride));
            for at in (0..depth).step_by(8) {
                let x: [int8x16_t; ROWS] = std::array::from_fn(|pair| {
                    let upper = (2 * pair).min(ROWS - 1);
                    let lower = (2 * pair + 1).min(ROWS - 1);
                    vcombine_s8(vld1_s8(rows[upper].add(at)), vld1_s8(rows[lower].add(at)))
                });
                for quad in 0..QUADS {
                    for half in 0..2 {
                        let w = vld1q_s8(from.add(quad * 32 + half * 16));
                        for pair in 0..ROWS.div_ceil(2) {
                            let sum = &mut pairs[pair][quad][half];
                            *sum = smmla(*sum, x[pair], w);
                        }
                    }
                }
                from = from.add(8 * BLOCK);
            }
            std::array::from_fn(|row| {
                std::array::from_fn(|quad| {
                    let [a, b] = pairs[row / 2][quad].map(|sum| vreinterpretq_s64_s32(sum));
                    let both = if row % 2 == 0 { vzip1q_s64(a, b) } else { vzip2q_s64(a, b) };
                    vreinterpretq_s32_s64(both)
                })
            })
        }
    }
}
