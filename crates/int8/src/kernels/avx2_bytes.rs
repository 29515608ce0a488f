//! Bytes through tables and between planes and pixels, with AVX2's shuffles.

use std::arch::x86_64::*;

use crate::kernels::lookup::{Lookup, STEP};
use crate::kernels::runs::Runs;
use crate::kernels::{Run, portable};

pub(crate) fn copy(x: Run<'_>, y: Run<'_>, runs: &Runs) {
    runs.check([x, y]);
    if runs.length < 8 {
        return portable::copy(x, y, runs);
    }
    // SAFETY: the table is handed out only on machines with AVX2; the runs were checked.
    unsafe { move_runs(x.as_ptr().cast(), y.as_ptr().cast::<u8>().cast_mut(), runs) };
}

/// The last block of a run lies over the one before where it is not a whole one. The input does not overlap the output.
///
/// # Safety
/// The runs, of 8 bytes or more, lie in what is readable at `x` and writable at `y`.
#[target_feature(enable = "avx2")]
unsafe fn move_runs(x: *const u8, y: *mut u8, &Runs { length, count, steps }: &Runs) {
    for run in 0..count {
        // SAFETY: by contract; every block lies in the run.
        unsafe {
            let (x, y) = (x.add(run * steps[0]), y.add(run * steps[1]));
            let wide = |at: usize| {
                _mm256_storeu_si256(y.add(at).cast(), _mm256_loadu_si256(x.add(at).cast()))
            };
            let half =
                |at: usize| _mm_storeu_si128(y.add(at).cast(), _mm_loadu_si128(x.add(at).cast()));
            let word =
                |at: usize| _mm_storel_epi64(y.add(at).cast(), _mm_loadl_epi64(x.add(at).cast()));
            match length {
                32.. => {
                    (0..length - 31).step_by(32).for_each(wide);
                    wide(length - 32);
                }
                16.. => {
                    half(0);
                    half(length - 16);
                }
                _ => {
                    word(0);
                    word(length - 8);
                }
            }
        }
    }
}

pub(crate) fn translate(table: &Lookup, x: Run<'_>, y: Run<'_>, runs: &Runs) {
    runs.check([x, y]);
    assert!(table.steps.len() >= 16 * STEP);
    // SAFETY: the table is handed out only on machines with AVX2; the runs were checked.
    unsafe { each(table, x.as_ptr().cast(), y.as_ptr().cast::<u8>().cast_mut(), runs) };
    let rest = runs.length / 16 * 16;
    if rest < runs.length && runs.count > 0 {
        let runs = Runs { length: runs.length - rest, ..*runs };
        portable::translate(table, &x[rest..], &y[rest..], &runs);
    }
}

/// Of each run as many times 16 bytes as there are.
///
/// # Safety
/// The runs lie in what is readable at `x` and writable at `y`, and the table has all its steps.
#[target_feature(enable = "avx2")]
unsafe fn each(table: &Lookup, x: *const u8, y: *mut u8, runs: &Runs) {
    let steps = table.steps.bytes().as_ptr();
    for run in 0..runs.count {
        let mut at = 0;
        // SAFETY: the run exists, and at + 32, or at + 16, does not exceed its length.
        unsafe {
            let (x, y) = (x.add(run * runs.steps[0]), y.add(run * runs.steps[1]));
            while at + 32 <= runs.length {
                let bytes = through(steps, _mm256_loadu_si256(x.add(at).cast()));
                _mm256_storeu_si256(y.add(at).cast(), bytes);
                at += 32;
            }
            if at + 16 <= runs.length {
                let bytes = _mm256_castsi128_si256(_mm_loadu_si128(x.add(at).cast()));
                _mm_storeu_si128(y.add(at).cast(), _mm256_castsi256_si128(through(steps, bytes)));
            }
        }
    }
}

/// The table, one step of 16 entries after the other. An index goes down by 16 each time; a shuffle gives its step as
/// long as the index is not negative and nothing afterwards, so that exclusive or adds up the steps to the wanted row.
/// Indices from 128 on are negative from the start, and have their turn with the upper 8 steps.
///
/// # Safety
/// 16 steps are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn through(steps: *const u8, bytes: __m256i) -> __m256i {
    let mut value = _mm256_setzero_si256();
    let row = _mm256_set1_epi8(16);
    for half in 0..2 {
        let mut index = match half {
            0 => bytes,
            _ => _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)),
        };
        for step in 0..8 {
            // SAFETY: by contract.
            let entries = unsafe { _mm256_load_si256(steps.add((half * 8 + step) * STEP).cast()) };
            value = _mm256_xor_si256(value, _mm256_shuffle_epi8(entries, index));
            index = _mm256_subs_epi8(index, row);
        }
    }
    value
}

pub(crate) fn interleave(planes: [&[u8]; 3], y: Run<'_>) {
    let pixels = planes.iter().map(|plane| plane.len()).min().unwrap_or(0);
    assert!(y.len() >= 3 * pixels);
    let whole = pixels / 16 * 16;
    // SAFETY: the table is handed out only on machines with AVX2; so many pixels are in every plane and in the run.
    unsafe { spread(planes.map(<[u8]>::as_ptr), y.as_ptr().cast::<u8>().cast_mut(), whole) };
    portable::interleave(planes.map(|plane| &plane[whole..]), &y[3 * whole..]);
}

/// Where each of three times 16 bytes of the result takes its byte from in each plane; -1 is another plane's turn.
static ORDER: [[[i8; 16]; 3]; 3] = {
    let mut order = [[[-1; 16]; 3]; 3];
    let mut at = 0;
    while at < 48 {
        order[at / 16][at % 3][at % 16] = (at / 3) as i8;
        at += 1;
    }
    order
};

/// # Safety
/// `pixels`, a multiple of 16, are readable in each plane, and writable at `y`.
#[target_feature(enable = "avx2")]
unsafe fn spread(planes: [*const u8; 3], y: *mut u8, pixels: usize) {
    // SAFETY: 16 bytes each.
    let order = ORDER.map(|part| part.map(|from| unsafe { _mm_loadu_si128(from.as_ptr().cast()) }));
    for at in (0..pixels).step_by(16) {
        // SAFETY: at + 16 pixels are there, by contract.
        unsafe {
            let values = planes.map(|plane| _mm_loadu_si128(plane.add(at).cast()));
            for (part, order) in order.iter().enumerate() {
                let [first, second, third]: [__m128i; 3] =
                    std::array::from_fn(|plane| _mm_shuffle_epi8(values[plane], order[plane]));
                let bytes = _mm_or_si128(_mm_or_si128(first, second), third);
                _mm_storeu_si128(y.add(3 * at + 16 * part).cast(), bytes);
            }
        }
    }
}
