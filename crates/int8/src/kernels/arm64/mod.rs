//! ARMv8-A, 64 bits. The table `neon` needs nothing beyond the base instruction set (Cortex-A53, A72); `dot.rs` has the
//! tables of later cores. All three share gathering, epilogue and depthwise convolutions.
//!
//! Inputs are signed bytes: stored u8 values have their sign bit flipped, which subtracts 128, and the planner folds
//! that into the bias. So one kernel does both types, and the products of two bytes stay bytes as long as possible.

mod depthwise;
pub(crate) mod dot;
mod epilogue;
mod neon;

use std::arch::aarch64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::arm64::epilogue::finish;
use crate::kernels::depthwise::DepthwiseForm;
use crate::kernels::gather::{Fetch, Gather};
use crate::kernels::{BLOCK, Kernels, Multiply, Packing, portable};
use crate::tensor::ElementType;

pub(crate) static KERNELS: Kernels =
    table("neon", Packing::Bytes { run: 16, tail: 8, panel: ElementType::S8 }, |call| {
        if call.weights.extreme {
            multiply::<neon::Single>(call);
        } else {
            multiply::<neon::Paired>(call);
        }
    });

/// A table; only the multiplication differs.
const fn table(name: &'static str, packing: Packing, multiply: fn(&Multiply<'_>)) -> Kernels {
    Kernels {
        name,
        packing,
        crosses: |_, _| false,
        walks: false,
        tile_rows: 4,
        gather,
        multiply,
        winograd: None,
        takes_depthwise: |_| true,
        depthwise_form: DepthwiseForm::Bytes,
        depthwise: depthwise::image,
        add: portable::add,
        mul: portable::mul,
        accumulate: portable::accumulate,
        maximum: portable::maximum,
        quantise: portable::quantise,
        interleave: portable::interleave,
        copy: portable::copy,
        translate: portable::translate,
        dequantise: portable::dequantise,
        average: portable::average,
        blend: portable::blend,
        blend_reals: portable::blend_reals,
    }
}

/// The inner loop of a multiplication.
pub(crate) trait Tile {
    /// Sums of products of `ROWS` panel rows with `QUADS` · 4 channels, without the bias.
    ///
    /// # Safety
    /// The machine has the instruction set. The call has passed [`Multiply::check`]; the rows exist, `channel` starts
    /// a block, and only its first `QUADS` · 4 channels are wanted.
    unsafe fn sums<const ROWS: usize, const QUADS: usize>(
        call: &Multiply<'_>,
        row: usize,
        channel: usize,
    ) -> [[int32x4_t; QUADS]; ROWS];
}

/// Most rows of a tile: 4 rows of 16 channels fill 16 registers with sums.
const ROWS: usize = 4;

fn multiply<T: Tile>(call: &Multiply<'_>) {
    call.check::<i8>();
    let channels = call.channels.end;
    for channel in call.channels.clone().step_by(BLOCK) {
        let wide = channels - channel > BLOCK / 2;
        // Tiles of nearly equal height: the fewer rows, the more loads for each product.
        let count = call.outputs.len();
        let tiles = count.div_ceil(ROWS);
        let mut row = 0;
        for nth in 1..=tiles {
            let rows = nth * count / tiles - row;
            // SAFETY: checked above; rows row..row + rows exist, and the block starts at a channel that exists. The
            // table is handed out only on machines that have its instructions.
            unsafe {
                match (rows, wide) {
                    (4, true) => tile::<T, 4, 4>(call, row, channel),
                    (3, true) => tile::<T, 3, 4>(call, row, channel),
                    (2, true) => tile::<T, 2, 4>(call, row, channel),
                    (_, true) => tile::<T, 1, 4>(call, row, channel),
                    (4, false) => tile::<T, 4, 2>(call, row, channel),
                    (3, false) => tile::<T, 3, 2>(call, row, channel),
                    (2, false) => tile::<T, 2, 2>(call, row, channel),
                    (_, false) => tile::<T, 1, 2>(call, row, channel),
                }
            }
            row += rows;
        }
    }
}

/// # Safety
/// As for [`Tile::sums`].
unsafe fn tile<T: Tile, const ROWS: usize, const QUADS: usize>(
    call: &Multiply<'_>,
    row: usize,
    channel: usize,
) {
    // SAFETY: by contract.
    unsafe {
        let sums = T::sums::<ROWS, QUADS>(call, row, channel);
        finish(call, &sums, row, channel);
    }
}

/// Stored u8 values to signed bytes.
struct Flipped;
/// Stored s8 values, as they are.
struct Signed;

impl Fetch for Flipped {
    type Value = i8;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> i8 {
        (zero_point - 128) as i8
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut i8, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: at < length, so at + 16 < length + OVERRUN, within the contract of the trait.
            unsafe {
                let bytes = veorq_u8(vld1q_u8(from.add(at)), vdupq_n_u8(0x80));
                vst1q_s8(to.add(at), vreinterpretq_s8_u8(bytes));
            }
        }
    }
}

impl Fetch for Signed {
    type Value = i8;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> i8 {
        zero_point as i8
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut i8, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: as above.
            unsafe { vst1q_u8(to.add(at).cast(), vld1q_u8(from.add(at))) };
        }
    }
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    match call.element {
        ElementType::U8 => call.run::<Flipped>(panel),
        ElementType::S8 => call.run::<Signed>(panel),
    }
}
