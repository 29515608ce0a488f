//! What the tables with `vpdpbusd` (AVX-VNNI, AVX512-VNNI) share: u8 × s8 to i32 in one instruction, four depths at a
//! time, exact. Inputs are unsigned bytes: stored s8 values have their sign bit flipped, which adds 128, and the
//! planner folds that into the bias.
//!
//! Depthwise windows put four rows of a column side by side, so that one instruction does four taps of a channel.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::gather::{Fetch, Gather};
use crate::kernels::{Depthwise, Packing};
use crate::operator::Window;
use crate::tensor::ElementType;

pub(crate) const PACKING: Packing = Packing::Bytes { run: 4, tail: 4, panel: ElementType::U8 };

/// Stored u8 values, as they are.
struct Unsigned;
/// Stored s8 values to unsigned bytes.
struct Flipped;

impl Fetch for Unsigned {
    type Value = u8;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> u8 {
        zero_point as u8
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut u8, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: at < length, so at + 16 < length + OVERRUN, within the contract of the trait.
            unsafe { _mm_storeu_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast())) };
        }
    }
}

impl Fetch for Flipped {
    type Value = u8;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> u8 {
        (zero_point + 128) as u8
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut u8, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadu_si128(from.add(at).cast());
                let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
                _mm_storeu_si128(to.add(at).cast(), bytes);
            }
        }
    }
}

/// The gathering of both tables; callers compile it for AVX2.
#[inline(always)]
pub(crate) fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    match call.element {
        ElementType::U8 => call.run::<Unsigned>(panel),
        ElementType::S8 => call.run::<Flipped>(panel),
    }
}

/// Some channels of a depthwise convolution in registers of one width.
pub(crate) trait Slice {
    /// Four bytes of each channel, or an i32 of each.
    type Vector: Copy;
    /// Channels of a register.
    const CHANNELS: usize;
    /// What outputs have in common.
    type Finish;

    /// Bytes of [`Slice::CHANNELS`] channels of four rows, side by side per channel.
    ///
    /// # Safety
    /// The machine has the instruction set; so many bytes are readable at each row.
    unsafe fn interleave(rows: [*const u8; 4]) -> Self::Vector;

    /// Exclusive or with a byte everywhere.
    ///
    /// # Safety
    /// The machine has the instruction set.
    unsafe fn flip(vector: Self::Vector, byte: u8) -> Self::Vector;

    /// `sums` plus the four products of each channel.
    ///
    /// # Safety
    /// The machine has the instruction set.
    unsafe fn dot(sums: Self::Vector, inputs: Self::Vector, weights: Self::Vector) -> Self::Vector;

    /// # Safety
    /// The machine has the instruction set; the values of a slice are readable.
    unsafe fn load(values: *const i32) -> Self::Vector;

    /// For the slice that starts at `channel`.
    ///
    /// # Safety
    /// The machine has the instruction set; multipliers of a slice are readable.
    unsafe fn finish(call: &Depthwise<'_>, channel: usize) -> Self::Finish;

    /// Requantises one or two rows of sums and stores the first `length` channels of each.
    ///
    /// # Safety
    /// The machine has the instruction set; `length` bytes are writable at each place.
    unsafe fn store<const ROWS: usize>(
        finish: &Self::Finish,
        sums: [Self::Vector; ROWS],
        to: [*mut u8; ROWS],
        length: usize,
    );
}

/// One image, if there is a fast loop for the window. Callers compile it for their instruction set.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
pub(crate) unsafe fn depthwise<S: Slice>(call: &Depthwise<'_>, n: usize) -> bool {
    let Window { kernel, strides, dilations, .. } = call.window;
    if dilations != [1, 1] {
        return false;
    }
    // SAFETY: by contract.
    unsafe {
        match (kernel, strides) {
            ([3, 3], [1, 1]) => rows::<S, 3, 1, 1, 2>(call, n),
            ([3, 3], [2, 2]) => rows::<S, 3, 1, 2, 1>(call, n),
            ([5, 5], [1, 1]) => rows::<S, 5, 2, 1, 2>(call, n),
            ([5, 5], [2, 2]) => rows::<S, 5, 2, 2, 1>(call, n),
            ([7, 7], [1, 1]) => rows::<S, 7, 2, 1, 2>(call, n),
            ([7, 7], [2, 2]) => rows::<S, 7, 2, 2, 1>(call, n),
            _ => return false,
        }
    }
    true
}

/// # Safety
/// As for [`depthwise`].
#[inline(always)]
unsafe fn rows<
    S: Slice,
    const SIDE: usize,
    const GROUPS: usize,
    const STEP: usize,
    const ROWS: usize,
>(
    call: &Depthwise<'_>,
    n: usize,
) {
    let shape = call.output.shape;
    let mut y = call.rows.start;
    while y < call.rows.end {
        let first = call.check(n, y);
        let two = ROWS == 2 && y + 1 < call.rows.end;
        if two {
            call.check(n, y + 1);
        }
        for channel in (0..shape.c).step_by(S::CHANNELS) {
            // SAFETY: the rows were checked, for whole slices of channels: slices are no longer than blocks.
            unsafe {
                if two {
                    sweep::<S, SIDE, GROUPS, STEP, ROWS>(call, [n, y], first, channel);
                } else {
                    sweep::<S, SIDE, GROUPS, STEP, 1>(call, [n, y], first, channel);
                }
            }
        }
        y += if two { 2 } else { 1 };
    }
}

/// `ROWS` output rows of one slice of channels under a window of `SIDE` columns, each of `GROUPS` groups of four rows,
/// moved by `STEP`. A second row takes the same groups with weights shifted down by one.
///
/// # Safety
/// As for [`depthwise`]; `first` comes from [`Depthwise::check`] of row `y`, and with two rows the stride is 1 and the
/// next row is checked too.
#[inline(always)]
unsafe fn sweep<
    S: Slice,
    const SIDE: usize,
    const GROUPS: usize,
    const STEP: usize,
    const ROWS: usize,
>(
    call: &Depthwise<'_>,
    [n, y]: [usize; 2],
    first: usize,
    channel: usize,
) {
    const NOTHING: [u8; 64] = [0; 64];
    let shape = call.output.shape;
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let flip = if call.element == ElementType::S8 { 0x80 } else { 0 };
    let taps = &call.weights.bytes;
    assert!(taps.len() >= (SIDE * SIDE - 1) * call.weights.padded + channel + S::CHANNELS);
    // SAFETY: check() covers every tap of the rows for whole slices of channels, and the output rows; weights were
    // checked above, bias and multipliers are padded to whole blocks. Rows beyond the window are the last one again,
    // and their weights are zero.
    unsafe {
        let tap = |row: usize, column: usize| match row < SIDE {
            true => taps
                .as_ptr()
                .cast::<u8>()
                .add((row * SIDE + column) * call.weights.padded + channel),
            false => NOTHING.as_ptr(),
        };
        let weights: [[[S::Vector; GROUPS]; SIDE]; ROWS] = std::array::from_fn(|down| {
            std::array::from_fn(|column| {
                std::array::from_fn(|group| {
                    S::interleave(std::array::from_fn(|row| {
                        tap((4 * group + row).wrapping_sub(down), column)
                    }))
                })
            })
        });
        let load = |from: *const u8| -> [S::Vector; GROUPS] {
            std::array::from_fn(|group| {
                let rows = std::array::from_fn(|row| {
                    let row = (4 * group + row).min(SIDE + ROWS - 2);
                    from.wrapping_add(row * call.input.row)
                });
                S::flip(S::interleave(rows), flip)
            })
        };
        let bias = S::load(call.epilogue.bias.as_ptr().add(channel));
        let finish = S::finish(call, channel);
        let length = (shape.c - channel).min(S::CHANNELS);
        let pixel = call.input.pixel;
        let mut from = arena.add(first + channel).cast_const();
        let mut to = arena.add(call.output.at(n, y, 0) + channel);
        let mut columns = [load(from); SIDE];
        for column in 1..SIDE - STEP {
            columns[column] = load(from.wrapping_add(column * pixel));
        }
        from = from.wrapping_add((SIDE - STEP) * pixel);
        for _ in 0..shape.w {
            for column in 0..STEP {
                columns[SIDE - STEP + column] = load(from.wrapping_add(column * pixel));
            }
            from = from.wrapping_add(STEP * pixel);
            let mut sums = [bias; ROWS];
            for column in 0..SIDE {
                for group in 0..GROUPS {
                    for row in 0..ROWS {
                        let weights = weights[row][column][group];
                        sums[row] = S::dot(sums[row], columns[column][group], weights);
                    }
                }
            }
            let places = std::array::from_fn(|row| to.wrapping_add(row * call.output.row));
            S::store::<ROWS>(&finish, sums, places, length);
            to = to.wrapping_add(call.output.pixel);
            for column in 0..SIDE - STEP {
                columns[column] = columns[column + STEP];
            }
        }
    }
}
