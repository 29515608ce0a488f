//! The epilogue with AVX2, for any number of channels: requantisation, limits, residual sum.

use std::arch::x86_64::*;

use crate::kernels::{Epilogue, Multiply, Role, Sum};
use crate::tensor::ElementType;

/// Whether limits are those of a stored type, which narrowing to bytes keeps anyway.
pub(crate) fn is_whole(low: i32, high: i32) -> bool {
    [(0, 255), (-128, 127)].contains(&(low, high))
}

/// # Safety
/// The call has passed [`Multiply::check`]; the rows exist and `channel` starts a block.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn finish<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = (call.channels.end - channel).min(8 * HALVES);
    // SAFETY: multipliers are padded to whole blocks; outputs hold `channels` more bytes, the other operands a whole
    // block.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        let multipliers: [__m256; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_ps(multipliers.add(8 * half)));
        let outputs = call.outputs.as_ptr().add(row);
        let to = |row: usize| arena.add(*outputs.add(row) + channel);
        let mut words: [__m256i; ROWS] = std::array::from_fn(|row| {
            let value = |half: usize| scale(sums[row][half], multipliers[half]);
            requantise.words(value(0), value(HALVES - 1))
        });
        // One place that adds, for all rows: what is called from many is compiled as a function, and called.
        if let Some(plus) = call.epilogue.sum.as_ref().map(|sum| Plus::new(sum)) {
            let others = call.others.as_ptr().add(row);
            for (row, words) in words.iter_mut().enumerate() {
                *words = plus.words::<HALVES>(*words, arena.add(*others.add(row) + channel));
            }
        }
        for (row, words) in words.into_iter().enumerate() {
            store(to(row), requantise.bytes(words), channels);
        }
    }
}

/// Accumulators times multipliers, rounded. Below the range of i32 the conversion gives its least value, which is
/// right; above it would give the same, so the product is limited from above.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn scale(acc: __m256i, multiplier: __m256) -> __m256i {
    let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier);
    _mm256_cvtps_epi32(_mm256_min_ps(scaled, _mm256_set1_ps(65_536.0)))
}

/// The constants of an epilogue in registers.
pub(crate) struct Requantise {
    /// Whether the limits are those of the stored type, which the narrowing to bytes keeps anyway.
    is_full: bool,
    /// Whether results are s8.
    is_signed: bool,
    low: __m256i,
    high: __m256i,
    zero_point: __m256i,
}

impl Requantise {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(epilogue: &Epilogue) -> Self {
        let low = epilogue.sum.as_ref().map_or(epilogue.low, |sum| sum.rule.low);
        Self {
            is_full: epilogue.sum.is_none() && is_whole(epilogue.low, epilogue.high),
            is_signed: low < 0,
            low: _mm256_set1_epi16(epilogue.low as i16),
            high: _mm256_set1_epi16(epilogue.high as i16),
            zero_point: _mm256_set1_epi16(epilogue.zero_point as i16),
        }
    }

    /// 8 + 8 scaled values with the zero point, within the limits (those that [`Requantise::bytes`] does not keep by
    /// itself), as i16: values 0–3, 8–11, 4–7, 12–15. Saturation on the way only meets values that the limits cut
    /// anyway.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn words(&self, first: __m256i, second: __m256i) -> __m256i {
        let words = _mm256_adds_epi16(_mm256_packs_epi32(first, second), self.zero_point);
        if self.is_full {
            return words;
        }
        _mm256_min_epi16(_mm256_max_epi16(words, self.low), self.high)
    }

    /// [`Requantise::words`] as bytes, in order.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn bytes(&self, words: __m256i) -> __m128i {
        let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let bytes =
            if self.is_signed { _mm_packs_epi16(low, high) } else { _mm_packus_epi16(low, high) };
        _mm_shuffle_epi32::<0b11_01_10_00>(bytes)
    }
}

/// The constants of a residual sum in registers.
pub(crate) struct Plus {
    /// Whether the convolution is the first operand.
    is_first: bool,
    /// Whether the other operand is s8.
    is_signed: bool,
    /// Whether narrowing to bytes keeps the limits.
    is_full: bool,
    ratio_a: __m256,
    ratio_b: __m256,
    fixed: __m256,
    low: __m256,
    high: __m256,
}

impl Plus {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(sum: &Sum) -> Self {
        let Sum { rule, role } = sum;
        let is_first = *role == Role::First;
        let element = if is_first { rule.element_b } else { rule.element_a };
        Self {
            is_first,
            is_signed: element == ElementType::S8,
            is_full: rule.saturates(),
            ratio_a: _mm256_set1_ps(rule.ratio_a),
            ratio_b: _mm256_set1_ps(rule.ratio_b),
            fixed: _mm256_set1_ps(rule.fixed),
            low: _mm256_set1_ps(rule.low as f32),
            high: _mm256_set1_ps(rule.high as f32),
        }
    }

    /// The sum of requantised values, in the order of [`Requantise::words`], with stored ones.
    ///
    /// # Safety
    /// `HALVES` · 8 bytes are readable at `other`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn words<const HALVES: usize>(
        &self,
        words: __m256i,
        other: *const u8,
    ) -> __m256i {
        // Sign-extended in place: the low halves of both lanes are values 0–7, the high ones 8–15.
        let own = [
            _mm256_srai_epi32::<16>(_mm256_unpacklo_epi16(words, words)),
            _mm256_srai_epi32::<16>(_mm256_unpackhi_epi16(words, words)),
        ];
        let sums: [__m256i; HALVES] = std::array::from_fn(|half| {
            // SAFETY: by contract.
            let bytes = unsafe { _mm_loadl_epi64(other.add(8 * half).cast()) };
            let other = match self.is_signed {
                false => _mm256_cvtepu8_epi32(bytes),
                true => _mm256_cvtepi8_epi32(bytes),
            };
            let (own, other) = (_mm256_cvtepi32_ps(own[half]), _mm256_cvtepi32_ps(other));
            let (a, b) = if self.is_first { (own, other) } else { (other, own) };
            let value =
                _mm256_fmadd_ps(a, self.ratio_a, _mm256_fmadd_ps(b, self.ratio_b, self.fixed));
            if self.is_full {
                return _mm256_cvtps_epi32(value);
            }
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, self.low), self.high))
        });
        _mm256_packs_epi32(sums[0], sums[HALVES - 1])
    }
}

/// Stores the first `length` of 16 bytes.
///
/// # Safety
/// `length` bytes are writable at `to`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn store(to: *mut u8, bytes: __m128i, length: usize) {
    if length >= 16 {
        // SAFETY: 16 bytes, by contract.
        return unsafe { _mm_storeu_si128(to.cast(), bytes) };
    }
    let (mut to, mut bytes) = (to, bytes);
    /// Stores so many of the bytes, if the length has them, and moves on.
    macro_rules! part {
        ($count:literal, $type:ty, $value:expr) => {
            if length & $count != 0 {
                // SAFETY: the parts add up to `length`.
                unsafe {
                    to.cast::<$type>().write_unaligned($value as $type);
                    to = to.add($count);
                }
                bytes = _mm_srli_si128::<$count>(bytes);
            }
        };
    }
    part!(8, i64, _mm_cvtsi128_si64(bytes));
    part!(4, i32, _mm_cvtsi128_si32(bytes));
    part!(2, i16, _mm_cvtsi128_si32(bytes));
    if length & 1 != 0 {
        // SAFETY: the last one.
        unsafe { to.write(_mm_cvtsi128_si32(bytes) as u8) };
    }
}
