//! Depthwise convolution under windows of 3² that move by 2, with `vpdpbusd` and 32 registers.
//!
//! Of the columns of inputs, one in two enters a single output, and the others two of them: too few for a scratch to pay.
//! Each is interleaved once, on its way from one output to the next, and stays in registers as the weights do.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use crate::kernels::depthwise::Quads;
use crate::kernels::vnni_depthwise::Slice;
use crate::kernels::vnni_registers::Registers;

const QUADS: Quads = Quads { side: 3, step: 2 };

// Columns of weights, as `Quads::column` orders them.
const LEFT: usize = 0;
const RIGHT: usize = 1;
const MIDDLE: usize = 2;

/// An output row, whose first tap and place are given.
///
/// # Safety
/// The machine has the instruction set; [`Depthwise::check`] has seen the row, for the slice's channels.
///
/// [`Depthwise::check`]: crate::kernels::depthwise::Depthwise::check
#[inline(always)]
pub(crate) unsafe fn row<S: Registers>(slice: &Slice<'_, S>, first: usize, to: usize) {
    let arena = slice.call.arena.as_ptr().cast::<u8>().cast_mut();
    let pixel = slice.call.input.pixel;
    // SAFETY: check() covers the outputs, and the taps of all columns; packed are QUADS.vectors() for each of four.
    unsafe {
        let packed = |nth: usize, at: usize| {
            S::load(slice.packed.add((nth * QUADS.vectors() + at) * S::BYTES))
        };
        let bias = |nth| packed(nth, 0);
        let mut weights = [[bias(0); 3]; 4];
        for nth in 0..4 {
            for column in 0..3 {
                weights[nth][column] = packed(nth, 2 + column);
            }
        }
        let mut from = arena.add(first).cast_const();
        let mut to = arena.add(to);
        let inputs = column(slice, from);
        let mut next = inputs;
        for nth in 0..4 {
            next[nth] = S::dot(bias(nth), inputs[nth], weights[nth][LEFT]);
        }
        for _ in 0..slice.call.output.shape.w {
            let mut sums = next;
            let inputs = column(slice, from.wrapping_add(pixel));
            for nth in 0..4 {
                sums[nth] = S::dot(sums[nth], inputs[nth], weights[nth][MIDDLE]);
            }
            from = from.wrapping_add(2 * pixel);
            let inputs = column(slice, from);
            for nth in 0..4 {
                sums[nth] = S::dot(sums[nth], inputs[nth], weights[nth][RIGHT]);
                next[nth] = S::dot(bias(nth), inputs[nth], weights[nth][LEFT]);
            }
            for nth in 0..4 {
                sums[nth] = S::scale(sums[nth], packed(nth, 1));
            }
            leave(slice, sums, to);
            to = to.wrapping_add(slice.call.output.pixel);
        }
    }
}

/// Three rows of a column, interleaved; the last one again as the fourth, whose weights are zero.
///
/// # Safety
/// As for [`row`]; `at` is a tap of the first row.
#[inline(always)]
unsafe fn column<S: Registers>(slice: &Slice<'_, S>, at: *const u8) -> [S::Vector; 4] {
    let row = slice.call.input.row;
    // SAFETY: by contract.
    unsafe {
        let mut rows = [S::load(at), S::load(at.add(row)), S::load(at.add(2 * row))];
        if slice.is_signed {
            let sign = S::every_byte(0x80);
            rows = [S::xor(rows[0], sign), S::xor(rows[1], sign), S::xor(rows[2], sign)];
        }
        S::interleave([rows[0], rows[1], rows[2], rows[2]])
    }
}

/// Scaled sums of an output, rounded and stored.
///
/// # Safety
/// As for [`row`]; `to` is an output's first channel.
#[inline(always)]
unsafe fn leave<S: Registers>(slice: &Slice<'_, S>, mut sums: [S::Vector; 4], to: *mut u8) {
    // SAFETY: by contract.
    unsafe {
        if slice.limited {
            for nth in 0..4 {
                sums[nth] = S::limit(sums[nth]);
            }
        }
        for nth in 0..4 {
            sums[nth] = S::round(sums[nth]);
        }
        let lower = S::words(sums[0], sums[1], slice.zero_point);
        let upper = S::words(sums[2], sums[3], slice.zero_point);
        let mut bytes = S::bytes(lower, upper);
        if slice.clamps {
            bytes = S::xor(S::clamp(bytes, slice.low, slice.high), slice.sign);
        }
        match slice.length == S::BYTES {
            true => S::store(to, bytes),
            false => S::store_part(to, bytes, slice.length),
        }
    }
}
