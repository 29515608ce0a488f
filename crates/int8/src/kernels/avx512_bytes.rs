//! Bytes through tables and between planes and pixels, with the permutations of AVX512-VBMI: AVX2's shuffles on machines
//! that have AVX512 without them.

use std::arch::x86_64::*;

use crate::kernels::lookup::Lookup;
use crate::kernels::runs::Runs;
use crate::kernels::{Run, avx2_bytes};

fn has_permutations() -> bool {
    std::arch::is_x86_feature_detected!("avx512vbmi")
}

/// 128 entries a permutation.
pub(crate) fn translate(table: &Lookup, x: Run<'_>, y: Run<'_>, runs: &Runs) {
    if !has_permutations() {
        return avx2_bytes::translate(table, x, y, runs);
    }
    runs.check([x, y]);
    // SAFETY: the machine has the instructions; the runs were checked.
    unsafe { each(table, x.as_ptr().cast(), y.as_ptr().cast::<u8>().cast_mut(), runs) };
}

/// # Safety
/// The runs lie in what is readable at `x` and writable at `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn each(table: &Lookup, x: *const u8, y: *mut u8, runs: &Runs) {
    // SAFETY: the table has 256 bytes.
    let quarters: [__m512i; 4] = std::array::from_fn(|quarter| unsafe {
        _mm512_loadu_si512(table.bytes.as_ptr().add(64 * quarter).cast())
    });
    for run in 0..runs.count {
        // SAFETY: by contract; the parts lie in the run.
        unsafe {
            let (x, y) = (x.add(run * runs.steps[0]), y.add(run * runs.steps[1]));
            let mut at = 0;
            while at + 64 <= runs.length {
                let bytes = _mm512_loadu_si512(x.add(at).cast());
                _mm512_storeu_si512(y.add(at).cast(), through(&quarters, bytes));
                at += 64;
            }
            // Whole registers of half and of quarter size: masked stores are slow.
            if at + 32 <= runs.length {
                let bytes = _mm512_castsi256_si512(_mm256_loadu_si256(x.add(at).cast()));
                let bytes = _mm512_castsi512_si256(through(&quarters, bytes));
                _mm256_storeu_si256(y.add(at).cast(), bytes);
                at += 32;
            }
            if at + 16 <= runs.length {
                let bytes = _mm512_castsi128_si512(_mm_loadu_si128(x.add(at).cast()));
                let bytes = _mm512_castsi512_si128(through(&quarters, bytes));
                _mm_storeu_si128(y.add(at).cast(), bytes);
                at += 16;
            }
            if at < runs.length {
                let mask = u16::MAX >> (16 - (runs.length - at));
                let bytes = _mm_maskz_loadu_epi8(mask, x.add(at).cast());
                let bytes = through(&quarters, _mm512_castsi128_si512(bytes));
                _mm_mask_storeu_epi8(y.add(at).cast(), mask, _mm512_castsi512_si128(bytes));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn through([a, b, c, d]: &[__m512i; 4], bytes: __m512i) -> __m512i {
    let low = _mm512_permutex2var_epi8(*a, bytes, *b);
    let high = _mm512_permutex2var_epi8(*c, bytes, *d);
    _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high)
}

pub(crate) fn interleave(planes: [&[u8]; 3], y: Run<'_>) {
    if !has_permutations() {
        return avx2_bytes::interleave(planes, y);
    }
    let pixels = planes.iter().map(|plane| plane.len()).min().unwrap_or(0);
    assert!(y.len() >= 3 * pixels);
    let whole = pixels / 64 * 64;
    // SAFETY: the machine has the instructions; so many pixels are in every plane and in the run.
    unsafe { spread(planes.map(<[u8]>::as_ptr), y.as_ptr().cast::<u8>().cast_mut(), whole) };
    avx2_bytes::interleave(planes.map(|plane| &plane[whole..]), &y[3 * whole..]);
}

/// Where each of three times 64 bytes of the result takes its byte from: a pixel of the first plane, 64 more for the
/// second one.
static ORDER: [[u8; 64]; 3] = {
    let mut order = [[0; 64]; 3];
    let mut at = 0;
    while at < 192 {
        let second = if at % 3 == 1 { 64 } else { 0 };
        order[at / 64][at % 64] = (at / 3) as u8 + second;
        at += 1;
    }
    order
};

/// The bytes that the third plane gives to each part of the result.
const THIRD: [u64; 3] = {
    let mut third = [0; 3];
    let mut at = 2;
    while at < 192 {
        third[at / 64] |= 1 << (at % 64);
        at += 3;
    }
    third
};

/// # Safety
/// `pixels`, a multiple of 64, are readable in each plane, and writable at `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn spread(planes: [*const u8; 3], y: *mut u8, pixels: usize) {
    // SAFETY: 64 bytes each.
    let order = ORDER.each_ref().map(|part| unsafe { _mm512_loadu_si512(part.as_ptr().cast()) });
    for at in (0..pixels).step_by(64) {
        // SAFETY: at + 64 pixels are there, by contract.
        unsafe {
            let [first, second, third] =
                planes.map(|plane| _mm512_loadu_si512(plane.add(at).cast()));
            for (part, order) in order.into_iter().enumerate() {
                let bytes = _mm512_permutex2var_epi8(first, order, second);
                let bytes = _mm512_mask_permutexvar_epi8(bytes, THIRD[part], order, third);
                _mm512_storeu_si512(y.add(3 * at + 64 * part).cast(), bytes);
            }
        }
    }
}
