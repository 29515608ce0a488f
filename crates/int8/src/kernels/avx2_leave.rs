//! How whole blocks of sums leave with AVX2: requantised, and added to what a residual sum adds, from the registers they are in.
//! Other blocks leave by `avx2_epilogue.rs`.

use std::arch::x86_64::*;

use crate::kernels::avx2_epilogue::{finish, is_whole, keeps_limits};
use crate::kernels::{BLOCK, Epilogue, Multiply, Role, Sum};
use crate::tensor::ElementType;

/// How a block of channels leaves.
#[derive(Clone, Copy)]
pub(crate) enum Leave {
    /// Whole, without a residual sum, as [`Epilogue::is_plain`] says: u8.
    Unsigned,
    /// The same, s8.
    Signed,
    /// Whole, with a residual sum.
    Sum,
    Wide,
    /// At most 8 channels.
    Narrow,
}

impl Leave {
    pub(crate) fn new(call: &Multiply<'_>, channel: usize) -> Self {
        match call.channels.end - channel {
            BLOCK.. if call.epilogue.is_plain() && call.epilogue.low < 0 => Self::Signed,
            BLOCK.. if call.epilogue.is_plain() => Self::Unsigned,
            BLOCK.. if call.epilogue.sum.is_some() => Self::Sum,
            count if count > BLOCK / 2 => Self::Wide,
            _ => Self::Narrow,
        }
    }
}

/// Calls a function of tiles with a strip's height, the halves of a block and how it leaves, as constants.
macro_rules! by_height {
    ($leave:expr, $strip:expr, [$($height:literal),*], $tiles:ident $arguments:tt) => {
        match ($leave, $strip.height) {
            $(
                (Leave::Unsigned, $height) => $tiles::<$height, 2, UNSIGNED> $arguments,
                (Leave::Signed, $height) => $tiles::<$height, 2, SIGNED> $arguments,
                (Leave::Sum, $height) => $tiles::<$height, 2, SUM> $arguments,
                (Leave::Wide, $height) => $tiles::<$height, 2, ANY> $arguments,
                (Leave::Narrow, $height) => $tiles::<$height, 1, ANY> $arguments,
            )*
            // A strip without tiles.
            _ => {}
        }
    };
}
pub(crate) use by_height;

/// [`Leave`] as a constant.
pub(crate) const UNSIGNED: u8 = 0;
pub(crate) const SIGNED: u8 = 1;
pub(crate) const SUM: u8 = 2;
pub(crate) const ANY: u8 = 3;

/// The epilogue of a tile.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
pub(crate) unsafe fn leave<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    // SAFETY: outputs and other operands were checked for whole blocks of channels.
    unsafe {
        match LEAVE {
            // A copy, so that the sums themselves stay in registers.
            ANY => finish::<ROWS, HALVES>(call, &{ *sums }, row, channel),
            SUM => finish_sum::<ROWS, HALVES>(call, constants, sums, row, channel),
            _ => finish_plain::<ROWS, HALVES, LEAVE>(call, constants, sums, row, channel),
        }
    }
}

/// The constants of an epilogue in memory, for registers are for sums.
#[repr(align(32))]
pub(crate) struct Constants {
    multipliers: [[f32; 8]; 2],
    zero_point: [i16; 16],
    low: [u8; 32],
    high: [u8; 32],
    /// Whether the limits are not those of the stored type.
    limits: bool,
    joint: Joint,
}

/// The constants of a residual sum.
#[repr(align(32))]
#[derive(Default)]
struct Joint {
    /// Zero point and limits of the convolution's own values.
    zero_point: [f32; 8],
    low: [f32; 8],
    high: [f32; 8],
    /// What own values and the others are multiplied by.
    own: [f32; 8],
    other: [f32; 8],
    fixed: [f32; 8],
    /// Limits of the sum.
    least: [f32; 8],
    most: [f32; 8],
    limits: bool,
    own_is_first: bool,
    other_is_signed: bool,
    is_signed: bool,
}

impl Constants {
    pub(crate) fn new(epilogue: &Epilogue, channel: usize) -> Self {
        let (multipliers, _) = epilogue.multipliers[channel..][..BLOCK].as_chunks();
        Self {
            multipliers: [multipliers[0], multipliers[1]],
            zero_point: [epilogue.zero_point as i16; 16],
            low: [epilogue.low as u8; 32],
            high: [epilogue.high as u8; 32],
            limits: !is_whole(epilogue.low, epilogue.high),
            joint: epilogue.sum.as_ref().map(|sum| Joint::new(epilogue, sum)).unwrap_or_default(),
        }
    }
}

impl Joint {
    fn new(epilogue: &Epilogue, Sum { rule, role }: &Sum) -> Self {
        let own_is_first = *role == Role::First;
        let (own, other) = (rule.ratio_a, rule.ratio_b);
        let (own, other) = if own_is_first { (own, other) } else { (other, own) };
        let element = if own_is_first { rule.element_b } else { rule.element_a };
        Self {
            zero_point: [epilogue.zero_point as f32; 8],
            low: [epilogue.low as f32; 8],
            high: [epilogue.high as f32; 8],
            own: [own; 8],
            other: [other; 8],
            fixed: [rule.fixed; 8],
            least: [rule.low as f32; 8],
            most: [rule.high as f32; 8],
            limits: !keeps_limits(rule),
            own_is_first,
            other_is_signed: element == ElementType::S8,
            is_signed: rule.low < 0,
        }
    }
}

/// The same pointer, of unknown origin: the compiler would otherwise compute each row's address from the one before,
/// in a chain of additions as long as the multiplications take.
#[inline(always)]
pub(crate) fn opaque<T>(pointer: *const T) -> *const T {
    let mut address = pointer.addr();
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) address,
            options(pure, nomem, nostack, preserves_flags));
    }
    pointer.with_addr(address)
}

/// The epilogue of whole blocks without a residual sum. Compiled as a part of the tile, so that sums stay in registers.
///
/// # Safety
/// As for [`tiles`]; the epilogue is plain, `HALVES` is 2 and there are 16 channels.
#[inline(always)]
unsafe fn finish_plain<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    // SAFETY: outputs hold 16 more bytes. The machine has the instructions.
    unsafe {
        let constants = &*opaque(constants);
        let [low, high] =
            [&constants.low, &constants.high].map(|limit| _mm256_load_si256(limit.as_ptr().cast()));
        let zero_point = _mm256_load_si256(constants.zero_point.as_ptr().cast());
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let outputs = call.outputs.as_ptr().add(row);
        // Of 8 channels: scaled and rounded. Every product fits, and what follows saturates.
        macro_rules! scaled {
            ($row:expr, $half:literal) => {{
                let value = _mm256_cvtepi32_ps(sums[$row][$half % HALVES]);
                let multipliers = _mm256_load_ps(constants.multipliers[$half].as_ptr());
                _mm256_cvtps_epi32(_mm256_mul_ps(value, multipliers))
            }};
        }
        macro_rules! words {
            ($row:expr) => {
                _mm256_adds_epi16(
                    _mm256_packs_epi32(scaled!($row, 0), scaled!($row, 1)),
                    zero_point,
                )
            };
        }
        // Two rows at once; a last odd one is its own partner.
        macro_rules! pairs {
            ($($first:literal),*) => { $(if $first < ROWS {
                let (upper, lower) = ($first % ROWS, ($first + 1).min(ROWS - 1));
                let words = [words!(upper), words!(lower)];
                let mut bytes = if LEAVE == SIGNED {
                    _mm256_packs_epi16(words[0], words[1])
                } else {
                    _mm256_packus_epi16(words[0], words[1])
                };
                if constants.limits {
                    bytes = if LEAVE == SIGNED {
                        _mm256_min_epi8(_mm256_max_epi8(bytes, low), high)
                    } else {
                        _mm256_min_epu8(_mm256_max_epu8(bytes, low), high)
                    };
                }
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                let to = arena.add(*outputs.add(upper) + channel);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
                if upper != lower {
                    let to = arena.add(*outputs.add(lower) + channel);
                    _mm_storeu_si128(to.cast(), _mm256_extracti128_si256::<1>(bytes));
                }
            })* };
        }
        pairs!(0, 2, 4);
    }
}

/// The epilogue of whole blocks with a residual sum, whose own values stay f32: they are whole numbers, so nothing is lost.
///
/// # Safety
/// As for [`tiles`]; there is a sum, `HALVES` is 2 and there are 16 channels.
#[inline(always)]
unsafe fn finish_sum<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    // SAFETY: outputs and other operands hold 16 more bytes. The machine has the instructions.
    unsafe {
        let constants = &*opaque(constants);
        let joint = &constants.joint;
        let load = |values: &[f32; 8]| _mm256_load_ps(values.as_ptr());
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let (outputs, others) = (call.outputs.as_ptr().add(row), call.others.as_ptr().add(row));
        macro_rules! joined {
            ($row:expr, $half:literal, $other:expr) => {{
                let value = _mm256_cvtepi32_ps(sums[$row][$half % HALVES]);
                let value = _mm256_mul_ps(value, load(&constants.multipliers[$half]));
                let value = _mm256_round_ps::<_MM_FROUND_CUR_DIRECTION>(value);
                let value = _mm256_add_ps(value, load(&joint.zero_point));
                let own = _mm256_min_ps(_mm256_max_ps(value, load(&joint.low)), load(&joint.high));
                let bytes = _mm_loadl_epi64($other.add(8 * $half).cast());
                let other = _mm256_cvtepi32_ps(match joint.other_is_signed {
                    false => _mm256_cvtepu8_epi32(bytes),
                    true => _mm256_cvtepi8_epi32(bytes),
                });
                let (own_ratio, other_ratio) = (load(&joint.own), load(&joint.other));
                let mut sum = load(&joint.fixed);
                if joint.own_is_first {
                    sum = _mm256_fmadd_ps(other, other_ratio, sum);
                    sum = _mm256_fmadd_ps(own, own_ratio, sum);
                } else {
                    sum = _mm256_fmadd_ps(own, own_ratio, sum);
                    sum = _mm256_fmadd_ps(other, other_ratio, sum);
                }
                if joint.limits {
                    sum = _mm256_max_ps(sum, load(&joint.least));
                    sum = _mm256_min_ps(sum, load(&joint.most));
                }
                _mm256_cvtps_epi32(sum)
            }};
        }
        macro_rules! words {
            ($row:expr) => {{
                let other = arena.add(*others.add($row) + channel).cast_const();
                _mm256_packs_epi32(joined!($row, 0, other), joined!($row, 1, other))
            }};
        }
        // Two rows at once; a last odd one is its own partner.
        macro_rules! pairs {
            ($($first:literal),*) => { $(if $first < ROWS {
                let (upper, lower) = ($first % ROWS, ($first + 1).min(ROWS - 1));
                let words = [words!(upper), words!(lower)];
                let bytes = match joint.is_signed {
                    true => _mm256_packs_epi16(words[0], words[1]),
                    false => _mm256_packus_epi16(words[0], words[1]),
                };
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                let to = arena.add(*outputs.add(upper) + channel);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
                if upper != lower {
                    let to = arena.add(*outputs.add(lower) + channel);
                    _mm_storeu_si128(to.cast(), _mm256_extracti128_si256::<1>(bytes));
                }
            })* };
        }
        pairs!(0, 2, 4);
    }
}
