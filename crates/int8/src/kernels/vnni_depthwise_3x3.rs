//! Depthwise convolution under windows of 3² with `vpdpbusd` and 32 registers.
//!
//! A column of inputs enters at most three outputs of a row. It is interleaved once, added to the sums of all of them,
//! and forgotten: those sums and the weights stay in registers, and nothing waits in a scratch. The next row interleaves
//! its columns anew, which takes no longer than stores and loads.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use crate::kernels::depthwise::Quads;
use crate::kernels::vnni_depthwise::Slice;
use crate::kernels::vnni_registers::Registers;

/// An output row, whose first tap and place are given.
///
/// # Safety
/// The machine has the instruction set; [`Depthwise::check`] has seen the row, for the slice's channels.
///
/// [`Depthwise::check`]: crate::kernels::depthwise::Depthwise::check
#[inline(always)]
pub(crate) unsafe fn row<S: Registers, const STEP: usize>(
    slice: &Slice<'_, S>,
    first: usize,
    to: usize,
) {
    let quads = Quads { side: 3, step: STEP };
    let arena = slice.call.arena.as_ptr().cast::<u8>().cast_mut();
    let pixel = slice.call.input.pixel;
    // SAFETY: check() covers the outputs, and the taps of all columns; packed are quads.vectors() for each of four.
    unsafe {
        let packed = |nth: usize, at: usize| {
            S::load(slice.packed.add((nth * quads.vectors() + at) * S::BYTES))
        };
        let bias = |nth| packed(nth, 0);
        let mut weights = [[bias(0); 3]; 4];
        for nth in 0..4 {
            for term in 0..3 {
                weights[nth][quads.column(term)] = packed(nth, 2 + term * quads.rows());
            }
        }
        let mut from = arena.add(first).cast_const();
        let mut to = arena.add(to);
        // Sums of the next output, and of the one behind it, whose first columns have been seen.
        let inputs = column(slice, from);
        let (mut next, mut second) = (inputs, inputs);
        for nth in 0..4 {
            next[nth] = S::dot(bias(nth), inputs[nth], weights[nth][0]);
        }
        if STEP == 1 {
            let inputs = column(slice, from.wrapping_add(pixel));
            for nth in 0..4 {
                next[nth] = S::dot(next[nth], inputs[nth], weights[nth][1]);
                second[nth] = S::dot(bias(nth), inputs[nth], weights[nth][0]);
            }
        }
        for _ in 0..slice.call.output.shape.w {
            let mut sums = next;
            if STEP == 2 {
                let inputs = column(slice, from.wrapping_add(pixel));
                for nth in 0..4 {
                    sums[nth] = S::dot(sums[nth], inputs[nth], weights[nth][1]);
                }
            }
            let inputs = column(slice, from.wrapping_add(2 * pixel));
            for nth in 0..4 {
                sums[nth] = S::dot(sums[nth], inputs[nth], weights[nth][2]);
                let fresh = S::dot(bias(nth), inputs[nth], weights[nth][0]);
                if STEP == 1 {
                    next[nth] = S::dot(second[nth], inputs[nth], weights[nth][1]);
                    second[nth] = fresh;
                } else {
                    next[nth] = fresh;
                }
            }
            for nth in 0..4 {
                sums[nth] = S::scale(sums[nth], packed(nth, 1));
            }
            leave(slice, sums, to);
            from = from.wrapping_add(STEP * pixel);
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
