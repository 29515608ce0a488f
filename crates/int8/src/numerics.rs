//! The rounding rules, each once: what onnxruntime's QOperator kernels compute, in plain scalar code.
//!
//! The crate documentation states them; the kernels vectorise them without changing a bit.

use crate::tensor::{ElementType, Quantisation};

/// Nearest integer, ties to even. `value` lies within ±2²¹ (every caller has clamped it).
///
/// Adding 1.5 · 2²³ leaves the integer in the low bits of the sum; unlike `round_ties_even` this is one addition on
/// every target and compilers vectorise it.
#[inline(always)]
pub(crate) fn round(value: f32) -> i32 {
    (value + 12_582_912.0).to_bits() as i32 - 0x4b40_0000
}

/// Lower bound wins over NaN, as `maxps` does.
#[inline(always)]
pub(crate) fn clamp(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// Accumulator to stored value: `clamp(round(acc · multiplier)) + zero_point`, within `low..=high`.
#[inline(always)]
pub(crate) fn requantise(acc: i32, multiplier: f32, zero_point: i32, low: i32, high: i32) -> i32 {
    let scaled = acc as f32 * multiplier;
    round(clamp(scaled, (low - zero_point) as f32, (high - zero_point) as f32)) + zero_point
}

/// Real to stored value (QuantizeLinear): division, not multiplication by the inverse.
#[inline(always)]
pub(crate) fn quantise(value: f32, to: &Quantisation) -> u8 {
    let (low, high) = to.range();
    let zero = to.zero_point();
    let scaled = clamp(value / to.scale(), (low - zero) as f32, (high - zero) as f32);
    (round(scaled) + zero) as u8
}

/// [`quantise`] to one quantisation, many times. Kernels that have a fused multiply-add need not divide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quantiser {
    to: Quantisation,
    inverse: Option<[f32; 2]>,
}

#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the inverse is for x86"))]
impl Quantiser {
    /// Scaled values from here on are beyond every stored value.
    pub(crate) const LIMIT: f32 = 1024.0;

    pub(crate) fn new(to: &Quantisation) -> Self {
        Self { to: *to, inverse: inverse(to.scale()) }
    }

    pub(crate) fn to(&self) -> &Quantisation {
        &self.to
    }

    /// The inverse of the scale as a sum of two values, the greater one first: `round(fma(v, high, v · low))` is
    /// `round(v / scale)` up to [`Self::LIMIT`]. Some scales have none.
    pub(crate) fn inverse(&self) -> Option<[f32; 2]> {
        self.inverse
    }
}

/// [`Quantiser::inverse`].
///
/// The fused sum is the rounded value of a quotient that is off by less than 2⁻⁴⁶ of itself. That can change the nearest
/// integer only where v / s lies as near to the bound that f32 rounds to, or from, a half integer: to
/// (D · 2ʲ ± 1) / 2ʲ⁺¹, where D is odd and D · 2ʲ has 25 bits, so that j ≥ 14 below the limit. With V and S, the
/// significands of v and s as integers of 24 bits, V · 2²⁴ or V · 2²⁵ would differ from S · (D · 2ʲ ± 1), which has 49
/// bits, by 8 at most: S would be 8 or less away from a multiple of 2¹⁴, but not be one, as S is no multiple of 2²⁴.
fn inverse(scale: f32) -> Option<[f32; 2]> {
    const RANGE: std::ops::Range<f32> = 1e-18..1e18;
    let rest = scale.to_bits() & 0x3fff;
    if !RANGE.contains(&scale) || (1..=8).contains(&rest) || rest >= 0x3ff8 {
        return None;
    }
    let high = 1.0 / scale;
    Some([high, (-high).mul_add(scale, 1.0) / scale])
}

/// Stored to real value (DequantizeLinear).
#[inline(always)]
pub(crate) fn dequantise(byte: u8, from: &Quantisation) -> f32 {
    (from.element().widen(byte) - from.zero_point()) as f32 * from.scale()
}

/// `x_scale · w_scale / y_scale`, rounded after each operation as onnxruntime does.
pub(crate) fn multiplier(x_scale: f32, w_scale: f32, y_scale: f32) -> f32 {
    x_scale * w_scale / y_scale
}

/// QLinearAdd, as MLAS computes it with AVX2 and FMA: the zero points are folded into one constant, the ratios applied
/// by fused multiply-adds (second operand first), and rounding comes after the zero point has been added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AddRule {
    pub(crate) ratio_a: f32,
    pub(crate) ratio_b: f32,
    pub(crate) fixed: f32,
    pub(crate) element_a: ElementType,
    pub(crate) element_b: ElementType,
    pub(crate) low: i32,
    pub(crate) high: i32,
}

impl AddRule {
    pub(crate) fn new(a: &Quantisation, b: &Quantisation, y: &Quantisation) -> Self {
        let ratio_a = a.scale() / y.scale();
        let ratio_b = b.scale() / y.scale();
        let zeros = ratio_a.mul_add(a.zero_point() as f32, ratio_b * b.zero_point() as f32);
        let (low, high) = y.range();
        let fixed = y.zero_point() as f32 - zeros;
        Self { ratio_a, ratio_b, fixed, element_a: a.element(), element_b: b.element(), low, high }
    }

    /// Whether every result is finite.
    pub(crate) fn is_finite(&self) -> bool {
        [self.ratio_a, self.ratio_b, self.fixed].iter().all(|value| value.abs() < 1e30)
    }

    /// Whether no result before it is limited is beyond the range of i32, and the limits are those of its type.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn saturates(&self) -> bool {
        let most = 256.0 * (self.ratio_a.abs() + self.ratio_b.abs()) + self.fixed.abs();
        most < 1e9 && [(0, 255), (-128, 127)].contains(&(self.low, self.high))
    }

    #[inline(always)]
    pub(crate) fn apply(&self, a: i32, b: i32) -> i32 {
        let inner = (b as f32).mul_add(self.ratio_b, self.fixed);
        let sum = (a as f32).mul_add(self.ratio_a, inner);
        round(clamp(sum, self.low as f32, self.high as f32))
    }
}

/// QLinearMul, as MLAS computes it on x86: exact integer product, one multiplication, one addition of the zero point,
/// then rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MulRule {
    pub(crate) ratio: f32,
    pub(crate) a: Quantisation,
    pub(crate) b: Quantisation,
    pub(crate) y: Quantisation,
}

impl MulRule {
    pub(crate) fn new(a: &Quantisation, b: &Quantisation, y: &Quantisation) -> Self {
        Self { ratio: a.scale() * b.scale() / y.scale(), a: *a, b: *b, y: *y }
    }

    pub(crate) fn is_finite(&self) -> bool {
        self.ratio.is_finite()
    }

    /// Whether no result before it is limited is beyond the range of i32.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn saturates(&self) -> bool {
        self.ratio.abs() < 1e4
    }

    #[inline(always)]
    pub(crate) fn apply(&self, a: u8, b: u8) -> u8 {
        let a = self.a.element().widen(a) - self.a.zero_point();
        let b = self.b.element().widen(b) - self.b.zero_point();
        let (low, high) = self.y.range();
        let product = (a * b) as f32 * self.ratio + self.y.zero_point() as f32;
        round(clamp(product, low as f32, high as f32)) as u8
    }
}

/// What [`average`] needs beside the sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mean {
    pub(crate) from: Quantisation,
    pub(crate) to: Quantisation,
    pub(crate) count: usize,
}

/// QLinearAveragePool: the mean of real values, then division by the scale, zero point, rounding.
#[inline(always)]
pub(crate) fn average(sum: f32, count: usize, y: &Quantisation) -> u8 {
    let (low, high) = y.range();
    let value = sum / count as f32 / y.scale() + y.zero_point() as f32;
    round(clamp(value, low as f32, high as f32)) as u8
}

/// Multiplier of QLinearGlobalAveragePool, applied to `Σ (x − x_zero)`.
pub(crate) fn global_average_multiplier(x_scale: f32, y_scale: f32, pixels: usize) -> f32 {
    x_scale / (y_scale * pixels as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_ties_to_even_over_the_whole_range() {
        for half in -4000..4000 {
            let value = half as f32 / 2.0;
            assert_eq!(round(value), value.round_ties_even() as i32, "{value}");
        }
    }

    #[test]
    fn quantises_nan_and_infinities_to_the_ends() {
        let to = Quantisation::new(ElementType::S8, 0.5, 3).unwrap();
        assert_eq!(quantise(f32::NAN, &to) as i8, -128);
        assert_eq!(quantise(f32::NEG_INFINITY, &to) as i8, -128);
        assert_eq!(quantise(f32::INFINITY, &to) as i8, 127);
        assert_eq!(quantise(0.25, &to) as i8, 3); // 0.5 is a tie; even is 0
        assert_eq!(quantise(0.75, &to) as i8, 5);
    }

    /// The values around all bounds between stored values, for many scales: where a quotient that is slightly off
    /// could round to another integer.
    #[test]
    fn quantises_by_an_inverse_as_by_division() {
        let mut random = 1u64;
        let mut taken = 0;
        for case in 0..3000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let any = (random >> 41) as u32;
            // Significands near those that have no inverse, too.
            let significand = match case % 4 {
                0 => any & !0x3fff | 9,
                1 => any & !0x3fff | 0x3ff7,
                2 => any & !0x3fff,
                _ => any,
            };
            let exponent = 127 + (random >> 20) as u32 % 40 - 20;
            let scale = f32::from_bits(exponent << 23 | significand & 0x7f_ffff);
            let Some([high, low]) = inverse(scale) else { continue };
            taken += 1;
            for half in (1..512).step_by(2) {
                let nearest = (half as f32 / 2.0 * scale).to_bits();
                for bits in nearest - 3..=nearest + 3 {
                    for value in [f32::from_bits(bits), -f32::from_bits(bits)] {
                        let found = value.mul_add(high, value * low).round_ties_even();
                        let expected = (value / scale).round_ties_even();
                        assert_eq!(found, expected, "{value:e} / {scale:e}");
                    }
                }
            }
        }
        assert!(taken > 2900, "{taken}");
    }

    #[test]
    fn some_scales_have_no_inverse() {
        for scale in [f32::from_bits(0x3f80_0001), 1.999_999_9, 1e-20, 1e20] {
            assert_eq!(inverse(scale), None, "{scale:e}");
        }
        assert_eq!(inverse(0.5), Some([2.0, 0.0]));
    }
}
