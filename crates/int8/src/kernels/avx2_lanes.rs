//! [`Lanes`] of AVX2 with FMA: eight to a register.

use std::arch::x86_64::*;

use crate::kernels::Run;
use crate::kernels::avx2_epilogue::store;
use crate::kernels::lanes::{self, Form, Lanes};
use crate::kernels::runs::{Blend, Runs, Windows};
use crate::numerics::{AddRule, Mean, MulRule, Quantiser};
use crate::tensor::{ElementType, Quantisation};

pub(crate) struct Eight;

lanes::functions!(Eight, "avx2,fma");

impl Lanes for Eight {
    const COUNT: usize = 8;
    type Words = __m256i;
    type Reals = __m256;

    #[inline(always)]
    unsafe fn widen(from: *const u8, count: usize, element: ElementType) -> __m256i {
        // SAFETY: by contract.
        unsafe {
            let bytes = if count >= 8 {
                _mm_loadl_epi64(from.cast())
            } else {
                let mut bytes = [0; 8];
                for (at, byte) in bytes.iter_mut().enumerate().take(count) {
                    *byte = from.add(at).read();
                }
                _mm_cvtsi64_si128(i64::from_le_bytes(bytes))
            };
            match element {
                ElementType::U8 => _mm256_cvtepu8_epi32(bytes),
                ElementType::S8 => _mm256_cvtepi8_epi32(bytes),
            }
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32, count: usize) -> __m256 {
        // SAFETY: by contract.
        unsafe {
            match count >= 8 {
                true => _mm256_loadu_ps(from),
                false => _mm256_maskload_ps(from, mask(count)),
            }
        }
    }

    #[inline(always)]
    unsafe fn save(to: *mut f32, values: __m256, count: usize) {
        // SAFETY: by contract.
        unsafe {
            match count >= 8 {
                true => _mm256_storeu_ps(to, values),
                false => _mm256_maskstore_ps(to, mask(count), values),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, words: __m256i, count: usize, form: Form) {
        // SAFETY: by contract.
        unsafe {
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let mut words = _mm_packs_epi32(low, high);
            if let Some(zero) = form.zero_point {
                words = _mm_adds_epi16(words, _mm_set1_epi16(zero));
            }
            let bytes = match form.element {
                ElementType::U8 => _mm_packus_epi16(words, words),
                ElementType::S8 => _mm_packs_epi16(words, words),
            };
            match count >= 8 {
                true => _mm_storel_epi64(to.cast(), bytes),
                false => store(to, bytes, count),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_four(to: *mut u8, [a, b, c, d]: [__m256i; 4], form: Form) {
        // SAFETY: by contract.
        unsafe {
            let (mut first, mut second) = (_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            if let Some(zero) = form.zero_point {
                let zero = _mm256_set1_epi16(zero);
                first = _mm256_adds_epi16(first, zero);
                second = _mm256_adds_epi16(second, zero);
            }
            let bytes = match form.element {
                ElementType::U8 => _mm256_packus_epi16(first, second),
                ElementType::S8 => _mm256_packs_epi16(first, second),
            };
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(bytes, order));
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn real(words: __m256i) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_cvtepi32_ps(words) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fused(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn lower(value: __m256, other: __m256) -> __m256 {
        // SAFETY: by contract. The instruction gives its second operand when one is NaN.
        unsafe { _mm256_min_ps(other, value) }
    }

    #[inline(always)]
    unsafe fn higher(value: __m256, other: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_max_ps(value, other) }
    }

    #[inline(always)]
    unsafe fn round(values: __m256) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_cvtps_epi32(values) }
    }

    #[inline(always)]
    unsafe fn cut(values: __m256) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_cvttps_epi32(values) }
    }

    #[inline(always)]
    unsafe fn plus(words: __m256i, number: i32) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_add_epi32(words, _mm256_set1_epi32(number)) }
    }
}

/// The first `count` lanes.
#[inline(always)]
unsafe fn mask(count: usize) -> __m256i {
    // SAFETY: the machine has the instructions.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
    }
}
