//! How whole blocks of sums leave with AVX2: requantised, and added to what a residual sum adds, from the registers they are in.
//! Other blocks leave by `avx2_epilogue.rs`.

use std::arch::x86_64::*;

use crate::kernels::avx2_epilogue::{finish, is_whole};
use crate::kernels::{BLOCK, Epilogue, Multiply, Role, Sum};
use crate::tensor::ElementType;

/// How a block of channels leaves.
#[derive(Clone, Copy)]
pub(crate) struct Leave {
    /// One of the constants below.
    pub(crate) kind: u8,
    /// Halves of a block that it takes.
    pub(crate) halves: usize,
}

/// Whole halves without a residual sum, as [`Epilogue::is_plain`] says, whose limits are not negative.
pub(crate) const UNSIGNED: u8 = 0;
/// The same with a negative limit.
pub(crate) const SIGNED: u8 = 1;
/// Whole halves with a residual sum.
pub(crate) const SUM: u8 = 2;
/// Any number of channels.
pub(crate) const ANY: u8 = 3;

impl Leave {
    pub(crate) fn new(call: &Multiply<'_>, channel: usize) -> Self {
        let count = (call.channels.end - channel).min(BLOCK);
        let kind = match call.epilogue {
            _ if !count.is_multiple_of(BLOCK / 2) => ANY,
            Epilogue { sum: Some(_), .. } => SUM,
            epilogue if !epilogue.is_plain() => ANY,
            Epilogue { low: ..0, .. } => SIGNED,
            _ => UNSIGNED,
        };
        Self { kind, halves: count.div_ceil(BLOCK / 2) }
    }
}

/// Calls a function of tiles with a strip's height, the halves of a block and how it leaves, as constants.
macro_rules! by_height {
    ($leave:expr, $strip:expr, [$($height:literal),*], $tiles:ident $arguments:tt) => {
        match ($leave.kind, $leave.halves, $strip.height) {
            $(
                (UNSIGNED, 2, $height) => $tiles::<$height, 2, UNSIGNED> $arguments,
                (UNSIGNED, _, $height) => $tiles::<$height, 1, UNSIGNED> $arguments,
                (SIGNED, 2, $height) => $tiles::<$height, 2, SIGNED> $arguments,
                (SIGNED, _, $height) => $tiles::<$height, 1, SIGNED> $arguments,
                (SUM, 2, $height) => $tiles::<$height, 2, SUM> $arguments,
                (SUM, _, $height) => $tiles::<$height, 1, SUM> $arguments,
                (ANY, 2, $height) => $tiles::<$height, 2, ANY> $arguments,
                (ANY, _, $height) => $tiles::<$height, 1, ANY> $arguments,
            )*
            // A strip without tiles.
            _ => {}
        }
    };
}
pub(crate) use by_height;

/// The epilogue of a tile.
///
/// # Safety
/// As for a table's tiles.
#[inline(always)]
pub(crate) unsafe fn leave<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    // SAFETY: no more than the block's own channels are stored; other operands were checked for whole blocks.
    unsafe {
        match LEAVE {
            // A copy, so that the sums themselves stay in registers.
            ANY => finish::<ROWS, HALVES>(call, &{ *sums }, row, channel),
            SUM => finish_sum::<ROWS, HALVES>(call, constants, sums, row, channel),
            _ => finish_plain::<ROWS, HALVES, LEAVE>(call, constants, sums, row, channel),
        }
    }
}

/// The constants of an epilogue in memory, for registers are for sums. Vectors come first, so that all are aligned as the whole is.
#[repr(C, align(32))]
pub(crate) struct Constants {
    zero_point: [i16; 16],
    low: [u8; 32],
    high: [u8; 32],
    /// Whether the limits are not those of the stored type.
    limits: bool,
    joint: Joint,
}

/// The constants of a residual sum, laid out likewise.
#[repr(C, align(32))]
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
    pub(crate) fn new(epilogue: &Epilogue) -> Self {
        Self {
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
            limits: !rule.saturates(),
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

/// Calls a macro with each four vectors of a tile's sums, of which there are 12 at most, and stores the bytes that it makes of
/// them: 8 channels of a row each. Behind the last vector it stands in for itself.
macro_rules! quads {
    ($call:expr, $row:expr, $channel:expr, $bytes:ident) => {
        let arena = $call.arena.as_ptr().cast::<u8>().cast_mut();
        let outputs = $call.outputs.as_ptr().add($row);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let last = ROWS * HALVES - 1;
        let to = |nth: usize| arena.add(*outputs.add(nth / HALVES) + $channel);
        macro_rules! quad {
            ($first:literal) => {
                if $first < ROWS * HALVES {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|nth| ($first + nth).min(last));
                    let bytes = _mm256_permutevar8x32_epi32($bytes!(a, b, c, d), order);
                    let upper = _mm256_castsi256_si128(bytes);
                    let lower = _mm256_extracti128_si256::<1>(bytes);
                    if HALVES == 2 {
                        _mm_storeu_si128(to(a).cast(), upper);
                        if c > b {
                            _mm_storeu_si128(to(c).cast(), lower);
                        }
                    } else {
                        _mm_storel_epi64(to(a).cast(), upper);
                        if b > a {
                            _mm_storeh_pd(to(b).cast(), _mm_castsi128_pd(upper));
                        }
                        if c > b {
                            _mm_storel_epi64(to(c).cast(), lower);
                        }
                        if d > c {
                            _mm_storeh_pd(to(d).cast(), _mm_castsi128_pd(lower));
                        }
                    }
                }
            };
        }
        quad!(0);
        quad!(4);
        quad!(8);
    };
}

/// The epilogue of whole halves of a block without a residual sum. Compiled as a part of the tile, so that sums stay in registers.
///
/// # Safety
/// As for a table's tiles; the epilogue is plain, and there are `HALVES` · 8 channels.
#[inline(always)]
unsafe fn finish_plain<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    // SAFETY: outputs hold so many more bytes, multipliers are padded to whole blocks. The machine has the instructions.
    unsafe {
        let constants = &*opaque(constants);
        let multipliers = opaque(call.epilogue.multipliers.as_ptr().add(channel));
        let [low, high] =
            [&constants.low, &constants.high].map(|limit| _mm256_load_si256(limit.as_ptr().cast()));
        let zero_point = _mm256_load_si256(constants.zero_point.as_ptr().cast());
        // Of 8 channels: scaled and rounded. Every product fits, and what follows saturates.
        macro_rules! scaled {
            ($nth:expr) => {{
                let (row, half) = ($nth / HALVES, $nth % HALVES);
                let value = _mm256_cvtepi32_ps(sums[row][half]);
                let multipliers = _mm256_loadu_ps(multipliers.add(8 * half));
                _mm256_cvtps_epi32(_mm256_mul_ps(value, multipliers))
            }};
        }
        macro_rules! bytes {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {{
                let first = _mm256_packs_epi32(scaled!($a), scaled!($b));
                let second = _mm256_packs_epi32(scaled!($c), scaled!($d));
                let [first, second] =
                    [first, second].map(|words| _mm256_adds_epi16(words, zero_point));
                let bytes = if LEAVE == SIGNED {
                    _mm256_packs_epi16(first, second)
                } else {
                    _mm256_packus_epi16(first, second)
                };
                if !constants.limits {
                    bytes
                } else if LEAVE == SIGNED {
                    _mm256_min_epi8(_mm256_max_epi8(bytes, low), high)
                } else {
                    _mm256_min_epu8(_mm256_max_epu8(bytes, low), high)
                }
            }};
        }
        quads!(call, row, channel, bytes);
    }
}

/// The same with a residual sum. Own values stay f32: they are whole numbers, so nothing is lost.
///
/// # Safety
/// As for a table's tiles; there is a sum, and there are `HALVES` · 8 channels.
#[inline(always)]
unsafe fn finish_sum<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    // SAFETY: outputs and other operands hold so many more bytes, multipliers are padded to whole blocks. The machine has the
    // instructions.
    unsafe {
        let constants = &*opaque(constants);
        let multipliers = opaque(call.epilogue.multipliers.as_ptr().add(channel));
        let joint = &constants.joint;
        let load = |values: &[f32; 8]| _mm256_load_ps(values.as_ptr());
        let (from, others) = (call.arena.as_ptr().cast::<u8>(), call.others.as_ptr().add(row));
        macro_rules! joined {
            ($nth:expr) => {{
                let (row, half) = ($nth / HALVES, $nth % HALVES);
                let value = _mm256_cvtepi32_ps(sums[row][half]);
                let value = _mm256_mul_ps(value, _mm256_loadu_ps(multipliers.add(8 * half)));
                let value = _mm256_round_ps::<_MM_FROUND_CUR_DIRECTION>(value);
                let value = _mm256_add_ps(value, load(&joint.zero_point));
                let own = _mm256_min_ps(_mm256_max_ps(value, load(&joint.low)), load(&joint.high));
                let other = from.add(*others.add(row) + channel + 8 * half);
                let other = _mm_loadl_epi64(other.cast());
                let other = _mm256_cvtepi32_ps(match joint.other_is_signed {
                    false => _mm256_cvtepu8_epi32(other),
                    true => _mm256_cvtepi8_epi32(other),
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
        macro_rules! bytes {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {{
                let first = _mm256_packs_epi32(joined!($a), joined!($b));
                let second = _mm256_packs_epi32(joined!($c), joined!($d));
                match joint.is_signed {
                    true => _mm256_packs_epi16(first, second),
                    false => _mm256_packus_epi16(first, second),
                }
            }};
        }
        quads!(call, row, channel, bytes);
    }
}
