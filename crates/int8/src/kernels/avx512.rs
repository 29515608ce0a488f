//! x86 with AVX512-VNNI (Intel since Cascade Lake, AMD since Zen 4): `vpdpbusd` on 512 bits.
//!
//! Four registers of sums become 64 bytes at once: narrowing works within lanes of 128 bits, and one permutation puts
//! the 16 bytes of each register together again. Element-wise loops are AVX2's.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2;
use crate::kernels::avx2_epilogue::store;
use crate::kernels::gather::Gather;
use crate::kernels::lookup::Lookup;
use crate::kernels::vnni::{self, PACKING, Slice};
use crate::kernels::{
    Depthwise, Epilogue, Kernels, Run, Runs, avx2_bytes, avx512_multiply, portable,
};

pub(crate) static KERNELS: Kernels = Kernels {
    name: "avx512vnni",
    packing: PACKING,
    crosses: |_, _| false,
    walks: true,
    tile_rows: avx512_multiply::ROWS,
    gather,
    multiply: avx512_multiply::multiply,
    winograd: None,
    depthwise,
    translate,
    ..avx2::TABLE
};

pub(crate) fn is_available() -> bool {
    avx2::is_available()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn inner(call: &Gather<'_>, panel: &mut Aligned) {
        vnni::gather(call, panel);
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, panel) }
}

/// The constants of an epilogue in registers.
struct Requantise {
    /// Whether results are s8.
    is_signed: bool,
    /// The limits as stored bytes, and the zero point as i16.
    low_byte: __m512i,
    high_byte: __m512i,
    zero_word: __m512i,
    order: __m512i,
}

impl Requantise {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn new(epilogue: &Epilogue) -> Self {
        Self {
            is_signed: epilogue.low < 0,
            low_byte: _mm512_set1_epi8(epilogue.low as i8),
            high_byte: _mm512_set1_epi8(epilogue.high as i8),
            zero_word: _mm512_set1_epi16(epilogue.zero_point as i16),
            order: _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        }
    }

    /// Accumulators times multipliers, rounded. Above the range of i32 the conversion would give its least value, so
    /// products that do not `FIT` are limited.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn scale<const FIT: bool>(&self, acc: __m512i, multipliers: __m512) -> __m512i {
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), multipliers);
        if FIT {
            return _mm512_cvtps_epi32(scaled);
        }
        _mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(65_536.0)))
    }

    /// Scaled values with the zero point, within the limits, as bytes: 16 of each register, in order. Saturation on
    /// the way only meets values that the limits cut anyway.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn bytes(&self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let first = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.zero_word);
        let second = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.zero_word);
        let bytes = if self.is_signed {
            let bytes = _mm512_packs_epi16(first, second);
            _mm512_min_epi8(_mm512_max_epi8(bytes, self.low_byte), self.high_byte)
        } else {
            let bytes = _mm512_packus_epi16(first, second);
            _mm512_min_epu8(_mm512_max_epu8(bytes, self.low_byte), self.high_byte)
        };
        _mm512_permutexvar_epi32(self.order, bytes)
    }
}

fn depthwise(call: &Depthwise<'_>, n: usize) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    fn inner(call: &Depthwise<'_>, n: usize) {
        // SAFETY: compiled for, and run on, machines with AVX512-VNNI.
        if !unsafe { vnni::depthwise::<Sixteen>(call, n) } {
            portable::depthwise(call, n);
        }
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, n) }
}

/// 16 channels in a register.
struct Sixteen;

impl Slice for Sixteen {
    type Vector = __m512i;
    type Finish = (Requantise, __m512);
    const CHANNELS: usize = 16;

    #[inline(always)]
    unsafe fn interleave(rows: [*const u8; 4]) -> __m512i {
        let [a, b, c, d] = rows;
        // SAFETY: by contract, 16 bytes are readable at each row.
        unsafe {
            let upper = _mm256_castsi128_si256(_mm_loadu_si128(a.cast()));
            let upper = _mm256_inserti128_si256::<1>(upper, _mm_loadu_si128(b.cast()));
            let lower = _mm256_castsi128_si256(_mm_loadu_si128(c.cast()));
            let lower = _mm256_inserti128_si256::<1>(lower, _mm_loadu_si128(d.cast()));
            let all = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(upper), lower);
            // Four bytes of each row to a lane, then the rows of each channel side by side.
            let lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, all), _mm512_broadcast_i32x4(turn))
        }
    }

    #[inline(always)]
    unsafe fn flip(vector: __m512i, byte: u8) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_xor_si512(vector, _mm512_set1_epi8(byte as i8)) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, inputs: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_dpbusd_epi32(sums, inputs, weights) }
    }

    #[inline(always)]
    unsafe fn load(values: *const i32) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_loadu_si512(values.cast()) }
    }

    #[inline(always)]
    unsafe fn finish(call: &Depthwise<'_>, channel: usize) -> Self::Finish {
        // SAFETY: by contract.
        unsafe {
            let multipliers = _mm512_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel));
            (Requantise::new(call.epilogue), multipliers)
        }
    }

    #[inline(always)]
    unsafe fn store<const ROWS: usize>(
        (requantise, multipliers): &Self::Finish,
        sums: [__m512i; ROWS],
        to: [*mut u8; ROWS],
        length: usize,
    ) {
        // SAFETY: by contract.
        unsafe {
            let first = requantise.scale::<false>(sums[0], *multipliers);
            let last = requantise.scale::<false>(sums[ROWS - 1], *multipliers);
            let bytes = _mm512_castsi512_si256(requantise.bytes([first, last, first, last]));
            store(to[0], _mm256_castsi256_si128(bytes), length);
            if ROWS == 2 {
                store(to[ROWS - 1], _mm256_extracti128_si256::<1>(bytes), length);
            }
        }
    }
}

/// Tables: 128 entries a permutation where the machine has AVX512-VBMI, otherwise AVX2's shuffles.
fn translate(table: &Lookup, x: Run<'_>, y: Run<'_>, runs: &Runs) {
    if !std::arch::is_x86_feature_detected!("avx512vbmi") {
        return avx2_bytes::translate(table, x, y, runs);
    }
    runs.check(x, y);
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
    let [a, b, c, d] = quarters;
    for run in 0..runs.count {
        for at in (0..runs.length).step_by(64) {
            let mask = u64::MAX >> (64 - (runs.length - at).min(64));
            // SAFETY: the masked bytes lie in the run.
            unsafe {
                let bytes = _mm512_maskz_loadu_epi8(mask, x.add(run * runs.steps[0] + at).cast());
                let low = _mm512_permutex2var_epi8(a, bytes, b);
                let high = _mm512_permutex2var_epi8(c, bytes, d);
                let bytes = _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high);
                let to = y.add(run * runs.steps[1] + at);
                if mask == u64::MAX {
                    _mm512_storeu_si512(to.cast(), bytes);
                } else {
                    _mm512_mask_storeu_epi8(to.cast(), mask, bytes);
                }
            }
        }
    }
}
