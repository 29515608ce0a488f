//! The multiply instruction at full rate and nothing else: the yardstick for a layer's speed.

use crate::kernels::Kernels;

/// Multiplies from registers `rounds` times with the widest exact multiply-and-add of the instruction set in use, and
/// returns how many 8-bit products that was. The caller takes the time.
///
/// Zero when there is no yardstick for the instruction set (`scalar`).
///
/// ```
/// let products = ocelli_int8::multiply_at_peak(1000);
/// assert_eq!(products % 1000, 0);
/// ```
#[must_use]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no yardstick yet"))]
pub fn multiply_at_peak(rounds: u64) -> u64 {
    match Kernels::detect().map_or("", |kernels| kernels.name) {
        // SAFETY: the table is handed out only on machines with AVX2.
        #[cfg(target_arch = "x86_64")]
        "avx2" => unsafe { avx2(rounds) },
        // SAFETY: as above, with AVX-VNNI.
        #[cfg(target_arch = "x86_64")]
        "avxvnni" => unsafe { avxvnni(rounds) },
        // SAFETY: as above, with AVX512-VNNI.
        #[cfg(target_arch = "x86_64")]
        "avx512vnni" => unsafe { avx512vnni(rounds) },
        _ => 0,
    }
}

/// As `avx2_inner.rs` multiplies: half of the products are additions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(rounds: u64) -> u64 {
    /// Independent sums, enough to hide the latency of the multiplication.
    const SUMS: u64 = 12;
    if rounds == 0 {
        return 0;
    }
    // SAFETY: registers only, all named; `rounds` is not zero.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm0, ymm0, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm1, ymm1, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm2, ymm2, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm3, ymm3, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm4, ymm4, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm5, ymm5, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm6, ymm6, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm7, ymm7, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm8, ymm8, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm9, ymm9, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm10, ymm10, ymm12",
            "vpaddw ymm12, ymm14, ymm15", "vpaddw ymm13, ymm15, ymm14", "vpmaddwd ymm12, ymm12, ymm13", "vpaddd ymm11, ymm11, ymm12",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack),
        );
    }
    rounds * SUMS * 32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni")]
fn avxvnni(rounds: u64) -> u64 {
    /// Independent sums, enough to hide the latency of the multiplication.
    const SUMS: u64 = 12;
    if rounds == 0 {
        return 0;
    }
    // SAFETY: registers only, all named; `rounds` is not zero.
    unsafe {
        std::arch::asm!(
            "2:",
            "{{vex}} vpdpbusd ymm0, ymm12, ymm13", "{{vex}} vpdpbusd ymm1, ymm12, ymm13", "{{vex}} vpdpbusd ymm2, ymm12, ymm13",
            "{{vex}} vpdpbusd ymm3, ymm12, ymm13", "{{vex}} vpdpbusd ymm4, ymm12, ymm13", "{{vex}} vpdpbusd ymm5, ymm12, ymm13",
            "{{vex}} vpdpbusd ymm6, ymm12, ymm13", "{{vex}} vpdpbusd ymm7, ymm12, ymm13", "{{vex}} vpdpbusd ymm8, ymm12, ymm13",
            "{{vex}} vpdpbusd ymm9, ymm12, ymm13", "{{vex}} vpdpbusd ymm10, ymm12, ymm13", "{{vex}} vpdpbusd ymm11, ymm12, ymm13",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _,
            out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _,
            out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _,
            options(nomem, nostack),
        );
    }
    rounds * SUMS * 32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512vnni(rounds: u64) -> u64 {
    /// Independent sums, enough to hide the latency of the multiplication.
    const SUMS: u64 = 12;
    if rounds == 0 {
        return 0;
    }
    // SAFETY: registers only, all named; `rounds` is not zero.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpdpbusd zmm0, zmm12, zmm13", "vpdpbusd zmm1, zmm12, zmm13", "vpdpbusd zmm2, zmm12, zmm13",
            "vpdpbusd zmm3, zmm12, zmm13", "vpdpbusd zmm4, zmm12, zmm13", "vpdpbusd zmm5, zmm12, zmm13",
            "vpdpbusd zmm6, zmm12, zmm13", "vpdpbusd zmm7, zmm12, zmm13", "vpdpbusd zmm8, zmm12, zmm13",
            "vpdpbusd zmm9, zmm12, zmm13", "vpdpbusd zmm10, zmm12, zmm13", "vpdpbusd zmm11, zmm12, zmm13",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
            out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _,
            out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _,
            options(nomem, nostack),
        );
    }
    rounds * SUMS * 64
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_whole_rounds() {
        let once = super::multiply_at_peak(1);
        assert_eq!(super::multiply_at_peak(9), 9 * once);
        assert_eq!(super::multiply_at_peak(0), 0);
    }
}
