//! What the tables with `vpdpbusd` (AVX-VNNI, AVX512-VNNI) share: u8 × s8 to i32 in one instruction, four depths at a
//! time, exact. Inputs are unsigned bytes: stored s8 values have their sign bit flipped, which adds 128, and the
//! planner folds that into the bias.

use std::arch::x86_64::*;

use crate::kernels::Packing;
use crate::kernels::aligned::Aligned;
use crate::kernels::gather::{Fetch, Gather};
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
