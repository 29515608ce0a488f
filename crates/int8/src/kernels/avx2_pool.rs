//! Bytes under windows, and sums of whole pictures, with AVX2.

use std::arch::x86_64::*;

use crate::kernels::runs::{Runs, Windows};
use crate::kernels::{Run, portable};
use crate::tensor::ElementType;

pub(crate) fn maximum(element: ElementType, windows: &Windows<'_>) {
    windows.check();
    // SAFETY: the table is handed out only on machines with AVX2; the windows were checked.
    let done = unsafe {
        match element {
            ElementType::U8 => blocks::<false>(windows),
            ElementType::S8 => blocks::<true>(windows),
        }
    };
    let Runs { length, .. } = windows.runs;
    if done < length {
        let (x, y) = (&windows.x[done..], &windows.y[done..]);
        let runs = Runs { length: length - done, ..windows.runs };
        portable::maximum(element, &Windows { x, y, runs, ..*windows });
    }
}

/// All runs, as many blocks of each as there are; returns how many bytes that is.
///
/// # Safety
/// The windows have been checked.
#[target_feature(enable = "avx2")]
unsafe fn blocks<const SIGNED: bool>(windows: &Windows<'_>) -> usize {
    let length = windows.runs.length;
    let mut at = 0;
    // SAFETY: by contract; the blocks lie in the runs.
    unsafe {
        while at + 64 <= length {
            wide::<SIGNED, 2>(windows, at);
            at += 64;
        }
        if at + 32 <= length {
            wide::<SIGNED, 1>(windows, at);
            at += 32;
        }
        if at + 16 <= length {
            narrow::<SIGNED>(windows, at);
            at += 16;
        }
    }
    at
}

/// `REGISTERS` · 32 bytes of all runs. Windows of nine and of four taps have loops of their own: what is known to the
/// compiler is written out.
///
/// # Safety
/// The windows have been checked, and the bytes lie in the runs.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn wide<const SIGNED: bool, const REGISTERS: usize>(windows: &Windows<'_>, at: usize) {
    // SAFETY: by contract.
    unsafe {
        if let Ok(taps) = <&[usize; 9]>::try_from(windows.taps) {
            each_run::<SIGNED, REGISTERS>(windows, &{ *taps }, at);
        } else if let Ok(taps) = <&[usize; 4]>::try_from(windows.taps) {
            each_run::<SIGNED, REGISTERS>(windows, &{ *taps }, at);
        } else {
            each_run::<SIGNED, REGISTERS>(windows, windows.taps, at);
        }
    }
}

/// # Safety
/// As for [`wide`]; `taps` are those of the windows.
#[inline(always)]
unsafe fn each_run<const SIGNED: bool, const REGISTERS: usize>(
    windows: &Windows<'_>,
    taps: &[usize],
    at: usize,
) {
    let Runs { count, steps, .. } = windows.runs;
    let x = windows.x.as_ptr().cast::<u8>();
    let y = windows.y.as_ptr().cast::<u8>().cast_mut();
    for run in 0..count {
        // SAFETY: by contract.
        unsafe {
            let from = x.add(run * steps[0] + at);
            let mut greatest = [_mm256_set1_epi8(if SIGNED { i8::MIN } else { 0 }); REGISTERS];
            for &tap in taps {
                for (nth, greatest) in greatest.iter_mut().enumerate() {
                    let values = _mm256_loadu_si256(from.add(tap + 32 * nth).cast());
                    *greatest = match SIGNED {
                        true => _mm256_max_epi8(*greatest, values),
                        false => _mm256_max_epu8(*greatest, values),
                    };
                }
            }
            for (nth, greatest) in greatest.into_iter().enumerate() {
                _mm256_storeu_si256(y.add(run * steps[1] + at + 32 * nth).cast(), greatest);
            }
        }
    }
}

/// 16 bytes of all runs.
///
/// # Safety
/// As for [`wide`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn narrow<const SIGNED: bool>(windows: &Windows<'_>, at: usize) {
    let Runs { count, steps, .. } = windows.runs;
    let x = windows.x.as_ptr().cast::<u8>();
    let y = windows.y.as_ptr().cast::<u8>().cast_mut();
    for run in 0..count {
        // SAFETY: by contract.
        unsafe {
            let from = x.add(run * steps[0] + at);
            let mut greatest = _mm_set1_epi8(if SIGNED { i8::MIN } else { 0 });
            for &tap in windows.taps {
                let values = _mm_loadu_si128(from.add(tap).cast());
                greatest = match SIGNED {
                    true => _mm_max_epi8(greatest, values),
                    false => _mm_max_epu8(greatest, values),
                };
            }
            _mm_storeu_si128(y.add(run * steps[1] + at).cast(), greatest);
        }
    }
}

/// Runs of which sums of 16 bits cannot overflow.
const MOST: usize = 256;

pub(crate) fn accumulate(
    element: ElementType,
    x: Run<'_>,
    [count, step]: [usize; 2],
    sums: &mut [i32],
) {
    let whole = sums.len() / 8 * 8;
    Runs { length: whole, count, steps: [step] }.check([x]);
    // SAFETY: the table is handed out only on machines with AVX2; the runs were checked.
    unsafe {
        let x = x.as_ptr().cast::<u8>();
        match element {
            ElementType::U8 => columns::<false>(x, [count, step], &mut sums[..whole]),
            ElementType::S8 => columns::<true>(x, [count, step], &mut sums[..whole]),
        }
    }
    if whole < sums.len() && count > 0 {
        portable::accumulate(element, &x[whole..], [count, step], &mut sums[whole..]);
    }
}

/// # Safety
/// `count` runs as long as `sums`, a multiple of 8, are readable at `x`.
#[target_feature(enable = "avx2")]
unsafe fn columns<const SIGNED: bool>(x: *const u8, [count, step]: [usize; 2], sums: &mut [i32]) {
    for first in (0..count).step_by(MOST) {
        let count = MOST.min(count - first);
        // SAFETY: by contract; the blocks lie in the runs and the sums.
        unsafe {
            let x = x.add(first * step);
            let (wide, rest) = sums.as_chunks_mut::<64>();
            for (nth, sums) in wide.iter_mut().enumerate() {
                block::<SIGNED, 4>(x.add(64 * nth), [count, step], sums);
            }
            let x = x.add(64 * wide.len());
            let (blocks, rest) = rest.as_chunks_mut::<16>();
            for (nth, sums) in blocks.iter_mut().enumerate() {
                block::<SIGNED, 1>(x.add(16 * nth), [count, step], sums);
            }
            if !rest.is_empty() {
                half::<SIGNED>(x.add(16 * blocks.len()), [count, step], rest);
            }
        }
    }
}

/// `REGISTERS` · 16 channels of at most [`MOST`] runs.
///
/// # Safety
/// So many runs of so many bytes are readable at `x`, and there are as many sums.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn block<const SIGNED: bool, const REGISTERS: usize>(
    x: *const u8,
    [count, step]: [usize; 2],
    sums: &mut [i32],
) {
    let mut words = [_mm256_setzero_si256(); REGISTERS];
    for run in 0..count {
        for (nth, words) in words.iter_mut().enumerate() {
            // SAFETY: by contract.
            let bytes = unsafe { _mm_loadu_si128(x.add(run * step + 16 * nth).cast()) };
            *words = _mm256_add_epi16(
                *words,
                match SIGNED {
                    true => _mm256_cvtepi8_epi16(bytes),
                    false => _mm256_cvtepu8_epi16(bytes),
                },
            );
        }
    }
    for (words, sums) in words.into_iter().zip(sums.chunks_exact_mut(16)) {
        let (low, high) = sums.split_at_mut(8);
        // SAFETY: 8 sums each.
        unsafe {
            plus::<SIGNED>(low, _mm256_castsi256_si128(words));
            plus::<SIGNED>(high, _mm256_extracti128_si256::<1>(words));
        }
    }
}

/// 8 channels.
///
/// # Safety
/// As for [`block`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half<const SIGNED: bool>(x: *const u8, [count, step]: [usize; 2], sums: &mut [i32]) {
    let mut words = _mm_setzero_si128();
    for run in 0..count {
        // SAFETY: by contract.
        let bytes = unsafe { _mm_loadl_epi64(x.add(run * step).cast()) };
        words = _mm_add_epi16(
            words,
            match SIGNED {
                true => _mm_cvtepi8_epi16(bytes),
                false => _mm_cvtepu8_epi16(bytes),
            },
        );
    }
    // SAFETY: 8 sums, by contract.
    unsafe { plus::<SIGNED>(sums, words) };
}

/// Adds 8 words to as many sums.
///
/// # Safety
/// There are 8 sums.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn plus<const SIGNED: bool>(sums: &mut [i32], words: __m128i) {
    let words = match SIGNED {
        true => _mm256_cvtepi16_epi32(words),
        false => _mm256_cvtepu16_epi32(words),
    };
    let sums = sums.as_mut_ptr().cast::<__m256i>();
    // SAFETY: by contract.
    unsafe { sums.write_unaligned(_mm256_add_epi32(sums.read_unaligned(), words)) };
}
