//! [`Lanes`] of AVX512: sixteen to a register, and masks for what fills none.

use std::arch::x86_64::*;

use crate::kernels::Run;
use crate::kernels::lanes::{self, Form, Lanes};
use crate::kernels::runs::{Blend, Runs, Windows};
use crate::numerics::{AddRule, Mean, MulRule, Quantiser};
use crate::tensor::{ElementType, Quantisation};

pub(crate) struct Sixteen;

lanes::functions!(Sixteen, "avx512f,avx512bw,avx512vl,avx2,fma");

/// The first `count` lanes.
#[inline(always)]
fn mask(count: usize) -> u16 {
    u16::MAX >> (16 - count.min(16))
}

impl Lanes for Sixteen {
    const COUNT: usize = 16;
    type Words = __m512i;
    type Reals = __m512;

    #[inline(always)]
    unsafe fn widen(from: *const u8, count: usize, element: ElementType) -> __m512i {
        // SAFETY: by contract; masked lanes are not touched.
        unsafe {
            let bytes = match count >= 16 {
                true => _mm_loadu_si128(from.cast()),
                false => _mm_maskz_loadu_epi8(mask(count), from.cast()),
            };
            match element {
                ElementType::U8 => _mm512_cvtepu8_epi32(bytes),
                ElementType::S8 => _mm512_cvtepi8_epi32(bytes),
            }
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32, count: usize) -> __m512 {
        // SAFETY: as above.
        unsafe {
            match count >= 16 {
                true => _mm512_loadu_ps(from),
                false => _mm512_maskz_loadu_ps(mask(count), from),
            }
        }
    }

    #[inline(always)]
    unsafe fn save(to: *mut f32, values: __m512, count: usize) {
        // SAFETY: as above.
        unsafe {
            match count >= 16 {
                true => _mm512_storeu_ps(to, values),
                false => _mm512_mask_storeu_ps(to, mask(count), values),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, words: __m512i, count: usize, form: Form) {
        // SAFETY: as above.
        unsafe {
            let mut words = _mm512_cvtsepi32_epi16(words);
            if let Some(zero) = form.zero_point {
                words = _mm256_adds_epi16(words, _mm256_set1_epi16(zero));
            }
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let bytes = match form.element {
                ElementType::U8 => _mm_packus_epi16(low, high),
                ElementType::S8 => _mm_packs_epi16(low, high),
            };
            match count >= 16 {
                true => _mm_storeu_si128(to.cast(), bytes),
                false => _mm_mask_storeu_epi8(to.cast(), mask(count), bytes),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_four(to: *mut u8, [a, b, c, d]: [__m512i; 4], form: Form) {
        // SAFETY: by contract.
        unsafe {
            let (mut first, mut second) = (_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            if let Some(zero) = form.zero_point {
                let zero = _mm512_set1_epi16(zero);
                first = _mm512_adds_epi16(first, zero);
                second = _mm512_adds_epi16(second, zero);
            }
            let bytes = match form.element {
                ElementType::U8 => _mm512_packus_epi16(first, second),
                ElementType::S8 => _mm512_packs_epi16(first, second),
            };
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi32(order, bytes));
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn real(words: __m512i) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_cvtepi32_ps(words) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fused(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn lower(value: __m512, other: __m512) -> __m512 {
        // SAFETY: by contract. The instruction gives its second operand when one is NaN.
        unsafe { _mm512_min_ps(other, value) }
    }

    #[inline(always)]
    unsafe fn higher(value: __m512, other: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(value, other) }
    }

    #[inline(always)]
    unsafe fn round(values: __m512) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_cvtps_epi32(values) }
    }

    #[inline(always)]
    unsafe fn cut(values: __m512) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_cvttps_epi32(values) }
    }

    #[inline(always)]
    unsafe fn plus(words: __m512i, number: i32) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_add_epi32(words, _mm512_set1_epi32(number)) }
    }
}
