//! x86 with AVX512-VNNI (Intel since Cascade Lake, AMD since Zen 4): `vpdpbusd` on 512 bits.
//!
//! Convolutions are in `avx512_multiply.rs`, depthwise ones in `vnni_depthwise.rs`, element-wise loops in `avx512_lanes.rs` and
//! `avx512_bytes.rs`; what is left is AVX2's.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2;
use crate::kernels::depthwise::{Depthwise, DepthwiseForm, Quads};
use crate::kernels::gather::Gather;
use crate::kernels::vnni::{self, PACKING};
use crate::kernels::vnni_depthwise::{bands, by_window, slice};
use crate::kernels::vnni_registers::registers;
use crate::kernels::{Kernels, avx512_bytes, avx512_lanes, avx512_multiply, portable};

/// Channels of a depthwise convolution that are done at a time.
const SLICE: usize = 64;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "avx512vnni",
    packing: PACKING,
    crosses: |_, _| false,
    walks: true,
    tile_rows: avx512_multiply::ROWS,
    gather,
    multiply: avx512_multiply::multiply,
    winograd: None,
    depthwise_form: DepthwiseForm::Quads { channels: SLICE },
    depthwise,
    translate: avx512_bytes::translate,
    interleave: avx512_bytes::interleave,
    add: avx512_lanes::add,
    mul: avx512_lanes::mul,
    quantise: avx512_lanes::quantise,
    dequantise: avx512_lanes::dequantise,
    average: avx512_lanes::average,
    blend: avx512_lanes::blend,
    blend_reals: avx512_lanes::blend_reals,
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

fn depthwise(call: &Depthwise<'_>, n: usize) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn any(call: &Depthwise<'_>, n: usize) {
        portable::depthwise(call, n);
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { by_window!(call, n, slices, any) }
}

/// # Safety
/// The machine has the instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn slices<const SIDE: usize, const STEP: usize>(call: &Depthwise<'_>, n: usize) {
    for rows in bands(call) {
        for (channel, width) in Quads::slices(call.output.shape.c, SLICE) {
            let rows = rows.clone();
            // SAFETY: by contract; 64 channels are taken when there are more than 32, so that none is read from beyond
            // the last 16 and the 16 behind them.
            unsafe {
                match width {
                    SLICE => slice::<Wide, SIDE, STEP>(call, n, channel, rows),
                    _ => slice::<Narrow, SIDE, STEP>(call, n, channel, rows),
                }
            }
        }
    }
}

registers!(Wide: __m512i, 64, true, store_wide,
    _mm512_loadu_si512 _mm512_storeu_si512 _mm512_xor_si512 _mm512_dpbusd_epi32
    _mm512_unpacklo_epi8 _mm512_unpackhi_epi8 _mm512_unpacklo_epi16 _mm512_unpackhi_epi16
    _mm512_castsi512_ps _mm512_castps_si512 _mm512_cvtepi32_ps _mm512_mul_ps _mm512_min_ps _mm512_set1_ps _mm512_cvtps_epi32
    _mm512_packs_epi32 _mm512_adds_epi16 _mm512_packus_epi16 _mm512_max_epu8 _mm512_min_epu8
    _mm512_set1_epi8 _mm512_set1_epi16);

// Half of the work for the last channels; these registers are 32 as well.
registers!(Narrow: __m256i, 32, true, store_narrow,
    _mm256_loadu_si256 _mm256_storeu_si256 _mm256_xor_si256 _mm256_dpbusd_epi32
    _mm256_unpacklo_epi8 _mm256_unpackhi_epi8 _mm256_unpacklo_epi16 _mm256_unpackhi_epi16
    _mm256_castsi256_ps _mm256_castps_si256 _mm256_cvtepi32_ps _mm256_mul_ps _mm256_min_ps _mm256_set1_ps _mm256_cvtps_epi32
    _mm256_packs_epi32 _mm256_adds_epi16 _mm256_packus_epi16 _mm256_max_epu8 _mm256_min_epu8
    _mm256_set1_epi8 _mm256_set1_epi16);

/// # Safety
/// `length` bytes are writable at `to`, fewer than 64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn store_wide(to: *mut u8, bytes: __m512i, length: usize) {
    // SAFETY: by contract.
    unsafe { _mm512_mask_storeu_epi8(to.cast(), !(u64::MAX << length), bytes) };
}

/// # Safety
/// `length` bytes are writable at `to`, fewer than 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn store_narrow(to: *mut u8, bytes: __m256i, length: usize) {
    // SAFETY: by contract.
    unsafe { _mm256_mask_storeu_epi8(to.cast(), !(u32::MAX << length), bytes) };
}
